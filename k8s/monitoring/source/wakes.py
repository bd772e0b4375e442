"""Alerts on the way of a wake: hints, sweeps, the outbox, the providers."""

from .alerts import SHARE, WHERE
from .parts import grows
from .rule import CRITICAL, WARNING, Alert, pusher, rate, router, share

SHARDS = 16
_LOST, _STORED, _ANSWERS = "chappe_bus_wakes_lost_total", "chappe_bus_wakes_stored_total", "chappe_pusher_answers_total"
_WAKES, _FIX = "chappe_pusher_wakes_total", 'verdict="fix_configuration"'
_PUT_OFF = _ANSWERS + '{verdict=~"retry|held"}'
_REFUSED, _DONE, _AGAIN = (f'provider="apns",verdict="{verdict}",reason="{reason}"' for verdict, reason in
                           (("fix_configuration", "BadTopic"), ("done", "ok"), ("retry", "ServiceUnavailable")))
_BY_PROVIDER = "sum by (namespace, provider) (rate({}[{}]))"


def _of_provider(part, whole, window):
    every = _BY_PROVIDER.format(whole, window)
    return f"(\n  {_BY_PROVIDER.format(part, window)}\n  or 0 * {every}\n)\n/ {every}"


HINTS = [
    Alert(
        "ChappeWakeStreamDown", WARNING, "chappe_bus_wake_stream_up == 0", "5m",
        "A router has no stream for wake hints",
        "{{ $labels.instance }} cannot put wake hints into JetStream: devices that sleep are woken by the sweep, up to 30 s late.",
        [router("chappe_bus_wake_stream_up", "1+0x2 0+0x20")], [router("chappe_bus_wake_stream_up", "1+0x2 0+0x4 1+0x20")],
    ),
    Alert(
        "ChappeWakeJobsDown", WARNING, "chappe_bus_wake_jobs_up == 0", "5m",
        "A pusher gets no wake hints",
        "{{ $labels.instance }} gets no wake hints from JetStream: devices that sleep are woken by the sweep, up to 30 s late.",
        [pusher("chappe_bus_wake_jobs_up", "1+0x2 0+0x20")], [pusher("chappe_bus_wake_jobs_up", "1+0x2 0+0x4 1+0x20")],
    ),
    Alert(
        "ChappeWakeStreamNotSynced", WARNING, "chappe_bus_wake_synced == 0", "10m",
        "JetStream answers before it has synced",
        "A NATS server that {{ $labels.instance }} has asked does not sync JetStream before it answers (sync_interval: always).",
        [router("chappe_bus_wake_synced", "0+0x20")], [router("chappe_bus_wake_synced", "-1+0x20"), router("chappe_bus_wake_synced", "1+0x20", instance="b")],
        at=12,
    ),
    Alert(
        "ChappeWakeHintsLost", WARNING,
        f"(\n  {rate(_LOST, window='10m')}\n  / ({rate(_LOST, window='10m')} + {rate(_STORED, window='10m')})\n) > 0.01", "10m",
        "Wake hints are lost",
        f"{WHERE} {SHARE} of the wake hints do not reach JetStream: the sweep finds their devices, up to 30 s late.",
        [router(_LOST, "0+20x30", 'why="full"'), router(_STORED, "0+1000x30")], [router(_LOST, "0+9x30", 'why="full"'), router(_STORED, "0+1000x30")],
        at=25,
    ),
    Alert(
        "ChappeWakeJobsWaiting", WARNING, "max by (namespace) (chappe_bus_wake_jobs_waiting) > 10000", "10m",
        "Pushers do not keep up with wake hints",
        WHERE + " {{ $value | humanize }} wake hints wait behind the latest that a pusher got.",
        [pusher("chappe_bus_wake_jobs_waiting", "12000+0x30")], [pusher("chappe_bus_wake_jobs_waiting", "12000+0x8 0+0x2 12000+0x30")], at=14,
    ),
    Alert(
        "ChappeHintsNotTaken", WARNING,
        "sum by (namespace) (rate(chappe_pusher_hints_lost_total[10m])) > 0", "10m",
        "Pushers have no place for wake hints",
        WHERE + " pushers drop {{ $value | humanize }} wake hints a second: the sweep finds their devices, up to 30 s late.",
        [pusher("chappe_pusher_hints_lost_total", "0+6x30")], [pusher("chappe_pusher_hints_lost_total", "0+0x5 0+6x5 30+0x20")], at=25,
    ),
]

SWEEPS = [
    Alert(
        "ChappeShardsUnswept", CRITICAL, f"sum by (namespace) (chappe_pusher_shards) < {SHARDS}", "3m",
        "Nobody sweeps part of the sleeping devices",
        WHERE + f" pushers sweep {{{{ $value }}}} of {SHARDS} shards: devices of the others that a lost hint forgot are not woken.",
        [pusher("chappe_pusher_shards", "8+0x20"), pusher("chappe_pusher_shards", "8+0x4 0+0x20", instance="b")],
        [pusher("chappe_pusher_shards", "8+0x4 16+0x20"), pusher("chappe_pusher_shards", "8+0x3 0+0x20", instance="b")],
    ),
    Alert(
        "ChappeSweepBehind", WARNING, "chappe_pusher_sweep_behind_seconds > 10", "5m",
        "The sweep is late",
        "The oldest note that {{ $labels.instance }} has not swept is {{ $value | humanizeDuration }} old: wakes that hang on it are as late.",
        [pusher("chappe_pusher_sweep_behind_seconds", "12+0x20")], [pusher("chappe_pusher_sweep_behind_seconds", "12+0x4 2+0x1 12+0x3 3+0x20")],
    ),
    Alert(
        "ChappeSweepsFailing", WARNING,
        "sum by (namespace) (rate(chappe_pusher_sweeps_failed_total[5m])) > 0\nor sum by (namespace) (rate(chappe_pusher_looks_failed_total[5m])) > 0", "10m",
        "Pushers get no answer from the database",
        WHERE + " {{ $value | humanize }} sweeps or looks a second get no answer from the database, and are repeated.",
        [pusher("chappe_pusher_sweeps_failed_total", "0+6x30"), pusher("chappe_pusher_looks_failed_total", "0+0x30")],
        [pusher("chappe_pusher_sweeps_failed_total", "0+0x5 0+6x3 18+0x30"), pusher("chappe_pusher_looks_failed_total", "0+0x30")], at=20,
    ),
    Alert(
        "ChappePushKeyMissing", CRITICAL, 'sum by (namespace) (increase(chappe_pusher_looks_total{found="sealed"}[15m])) > 0', None,
        "Devices cannot be woken, since a push key is missing",
        WHERE + " a pusher has met {{ $value | humanize }} devices whose push targets it cannot open.",
        [pusher("chappe_pusher_looks_total", "0+0x5 3+0x20", 'found="sealed"')],
        [pusher("chappe_pusher_looks_total", "3+0x20", 'found="sealed"'), pusher("chappe_pusher_looks_total", "0+9x20", 'found="unreachable"')],
    ),
]

PROVIDERS = [
    Alert(
        "ChappeProviderRefuses", CRITICAL,
        f"sum by (namespace, provider, reason) (\n  increase({_ANSWERS}{{{_FIX}}}[15m]) > 0\n"
        f"  or {_ANSWERS}{{{_FIX}}} unless {_ANSWERS}{{{_FIX}}} offset 15m\n)", None,
        "A push provider refuses an app",
        "{{ $labels.provider }} refuses with {{ $labels.reason }}: nobody who sleeps is woken in that app until its configuration is mended.",
        # The series begins with its first event, so its growth shows nothing yet.
        [pusher(_ANSWERS, "_x8 1+0x20", _REFUSED)], [pusher(_ANSWERS, "4+0x40", _REFUSED), pusher(_ANSWERS, "0+9x40", _DONE)], at=20,
    ),
    Alert(
        "ChappeProviderFailing", WARNING,
        f"{_of_provider(_PUT_OFF, _ANSWERS, '10m')} > 0.2", "10m",
        "A push provider fails",
        WHERE + " {{ $value | humanizePercentage }} of the answers of {{ $labels.provider }} put the wake off.",
        [pusher(_ANSWERS, "0+30x30", _AGAIN), pusher(_ANSWERS, "0+70x30", _DONE)], [pusher(_ANSWERS, "0+15x30", _AGAIN), pusher(_ANSWERS, "0+85x30", _DONE)],
        at=25,
    ),
    Alert(
        "ChappeProviderPaused", WARNING, "chappe_pusher_apps_paused > 0", "10m",
        "A pusher holds the wakes of an app back",
        "{{ $labels.instance }} holds back {{ $value }} apps, whose provider asked for a pause, fails or refuses them.",
        [pusher("chappe_pusher_apps_paused", "1+0x30")], [pusher("chappe_pusher_apps_paused", "1+0x8 0+0x1 1+0x8 0+0x9")], at=15,
    ),
    Alert(
        "ChappeWakesParked", WARNING, grows("chappe_pusher_parked_total", window="1h"), None,
        "Wakes will never pass",
        "{{ $labels.instance }} has given up {{ $value | humanize }} wakes within an hour.",
        [pusher("chappe_pusher_parked_total", "0+0x5 3+0x20")], [pusher("chappe_pusher_parked_total", "3+0x20")],
    ),
    Alert(
        "ChappeTargetsDying", WARNING,
        f"{_of_provider('chappe_pusher_dead_targets_total', _WAKES, '1h')} > 0.2\n"
        "and sum by (namespace, provider) (increase(chappe_pusher_dead_targets_total[1h])) > 50", "10m",
        "A provider calls many push targets dead",
        WHERE + " {{ $labels.provider }} calls so many targets dead that it is {{ $value | humanizePercentage }} of the wakes it takes.",
        [pusher("chappe_pusher_dead_targets_total", "0+30x80", 'provider="apns"'), pusher(_WAKES, "0+100x80", 'provider="apns",attempt="first"')],
        [pusher("chappe_pusher_dead_targets_total", "0+10x80", 'provider="apns"'), pusher(_WAKES, "0+100x80", 'provider="apns",attempt="first"')], at=70,
    ),
    Alert(
        "ChappeWakesNotNeeded", WARNING,
        f"{share('chappe_pusher_noise_total', _WAKES, '1h')} > 0.05\nand sum by (namespace) (increase(chappe_pusher_noise_total[1h])) > 50", "30m",
        "Many wakes come too late to be needed",
        f"{WHERE} {SHARE} of the wakes are for devices that have acked everything by then.",
        [pusher("chappe_pusher_noise_total", "0+8x120", 'provider="apns"'), pusher(_WAKES, "0+100x120", 'provider="apns",attempt="first"')],
        [pusher("chappe_pusher_noise_total", "0+4x120", 'provider="apns"'), pusher(_WAKES, "0+100x120", 'provider="apns",attempt="first"')], at=100,
    ),
    Alert(
        "ChappeWakeQueueLong", WARNING, 'chappe_pusher_queue{state="due"} / ignoring (state) chappe_pusher_queue_max > 0.25', "5m",
        "Wakes pile up in a pusher",
        "{{ $labels.instance }} has {{ $value | humanizePercentage }} of the wakes that it takes due, and no provider has taken them.",
        [pusher("chappe_pusher_queue", "60000+0x20", 'state="due"'), pusher("chappe_pusher_queue_max", "200000+0x20")],
        [pusher("chappe_pusher_queue", "40000+0x20", 'state="due"'), pusher("chappe_pusher_queue", "90000+0x20", 'state="parked"'),
         pusher("chappe_pusher_queue_max", "200000+0x20")],
    ),
    Alert(
        "ChappeWakeOverdue", CRITICAL, "chappe_pusher_oldest_wake_seconds > 60", "5m",
        "Devices wait to be woken",
        "The oldest wake in the outbox of {{ $labels.instance }} has waited for {{ $value | humanizeDuration }}; within 30 s is promised.",
        [pusher("chappe_pusher_oldest_wake_seconds", "90+0x20")], [pusher("chappe_pusher_oldest_wake_seconds", "90+0x4 10+0x1 90+0x3 0+0x20")],
    ),
    Alert(
        "ChappeWakesUnwritten", WARNING, "sum by (namespace) (rate(chappe_pusher_unwritten_total[10m])) > 0", "10m",
        "The database does not take who was woken",
        WHERE + " {{ $value | humanize }} wakes a second leave no trace in the database: their devices may be woken once more.",
        [pusher("chappe_pusher_unwritten_total", "0+6x30")], [pusher("chappe_pusher_unwritten_total", "0+0x5 0+6x5 30+0x20")], at=25,
    ),
]
