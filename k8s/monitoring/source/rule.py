"""An alert, with what proves it: series where it fires and series where it does not."""

from collections import namedtuple

CRITICAL, WARNING = "critical", "warning"  # wake somebody · look at it in working hours
RUNBOOK = "https://github.com/chappe/chappe/blob/main/docs/operations/alerts.md"

# `fires` and `quiet` are series by the name that `series` gives them, a minute between two values; the alert is looked at `at` minutes after
# the first. `count` of it fire.
Alert = namedtuple("Alert", "name severity expr hold summary description fires quiet at count", defaults=(10, 1))


def series(role, metric, values, labels="", instance=None):
    """One series of one process of a role, and its values as promtool writes them: 0+60x10 begins at 0 and grows by 60 ten times."""
    inner = f'namespace="n",job="chappe-{role}",instance="{instance or role + "-1"}"' + (f",{labels}" if labels else "")
    return {"series": f"{metric}{{{inner}}}", "values": values}


def gateway(metric, values, labels="", instance=None):
    """One of a gateway."""
    return series("gateway", metric, values, labels, instance)


def router(metric, values, labels="", instance=None):
    """One of a router."""
    return series("router", metric, values, labels, instance)


def pusher(metric, values, labels="", instance=None):
    """One of a pusher."""
    return series("pusher", metric, values, labels, instance)


def rate(metric, labels="", window="5m"):
    """Events per second over all processes of an installation; each installation has a namespace of its own."""
    return f"sum by (namespace) (rate({metric}{{{labels}}}[{window}]))" if labels else f"sum by (namespace) (rate({metric}[{window}]))"


def share(part, whole, window="10m"):
    """Of all events the share that a part of them is. Series that do not exist yet count as none."""
    (part, part_labels), (whole, whole_labels) = ((each, "") if isinstance(each, str) else each for each in (part, whole))
    every = rate(whole, whole_labels, window)
    return f"(\n  {rate(part, part_labels, window)}\n  or 0 * {every}\n)\n/ {every}"


def as_rule(alert):
    """As Prometheus takes it."""
    rule = {"alert": alert.name, "expr": alert.expr}
    if alert.hold:
        rule["for"] = alert.hold
    rule["labels"] = {"severity": alert.severity}
    rule["annotations"] = {
        "summary": alert.summary,
        "description": alert.description,
        "runbook_url": f"{RUNBOOK}#{alert.name.lower()}",
    }
    return rule


def as_tests(alerts, interval="1m"):
    """Two cases: these alerts fire, and they do not. Several in one case are cheaper; their series must be different ones."""
    if len({alert.at for alert in alerts}) > 1:
        raise ValueError("looked at together, so at one time")
    names = ", ".join(alert.name for alert in alerts)
    for word, given in (("fires", "fires"), ("is quiet", "quiet")):
        yield {
            "name": f"{names}: {word}",
            "interval": interval,
            "input_series": [one for alert in alerts for one in getattr(alert, given)],
            "promql_expr_test": [{
                "expr": f'sum by (alertname, severity) (ALERTS{{alertname="{alert.name}",alertstate="firing"}})',
                "eval_time": f"{alert.at}m",
                "exp_samples": [] if given == "quiet" else
                [{"labels": f'{{alertname="{alert.name}",severity="{alert.severity}"}}', "value": alert.count}],
            } for alert in alerts],
        }
