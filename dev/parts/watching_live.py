"""Dashboards and rules on a real cluster: everything that a query names is there once there is traffic, and alerts see real faults."""

import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from . import place, process, promql, prometheus, watching
from .place import ROOT, USAGE, Refusal, Server, say

BINARIES = ("chappe", "gateway", "router", "pusher", "loadtest")
LOAD_S, WAIT_S, FAULTS_S = 40, 60, 30
WINDOW = "60s"  # of rates, instead of what Grafana would take
# Queries without data in a healthy installation, and why.
EMPTY = {
    ("chappe-connections", "Limits hit", "{{limit}}"): "nobody hits a limit; the series begins with the first",
    ("chappe-connections", "Fetches", "{{outcome}}"): "token.key is a file here; keys are fetched with token.jwks only",
}
# Broken at the end, one round after the other, and the alerts that must see it (pending is enough: most wait for minutes).
FAULTS = (
    ((("cluster", "kill", "router-1"), ("cluster", "kill", "router-2")), {"ChappeProcessDown", "ChappeRoleDown", "ChappeNoRouterHeard"}),
    ((("deps", "pause", "cql"), ("deps", "kill", "nats")), {"ChappeStoreAway", "ChappeStoreUnreachable", "ChappeBusAway", "ChappeBusUnreachable"}),
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def dev(*words):
    """A script of dev/, which says itself what is wrong."""
    done = subprocess.run([str(ROOT / "dev" / words[0]), *map(str, words[1:])], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise Refusal(f"dev/{' '.join(map(str, words))} has failed; its message stands above", done.returncode)


class Prometheus:
    """One of our own on loopback, which forgets everything at its end."""

    def __init__(self, folder, targets):
        self.address = f"127.0.0.1:{free_port()}"
        rules = folder / "rules"
        rules.mkdir()
        for path in (ROOT / "k8s/monitoring/rules").glob("*.yaml"):
            # The same rules, looked at more often.
            (rules / path.name).write_text(re.sub(r'interval: "\d+s"', 'interval: "1s"', path.read_text()))
        static = [{"targets": [target], "labels": {"job": job, "namespace": namespace}} for job, namespace, target in targets]
        # A target's own label `job` takes the place of the job's name.
        jobs = [{"job_name": "chappe", "static_configs": static}]
        config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}, "rule_files": [f"{rules}/*.yaml"], "scrape_configs": jobs}
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        self.words = [
            prometheus.program("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={self.address}", "--log.level=warn",
        ]

    def get(self, path, **parameters):
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:  # it starts
                return None
            raise Refusal(f"Prometheus: {json.load(error).get('error', error)}: {parameters}", 1) from None
        except (OSError, TimeoutError):
            return None

    def has_data(self, query):
        """Whether some series of the result has a number."""
        found = self.get("query", query=promql.substituted(query.replace("$__rate_interval", WINDOW)))
        return found is not None and any(sample["value"][1] != "NaN" for sample in found["result"])

    def alerts(self):
        return {(one["labels"]["alertname"], one["state"]) for one in (self.get("alerts") or {"alerts": []})["alerts"]}


def started(words, folder, name):
    with open(folder / f"{name}.log", "ab") as log:
        return subprocess.Popen([str(word) for word in words], stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def load(binaries, folder, keys, gateways, standalone):
    """People who write to each other, on a cluster over all carriers and on a server of one process; and one who sleeps."""
    chat = [binaries / "loadtest", "run", "chat", "--users", "30", "--rate", "30"]
    running = [
        started([*chat, "--duration", f"{LOAD_S}s", "--carrier", "mix", "--server", ",".join(f"wss://{one}" for one in gateways), "--data", keys], folder, "load-cluster"),
        started([*chat, "--duration", "15s", "--server", f"wss://{standalone}", "--data", folder / "standalone"], folder, "load-standalone"),
    ]
    at = ("--data", keys, "--server", f"wss://{gateways[0]}")
    code, _, errors = process.run(binaries / "chappe", "push", "register", "--as", "sleeper", "--device", "phone", *at)
    if code:
        raise Refusal(f"chappe push register: {process.last_line(errors)}")
    for _ in range(3):
        done = subprocess.run([binaries / "chappe", "send", "--as", "writer", "--to", "sleeper", *at], input=b"x", capture_output=True, timeout=30)
        if done.returncode:
            raise Refusal(f"chappe send: {process.last_line(done.stderr.decode(errors='replace'))}")
    # The second takes the place of the first, which its gateway then closes. A device's state has one user, so each has a folder.
    listeners = []
    for name in ("listen-1", "listen-2"):
        shutil.copytree(keys / "development", folder / name / "development")
        words = [binaries / "chappe", "listen", "--as", "reader", "--device", "phone", "--data", folder / name, *at[2:]]
        listeners.append(started(words, folder, name))
        time.sleep(1)
    return running, listeners


def queries():
    """(dashboard, panel, legend, query)."""
    for name, board in watching.Tree(ROOT).boards():
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                yield board["uid"], panel["title"], target["legendFormat"], target["expr"]


def judged(prom):
    """Waits until every query has data; complaints."""
    waiting, deadline = list(queries()), time.monotonic() + WAIT_S
    every = len(waiting)
    excepted = {one[:3] for one in waiting} & EMPTY.keys()
    found = [f"listed as empty, and there is no such query: {' · '.join(one)}" for one in sorted(EMPTY.keys() - excepted)]
    while True:
        waiting = [one for one in waiting if not prom.has_data(one[3])]
        if {one[:3] for one in waiting} <= excepted or time.monotonic() > deadline:
            break
        time.sleep(1)
    missing = [one for one in waiting if one[:3] not in excepted]
    found += [f"no data: {board}: {title} ({legend}): {query}" for board, title, legend, query in missing]
    found += [f"listed as empty, and has data: {' · '.join(one)}" for one in sorted(excepted - {one[:3] for one in waiting})]
    say(f"waited {time.monotonic() - deadline + WAIT_S:.0f} s for the last query")
    print(f"{'FAILED' if found else 'ok':<6} {every - len(waiting)} of {every} queries have data, {len(excepted)} are listed as empty")
    for one, why in EMPTY.items():
        print(f"       empty: {one[0]}: {one[1]} ({why})")
    return found


def healthy(prom):
    """Every rule is evaluated without an error, and nothing fires."""
    rules = [rule for group in prom.get("rules")["groups"] for rule in group["rules"]]
    found = [f"rule {rule['name']}: {rule.get('lastError') or rule['health']}" for rule in rules if rule["health"] != "ok"]
    if not rules:
        found.append("Prometheus has no rule")
    alerts = prom.alerts()
    found += [f"fires in a healthy installation: {name}" for name, state in sorted(alerts) if state == "firing"]
    pending = sorted(name for name, state in alerts if state == "pending")
    print(f"{'FAILED' if found else 'ok':<6} {len(rules)} rules are healthy, no alert fires" + (f" (pending: {', '.join(pending)})" if pending else ""))
    return found


def faults(prom):
    """Real faults are seen, and were not there before."""
    found = []
    for broken, wanted in FAULTS:
        early = wanted & {name for name, _ in prom.alerts()}
        found += [f"{name}: pending before anything is broken" for name in sorted(early)]
        for words in broken:
            dev(*words)
        began = time.monotonic()
        while (missing := wanted - {name for name, _ in prom.alerts()}) and time.monotonic() - began < FAULTS_S:
            time.sleep(0.5)
        told = ", ".join(" ".join(words) for words in broken)
        print(f"{'FAILED' if missing else 'ok':<6} {told}: {len(wanted - missing)} of {len(wanted)} alerts see it after {time.monotonic() - began:.0f} s")
        found += [f"{name}: not pending {FAULTS_S} s after {told}" for name in sorted(missing)]
    dev("deps", "resume", "cql")
    return found


def options(words):
    binaries, keep = ROOT / "target" / "release", False
    words = list(words)
    while words:
        word = words.pop(0)
        if word == "--keep":
            keep = True
        elif word == "--bin" and words:
            binaries = Path(words.pop(0)).resolve()
        else:
            raise Refusal(f"unexpected: {word}; see dev/monitoring --help", USAGE)
    missing = [name for name in BINARIES if not (binaries / name).is_file()]
    if missing:
        raise Refusal(f"{binaries} has no {' and no '.join(missing)}\n  do: cargo build --release --workspace, or --bin FOLDER", USAGE)
    return binaries, keep


def run(words):
    binaries, keep = options(words)
    names = [f"router-{i}" for i in (1, 2)] + [f"gateway-{i}" for i in (1, 2, 3)] + [f"pusher-{i}" for i in (1, 2)]
    if any(process.written_down(Server(name, "", "", "", ())) for name in names):
        raise Refusal("a cluster of dev/cluster runs here\n  do: dev/cluster down, or another CHAPPE_TEST_DEPS_PORT_BASE")
    began, running, found = time.monotonic(), [], []
    base = place.port_base() + 22
    gateways = [f"127.0.0.1:{base + port}" for port in (2, 4, 6)]
    admins = [("router", 0), ("router", 1), ("gateway", 3), ("gateway", 5), ("gateway", 7), ("pusher", 8), ("pusher", 9)]
    standalone, admin = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory(prefix="chappe-monitoring-") as folder:
        folder = Path(folder)
        try:
            dev("cluster", "up", "one", "--bin", binaries)
            serve = [binaries / "chappe", "serve", "--listen", standalone, "--admin", admin, "--data", folder / "standalone"]
            running.append(started(serve, folder, "serve"))
            targets = [(f"chappe-{role}", "cluster", f"127.0.0.1:{base + port}") for role, port in admins]
            prom = Prometheus(folder, [*targets, ("chappe-standalone", "standalone", admin)])
            running.append(started(prom.words, folder, "prometheus"))
            until(lambda: (folder / "standalone" / "development").exists(), 20, folder, "serve")
            until(lambda: prom.get("status/runtimeinfo") is not None, 20, folder, "prometheus")
            say(f"cluster, server and Prometheus (http://{prom.address}) run after {time.monotonic() - began:.0f} s")
            loads, listeners = load(binaries, folder, place.run_dir() / "chappe" / "keys", gateways, standalone)
            running += loads + listeners
            found = judged(prom) + healthy(prom)
            for name, one in zip(("load-cluster", "load-standalone"), loads):
                if one.wait(timeout=LOAD_S + 60):
                    found.append(f"{name}: loadtest ended with {one.returncode}: {(folder / f'{name}.log').read_text(errors='replace').splitlines()[:1]}")
            if not found:
                found = faults(prom)
            if keep:
                say(f"Prometheus: http://{prom.address}; end with Ctrl-C")
                running[1].wait()
        except KeyboardInterrupt:
            say("ending")
        finally:
            for one in reversed(running):
                one.terminate()
            for one in running:
                try:
                    one.wait(timeout=15)
                except subprocess.TimeoutExpired:
                    one.kill()
            dev("cluster", "down", "--wipe")
    for line in found:
        say(f"  {line}")
    print(f"{len(found)} wrong ({time.monotonic() - began:.0f} s)")
    return 1 if found else 0


def until(done, wait_s, folder, name):
    deadline = time.monotonic() + wait_s
    while not done():
        if time.monotonic() > deadline:
            tail = "\n".join((folder / f"{name}.log").read_text(errors="replace").splitlines()[-8:])
            raise Refusal(f"{name} does not serve after {wait_s} s; end of its log:\n{tail}")
        time.sleep(0.1)
