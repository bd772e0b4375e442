"""Breaks a copy of dashboards, rules and alerts in many ways, each of which its check must see."""

import re
import shutil
import tempfile
import time
from pathlib import Path

from . import watching

FRESH, VALID, KNOWN, READ, DESCRIBED, NAMED, TESTED, FILLED = range(8)  # as dev/monitoring lists its checks
BOARD, RULES, DOC = "k8s/monitoring/dashboards/chappe-delivery.json", "k8s/monitoring/rules", "docs/operations/alerts.md"
STORE_UP = r'expr: "chappe_store_up == 0"'

# (which check, what it must say, file, pattern, replacement); the pattern is replaced once.
BROKEN = [
    (FRESH, "chappe-delivery.json is not what", BOARD, '"Outcomes"', '"Outcome"'),
    (FRESH, "processes.yaml is not what", f"{RULES}/processes.yaml", "for: \"5m\"", "for: \"6m\""),
    (FRESH, "extra.yaml is not what", f"{RULES}/extra.yaml", None, "groups: []\n"),
    (VALID, "promtool check rules", f"{RULES}/dependencies.yaml", STORE_UP, 'expr: "chappe_store_up == == 0"'),
    (VALID, "no query", BOARD, r"sum \(rate\(", "sum ((rate("),
    (KNOWN, "unknown metric chappe_gateway_outcome_total", BOARD, "chappe_gateway_outcomes_total", "chappe_gateway_outcome_total"),
    (KNOWN, "unknown metric chappe_stor_up", f"{RULES}/dependencies.yaml", STORE_UP, 'expr: "chappe_stor_up == 0"'),
    (KNOWN, "unknown metric chappe_gateway_submit_seconds", BOARD, "chappe_gateway_submit_seconds_bucket", "chappe_gateway_submit_seconds"),
    (KNOWN, "unknown metric chappe_store_up", "docs/metrics.md", r"\| `chappe_store_up` .*\n", ""),
    (KNOWN, "unknown label kind", BOARD, r"sum by \(outcome\)", "sum by (kind)"),
    (KNOWN, "unknown label user", f"{RULES}/dependencies.yaml", STORE_UP, r'expr: "chappe_store_up{user=\\"x\\"} == 0"'),
    (KNOWN, "unknown value unavailble", f"{RULES}/objectives.yaml", "unavailable", "unavailble"),
    (KNOWN, "unknown value chappe-gatway", f"{RULES}/dependencies.yaml", "chappe-gateway", "chappe-gatway"),
    (KNOWN, "unknown value wakes of the label slo", f"{RULES}/promises.yaml", r'slo_burn:1h{slo="wake"}', 'slo_burn:1h{slo="wakes"}'),
    (KNOWN, "unknown variable $role", BOARD, r"\$job", "$role"),
    (KNOWN, "without rate or increase", BOARD, r"sum \(rate\((chappe_gateway_delivered_total{[^}]*})\[\$__rate_interval\]\)\)", r"sum (\1)"),
    (KNOWN, "gauge chappe_router_mailboxes in rate", BOARD, r"sum \((chappe_router_mailboxes{[^}]*})\)", r"sum (rate(\1[5m]))"),
    (KNOWN, "summed up without le", BOARD, r"sum by \(le\)", "sum by (job)"),
    (KNOWN, "the legend names instanze", BOARD, "{{instance}}", "{{instanze}}"),
    (KNOWN, "its text names job", f"{RULES}/dependencies.yaml", r"In {{ \$labels.namespace }} no process reaches", "In {{ $labels.job }} no process reaches"),
    (READ, "no description", BOARD, '"description": "Bytes of them."', '"description": ""'),
    (READ, "stands on another panel", BOARD, r'"gridPos": {"x": 8, "y": 1,', '"gridPos": {"x": 7, "y": 1,'),
    (READ, "the unit", BOARD, '"unit": "bytes"', '"unit": "byte"'),
    (READ, "one without a legend", BOARD, '"legendFormat": "gateways"', '"legendFormat": ""'),
    (READ, "two panels have one id", BOARD, '"id": 3,', '"id": 2,'),
    (READ, "the data source is not", BOARD, r'"uid": "\${datasource}"}, "expr"', '"uid": "prometheus"}, "expr"'),
    (DESCRIBED, "ChappeStoreAway: no section", DOC, "### ChappeStoreAway\n", "### ChappeStoreGone\n"),
    (DESCRIBED, "there is no alert ChappeStoreGone", DOC, "### ChappeStoreAway\n", "### ChappeStoreGone\n"),
    (DESCRIBED, "does not say *critical*", DOC, r"(### ChappeStoreAway\n- )\*critical\*", r"\1*warning*"),
    (DESCRIBED, "ChappeStoreAway: no **Never:**", DOC, r"(### ChappeStoreAway\n(?:.*\n){3})- \*\*Never:\*\*", r"\1- Never:"),
    (DESCRIBED, "runbook_url does not lead", f"{RULES}/dependencies.yaml", "#chappestoreaway", "#chappestore"),
    (NAMED, "unknown metric chappe_gateway_handshake", DOC, r"sum \(chappe_gateway_handshakes\)", "sum (chappe_gateway_handshake)"),
    (NAMED, "unknown label name", DOC, r"sum by \(reason\) \(rate\(chappe_gateway_closed", "sum by (name) (rate(chappe_gateway_closed"),
    (TESTED, "ChappeProcessDown", f"{RULES}/processes.yaml", "for: \"5m\"", "for: \"1m\""),
    (TESTED, "ChappeStoreAway", f"{RULES}/dependencies.yaml", r"max by \(namespace\) \(chappe_store_up\)", "min by (namespace) (chappe_store_up)"),
    (TESTED, "ChappeSweepBehind", f"{RULES}/wakes.yaml", r"sweep_behind_seconds > 10", "sweep_behind_seconds > 15"),
    (TESTED, "ChappeWakeBudgetFast", f"{RULES}/objectives.yaml", r"25\.6", "12.8"),
    (TESTED, "wants one case where it fires", "k8s/monitoring/tests/processes.yaml", r"(?s)tests:\n.*?(  - name: .ChappeRoleDown: is quiet)", r"tests:\n\1"),
    (FILLED, "ChappeStoreUnreachable: reads badly", f"{RULES}/dependencies.yaml", r"{{ \$labels.instance }}( of {{ \$labels.job }} gets no answer)", r"{{ $labels.pod }}\1"),
]


def copied(root, target):
    for path in ("k8s/monitoring", "docs"):
        shutil.copytree(root / path, target / path, ignore=shutil.ignore_patterns("__pycache__"))


def break_it(tree, file, pattern, replacement):
    """Whether something was there to be broken."""
    path = tree / file
    if pattern is None:
        path.write_text(replacement)
        return True
    text, count = re.subn(pattern, replacement, path.read_text(), count=1)
    path.write_text(text)
    return count == 1


def every_alert(root, expression):
    """How many firing and quiet cases fail when every alert has this expression."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copied(root, tree)
        alerts = 0
        for path in (tree / "k8s/monitoring/rules").glob("*.yaml"):
            text, count = re.subn(r"(- alert: .*\n +expr: )(\|-\n(?: {10}.*\n)+|.*\n)(?: +for: .*\n)?", rf'\1"{expression}"\n', path.read_text())
            path.write_text(text)
            alerts += count
        failed = set()
        for path in (tree / "k8s/monitoring/tests").glob("*.yaml"):
            _, said = watching.promtool("test", "rules", path)
            failed |= set(re.findall(r'expr: .*?alertname=\\"(\w+)\\"', said))
    return alerts, failed


def run(root, checks):
    words, missed = watching.literals(root), 0
    began = time.monotonic()
    for which, wanted, file, pattern, replacement in BROKEN:
        with tempfile.TemporaryDirectory() as folder:
            tree = Path(folder)
            copied(root, tree)
            there = break_it(tree, file, pattern, replacement)
            title, check = checks(watching.Tree(tree), words)[which]
            found = check() if there else []
            seen = any(wanted in line for line in found)
            print(f"{'seen' if seen else 'MISSED':<6} {title}: {wanted}" + ("" if there else " (there was nothing to break)"))
            if not seen:
                missed += 1
                for line in found[:5]:
                    print(f"         {line}")
    for word, expression in (("never", "vector(0) > 1"), ("always", "vector(1)")):
        alerts, failed = every_alert(root, expression)
        seen = alerts > 0 and len(failed) == alerts
        missed += not seen
        print(f"{'seen' if seen else 'MISSED':<6} promtool: every alert fires {word}: {len(failed)} of {alerts} cases fail")
    print(f"{missed} of {len(BROKEN) + 2} missed ({time.monotonic() - began:.0f} s)")
    return 1 if missed else 0
