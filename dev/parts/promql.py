"""Reads queries of Prometheus as far as it takes to know which metrics and labels they name. promtool says whether they are queries.

What exists stands in docs/metrics.md, in the rules that record, and in what Prometheus adds by itself.
"""

import re
from collections import namedtuple

# What the scrape adds, with `chappe-<role>` as the job.
TARGET_LABELS = {"namespace", "job", "instance"}
OWN = {"up": set(), "ALERTS": {"alertname", "alertstate", "severity", "slo"}}
JOBS = {"chappe-gateway", "chappe-router", "chappe-pusher", "chappe-standalone"}
OF_COUNTERS = {"rate", "irate", "increase", "resets"}
OF_GAUGES = {"sum_over_time", "avg_over_time", "max_over_time", "min_over_time", "last_over_time", "delta", "deriv", "predict_linear", "changes"}
SUFFIXES = ("_bucket", "_sum", "_count")

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[A-Za-z_:$][\w:$]*|\d[\w.]*|=~|!~|!=|==|>=|<=|\S')
_WORDS = {"and", "or", "unless", "offset", "bool", "inf", "nan"}
_GROUPINGS = {"by", "without", "on", "ignoring", "group_left", "group_right"}

Selector = namedtuple("Selector", "metric matchers ranged function")
Grouping = namedtuple("Grouping", "word labels inside")  # `inside`: selectors that `by` groups
Metric = namedtuple("Metric", "kind labels")


def documented(markdown):
    """The metrics of docs/metrics.md: kind and labels by name."""
    found = {}
    for name, kind, labels in re.findall(r"^\| `((?:chappe|process)_\w+)` \| (\w+) \| ([^|]*) \|", markdown, re.M):
        found[name] = Metric(kind, {label.strip() for label in labels.split(",") if label.strip()})
    return found


def substituted(query):
    """Grafana's variables filled in."""
    return query.replace("$__rate_interval", "5m").replace("$namespace", ".*").replace("$job", ".*")


class Query:
    """A query's selectors and groupings."""

    def __init__(self, text):
        self.tokens, self.at = _TOKEN.findall(re.sub(r"#.*", "", text)), 0
        self.selectors, self.groupings = [], []
        self._parse(None)

    def _peek(self, ahead=0):
        at = self.at + ahead
        return self.tokens[at] if at < len(self.tokens) else ""

    def _next(self):
        self.at += 1
        return self.tokens[self.at - 1]

    def _names(self):
        """(a, b, c)"""
        names = []
        self._next()
        while self._peek() not in (")", ""):
            word = self._next()
            if word != ",":
                names.append(word)
        self._next()
        return names

    def _parse(self, function, until=""):
        """Up to a closing parenthesis."""
        pending = None
        while self._peek() and self._peek() != until:
            word = self._next()
            if word in _GROUPINGS:
                labels = self._names() if self._peek() == "(" else []
                pending = Grouping(word, labels, [])
                self.groupings.append(pending)
            elif word == "(" or (re.match(r"[A-Za-z_]", word) and self._peek() == "(" and word not in _WORDS):
                if word != "(":
                    self._next()
                before = len(self.selectors)
                self._parse(word if word != "(" else function, ")")
                if self._peek():
                    self._next()
                inside = self.selectors[before:]
                if pending and pending.word in ("by", "without"):
                    pending.inside.extend(inside)
                    pending = None
                elif self._peek() in ("by", "without"):
                    self._next()
                    self.groupings.append(Grouping(self.tokens[self.at - 1], self._names(), inside))
            elif word == "[":
                while self._peek() not in ("]", ""):
                    self._next()
                self._next()
            elif re.match(r"[A-Za-z_:]", word) and word.lower() not in _WORDS and self._peek(-2) != "offset":
                if self._peek() == "by" or self._peek() == "without":
                    continue  # sum by (…) (…)
                self.selectors.append(self._selector(word, function))
        return

    def _selector(self, metric, function):
        matchers = []
        if self._peek() == "{":
            self._next()
            while self._peek() not in ("}", ""):
                label = self._next()
                if label == ",":
                    continue
                operator, value = self._next(), self._next()
                matchers.append((label, operator, value.strip('"')))
            self._next()
        return Selector(metric, matchers, self._peek() == "[", function)


class Known:
    """What there is: metrics, labels, values of labels."""

    def __init__(self, metrics, recorded, slos, literals):
        self.metrics, self.recorded, self.slos, self.literals = metrics, recorded, slos, literals

    def of(self, name):
        """(kind, labels) of a series' name; None if there is none of that name."""
        if name in self.recorded:
            return Metric("gauge", self.recorded[name] | TARGET_LABELS)
        if name in OWN:
            return Metric("gauge", OWN[name] | TARGET_LABELS)
        metric = self.metrics.get(name)
        if metric and metric.kind != "histogram":
            return Metric(metric.kind, metric.labels | TARGET_LABELS)
        for suffix in SUFFIXES:
            base = self.metrics.get(name[:-len(suffix)]) if name.endswith(suffix) else None
            if base and base.kind == "histogram":
                return Metric("counter", base.labels | TARGET_LABELS | ({"le"} if suffix == "_bucket" else set()))
        return None

    def complaints(self, text):
        """What is wrong with a query."""
        query = Query(substituted(text))
        variables = set(re.findall(r"\$\w+", substituted(text)))
        said = [f"unknown variable {one}" for one in sorted(variables)]
        grown = {one.metric for one in query.selectors if one.ranged}
        for one in query.selectors:
            said += self._of_selector(one, query, grown)
        everywhere = set().union(*(labels.labels for labels in map(self.of, {one.metric for one in query.selectors}) if labels), set())
        for grouping in query.groupings:
            for label in grouping.labels:
                there = [self.of(one.metric) for one in grouping.inside] if grouping.word in ("by", "without") else [Metric("", everywhere)]
                if any(metric and label not in metric.labels for metric in there):
                    said.append(f"unknown label {label} in {grouping.word} ({', '.join(grouping.labels)})")
        return said

    def _of_selector(self, one, query, grown):
        metric = self.of(one.metric)
        if metric is None:
            yield f"unknown metric {one.metric}"
            return
        for label, operator, value in one.matchers:
            if label not in metric.labels:
                yield f"unknown label {label} of {one.metric}"
            elif label not in ("namespace", "instance", "le", "alertname", "alertstate"):
                for word in value.split("|") if "~" in operator else [value]:
                    if not re.fullmatch(r"\w+(-\w+)?", word):
                        continue  # a pattern
                    if word not in {"job": JOBS, "slo": self.slos}.get(label, self.literals):
                        yield f"unknown value {word} of the label {label} of {one.metric}"
        if metric.kind == "counter" and one.ranged and one.function not in OF_COUNTERS:
            yield f"counter {one.metric} in {one.function}"
        if metric.kind == "counter" and not one.ranged and one.metric not in grown:
            yield f"counter {one.metric} without rate or increase"
        if metric.kind == "gauge" and one.ranged and one.function not in OF_GAUGES:
            yield f"gauge {one.metric} in {one.function}"
        if one.metric.endswith("_bucket") and not any(label == "le" for label, _, _ in one.matchers):
            if not any("le" in grouping.labels for grouping in query.groupings if one in grouping.inside):
                yield f"{one.metric} is summed up without le"

    def labels_out(self, text):
        """The labels that the result may have: those that some grouping keeps, else those of the metrics."""
        query = Query(substituted(text))
        grouped = [one for grouping in query.groupings if grouping.word == "by" for one in grouping.inside]
        labels = {label for grouping in query.groupings if grouping.word == "by" for label in grouping.labels}
        bare = [one for one in query.selectors if one not in grouped]
        if re.match(r"\s*(sum|count|min|max|avg)\s*\(", text):
            bare = []
        for one in bare:
            metric = self.of(one.metric)
            labels |= metric.labels if metric else set()
        return labels
