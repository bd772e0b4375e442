"""Redis: presence, which may vanish at any moment. Nothing is written to disk."""

import os
import re
import shutil
import socket
from pathlib import Path

from . import place, process
from .place import Refusal

VERSION = "7.0.15"
NEVER_FETCHED = {"libc6", "adduser", "debconf", "init-system-helpers", "lsb-base"}


def _home():
    return place.installed_dir("redis", VERSION)


def _own():
    """A server that the person wants instead of the pinned one."""
    given = os.environ.get("CHAPPE_TEST_DEPS_REDIS_SERVER")
    return Path(given) if given else None


def installed():
    return _own() is not None or (_home() / "bin" / "redis-server").exists()


def _version(binary, libraries=None):
    env = {**os.environ, **({"LD_LIBRARY_PATH": str(libraries)} if libraries else {})}
    _, told, errors = process.run(binary, "--version", env=env)
    found = re.search(r"v=(\S+)", told)
    return found.group(1) if found else (told + errors).strip().partition("\n")[0]


def version():
    return _version(_own()) if _own() else VERSION


def _apt(folder, options):
    """Fetches the server and the libraries this machine lacks, unpacked in `folder`. None if it worked, else why not."""
    _, offered, _ = process.run("apt-cache", *options, "madison", "redis-tools")
    versions = [line.split("|")[1].strip() for line in offered.splitlines() if "|" in line]
    pinned = [one for one in versions if re.search(rf"(^|:){re.escape(VERSION)}(\D|$)", one)]
    if not pinned:
        return f"apt offers {', '.join(dict.fromkeys(versions)) or 'no redis-tools'}, wanted {VERSION}"
    code, _, errors = process.run("apt-get", *options, "download", f"redis-tools={pinned[0]}", cwd=folder)
    if code != 0:
        return f"apt-get download: {process.last_line(errors)}"
    (package,) = folder.glob("redis-tools_*.deb")
    _, needs, _ = process.run("dpkg-deb", "-f", package, "Depends")
    names = [re.split(r"[ |(:]", need.strip())[0] for need in needs.split(",")]
    for name in names:
        _, have, _ = process.run("dpkg-query", "-W", "-f", "${db:Status-Status}", name)
        if name and name not in NEVER_FETCHED and have != "installed":
            code, _, errors = process.run("apt-get", *options, "download", name, cwd=folder)
            if code != 0:
                return f"apt-get download {name}: {process.last_line(errors)}"
    for package in folder.glob("*.deb"):
        process.run("dpkg-deb", "-x", package, folder / "root")
    return None


def _from_apt(folder):
    """By the machine's package lists; where they are missing or old, by lists of our own. Root is not needed for either."""
    sandbox = ["-o", "APT::Sandbox::User=root"] if os.getuid() == 0 else []
    trouble = _apt(folder, sandbox)
    if trouble:
        lists, cache = folder / "lists", folder / "cache"
        (lists / "partial").mkdir(parents=True)
        (cache / "archives" / "partial").mkdir(parents=True)
        own = [*sandbox, "-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={cache}"]
        process.run("apt-get", *own, "update")
        for leftover in folder.glob("*.deb"):
            leftover.unlink()
        trouble = _apt(folder, own)
        shutil.rmtree(lists)
        shutil.rmtree(cache)
    if trouble:
        return trouble
    (folder / "bin").mkdir()
    (folder / "lib").mkdir()
    # Debian ships the server under the name of its checker; the name it is called by decides what it does.
    os.rename(folder / "root/usr/bin/redis-check-rdb", folder / "bin/redis-server")
    os.rename(folder / "root/usr/bin/redis-cli", folder / "bin/redis-cli")
    for library in (folder / "root").rglob("*.so*"):
        os.rename(library, folder / "lib" / library.name)
    shutil.rmtree(folder / "root")
    for package in folder.glob("*.deb"):
        package.unlink()
    found = _version(folder / "bin/redis-server", folder / "lib")
    return None if found == VERSION else f"the fetched server says: {found}"


def install():
    present = shutil.which("redis-server") or shutil.which("redis-server", path="/usr/bin:/usr/local/bin")
    with place.whole(_home()) as folder:
        if present and _version(present) == VERSION:
            (folder / "bin").mkdir()
            (folder / "bin/redis-server").symlink_to(present)
            return
        trouble = "apt-get is not on PATH" if shutil.which("apt-get") is None else _from_apt(folder)
        if trouble:
            here = f"{present} is {_version(present)}" if present else "no redis-server on PATH"
            raise Refusal(
                f"redis: no Redis {VERSION}: {here}; {trouble}\n"
                "  do: install it, or name another 7.x in CHAPPE_TEST_DEPS_REDIS_SERVER=/path/to/redis-server"
            )


def check(chosen):
    own = _own()
    if own and not re.match(r"7\.\d", _version(own)):
        raise Refusal(f"redis: CHAPPE_TEST_DEPS_REDIS_SERVER={own}: wanted a Redis 7, it says: {_version(own)}")


def command(server):
    server.data.mkdir(parents=True, exist_ok=True)
    config = server.dir / "redis.conf"
    place.fill("redis.conf", config, {"port": server.port(), "data": server.data})
    return [_own() or _home() / "bin" / "redis-server", config], {"LD_LIBRARY_PATH": str(_home() / "lib")}


def ready(server, peers_up):
    """None if it answers PING, else what went wrong."""
    try:
        with socket.create_connection((server.host, server.port()), timeout=1.0) as stream:
            stream.sendall(b"PING\r\n")
            answer = stream.recv(64)
    except OSError as error:
        return f"PING: {error}"
    return None if answer == b"+PONG\r\n" else f"PING: {answer!r}"
