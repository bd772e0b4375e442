"""What must be true of k8s/monitoring and docs/operations/alerts.md. Each check gives complaints; none is a pass.

They take the folder of a tree, so that the checks themselves are tried on trees that are wrong (`dev/monitoring self-test`).
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from . import process, promql, prometheus

SECTIONS = ("**Users:**", "**Look:**", "**Do:**", "**Never:**")
SEVERITIES = ("critical", "warning")
UNITS = {"cps", "s", "percentunit", "short", "bytes"}


class Tree:
    """The files that the checks are about."""

    def __init__(self, root):
        self.root = Path(root)
        self.folder = self.root / "k8s" / "monitoring"
        self.alerts_md = self.root / "docs" / "operations" / "alerts.md"

    def rules(self):
        """Rules as (file, {alert or record, expr, …}), read as simply as they are written."""
        for path in sorted((self.folder / "rules").glob("*.yaml")):
            for rule in read_rules(path.read_text()):
                yield path.name, rule

    def boards(self):
        for path in sorted((self.folder / "dashboards").glob("*.json")):
            yield path.name, json.loads(path.read_text())

    def queries(self):
        """(where, query, legend) of every dashboard."""
        for name, board in self.boards():
            for panel in board["panels"]:
                for target in panel.get("targets", []):
                    yield f"{name}: {panel['title']}", target["expr"], target["legendFormat"]

    def known(self, literals):
        recorded = {rule["record"]: {"slo"} for _, rule in self.rules() if "record" in rule}
        slos = {rule["slo"] for _, rule in self.rules() if "slo" in rule}
        return promql.Known(promql.documented((self.root / "docs" / "metrics.md").read_text()), recorded, slos, literals)


def read_rules(text):
    """The rules of a file that generate.py has written: the part of YAML that it uses, and no other."""
    rule, key, block = {}, None, None
    found = []
    for line in text.splitlines():
        inner = re.match(r"(\s*)(- )?(alert|record|expr|for|severity|slo|summary|description|runbook_url): ?(.*)$", line)
        deeper = block is not None and (not line.strip() or len(line) - len(line.lstrip()) > block)
        if deeper:
            rule[key] += ("\n" if rule[key] else "") + line.strip()
        elif inner:
            indent, dash, key, value = inner.groups()
            if dash:
                rule = {}
                found.append(rule)
            folded = value in ("|-", ">-")
            block = len(indent) + (2 if dash else 0) if folded else None
            rule[key] = "" if folded else json.loads(value) if value.startswith('"') else value
        else:
            block = None
    return found


def literals(root):
    """Words that the code may put into a label: every short string literal of its sources."""
    words = set()
    for crate in ("gateway", "router", "pusher", "protocol", "storage", "standalone"):
        for path in (root / crate / "src").rglob("*.rs"):
            words |= set(re.findall(r'"(\w{1,40})"', path.read_text(errors="replace")))
    return words


def promtool(*words):
    """(passed, what it said)."""
    code, out, errors = process.run(prometheus.program("promtool"), *words)
    return code == 0, out + errors


def complaints_of(said):
    return [line.strip() for line in said.splitlines() if re.search(r"FAILED|error|could not|exp:|got:|expr:|invalid", line)]


# ---- the checks ------------------------------------------------------------------------------------------------------------


def fresh(tree):
    """Everything that is made is what the sources make."""
    done = subprocess.run([sys.executable, "-B", str(tree.folder / "generate.py"), "--check"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.stderr.strip().splitlines() if done.returncode else []


def valid(tree):
    """promtool reads all rules, and all queries of dashboards as rules."""
    passed, said = promtool("check", "rules", "--lint-fatal", *sorted((tree.folder / "rules").glob("*.yaml")))
    found = [] if passed else [f"promtool check rules: {line}" for line in complaints_of(said)]
    rules = [{"record": f"query:{number}", "expr": promql.substituted(query)} for number, (_, query, _) in enumerate(tree.queries())]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump({"groups": [{"name": "queries", "rules": rules}]}, file)  # JSON is YAML
        file.flush()
        passed, said = promtool("check", "rules", file.name)
    where = {f"query:{number}": place for number, (place, _, _) in enumerate(tree.queries())}
    if not passed:
        named = re.findall(r'"(query:\d+)"', said)
        found += [f"{where[name]}: no query: {said.strip().splitlines()[-1].strip()}" for name in dict.fromkeys(named)] or [said.strip()]
    return found


def tested(tree):
    """promtool passes every case, and every alert has one where it fires and one where it does not."""
    files = sorted((tree.folder / "tests").glob("*.yaml"))
    passed, said = promtool("test", "rules", *files)
    found = [] if passed else [f"promtool test rules: {line}" for line in complaints_of(said)] or [said.strip()]
    text = "".join(path.read_text() for path in files)
    for _, rule in tree.rules():
        if "alert" in rule:
            cases = re.findall(rf'ALERTS{{alertname=\\"{rule["alert"]}\\",alertstate=\\"firing\\"}}\)"\s+eval_time: \S+\s+exp_samples:(.*)', text)
            if sorted(case.strip() == "[]" for case in cases) != [False, True]:
                found.append(f"{rule['alert']}: wants one case where it fires and one where it does not, has {len(cases)}")
    return found


def known(tree, words):
    """Metrics, labels and values of labels exist; legends and texts name labels that are there."""
    everything = tree.known(words)
    found = []
    for place, query, legend in tree.queries():
        found += [f"{place}: {said}" for said in everything.complaints(query)]
        found += [f"{place}: the legend names {label}, which the result has not" for label in re.findall(r"{{\s*(\w+)\s*}}", legend)
                  if label not in everything.labels_out(query)]
    for name, rule in tree.rules():
        title = rule.get("alert") or rule["record"]
        found += [f"{name}: {title}: {said}" for said in everything.complaints(rule["expr"])]
        for label in re.findall(r"\$labels\.(\w+)", rule.get("summary", "") + rule.get("description", "")):
            if label not in everything.labels_out(rule["expr"]):
                found.append(f"{name}: {title}: its text names {label}, which the result has not")
    return found


def looked_after(tree):
    """Dashboards can be read: ids, places, units, descriptions."""
    found, uids = [], set()
    for name, board in tree.boards():
        said = []
        if board["uid"] in uids or f"{board['uid']}.json" != name:
            said.append("its uid is not its own")
        uids.add(board["uid"])
        if len({panel["id"] for panel in board["panels"]}) != len(board["panels"]):
            said.append("two panels have one id")
        taken = set()
        for panel in board["panels"]:
            place = panel["gridPos"]
            cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
            if cells & taken or place["x"] + place["w"] > 24:
                said.append(f"{panel['title']}: stands on another panel or beyond the edge")
            taken |= cells
            if panel["type"] not in ("row", "text"):
                defaults = panel["fieldConfig"]["defaults"]
                if not panel.get("description", "").strip():
                    said.append(f"{panel['title']}: no description")
                if defaults.get("unit") not in UNITS:
                    said.append(f"{panel['title']}: the unit {defaults.get('unit')!r} is none of {', '.join(sorted(UNITS))}")
                if not panel["targets"] or not all(target["legendFormat"].strip() for target in panel["targets"]):
                    said.append(f"{panel['title']}: no query, or one without a legend")
                if any(target["datasource"].get("uid") != "${datasource}" for target in panel["targets"]):
                    said.append(f"{panel['title']}: the data source is not the variable")
        found += [f"{name}: {one}" for one in said]
    return found


def described(tree):
    """Every alert has its section in docs/operations/alerts.md, which is complete and says its severity; no section is of none."""
    text = tree.alerts_md.read_text() if tree.alerts_md.is_file() else ""
    sections = dict(re.findall(r"^### (Chappe\w+)\n(.*?)(?=^##|\Z)", text, re.M | re.S))
    if len(re.findall(r"^### ", text, re.M)) != len(sections):
        return ["docs/operations/alerts.md: two sections of one name, or one that is no alert's"]
    found, alerts = [], {rule["alert"]: rule for _, rule in tree.rules() if "alert" in rule}
    found += [f"{name}: no section in docs/operations/alerts.md" for name in alerts if name not in sections]
    found += [f"docs/operations/alerts.md: there is no alert {name}" for name in sections if name not in alerts]
    for name in sections.keys() & alerts.keys():
        rule = alerts[name]
        found += [f"docs/operations/alerts.md: {name}: no {part}" for part in SECTIONS if part not in sections[name]]
        if rule.get("severity") not in SEVERITIES or f"*{rule['severity']}*" not in sections[name].strip().splitlines()[0]:
            found.append(f"docs/operations/alerts.md: {name}: its first line does not say *{rule.get('severity')}*")
        if not rule.get("runbook_url", "").endswith(f"docs/operations/alerts.md#{name.lower()}"):
            found.append(f"{name}: its runbook_url does not lead to its section")
    return sorted(found)


def named(tree, words):
    """Queries and metrics in docs/operations/alerts.md exist."""
    everything, found = tree.known(words), []
    text = tree.alerts_md.read_text() if tree.alerts_md.is_file() else ""
    for code in re.findall(r"`([^`\n]*chappe[_:][^`\n]*)`", text):
        if re.fullmatch(r"(chappe|process)_\w+", code):
            metric = everything.metrics.get(code) or everything.of(code)
            found += [] if metric else [f"docs/operations/alerts.md: unknown metric {code}"]
        elif re.search(r"\b(sum|rate|increase|histogram_quantile|topk|max|min|avg|count)\b|[{:]", code):
            found += [f"docs/operations/alerts.md: {code}: {said}" for said in everything.complaints(code)]
    return found


def readable(tree):
    """What a person reads when an alert fires: promtool renders it from the series of the tests."""
    found, cases = [], []
    for path in sorted((tree.folder / "tests").glob("*.yaml")):
        text = path.read_text()
        # Each firing case once more, now asking for the alert itself and expecting none, so that promtool shows it.
        text = re.sub(r"rule_files:\n((?:  - .*\n)+)", lambda m: "rule_files:\n" + m[1].replace('"../', f'"{tree.folder}/'), text)
        text = text.replace("promql_expr_test:", "alert_rule_test:")
        text = re.sub(r'- expr: ".*?alertname=\\"(\w+)\\".*\n', r"- alertname: \1\n", text)
        text = re.sub(r"exp_samples:(\n +- labels:.*\n +value: .*| \[\])", "exp_alerts: []", text)
        cases.append(text)
    for text in cases:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(text)
            file.flush()
            _, said = promtool("test", "rules", file.name)
        names = set(re.findall(r"alertname: (\w+)", text))
        shown = dict(re.findall(r'Labels:{alertname="(\w+)".*\n\s*Annotations:{(.*)}', said))
        found += [f"{name}: promtool shows no text" for name in sorted(names - shown.keys())]
        for name, told in sorted(shown.items()):
            if re.search(r"<no value>|%!|\bNaN\b|error|{{|  |=\" |\b(of|In) ?[,.\"]", told):
                found.append(f"{name}: reads badly: {told}")
    return found


def unshown(tree):
    """Metrics that stand on no dashboard and in no rule."""
    everything = " ".join([query for _, query, _ in tree.queries()] + [rule["expr"] for _, rule in tree.rules()])
    names = promql.documented((tree.root / "docs" / "metrics.md").read_text())
    return sorted(name for name in names if not re.search(rf"\b{name}(_bucket|_sum|_count)?\b", everything))
