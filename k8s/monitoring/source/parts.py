"""Alerts on what Chappe depends on: the store, the bus, presence."""

from .alerts import SHARE, WHERE
from .rule import CRITICAL, WARNING, Alert, gateway, router, share


def grows(metric, labels="", window="15m"):
    """A counter of what must not happen at all, process by process."""
    return f"increase({metric}{{{labels}}}[{window}]) > 0" if labels else f"increase({metric}[{window}]) > 0"


def never(name, severity, one, metric, summary, description):
    """An alert on a counter that must not grow."""
    return Alert(name, severity, grows(metric), None, summary, description, [one(metric, "0+0x6 2+0x10")], [one(metric, "4+0x16")])


_ERRORS, _STATEMENTS = "chappe_store_errors_total", "chappe_store_statements_total"
_FOREIGN, _FAILED = 'class=~"invalid|misshapen"', 'class=~"unavailable|unknown|full"'

STORE = [
    Alert(
        "ChappeStoreAway", CRITICAL, "max by (namespace) (chappe_store_up) == 0", "1m",
        "The database answers nobody",
        WHERE + " no process reaches the database: nothing is accepted, nobody can attach.",
        [gateway("chappe_store_up", "1+0x5 0+0x10"), router("chappe_store_up", "1+0x5 0+0x10")],
        [gateway("chappe_store_up", "1+0x5 0+0x10"), router("chappe_store_up", "1+0x15")],
    ),
    Alert(
        "ChappeStoreUnreachable", WARNING, "chappe_store_up == 0", "3m",
        "A process does not reach the database",
        "{{ $labels.instance }} of {{ $labels.job }} gets no answer from the database, and is not ready.",
        [gateway("chappe_store_up", "1+0x4 0+0x10"), router("chappe_store_up", "1+0x15")],
        [gateway("chappe_store_up", "1+0x4 0+0x2 1+0x10"), router("chappe_store_up", "1+0x15")],
    ),
    Alert(
        "ChappeStoreNotUnderstood", CRITICAL, grows(_ERRORS, _FOREIGN), None,
        "The database answers what this binary does not understand",
        "{{ $labels.instance }} of {{ $labels.job }} has had answers of the class {{ $labels.class }} from the database.",
        [router(_ERRORS, "0+0x5 3+0x10", 'class="misshapen"')], [router(_ERRORS, "5+0x16", 'class="invalid"'), router(_ERRORS, "0+5x16", 'class="append_refused"')],
    ),
    Alert(
        "ChappeStoreFailing", WARNING,
        f"{share((_ERRORS, _FAILED), _STATEMENTS)} > 0.01", "10m",
        "Statements to the database fail",
        f"{WHERE} {SHARE} of the statements to the database fail.",
        [router(_ERRORS, "0+20x30", 'class="unknown"'), router(_STATEMENTS, "0+1000x30", 'kind="append"')],
        [router(_ERRORS, "0+8x30", 'class="unknown"'), router(_ERRORS, "0+90x30", 'class="append_refused"'), router(_STATEMENTS, "0+1000x30", 'kind="append"')],
        at=25,
    ),
]

_CALLS, _SERVED = "chappe_presence_calls_total", "chappe_bus_served_total"
_NOT_OK, _UNSERVED = 'outcome!="ok"', 'outcome=~"stale|full|unanswered"'

BUS = [
    Alert(
        "ChappeBusAway", CRITICAL, "max by (namespace) (chappe_bus_connected) == 0", "1m",
        "NATS is away",
        WHERE + " no process has a connection to NATS: nothing is accepted, and what is in the store is delivered up to 90 s late.",
        [gateway("chappe_bus_connected", "1+0x5 0+0x10"), router("chappe_bus_connected", "1+0x5 0+0x10")],
        [gateway("chappe_bus_connected", "1+0x5 0+0x10"), router("chappe_bus_connected", "1+0x15")],
    ),
    Alert(
        "ChappeBusUnreachable", WARNING, "chappe_bus_connected == 0", "3m",
        "A process does not reach NATS",
        "{{ $labels.instance }} of {{ $labels.job }} has no connection to NATS.",
        [gateway("chappe_bus_connected", "1+0x4 0+0x10"), router("chappe_bus_connected", "1+0x15")],
        [gateway("chappe_bus_connected", "1+0x4 0+0x2 1+0x10"), router("chappe_bus_connected", "1+0x15")],
    ),
    Alert(
        "ChappeBusFlapping", WARNING, "increase(chappe_bus_disconnects_total[30m]) > 4", None,
        "The connection to NATS is lost again and again",
        "{{ $labels.instance }} of {{ $labels.job }} has lost its connection to NATS {{ $value | humanize }} times within half an hour.",
        [router("chappe_bus_disconnects_total", "0+1x20")], [router("chappe_bus_disconnects_total", "0+0x6 1+0x4 2+0x10")],
    ),
    Alert(
        "ChappeNoRouterHeard", CRITICAL, 'chappe_bus_routers{job="chappe-gateway"} == 0\nand chappe_bus_connected == 1', "1m",
        "A gateway hears no router",
        "{{ $labels.instance }} is connected to NATS and hears no router: it accepts no submit.",
        [gateway("chappe_bus_routers", "2+0x4 0+0x10"), gateway("chappe_bus_connected", "1+0x15")],
        # Routers and pushers count none, and that is right; a gateway without NATS has another alert.
        [gateway("chappe_bus_routers", "1+0x15"), gateway("chappe_bus_connected", "1+0x15"), router("chappe_bus_routers", "0+0x15"),
         router("chappe_bus_connected", "1+0x15"), gateway("chappe_bus_routers", "0+0x15", instance="b"), gateway("chappe_bus_connected", "0+0x15", instance="b")],
    ),
    Alert(
        "ChappeRoutersSuspected", WARNING, "sum by (namespace) (increase(chappe_bus_routers_suspected_total[15m])) > 5", None,
        "Gateways avoid routers",
        WHERE + " gateways found routers silent or late {{ $value | humanize }} times within a quarter of an hour.",
        [gateway("chappe_bus_routers_suspected_total", "0+1x20")], [gateway("chappe_bus_routers_suspected_total", "0+0x4 2+0x16")],
    ),
    Alert(
        "ChappeBusLagging", WARNING, "chappe_bus_lag_seconds > 1", "5m",
        "Requests wait before a router reads them",
        "Requests to {{ $labels.instance }} wait up to {{ $value | humanizeDuration }} before they are read.",
        [router("chappe_bus_lag_seconds", "2+0x20")], [router("chappe_bus_lag_seconds", "2+0x3 0+0x1 2+0x3 0+0x10")],
    ),
    Alert(
        "ChappeRequestsStale", WARNING,
        f"{share((_SERVED, _UNSERVED), _SERVED)} > 0.05", "5m",
        "Routers do not get to what they are asked",
        f"{WHERE} {SHARE} of the requests that reach routers waited too long, found no room or got no answer.",
        [router(_SERVED, "0+10x30", 'outcome="stale"'), router(_SERVED, "0+90x30", 'outcome="answered"')],
        [router(_SERVED, "0+3x30", 'outcome="stale"'), router(_SERVED, "0+90x30", 'outcome="answered"')], at=20,
    ),
    never("ChappeBusReadsTooSlowly", WARNING, gateway, "chappe_bus_slow_consumers_total",
          "A process reads too slowly from NATS",
          "NATS has dropped messages for {{ $labels.instance }} of {{ $labels.job }}, since it reads too slowly."),
    never("ChappeBusForeign", CRITICAL, router, "chappe_bus_foreign_total",
          "Another installation speaks on this NATS",
          "{{ $labels.instance }} of {{ $labels.job }} has refused messages of another cluster or another store."),
    never("ChappeBusDenied", CRITICAL, gateway, "chappe_bus_denied_total",
          "NATS forbids what a process needs",
          "NATS has denied {{ $labels.instance }} of {{ $labels.job }} a subject that it needs."),
    never("ChappeBusNotUnderstood", WARNING, gateway, "chappe_bus_invalid_total",
          "A process cannot read what comes on NATS",
          "{{ $labels.instance }} of {{ $labels.job }} got messages that it could not read: two versions do not understand each other."),
]

PRESENCE = [
    Alert(
        "ChappePresenceFailing", WARNING, f"{share((_CALLS, _NOT_OK), _CALLS, '5m')} > 0.05", "5m",
        "Redis does not answer",
        f"{WHERE} {SHARE} of the calls of Redis fail: resumes become full attaches, doorbells miss devices, wakes may come twice.",
        [gateway(_CALLS, "0+10x20", 'call="lease",outcome="timeout"'), gateway(_CALLS, "0+90x20", 'call="lease",outcome="ok"')],
        [gateway(_CALLS, "0+4x20", 'call="lease",outcome="timeout"'), gateway(_CALLS, "0+96x20", 'call="lease",outcome="ok"')], at=12,
    ),
    Alert(
        "ChappePresenceSlow", WARNING,
        "histogram_quantile(0.99, sum by (namespace, le) (rate(chappe_presence_seconds_bucket[5m]))) > 0.25", "10m",
        "Redis is slow",
        WHERE + " one call of Redis in a hundred takes more than {{ $value | humanizeDuration }}.",
        [gateway("chappe_presence_seconds_bucket", "0+90x30", 'le="0.2048"'), gateway("chappe_presence_seconds_bucket", "0+100x30", 'le="0.8192"'),
         gateway("chappe_presence_seconds_bucket", "0+100x30", 'le="+Inf"')],
        [gateway("chappe_presence_seconds_bucket", "0+1000x30", 'le="0.2048"'), gateway("chappe_presence_seconds_bucket", "0+1005x30", 'le="0.8192"'),
         gateway("chappe_presence_seconds_bucket", "0+1005x30", 'le="+Inf"')], at=20,
    ),
]
