"""The promises that metrics can show, as objectives: how many events may be bad, and alerts on how fast that is used up.

Each rule below runs every 30 s. One takes how many events there were and how many were bad, as a rate over 5 minutes; all longer windows
are made from these two, so that a window of three days costs little. How fast the budget burns is the share of bad events by the share
that may be bad: 1 uses it up in 30 days, 14.4 in two days. Windows and factors are those of "The Site Reliability Workbook" (Google,
2018), chapter 5.
"""

from collections import namedtuple

from .rule import CRITICAL, WARNING, Alert, gateway, pusher, rate, router

WINDOWS = {"5m": 5, "30m": 30, "1h": 60, "2h": 120, "6h": 360, "1d": 1440, "3d": 4320}
# With fewer events than this, in an hour and in a day, a share says nothing.
EVENTS_FAST, EVENTS_SLOW = 20, 200

# `objective` in percent; `bad` and `every` are rates; `told` says what the bad ones are, `means` what is counted; `series`
# makes series for the tests from the values of good and of bad events.
Slo = namedtuple("Slo", "name alert title promise objective bad every told means series")


def or_none(bad, every):
    """Counters with labels exist from their first event on: no series is no bad event."""
    return f"{bad}\nor 0 * {every}"


def _le(bound):
    return f'le="{bound}"'


_OUTCOMES, _SUBMIT, _ATTACH = "chappe_gateway_outcomes_total", "chappe_gateway_submit_seconds", "chappe_gateway_attach_seconds"
_DELIVER, _WAKE, _AWAY = "chappe_gateway_deliver_seconds", "chappe_pusher_wake_seconds", 'reason=~"store_unavailable|overloaded|keys_unavailable"'
_TURNED_AWAY = or_none(rate("chappe_gateway_closed_total", _AWAY), rate(f"{_ATTACH}_count"))
_ATTACHES = f"{rate(f'{_ATTACH}_count')}\n+ (\n{_TURNED_AWAY}\n)"
_UNANSWERED = (
    "sum by (namespace) (\n"
    "  clamp_min(rate(chappe_gateway_probe_failed_total[5m]) - rate(chappe_gateway_probes_alone_total[5m]), 0)\n)"
)


def _late(metric, within):
    """Events that took longer than `within` seconds, which must be a bound of the histogram."""
    return f"{rate(f'{metric}_count')}\n- {rate(f'{metric}_bucket', _le(within))}"


def _of(one, metric, bad_labels="", good_labels=""):
    """Good and bad events as two series of one counter."""
    return lambda good, bad: [one(metric, good, good_labels), one(metric, bad, bad_labels)]


def _timed(one, metric, within, labels=""):
    """Good and bad events of a histogram: those within the bound, and all."""
    with_le = f"{labels},{_le(within)}" if labels else _le(within)
    return lambda good, bad: [
        one(f"{metric}_bucket", good, with_le), one(f"{metric}_count", good, labels),
        one(f"{metric}_bucket", "0+0x5000", with_le, "other"), one(f"{metric}_count", bad, labels, "other"),
    ]


SLOS = [
    Slo("accept", "ChappeAccept", "Accepted", "P1", 99.9,
        or_none(rate(_OUTCOMES, 'outcome=~"unavailable|unknown|not_attempted"'), rate(_OUTCOMES)), rate(_OUTCOMES),
        "targets of submits that are not accepted",
        "Of all targets of submits, how many were answered otherwise than unavailable, unknown or not_attempted. Senders try these again.",
        _of(gateway, _OUTCOMES, 'outcome="unavailable"', 'outcome="accepted"')),
    Slo("accept_time", "ChappeAcceptTime", "Accepted within 250 ms", "P1", 99.0, _late(_SUBMIT, "0.25"), rate(f"{_SUBMIT}_count"),
        "submits that take more than 250 ms",
        "Of all submits, how many had their result within 250 ms.",
        _timed(gateway, _SUBMIT, "0.25")),
    Slo("attach", "ChappeAttach", "Attached within 1 s", "P5", 99.0,
        f"{_ATTACHES}\n- {rate(f'{_ATTACH}_bucket', _le('1'))}", _ATTACHES,
        "attaches that take more than 1 s or are turned away",
        "Of all sessions that were welcomed or turned away for a reason of ours, how many were welcomed within 1 s of their Hello.",
        _timed(gateway, _ATTACH, "1")),
    Slo("live", "ChappeLive", "Told by a doorbell", "P5", 99.9, rate("chappe_gateway_probe_news_total"),
        f"{rate('chappe_gateway_doorbells_total')}\n+ {rate('chappe_gateway_probe_news_total')}",
        "news that come by a probe and not by a doorbell",
        "Of all news for attached devices, how many came by a doorbell, in milliseconds, and not by a probe, up to 90 s late.",
        lambda good, bad: [gateway("chappe_gateway_doorbells_total", good), gateway("chappe_gateway_probe_news_total", bad)]),
    Slo("live_time", "ChappeLiveTime", "Delivered within a second", "P5", 99.0, _late(_DELIVER, "1"), rate(f"{_DELIVER}_count"),
        "deliveries to attached devices that take longer than a second",
        "Of all envelopes for devices that were attached when these were accepted, how many were written to them within a second.",
        _timed(gateway, _DELIVER, "1")),
    Slo("probe", "ChappeProbe", "Probes answered", "P5", 99.0, _UNANSWERED, rate("chappe_gateway_probes_total"),
        "probes that neither a router nor the store answers",
        "Of all probes, how many were answered, by a router or from the store. They are what bounds the delay when doorbells are lost.",
        lambda good, bad: [
            gateway("chappe_gateway_probes_total", good), gateway("chappe_gateway_probes_total", bad, instance="other"),
            gateway("chappe_gateway_probe_failed_total", "0+0x5000"), gateway("chappe_gateway_probe_failed_total", bad, instance="other"),
            gateway("chappe_gateway_probes_alone_total", "0+0x5000"), gateway("chappe_gateway_probes_alone_total", "0+0x5000", instance="other"),
        ]),
    Slo("wake", "ChappeWake", "Woken within 30 s", "P6", 99.0, _late(_WAKE, "30"), rate(f"{_WAKE}_count"),
        "first wakes that reach the provider later than 30 s",
        "Of all first wakes, how many a provider took within 30 s of the envelope's acceptance.",
        _timed(pusher, _WAKE, "30", 'provider="apns"')),
]


def recording():
    """Groups of recording rules."""
    events = []
    for slo in SLOS:
        labels = {"slo": slo.name}
        events.append({"record": "chappe:slo_bad:rate5m", "expr": slo.bad, "labels": labels})
        events.append({"record": "chappe:slo_all:rate5m", "expr": slo.every, "labels": labels})
        events.append({"record": "chappe:slo_objective", "expr": f"vector({slo.objective / 100:g})", "labels": labels})
    budgets = []
    for window in WINDOWS:
        bad, every = ("chappe:slo_bad:rate5m", "chappe:slo_all:rate5m")
        if window != "5m":
            bad, every = f"sum_over_time({bad}[{window}])", f"sum_over_time({every}[{window}])"
        budgets.append({"record": f"chappe:slo_bad_ratio:{window}", "expr": f"{bad} / ({every} > 0)"})
        budgets.append({
            "record": f"chappe:slo_burn:{window}",
            "expr": f"chappe:slo_bad_ratio:{window} / on (slo) group_left () (1 - max by (slo) (chappe:slo_objective))",
        })
    budgets += [
        {"record": "chappe:slo_events:1h", "expr": "3600 * avg_over_time(chappe:slo_all:rate5m[1h])"},
        {"record": "chappe:slo_events:1d", "expr": "86400 * avg_over_time(chappe:slo_all:rate5m[1d])"},
    ]
    return [
        {"name": "chappe-events", "interval": "30s", "rules": events},
        {"name": "chappe-budgets", "interval": "30s", "rules": budgets},
    ]


def _burn(slo, pairs, events, window):
    both = [
        f'(\n  chappe:slo_burn:{long}{{slo="{slo.name}"}} > {factor}\n  and chappe:slo_burn:{short}{{slo="{slo.name}"}} > {factor}\n)'
        for long, short, factor in pairs
    ]
    return f'({" or ".join(both)})\nand on (namespace, slo) chappe:slo_events:{window} > {events}'


def _alerts(slo):
    def at_burn(burn, minutes):
        """Good and bad events of every minute, at which the budget burns so many times as fast as it may."""
        bad = burn * (100 - slo.objective) / 100
        return slo.series(f"0+{round(100000 * (1 - bad))}x{minutes}", f"0+{round(100000 * bad)}x{minutes}")

    yield Alert(
        f"{slo.alert}BudgetFast", CRITICAL,
        _burn(slo, [("1h", "5m", 14.4), ("6h", "30m", 6)], EVENTS_FAST, "1h"), "2m",
        f"Too many {slo.told}",
        f"In {{{{ $labels.namespace }}}} the budget for {slo.told} ({slo.promise}, {slo.objective:g} % must be good) burns "
        "{{ $value | humanize }} times as fast as it may.",
        at_burn(16, 90), at_burn(5.5, 90), at=75,
    )
    yield Alert(
        f"{slo.alert}BudgetSlow", WARNING,
        _burn(slo, [("1d", "2h", 3), ("3d", "6h", 1)], EVENTS_SLOW, "1d"), "15m",
        f"Somewhat too many {slo.told}",
        f"In {{{{ $labels.namespace }}}} the budget for {slo.told} ({slo.promise}, {slo.objective:g} % must be good) burns "
        "{{ $value | humanize }} times as fast as it may; at this pace it will be used up before its 30 days are over.",
        at_burn(3.5, 1500), at_burn(0.9, 1500), at=1500,
    )


CURSOR_AHEAD = Alert(
    "ChappeCursorAhead", CRITICAL, "increase(chappe_gateway_cursor_ahead_total[1h]) > 0", None,
    "A device has acked what the store does not have",
    "{{ $labels.instance }} has refused a device whose cursor lies beyond the head of its mailbox: the store has lost envelopes, "
    "or the device comes from another installation.",
    [gateway("chappe_gateway_cursor_ahead_total", "0+0x5 1+0x10")],
    [gateway("chappe_gateway_cursor_ahead_total", "3+0x15")],
)

_LOST = 'event=~"lost|head_back"'
LOST = Alert(
    "ChappeSlotsLost", CRITICAL, f"increase(chappe_log_events_total{{{_LOST}}}[1h]) > 0", None,
    "The store has lost what it had",
    "{{ $labels.instance }} of {{ $labels.job }} has found {{ $labels.event }} in the slot log: an accepted envelope is gone, or a write was undone.",
    [router("chappe_log_events_total", "0+0x5 1+0x10", 'event="lost"')],
    [router("chappe_log_events_total", "3+0x15", 'event="head_back"'), router("chappe_log_events_total", "0+9x15", 'event="hole_healed"')],
)

FAST = [alert for slo in SLOS for alert in _alerts(slo) if alert.at < 1440] + [CURSOR_AHEAD, LOST]
SLOW = [alert for slo in SLOS for alert in _alerts(slo) if alert.at >= 1440]
