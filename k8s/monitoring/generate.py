#!/usr/bin/env python3
"""Writes the dashboards, rules, alerts and their tests in this folder from source/.

Usage: k8s/monitoring/generate.py [--check] [--into FOLDER]

  --check         write nothing; exit 1 if a file differs from what would be written, or should not be there
  --into FOLDER   write there instead of here
"""

import json
import sys
from pathlib import Path

sys.dont_write_bytecode = True

from source import alerts, boards, parts, rule, slo, wakes, yaml  # noqa: E402

HERE = Path(__file__).resolve().parent
MADE = "Made by k8s/monitoring/generate.py; edit source/ and run it."
FOLDERS = ("rules", "operator", "tests", "dashboards")
# Alerts by file.
ALERTS = {
    "promises": slo.FAST,
    "promises-slow": slo.SLOW,
    "processes": alerts.PROCESSES,
    "connections": alerts.CONNECTIONS,
    "delivery": alerts.DELIVERY,
    "dependencies": parts.STORE + parts.BUS + parts.PRESENCE,
    "wakes": wakes.HINTS + wakes.SWEEPS + wakes.PROVIDERS,
}


def every_alert():
    return [alert for some in ALERTS.values() for alert in some]


def groups():
    """Rule groups by file."""
    files = {"objectives": slo.recording()}
    for name, some in ALERTS.items():
        files[name] = [{"name": f"chappe-{name}", "rules": [rule.as_rule(alert) for alert in some]}]
    return files


def tests(name, some):
    slow = name == "promises-slow"
    names, cases = [name], [[alert] for alert in some]
    if name.startswith("promises"):
        names = ["objectives", name]
        cases = [[alert for alert in some if alert.at == at] for at in sorted({alert.at for alert in some})]
    # promtool takes groups in no order of its own, and what is recorded too late is ten minutes old.
    order = [group["name"] for group in slo.recording()] + [f"chappe-{name}"]
    return {
        "rule_files": [f"../rules/{one}.yaml" for one in names],
        **({"group_eval_order": order} if name.startswith("promises") else {}),
        "evaluation_interval": "10m" if slow else "1m",
        "tests": [case for together in cases for case in rule.as_tests(together)],
    }


def prometheus_rule(name, some):
    """A file's rules as an object for the Prometheus operator."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": f"chappe-{name}", "labels": {"app.kubernetes.io/name": "chappe", "app.kubernetes.io/component": "monitoring"}},
        "spec": {"groups": some},
    }


def kustomization(rules, boards_there):
    """All of it for `kubectl apply -k`: the rules as objects, and a ConfigMap for each dashboard, which Grafana's sidecar takes."""
    maps = [{"name": name.removesuffix(".json"), "files": [f"dashboards/{name}"], "options": {"labels": {"grafana_dashboard": "1"}}} for name in boards_there]
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "generatorOptions": {"disableNameSuffixHash": True},
        "resources": [f"operator/{name}.yaml" for name in rules],
        "configMapGenerator": maps,
    }


def dashboard_text(board):
    """JSON with a line for each panel, so that a difference can be read."""
    lines = []
    for key, value in board.items():
        told = json.dumps(value, ensure_ascii=False)
        if key == "panels":
            told = "[\n" + ",\n".join(f"  {json.dumps(panel, ensure_ascii=False)}" for panel in value) + "\n ]"
        lines.append(f" {json.dumps(key)}: {told}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def outputs():
    """Everything that is made: text by path below this folder."""
    files = groups()
    made = {f"rules/{name}.yaml": yaml.text({"groups": some}, [MADE]) for name, some in files.items()}
    made |= {f"tests/{name}.yaml": yaml.text(tests(name, some), [MADE, "promtool test rules"]) for name, some in ALERTS.items()}
    made |= {f"operator/{name}.yaml": yaml.text(prometheus_rule(name, some), [MADE]) for name, some in files.items()}
    shown = {f"{board['uid']}.json": dashboard_text(board) for board in boards.every_board()}
    made |= {f"dashboards/{name}": text for name, text in shown.items()}
    made["kustomization.yaml"] = yaml.text(kustomization(files, shown), [MADE])
    return made


def stale(folder=HERE):
    """Files that differ from what would be written, and files that nothing writes."""
    made = outputs()
    differing = [path for path, text in made.items() if not (folder / path).is_file() or (folder / path).read_text() != text]
    there = {str(path.relative_to(folder)) for sub in FOLDERS for path in (folder / sub).glob("*")}
    return sorted(differing) + sorted(there - set(made))


def main(words):
    if words == ["--check"]:
        old = stale()
        for path in old:
            print(f"k8s/monitoring/{path} is not what generate.py writes", file=sys.stderr)
        return 1 if old else 0
    if words and not (len(words) == 2 and words[0] == "--into"):
        print(__doc__.strip())
        return 0 if words[0] in ("-h", "--help") else 64
    folder = Path(words[1]) if words else HERE
    for path in stale(folder):
        if path in outputs():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(outputs()[path])
        else:
            (folder / path).unlink()
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
