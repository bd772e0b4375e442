"""Processes that outlive the script that started them.

A pid alone is no name: pids are given again. The pid file holds the pid, its start tick and the boot it belongs to, written by
the child before it becomes the server, so there is no moment in which a server runs that nobody has written down. Signals go
through a pid file descriptor opened before that check, so they cannot hit a successor.
"""

import contextlib
import os
import signal
import time

from .place import Refusal


def run(*argv, **options):
    """Runs a program to its end; (exit code, output, errors). A program that cannot be run is one that failed."""
    import subprocess  # here, because most commands run nothing and loading it takes longer than they do

    try:
        done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, **options)
    except OSError as error:
        return 127, "", f"cannot run {argv[0]}: {error.strerror}"
    return done.returncode, done.stdout, done.stderr


def last_line(errors):
    return (errors.strip().splitlines() or ["no reason given"])[-1]


def _stat(pid):
    """(state letter, start tick) of a process, or None."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0], fields[19]


def _boot():
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def _pid_file(server):
    return server.dir / "pid"


def _write_pid(server):
    """Runs in the child, between fork and exec."""
    pid = os.getpid()
    fresh = server.dir / "pid.new"
    fresh.write_text(f"{pid} {_stat(pid)[1]} {_boot()}\n")
    os.rename(fresh, _pid_file(server))


def written_down(server):
    """Whether the server was started and not stopped since."""
    return _pid_file(server).exists()


def alive(server):
    """The pid of this very server, or None where it is stopped, dead, or a zombie nobody has reaped."""
    try:
        pid, tick, boot = _pid_file(server).read_text().split()
    except (FileNotFoundError, ValueError):
        return None
    now = _stat(pid)
    if now is None or now[1] != tick or now[0] in "ZX" or boot != _boot():
        return None
    return int(pid)


def paused(pid):
    now = _stat(pid)
    return now is not None and now[0] in "Tt"


def rss_kb(pid):
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/status") as file:
            for line in file:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1])
    return None


def launch(server, argv, env):
    """Starts the server in its own session, with its output in its log (the log of the run before is kept as server.log.1)."""
    import subprocess

    if server.log.exists():
        os.replace(server.log, server.log.with_suffix(".log.1"))
    # A clean environment: a database needs nothing of what a shell or a CI job holds.
    clean = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LANG": "C.UTF-8", "HOME": str(server.dir), **env}
    with open(server.log, "ab") as log:
        try:
            subprocess.Popen(  # noqa: PLW1509 (one thread, and the child only writes its pid)
                [str(word) for word in argv],
                cwd=server.dir, env=clean, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=lambda: _write_pid(server),
            )
        except OSError as error:
            forget(server)
            raise Refusal(f"{server.name}: cannot run {argv[0]}: {error.strerror}") from error


def send(server, number):
    """Sends a signal to this very server. False where it does not run."""
    pid = alive(server)
    if pid is None:
        return False
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if alive(server) != pid:
            return False
        signal.pidfd_send_signal(handle, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)


def gone(server, wait_s):
    """Waits until the server has ended; False if it still runs after `wait_s`."""
    import select

    deadline = time.monotonic() + wait_s
    while (pid := alive(server)) is not None:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            try:
                select.select([handle], [], [], min(left, 1.0))  # readable when it ends, reaped or not
            finally:
                os.close(handle)
    return True


def forget(server):
    _pid_file(server).unlink(missing_ok=True)


def stop(chosen, gently=True, wait_s=20):
    """Ends servers, all at once: asks (SIGTERM), and after `wait_s` does not ask. Returns those that had to be killed."""
    for server in chosen:
        send(server, signal.SIGTERM if gently else signal.SIGKILL)
        send(server, signal.SIGCONT)  # a paused process takes its SIGTERM only when it runs again
    deadline = time.monotonic() + wait_s
    stubborn = [server for server in chosen if not gone(server, max(0, deadline - time.monotonic()))]
    for server in stubborn:
        send(server, signal.SIGKILL)
        if not gone(server, 10):
            raise Refusal(f"{server.name}: pid {alive(server)} does not end, not even by SIGKILL (stuck on a disk?)")
    for server in chosen:
        forget(server)
    return stubborn
