"""The pieces of a Grafana dashboard. Every panel has a unit, a description, and legends from labels that exist."""

SELECTOR = 'namespace=~"$namespace",job=~"$job"'
RATE_WINDOW = "$__rate_interval"
COLUMNS = 24
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
PER_SECOND, SECONDS, SHARE, COUNT, BYTES = "cps", "s", "percentunit", "short", "bytes"


def of(metric, labels=""):
    """The series of a metric that the variables choose."""
    return f"{metric}{{{SELECTOR}{',' + labels if labels else ''}}}"


def rate(metric, by="", labels=""):
    """Events per second, together or by labels."""
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (rate({of(metric, labels)}[{RATE_WINDOW}]))"


def rate_or_0(metric, labels=""):
    """The same for counters whose series begin with their first event."""
    return f"{rate(metric, '', labels)} or vector(0)"


def total(metric, by="", labels=""):
    """A gauge over all processes."""
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} ({of(metric, labels)})"


def highest(metric, by="instance", labels=""):
    """A gauge of the process that has most."""
    return f"max by ({by}) ({of(metric, labels)})"


def mean(seconds, count, by):
    """Time by event."""
    return f"{rate(seconds, by)} / {rate(count, by)}"


def quantiles(histogram, by="", legend="", of_all=(0.5, 0.9, 0.99)):
    """(expression, legend) of some quantiles."""
    labels = f"le, {by}" if by else "le"
    return [
        (f"histogram_quantile({one}, {rate(histogram + '_bucket', labels)})", f"p{one * 100:g}{' ' + legend if legend else ''}")
        for one in of_all
    ]


class Panel:
    """One panel; `height` and `width` in Grafana's grid of 24 columns."""

    def __init__(self, kind, title, unit, told, queries, width=8, height=8, **more):
        self.kind, self.title, self.unit, self.told, self.queries = kind, title, unit, told, queries
        self.width, self.height, self.more = width, height, more

    def json(self, number, x, y):
        defaults = {"unit": self.unit, "min": self.more.get("min", 0)}
        if "max" in self.more:
            defaults["max"] = self.more["max"]
        if self.more.get("decimals") is not None:
            defaults["decimals"] = self.more["decimals"]
        steps = [{"color": self.more.get("color", "green"), "value": None}]
        steps += [{"color": color, "value": value} for value, color in self.more.get("steps", ())]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
        if self.kind == "timeseries":
            defaults["custom"] = {
                "lineWidth": 1, "fillOpacity": 10, "showPoints": "never",
                "stacking": {"mode": "normal" if self.more.get("stacked") else "none", "group": "A"},
                "thresholdsStyle": {"mode": "line" if self.more.get("steps") else "off"},
            }
            defaults["color"] = {"mode": "palette-classic"}
            options = {
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        else:
            options = {
                "colorMode": "background" if self.more.get("steps") else "value", "graphMode": "area", "textMode": "value_and_name" if len(self.queries) > 1 or
                self.more.get("names") else "value", "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            }
        targets = [
            {"datasource": DATASOURCE, "expr": expr, "legendFormat": legend, "refId": chr(ord("A") + index), "range": True}
            for index, (expr, legend) in enumerate(self.queries)
        ]
        return {
            "id": number, "type": self.kind, "title": self.title, "description": self.told, "datasource": DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "fieldConfig": {"defaults": defaults, "overrides": []}, "options": options, "targets": targets,
        }


class Row:
    """A heading; what follows stands below it."""

    width, height = COLUMNS, 1

    def __init__(self, title):
        self.title = title

    def json(self, number, x, y):
        return {"id": number, "type": "row", "title": self.title, "collapsed": False, "gridPos": {"x": x, "y": y, "w": COLUMNS, "h": 1}, "panels": []}


class Text:
    """Words."""

    def __init__(self, title, markdown, width=COLUMNS, height=8):
        self.title, self.markdown, self.width, self.height = title, markdown, width, height

    def json(self, number, x, y):
        return {
            "id": number, "type": "text", "title": self.title, "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "options": {"mode": "markdown", "content": self.markdown},
        }


def line(title, unit, told, *queries, **more):
    """A curve over time."""
    return Panel("timeseries", title, unit, told, list(queries), **more)


def stat(title, unit, told, *queries, **more):
    """A figure of now."""
    more = {"width": 4, "height": 4, **more}
    return Panel("stat", title, unit, told, list(queries), **more)


def _variable(name, label, query):
    return {
        "name": name, "label": label, "type": "query", "datasource": DATASOURCE, "query": {"query": query, "refId": name}, "definition": query,
        "refresh": 2, "sort": 1, "multi": True, "includeAll": True, "allValue": ".*" if name == "namespace" else "chappe-.*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]}, "options": [],
    }


def dashboard(uid, title, told, items):
    """A whole dashboard: items are placed from left to right, then below."""
    panels, x, y, below = [], 0, 0, 0
    for item in items:
        if isinstance(item, Row) or x + item.width > COLUMNS:
            x, y = 0, below
        panels.append(item.json(len(panels) + 1, x, y))
        x, below = x + item.width, max(below, y + item.height)
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1, "current": {}, "options": []}
    processes = 'up{job=~"chappe-.+"}'
    variables = [
        source,
        _variable("namespace", "Namespace", f"label_values({processes}, namespace)"),
        _variable("job", "Role", f"label_values({processes[:-1]},namespace=~\"$namespace\"}}, job)"),
    ]
    return {
        "uid": uid, "title": title, "description": told, "tags": ["chappe"], "schemaVersion": 39, "version": 1, "editable": True, "graphTooltip": 1,
        "refresh": "30s", "time": {"from": "now-3h", "to": "now"}, "timezone": "browser", "templating": {"list": variables}, "annotations": {"list": []},
        "links": [{"type": "dashboards", "title": "Chappe", "tags": ["chappe"], "asDropdown": True, "includeVars": True, "keepTime": True}],
        "panels": panels,
    }
