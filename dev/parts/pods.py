"""Pods without Kubernetes: what kubelet, a Service and a Deployment's controller do, as far as a rollout needs it."""

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

from . import manifests, place, policies, process
from .place import ROOT, Refusal, say

START = r"""
set -eu
mount --bind "$1" "$1"
mount -t tmpfs -o mode=0755 tmpfs "$1/etc/chappe"
cp -a "$2/." "$1/etc/chappe/"
mount -o remount,ro "$1/etc/chappe"
mount -o remount,bind,ro "$1"
tree=$1 user=$3
shift 3
exec chroot --userspec="$user" "$tree" "$@"
"""
ROOTED = os.geteuid() == 0
USER = 65532 if ROOTED else 0
SERVICE = ("127.0.0.1", 7440)  # the port is moved by place.port_base()
READY_S, STEADY_S = 120, 20


class Pod:
    """One pod: its process, its probes, its end."""

    count = 0

    def __init__(self, world, deployment, tree):
        Pod.count += 1
        self.world, self.deployment, self.tree = world, deployment, tree
        self.spec, _ = policies.pod_of(deployment)
        self.box = self.spec["containers"][0]
        self.address = f"127.0.{10 + Pod.count // 250}.{1 + Pod.count % 250}"
        self.name = f"{deployment['metadata']['name']}-{Pod.count}"
        self.ready, self.ending, self.troubles, self.began = asyncio.Event(), False, [], 0.0
        self.log = world.folder / f"{self.name}.log"

    async def start(self):
        files = self.world.folder / self.name
        for volume in self.spec["volumes"] if "volumes" in self.spec else []:
            (mount,) = [one["mountPath"] for one in self.box["volumeMounts"] if one["name"] == volume["name"]]
            self.world.fill(files / Path(mount).relative_to("/etc/chappe"), volume)
        files.mkdir(exist_ok=True)
        env = {one["name"]: one["value"] for one in self.box.get("env", [])}
        ports = {one["name"]: one["containerPort"] for one in self.box.get("ports", [])}
        for name, key in (("wss", "CHAPPE_LISTEN"), ("admin", "CHAPPE_ADMIN")):
            if name in ports:
                env[key] = f"{self.address}:{ports[name]}"
        alone = ["unshare", "--mount", "--propagation", "private", *([] if ROOTED else ["--map-root-user"])]
        command = [*alone, "sh", "-c", START, "pod", self.tree, files, f"{USER}:{USER}", *self.box["command"], *self.box.get("args", [])]
        self.began = time.monotonic()
        # Where chroot and the others are; the container's own process hears of it, too.
        self.process = await asyncio.create_subprocess_exec(
            *map(str, command), env={"PATH": os.environ["PATH"], **env}, stdin=asyncio.subprocess.DEVNULL, stdout=open(self.log, "ab"), stderr=asyncio.subprocess.STDOUT,
            start_new_session=True)
        self.probing = asyncio.create_task(self.probe()) if "readinessProbe" in self.box else None

    async def asked(self, probe):
        port = next(one["containerPort"] for one in self.box["ports"] if one["name"] == probe["httpGet"]["port"])
        try:
            async with asyncio.timeout(probe.get("timeoutSeconds", 1)):
                reader, writer = await asyncio.open_connection(self.address, port)
                writer.write(f"GET {probe['httpGet']['path']} HTTP/1.1\r\nHost: {self.address}\r\nConnection: close\r\n\r\n".encode())
                status = (await reader.readline()).split()
                writer.close()
                return len(status) > 1 and 200 <= int(status[1]) < 400
        except (OSError, TimeoutError):
            return False

    async def probe(self):
        """As kubelet does: the startup probe first, then readiness and liveness, each with its own period and patience."""
        startup = self.box["startupProbe"]
        for _ in range(startup.get("failureThreshold", 3)):
            if await self.asked(startup):
                break
            await asyncio.sleep(startup.get("periodSeconds", 10))
        else:
            self.troubles.append("the startup probe gave up")
            return
        self.up_after = time.monotonic() - self.began
        await asyncio.gather(self.readiness(), self.liveness())

    async def readiness(self):
        probe, failed = self.box["readinessProbe"], 0
        while True:
            if await self.asked(probe):
                failed = 0
                if not self.ready.is_set() and not self.ending:
                    self.ready_after = time.monotonic() - self.began
                    self.ready.set()
            else:
                failed += 1
                if failed >= probe.get("failureThreshold", 3):
                    self.ready.clear()
            await asyncio.sleep(probe.get("periodSeconds", 10))

    async def liveness(self):
        probe, failed = self.box["livenessProbe"], 0
        while True:
            failed = 0 if await self.asked(probe) else failed + 1
            if failed >= probe.get("failureThreshold", 3) and not self.ending:
                self.troubles.append("the liveness probe would have had it killed")
                return
            await asyncio.sleep(probe.get("periodSeconds", 10))

    def rss_mib(self):
        return (process.rss_kb(self.process.pid) or 0) / 1024

    async def end(self):
        """Out of the Service, preStop, SIGTERM, and SIGKILL when the grace is over."""
        self.ending = True
        self.ready.clear()
        deadline = time.monotonic() + self.spec["terminationGracePeriodSeconds"]
        await asyncio.sleep(self.box.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0))
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline - time.monotonic()):
                code = await self.process.wait()
            if code != 0:
                self.troubles.append(f"ended with code {code}: {process.last_line(self.log.read_text(errors='replace'))}")
        except TimeoutError:
            self.troubles.append(f"did not end within its grace of {self.spec['terminationGracePeriodSeconds']} s")
            self.process.kill()
            await self.process.wait()
        if self.probing:
            self.probing.cancel()


class World:
    """What the manifests name: ConfigMaps, Secrets, and who is where."""

    def __init__(self, folder, objects, secrets):
        self.folder, self.objects, self.secrets = folder, objects, secrets
        self.pods, self.ended, self.troubles, self.sent_to_unready = [], [], [], 0

    def fill(self, folder, volume):
        folder.mkdir(parents=True)
        if "configMap" in volume:
            (found,) = [one for one in self.objects if one["kind"] == "ConfigMap" and one["metadata"]["name"] == volume["configMap"]["name"]]
            files, mode = {name: text.encode() for name, text in found["data"].items()}, 0o644
        else:
            given, mode = self.secrets[volume["secret"]["secretName"]], volume["secret"]["defaultMode"]
            items = volume["secret"].get("items") or [{"key": key, "path": key} for key in given]
            files = {item["path"]: given[item["key"]] for item in items}
        for name, content in files.items():
            (folder / name).write_bytes(content)
            os.chmod(folder / name, mode)
            if ROOTED:
                os.chown(folder / name, 0, USER)  # as fsGroup has it

    def deployments(self):
        return [one for one in self.objects if one["kind"] == "Deployment"]

    async def add(self, deployment, tree):
        pod = Pod(self, deployment, tree)
        self.pods.append(pod)
        await pod.start()
        return pod

    async def becomes_ready(self, pod):
        waiting = asyncio.create_task(pod.ready.wait())
        ended = asyncio.create_task(pod.process.wait())
        await asyncio.wait({waiting, ended}, timeout=READY_S, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        ended.cancel()
        if not pod.ready.is_set():
            raise Refusal(f"{pod.name} does not become ready; its log ends: {process.last_line(pod.log.read_text(errors='replace'))}", 1)

    async def remove(self, pod):
        await pod.end()
        self.pods.remove(pod)
        self.ended.append(pod)

    async def roll(self, deployment, tree):
        """One new pod at a time, and then one old one less: maxSurge is at least one, maxUnavailable is 0."""
        old = [pod for pod in self.pods if pod.deployment is deployment]
        for pod in old:
            fresh = await self.add(deployment, tree)
            await self.becomes_ready(fresh)
            await asyncio.sleep(deployment["spec"]["minReadySeconds"])
            await self.remove(pod)

    async def serve(self, port):
        """The Service: a new connection goes to any pod that is ready."""

        async def pump(reader, writer):
            with contextlib.suppress(OSError):
                while chunk := await reader.read(65536):
                    writer.write(chunk)
                    await writer.drain()
            with contextlib.suppress(OSError):
                writer.close()

        async def accept(reader, writer):
            ready = [pod for pod in self.pods if pod.box["name"] == "gateway" and pod.ready.is_set()]
            try:
                if not ready:
                    raise OSError("no endpoint")
                there = await asyncio.open_connection(random.choice(ready).address, 7440)
            except OSError:
                self.sent_to_unready += 1
                writer.close()
                return
            await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))

        return await asyncio.start_server(accept, "127.0.0.1", port)


def tree_of(binaries, folder):
    tree = folder / "tree"
    code, _, errors = process.run(ROOT / "dev/image", "tree", "--into", tree, "--bin", binaries)
    if code != 0:
        raise Refusal(errors.strip())
    (tree / "etc/chappe").mkdir()
    return tree


def rendered(urls):
    values = ["--set", "gateway.replicas=2,router.replicas=2,pusher.replicas=2", "--set", f"nats.urls={{{urls['nats']}}}", "--set", f"redis.url={urls['redis']}",
              "--set", f"cql.url={urls['cql']}/chappe", "--set", "log.format=human"]
    found, errors = manifests.helm(["values/dev.yaml"], *values)
    if found is None:
        raise Refusal(errors)
    return found


async def load(binaries, seconds, prefix, keys, port, into):
    """The harness, for so long; its report."""
    words = [f"{binaries}/loadtest", "run", "chat", "--users", "60", "--rate", "60", "--duration", f"{seconds}s", "--prefix", prefix, "--server", f"wss://127.0.0.1:{port}",
             "--data", str(keys), "--json", str(into)]
    done = await asyncio.create_subprocess_exec(*words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    out, _ = await done.communicate()
    return done.returncode, out.decode(errors="replace"), json.loads(into.read_text()) if into.is_file() else {}


async def run(binaries, before, slow, folder, keys, urls):
    # Names of its own: a database that is used again holds those of the run before.
    mark = f"{time.time_ns() // 1_000_000:x}-"
    world = World(folder, rendered(urls), secrets(keys))
    port, failed = place.port_base() + 29, []
    new = tree_of(binaries, folder / "new")
    old = new if before == binaries else tree_of(before, folder / "old")
    service = await world.serve(port)
    try:
        # All at once, as `helm install` has it: pods wait until the Job has made the tables.
        (job,) = [one for one in world.objects if one["kind"] == "Job"]
        schema = Pod(world, job, old)
        for deployment in world.deployments():
            for _ in range(deployment["spec"]["replicas"]):
                await world.add(deployment, old)
        await asyncio.sleep(1)
        await schema.start()
        if await schema.process.wait() != 0:
            raise Refusal(f"the schema's Job failed: {process.last_line(schema.log.read_text(errors='replace'))}", 1)
        for pod in world.pods:
            await world.becomes_ready(pod)
        for pod in world.pods:
            print(f"{pod.name}: asked to start, up after {pod.up_after:.1f} s, ready after {pod.ready_after:.1f} s, {pod.rss_mib():.0f} MiB", flush=True)
        code, out, quiet = await load(binaries, STEADY_S, f"quiet-{mark}", keys, port, folder / "quiet.json")
        print(f"in the quiet: {out.splitlines()[0] if out else 'nothing'}", flush=True)
        failed += [] if code == 0 else [f"the harness, in the quiet: exit {code}\n{out}"]
        # Longer than the rollout takes: two pods of a role, each with readiness, minReadySeconds and its end.
        loading = asyncio.create_task(load(binaries, 50, f"rolling-{mark}", keys, port, folder / "rolling.json"))
        await asyncio.sleep(8)
        began = time.monotonic()
        await asyncio.gather(*(world.roll(deployment, new) for deployment in world.deployments()))
        took = time.monotonic() - began
        code, out, rolling = await loading
        print(f"while all pods were replaced ({took:.0f} s): {out.splitlines()[0] if out else 'nothing'}", flush=True)
        failed += [] if code == 0 else [f"the harness, in the rollout: exit {code}\n{out}"]
        if took > 42:
            failed.append("the rollout took longer than the load")
        p99 = [report["accept"]["phases"]["steady"]["p99_us"] / 1000 for report in (quiet, rolling)] if quiet and rolling else [0, 0]
        bound = max(slow * p99[0], 1000)
        print(f"99th percentile of acceptance: {p99[0]:.0f} ms in the quiet, {p99[1]:.0f} ms in the rollout (at most {bound:.0f})")
        failed += [f"acceptance was too slow: {p99[1]:.0f} ms"] if p99[1] > bound else []
        print(f"ready after (new pods): {', '.join(f'{pod.ready_after:.1f} s' for pod in world.pods)}; connections without a pod: {world.sent_to_unready}")
    finally:
        service.close()
        await asyncio.gather(*(pod.end() for pod in world.pods))
    failed += [f"{pod.name}: {trouble}" for pod in [*world.ended, *world.pods] for trouble in pod.troubles]
    for line in failed:
        say(f"FAILED {line}")
    print("nothing was lost, every pod obeyed" if not failed else f"{len(failed)} things did not hold")
    return 1 if failed else 0


def secrets(keys):
    """The Secrets that a person would bring, of `chappe keys`."""
    read = lambda name: (keys / name).read_bytes()  # noqa: E731
    return {
        "chappe-keys": {name: read(name) for name in ("admin.token", "push.key", "resume.key")},
        "chappe-tls": {"tls.crt": read("development/certificate.pem"), "tls.key": read("development/certificate-key.pem")},
        "chappe-token": {"token-public.pem": read("development/token-public.pem")},
    }


def rollout(binaries, before, slow):
    code, out, errors = process.run(ROOT / "dev/deps", "start", "one")
    if code != 0:
        raise Refusal(errors.strip())
    _, out, _ = process.run(ROOT / "dev/deps", "env", "one")
    env = dict(line.removeprefix("export ").split("=", 1) for line in out.splitlines() if "=" in line)
    urls = {part: env[f"CHAPPE_TEST_{part.upper()}_URL"].strip("'\"") for part in ("nats", "redis", "cql")}
    if not shutil.which("unshare"):
        raise Refusal("unshare is missing (util-linux)")
    with tempfile.TemporaryDirectory(prefix="chappe-pods-") as folder:
        folder = Path(folder)
        folder.chmod(0o755)
        keys = folder / "keys"
        code, _, errors = process.run(f"{binaries}/chappe", "keys", "--data", keys)
        if code != 0:
            raise Refusal(errors.strip())
        for name in ("new", "old"):
            (folder / name).mkdir()
        return asyncio.run(run(binaries, before, slow, folder, keys, urls))
