"""Where things are: folders, ports, the servers there can be, and what goes wrong.

Everything written lies under one folder, `.deps/` of the checkout (or CHAPPE_TEST_DEPS_DIR):
  installed/<part>-<version>/   complete or absent, never half
  run/<port base>/<server>/     config, data, log and pid file of one server
"""

import contextlib
import fcntl
import os
import shutil
import sys
import time
from collections import namedtuple
from pathlib import Path

USAGE, UNAVAILABLE = 64, 69  # sysexits.h
ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "dev" / "conf"
PORT_BASE_DEFAULT = 17440
PORTS = 30  # how many ports from the base on belong to one checkout


class Refusal(Exception):
    """Said to the person as it stands: what, why, and what to do."""

    def __init__(self, message, code=UNAVAILABLE):
        super().__init__(message)
        self.code = code


def say(line):
    print(line, file=sys.stderr, flush=True)


def port_base():
    text = os.environ.get("CHAPPE_TEST_DEPS_PORT_BASE", "") or str(PORT_BASE_DEFAULT)
    if not text.isascii() or not text.isdigit() or not 1024 <= int(text) <= 65535 - PORTS:
        raise Refusal(f"CHAPPE_TEST_DEPS_PORT_BASE={text!r}: wanted a port from 1024 to {65535 - PORTS} ({PORTS} ports from it on are used)", USAGE)
    return int(text)


def deps_dir():
    given = os.environ.get("CHAPPE_TEST_DEPS_DIR")
    return Path(given).resolve() if given else ROOT / ".deps"


def run_dir():
    return deps_dir() / "run" / str(port_base())


def installed_dir(part, version):
    return deps_dir() / "installed" / f"{part}-{version}"


class Server(namedtuple("Server", "name part cluster host ports")):
    """One process. `cluster` is the set that it forms with others: nats1, nats3, redis, cql1, cql3. `host` is a loopback address,
    `ports` are (what for, port) pairs; Chappe connects to the one for "client"."""

    __slots__ = ()

    def port(self, use="client"):
        return dict(self.ports)[use]

    @property
    def dir(self):
        return run_dir() / self.name

    @property
    def data(self):
        return self.dir / "data"

    @property
    def log(self):
        return self.dir / "server.log"

    @property
    def address(self):
        return f"{self.host}:{self.port()}"


def servers():
    """Every server there can be, by name, in the order in which they are started."""
    base = port_base()
    local = "127.0.0.1"
    every = [Server("nats", "nats", "nats1", local, (("client", base), ("monitor", base + 1)))]
    every += [
        Server(f"nats-{i}", "nats", "nats3", local, (("client", base + 9 + i), ("monitor", base + 12 + i), ("route", base + 15 + i)))
        for i in (1, 2, 3)
    ]
    every.append(Server("redis", "redis", "redis", local, (("client", base + 2),)))
    every.append(Server("cql", "cql", "cql1", local, (("client", base + 3), ("storage", base + 4))))
    # Drivers take every node's port from the first contact, so the three share a port and differ in the address.
    every += [Server(f"cql-{i}", "cql", "cql3", f"127.0.0.{i}", (("client", base + 20), ("storage", base + 21))) for i in (1, 2, 3)]
    return {server.name: server for server in every}


PROFILES = {"one": ("nats1", "redis", "cql1"), "three": ("nats3", "redis", "cql3"), "all": ("nats1", "nats3", "redis", "cql1", "cql3")}


def select(words):
    """The servers that profiles, sets (`cql3`) and server names (`cql-2`) name together."""
    every = servers()
    chosen = set()
    for word in words:
        clusters = PROFILES.get(word, (word,))
        found = {s.name for s in every.values() if s.name == word or s.cluster in clusters}
        if not found:
            known = [*PROFILES, *dict.fromkeys(s.cluster for s in every.values()), *(n for n in every if n != "redis")]
            raise Refusal(f"{word!r} is neither a profile nor a part nor a server; known: {' '.join(known)}", USAGE)
        chosen |= found
    return [server for name, server in every.items() if name in chosen]


def fill(template, target, values):
    """Writes `template` from dev/conf to `target` with each {{name}} filled in; a name without a value is a bug."""
    text = (CONF / template).read_text()
    for name, value in values.items():
        text = text.replace("{{%s}}" % name, str(value))
    if "{{" in text:
        raise AssertionError(f"{template}: no value for {text[text.index('{{'):][:40]}")
    target.write_text(text)


@contextlib.contextmanager
def lock(path, wait_s=300):
    """One at a time, over processes. The lock dies with its holder, so a killed run blocks nobody."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        deadline = time.monotonic() + wait_s
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                if time.monotonic() > deadline:
                    raise Refusal(f"another dev/deps (pid {holder}) has held {path} for {wait_s} s; end it or wait for it") from None
                if not told:
                    say(f"waiting for another dev/deps (pid {holder})")
                    told = True
                time.sleep(0.1)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@contextlib.contextmanager
def whole(target):
    """A folder to fill: it becomes `target` if the block succeeds, and is gone if it does not. Call it under a lock."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".{target.name}.*"):  # of a run that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    folder = target.parent / f".{target.name}.{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
        os.rename(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def command(name, main):
    """Runs a script's `main` on its arguments and ends the process by what became of it."""
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
        sys.exit(code)
    except Refusal as refusal:
        say(f"{name}: {refusal}")
        sys.exit(refusal.code)
    except BrokenPipeError:
        # Whoever read along has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        say(f"{name}: interrupted; what was started runs on ({name} status)")
        sys.exit(130)
