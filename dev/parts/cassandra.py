"""The CQL database: Apache Cassandra, started from its jars, in the place of ScyllaDB. One node, or three with every row on each."""

import os
import re
import shutil
from pathlib import Path

from . import cql, place, process
from .place import Refusal

VERSION = "5.0.6"
JAVA = "17"
MAVEN_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
JARS = place.CONF / "cassandra-jars.sha256"
# Settings that differ by set. One node serves tests that are many and kill processes only: what it answered is in the page cache,
# which a killed process leaves behind. Three serve fault tests and runs under load: they sync as production must.
SHAPE = {
    "cql1": {"heap": "512m", "commitlog_sync": "periodic", "tokens": (0,)},
    "cql3": {"heap": "448m", "commitlog_sync": "batch", "tokens": (-6148914691236517204, 0, 6148914691236517204)},
}
COMMITLOG = {"batch": "commitlog_sync: batch", "periodic": "commitlog_sync: periodic\ncommitlog_sync_period: 10s"}
EXPORTS = """
java.base/jdk.internal.misc java.base/jdk.internal.ref java.base/sun.nio.ch java.base/java.lang.ref
java.management.rmi/com.sun.jmx.remote.internal.rmi java.rmi/sun.rmi.registry java.rmi/sun.rmi.server
java.sql/java.sql jdk.unsupported/sun.misc jdk.compiler/com.sun.tools.javac.file
""".split()
OPENS = """
java.base/java.lang java.base/java.lang.module java.base/java.lang.reflect java.base/java.io java.base/java.nio
java.base/java.util java.base/java.util.concurrent java.base/java.util.concurrent.atomic java.base/sun.nio.ch
java.base/jdk.internal.loader java.base/jdk.internal.ref java.base/jdk.internal.reflect java.base/jdk.internal.math
java.base/jdk.internal.module java.base/jdk.internal.util.jar jdk.management/com.sun.management.internal
""".split()


def _home():
    return place.installed_dir("cassandra", VERSION)


def installed():
    return (_home() / "lib").exists()


def _java_of(binary):
    _, _, told = process.run(binary, "-version")
    found = re.search(r'version "(\d+)', told)
    return found.group(1) if found else told.strip()[:80]


def java():
    """A Java 17: of JAVA_HOME, on PATH, or where Debian puts it."""
    places = [os.environ["JAVA_HOME"] + "/bin/java"] if os.environ.get("JAVA_HOME") else []
    places += [shutil.which("java")] if shutil.which("java") else []
    places += [str(found) for found in sorted(Path("/usr/lib/jvm").glob("*17*/bin/java"))]
    seen = {}
    for binary in dict.fromkeys(places):
        seen[binary] = _java_of(binary)
        if seen[binary] == JAVA:
            return binary
    had = ", ".join(f"{binary} is {what}" for binary, what in seen.items()) or "none on PATH, in JAVA_HOME or /usr/lib/jvm"
    raise Refusal(f"cql: Cassandra {VERSION} needs Java {JAVA}: {had}\n  do: apt-get install openjdk-17-jre-headless, or set JAVA_HOME")


def _verify(folder):
    """Every jar is one of the pinned ones, and none is missing."""
    import hashlib

    pinned = {}
    for line in JARS.read_text().splitlines():
        digest, name = line.split()
        pinned[name] = digest
    found = {jar.name: hashlib.sha256(jar.read_bytes()).hexdigest() for jar in folder.iterdir()}
    for name in sorted(pinned.keys() | found.keys()):
        if pinned.get(name) != found.get(name):
            what = "is missing" if name not in found else "is not pinned" if name not in pinned else "has another hash"
            raise Refusal(f"cql: {name} {what} (dev/conf/{JARS.name}); nothing was installed")


def install():
    java()
    if shutil.which("mvn") is None:
        raise Refusal(f"cql: Maven (mvn) is not on PATH; it fetches Cassandra {VERSION} from Maven Central\n  do: apt-get install maven")
    with place.whole(_home()) as folder:
        shutil.copy(place.CONF / "cassandra-pom.xml", folder / "pom.xml")
        code, output, errors = process.run(
            "mvn", "--batch-mode", "--quiet", "--strict-checksums",
            f"-Dmaven.repo.local={folder}/maven", f"-Dcassandra.version={VERSION}",
            MAVEN_PLUGIN, "-DincludeScope=runtime", f"-DoutputDirectory={folder}/lib", cwd=folder,
        )
        if code != 0:
            lines = [line for line in output.splitlines() if "ERROR" in line] or errors.splitlines()
            raise Refusal("cql: Maven could not fetch Cassandra:\n  " + "\n  ".join(lines[:6]))
        _verify(folder / "lib")
        shutil.rmtree(folder / "maven")
        (folder / "pom.xml").unlink()


def _commitlog(server):
    mode = os.environ.get("CHAPPE_TEST_DEPS_COMMITLOG") or SHAPE[server.cluster]["commitlog_sync"]
    if mode not in COMMITLOG:
        raise Refusal(f"CHAPPE_TEST_DEPS_COMMITLOG={mode!r}: wanted {' or '.join(COMMITLOG)}", place.USAGE)
    return COMMITLOG[mode]


def check(chosen):
    java()
    for server in chosen:
        _commitlog(server)
    with open("/proc/meminfo") as file:
        free_mb = next(int(line.split()[1]) // 1024 for line in file if line.startswith("MemAvailable"))
    need_mb = 1000 * len(chosen)
    if chosen and free_mb < need_mb:
        place.say(f"warning: {len(chosen)} Cassandra node(s) take about {need_mb} MB, {free_mb} MB are free")


def command(server):
    shape = SHAPE[server.cluster]
    peers = [peer for peer in place.servers().values() if peer.cluster == server.cluster]
    server.data.mkdir(parents=True, exist_ok=True)
    config = server.dir / "cassandra.yaml"
    place.fill("cassandra.yaml", config, {
        "cluster": f"chappe-{server.cluster}-{place.port_base()}",
        "token": shape["tokens"][peers.index(server)],
        "commitlog": _commitlog(server),
        "host": server.host, "port": server.port(), "storage": server.port("storage"),
        # All are seeds: any of them can then come back while any other is down.
        "seeds": ",".join(f"{peer.host}:{peer.port('storage')}" for peer in peers),
    })
    argv = [java(), f"-Xms{shape['heap']}", f"-Xmx{shape['heap']}", "-Xss512k", "-XX:+UseSerialGC", "-XX:MaxDirectMemorySize=256m",
            "-XX:+ExitOnOutOfMemoryError", "-XX:-UsePerfData",
            # Without the slow, thorough compiler: a start takes 11 s of CPU instead of 17, and it is the faster one for its first minutes.
            "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true"]
    argv += [word for what in EXPORTS for word in ("--add-exports", f"{what}=ALL-UNNAMED")]
    argv += [word for what in OPENS for word in ("--add-opens", f"{what}=ALL-UNNAMED")]
    argv += os.environ.get("CHAPPE_TEST_DEPS_JAVA_OPTS", "").split()
    argv += [
        f"-Dcassandra.config={config.as_uri()}", f"-Dcassandra.storagedir={server.data}",
        f"-Dlogback.configurationFile={place.CONF}/cassandra-logback.xml", f"-Dchappe.log={server.dir}/cassandra.log",
        "-Dcassandra.ring_delay_ms=100", "-Dcassandra.skip_wait_for_gossip_to_settle=0", "-Dcassandra.superuser_setup_delay_ms=0",
        f"-Djava.io.tmpdir={server.data}", "-cp", f"{_home()}/lib/*", "org.apache.cassandra.service.CassandraDaemon",
    ]
    return argv, {"MALLOC_ARENA_MAX": "4"}


# A read of a table with three replicas at ALL: answered only where this node sees all three alive.
_ALL_ALIVE = "SELECT parent_id FROM system_distributed.parent_repair_history WHERE parent_id = 00000000-0000-1000-8000-000000000000"


def ready(server, peers_up):
    """None if it serves, else what it lacks. With all three up, each must also reach the two others."""
    try:
        with cql.Session(server.host, server.port()) as session:
            if server.cluster == "cql3" and len(peers_up) == 3:
                session.query(_ALL_ALIVE, cql.ALL)
    except (OSError, cql.CqlError) as error:
        return f"CQL: {error}"
    return None
