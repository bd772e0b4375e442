"""Redis: presence, which may vanish at any moment. Nothing is written to disk."""

import os
import re
import shutil
import socket
from pathlib import Path

from . import debian, place, process
from .place import Refusal

VERSION = "7.0.15"


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


def _from_apt(folder):
    trouble = debian.unpacked(folder, "redis-tools", VERSION)
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
