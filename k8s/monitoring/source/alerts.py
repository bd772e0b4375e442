"""Alerts on processes, connections and delivery."""

from .rule import CRITICAL, WARNING, Alert, gateway, rate, router, series, share

ROLES = 'job=~"chappe-.+"'
# Bounds of the binaries, which no metric tells: router/src/config.rs, gateway/src/process.rs.
ROUTER_BYTES_MAX, ROUTER_BELLS_MAX, GATEWAY_BELLS_MAX = 64 * 1024 * 1024, 65_536, 16_384
SHARE = "{{ $value | humanizePercentage }}"
WHERE = "In {{ $labels.namespace }}"


def up(role, values, instance=None):
    return series(role, "up", values, instance=instance)


PROCESSES = [
    Alert(
        "ChappeRoleDown", CRITICAL,
        f"(\n  count by (namespace, job) (up{{{ROLES}}})\n  or count by (namespace, job) (up{{{ROLES}}} offset 1h)\n)\n"
        f"unless count by (namespace, job) (up{{{ROLES}}} == 1)",
        "2m", "No {{ $labels.job }} is up",
        "In {{ $labels.namespace }} no process of {{ $labels.job }} answers Prometheus; an hour ago, or now, there are such.",
        # One role answers nobody; the other is gone altogether.
        [up("gateway", "1+0x60 0+0x40"), up("gateway", "1+0x60 0+0x40", "gateway-2"), up("router", "1+0x65 _x40"), up("pusher", "1+0x100")],
        [up("gateway", "1+0x60 0+0x40"), up("gateway", "1+0x100", "gateway-2"), up("router", "1+0x100")],
        at=80, count=2,
    ),
    Alert(
        "ChappeProcessDown", WARNING, f"up{{{ROLES}}} == 0", "5m",
        "A process of {{ $labels.job }} is down",
        "{{ $labels.instance }} of {{ $labels.job }} has not answered Prometheus for 5 minutes.",
        [up("router", "1+0x2 0+0x20")], [up("router", "1+0x6 0+0x4 1+0x10")],
    ),
    Alert(
        "ChappeNothingScraped", CRITICAL, f"absent(up{{{ROLES}}})", "10m",
        "Prometheus scrapes nothing of Chappe",
        "Prometheus has no target whose job begins with chappe-: it was taken away, or never found.",
        [{"series": 'up{namespace="n",job="something",instance="a"}', "values": "1+0x20"}],
        [up("router", "0+0x20")], at=12,
    ),
    Alert(
        "ChappeJobsMisnamed", WARNING,
        'count by (namespace, job) (\n  chappe_gateway_sessions{job!~"chappe-.+"} or chappe_router_mailboxes{job!~"chappe-.+"} or chappe_pusher_shards{job!~"chappe-.+"}\n)',
        "10m", "Chappe is scraped under another name",
        "In {{ $labels.namespace }} {{ $value }} processes of Chappe are scraped as the job {{ $labels.job }}: it should be chappe- and the role.",
        [{"series": 'chappe_gateway_sessions{namespace="n",job="podmonitor",instance="a"}', "values": "5+0x20"},
         {"series": 'chappe_router_mailboxes{namespace="n",job="podmonitor",instance="b"}', "values": "5+0x20"}],
        [gateway("chappe_gateway_sessions", "5+0x20")], at=12,
    ),
    Alert(
        "ChappeRestarting", WARNING,
        "resets(chappe_gateway_accepted_total[30m]) >= 3\nor resets(chappe_bus_announcements_total[30m]) >= 3\n"
        "or resets(chappe_router_submits_total[30m]) >= 3\nor resets(chappe_pusher_notes_total[30m]) >= 3",
        None, "A process of {{ $labels.job }} restarts again and again",
        "{{ $labels.instance }} of {{ $labels.job }} has restarted {{ $value }} times within half an hour.",
        [router("chappe_router_submits_total", "5+5x3 0+5x3 0+5x3 0+5x3")],
        [router("chappe_router_submits_total", "5+5x3 0+5x3 0+5x8"), router("chappe_bus_announcements_total", "0+0x16")],
        at=14,
    ),
]

PROCESSES += [
    Alert(
        "ChappeNotReady", WARNING, "chappe_ready == 0", "10m",
        "A process of {{ $labels.job }} does not become ready",
        "{{ $labels.instance }} of {{ $labels.job }} answers Prometheus and has served nobody for 10 minutes.",
        [router("chappe_ready", "1+0x2 0+0x20")], [router("chappe_ready", "1+0x2 0+0x8 1+0x10"), gateway("chappe_ready", "1+0x20")], at=15,
    ),
    Alert(
        "ChappeTwoVersions", WARNING, "count by (namespace, role) (count by (namespace, role, version) (chappe_build_info)) > 1", "2h",
        "Two versions of {{ $labels.role }} run beside each other",
        WHERE + " {{ $value }} versions of {{ $labels.role }} have run beside each other for two hours: an upgrade has stopped half way.",
        [router("chappe_build_info", "1+0x140", 'role="router",version="1"'), router("chappe_build_info", "1+0x140", 'role="router",version="2"', "b")],
        [router("chappe_build_info", "1+0x140", 'role="router",version="1"'), gateway("chappe_build_info", "1+0x140", 'role="gateway",version="2"')], at=130,
    ),
    Alert(
        "ChappeFilesRunOut", CRITICAL, "process_open_fds{" + ROLES + "} / process_max_fds{" + ROLES + "} > 0.9", "5m",
        "A process of {{ $labels.job }} has hardly an open file left",
        "{{ $labels.instance }} of {{ $labels.job }} uses {{ $value | humanizePercentage }} of its open files: soon it takes no more connections.",
        [gateway("process_open_fds", "19000+0x20"), gateway("process_max_fds", "20000+0x20")],
        [gateway("process_open_fds", "17000+0x20"), gateway("process_max_fds", "20000+0x20")],
    ),
]

_ACCEPTED, _CLOSED = "chappe_gateway_accepted_total", "chappe_gateway_closed_total"
_INVALID = 'reason="token_invalid"'

CONNECTIONS = [
    Alert(
        "ChappeNobodyWelcomed", CRITICAL,
        f"(\n  {rate('chappe_gateway_attach_seconds_count', window='10m')} == 0\n"
        f"  and {rate('chappe_gateway_attach_seconds_count', window='10m').replace('[10m]', '[10m] offset 1h')} > 0.05\n)\n"
        f"and {rate(_ACCEPTED, window='10m')} > 0.1",
        "5m", "Devices knock and nobody is welcomed",
        WHERE + " no session has been welcomed for 10 minutes while connections come; an hour ago there were some.",
        [gateway(_ACCEPTED, "0+60x100"), gateway("chappe_gateway_attach_seconds_count", "0+60x60 3600+0x40")],
        [gateway(_ACCEPTED, "0+60x100"), gateway("chappe_gateway_attach_seconds_count", "0+60x60 3600+0x9 3601+0x3 3602+1x40")], at=80,
    ),
    Alert(
        "ChappeHandshakesFailing", WARNING,
        f"{share('chappe_gateway_handshake_failed_total', _ACCEPTED)} > 0.5\nand {rate('chappe_gateway_handshake_failed_total', window='10m')} > 1",
        "10m", "Most handshakes fail",
        f"{WHERE} {SHARE} of all handshakes fail.",
        [gateway(_ACCEPTED, "0+600x40"), gateway("chappe_gateway_handshake_failed_total", "0+400x40")],
        [gateway(_ACCEPTED, "0+600x40"), gateway("chappe_gateway_handshake_failed_total", "0+250x40")], at=25,
    ),
    Alert(
        "ChappeConnectionsRefused", CRITICAL,
        f"{share('chappe_gateway_refused_total', _ACCEPTED, '5m')} > 0.05",
        "10m", "Gateways send newcomers away",
        f"{WHERE} {SHARE} of all connections are closed before any work, by the admission bucket or the ceiling of connections.",
        [gateway(_ACCEPTED, "0+600x30"), gateway("chappe_gateway_refused_total", "0+60x30")],
        [gateway(_ACCEPTED, "0+600x30"), gateway("chappe_gateway_refused_total", "0+0x5 0+60x8 480+0x20")], at=17,
    ),
    Alert(
        "ChappeTokensRefused", WARNING,
        f"(\n  {rate(_CLOSED, _INVALID, '10m')}\n  / ({rate(_CLOSED, _INVALID, '10m')} + {rate('chappe_gateway_attach_seconds_count', window='10m')})\n) > 0.2",
        "10m", "Many tokens are refused",
        f"{WHERE} {SHARE} of all attaches end with a token that is not valid.",
        [gateway(_CLOSED, "0+60x30", _INVALID), gateway("chappe_gateway_attach_seconds_count", "0+60x30")],
        [gateway(_CLOSED, "0+10x30", _INVALID), gateway("chappe_gateway_attach_seconds_count", "0+60x30")], at=25,
    ),
    Alert(
        "ChappeTokenKeysMissing", CRITICAL,
        "chappe_gateway_token_keys == 0\nand chappe_gateway_token_keys_age_seconds > 60", "2m",
        "A gateway has no key to check tokens with",
        "{{ $labels.instance }} has no key from token.jwks: it welcomes nobody.",
        [gateway("chappe_gateway_token_keys", "0+0x20"), gateway("chappe_gateway_token_keys_age_seconds", "0+60x20")],
        # The second has a key file: its age stays 0.
        [gateway("chappe_gateway_token_keys", "2+0x20"), gateway("chappe_gateway_token_keys_age_seconds", "0+60x20"),
         gateway("chappe_gateway_token_keys", "0+0x20", instance="b"), gateway("chappe_gateway_token_keys_age_seconds", "0+0x20", instance="b")],
    ),
    Alert(
        "ChappeTokenKeysStale", WARNING, "chappe_gateway_token_keys_age_seconds > 3600", "5m",
        "A gateway cannot fetch the keys of tokens",
        "{{ $labels.instance }} fetched the keys of token.jwks {{ $value | humanizeDuration }} ago; it should every 5 minutes. "
        "Tokens of a newer key are refused.",
        [gateway("chappe_gateway_token_keys_age_seconds", "3000+60x30")], [gateway("chappe_gateway_token_keys_age_seconds", "3000+60x8 0+60x20")], at=17,
    ),
]

CONNECTIONS += [
    Alert(
        "ChappeSessionsFull", WARNING, "chappe_gateway_sessions / chappe_gateway_sessions_max > 0.9", "5m",
        "A gateway is nearly full",
        "{{ $labels.instance }} has {{ $value | humanizePercentage }} of the sessions that it takes (limits.sessions_max).",
        [gateway("chappe_gateway_sessions", "95000+0x20"), gateway("chappe_gateway_sessions_max", "100000+0x20")],
        [gateway("chappe_gateway_sessions", "85000+0x20"), gateway("chappe_gateway_sessions_max", "100000+0x20")],
    ),
    Alert(
        "ChappeCertificateEnds", WARNING, f"chappe_tls_not_after_seconds - time() < {14 * 86400}", "10m",
        "The certificate of a gateway ends within two weeks",
        "The certificate of {{ $labels.instance }} ends in {{ $value | humanizeDuration }}.",
        # In the tests it is 1970.
        [gateway("chappe_tls_not_after_seconds", f"{13 * 86400}+0x30")], [gateway("chappe_tls_not_after_seconds", f"{15 * 86400}+0x30")], at=20,
    ),
    Alert(
        "ChappeCertificateEndsSoon", CRITICAL, f"chappe_tls_not_after_seconds - time() < {2 * 86400}", "10m",
        "The certificate of a gateway ends within two days",
        "The certificate of {{ $labels.instance }} ends in {{ $value | humanizeDuration }}: then nobody connects.",
        [gateway("chappe_tls_not_after_seconds", f"{1 * 86400}+0x30")], [gateway("chappe_tls_not_after_seconds", f"{3 * 86400}+0x30")], at=20,
    ),
]

_FULL, _BELLS_ROUTER, _BELLS_BUS = 'why="full"', "chappe_router_doorbells_dropped_total", "chappe_bus_doorbells_dropped_total"

DELIVERY = [
    Alert(
        "ChappeReadsFailing", WARNING,
        f"(\n  {rate('chappe_gateway_read_failed_total')}\n"
        f"  / ({rate('chappe_gateway_read_failed_total')} + {rate('chappe_gateway_pages_read_total')})\n) > 0.01",
        "5m", "Reads of the log fail",
        f"{WHERE} {SHARE} of the reads of the log fail and are tried again: deliveries are late.",
        [gateway("chappe_gateway_read_failed_total", "0+20x20"), gateway("chappe_gateway_pages_read_total", "0+1000x20")],
        [gateway("chappe_gateway_read_failed_total", "0+9x20"), gateway("chappe_gateway_pages_read_total", "0+1000x20")], at=12,
    ),
    Alert(
        "ChappeAppendsRetried", WARNING,
        f"{share('chappe_router_append_retries_total', 'chappe_router_append_seconds_count')} > 0.05",
        "10m", "Appends get no clear answer",
        f"{WHERE} {SHARE} of the appends are tried again under the same ids, since the store gave no clear answer.",
        [router("chappe_router_append_retries_total", "0+60x30"), router("chappe_router_append_seconds_count", "0+1000x30")],
        [router("chappe_router_append_retries_total", "0+40x30"), router("chappe_router_append_seconds_count", "0+1000x30")], at=25,
    ),
    Alert(
        "ChappeAppendsSlow", WARNING,
        "histogram_quantile(0.99, sum by (namespace, le) (rate(chappe_router_append_seconds_bucket[5m]))) > 1",
        "10m", "Appends are slow",
        WHERE + " one append in a hundred takes more than {{ $value | humanizeDuration }}.",
        [router("chappe_router_append_seconds_bucket", "0+90x30", 'le="0.8192"'), router("chappe_router_append_seconds_bucket", "0+100x30", 'le="3.2768"'),
         router("chappe_router_append_seconds_bucket", "0+100x30", 'le="+Inf"')],
        [router("chappe_router_append_seconds_bucket", "0+1000x30", 'le="0.8192"'), router("chappe_router_append_seconds_bucket", "0+1005x30", 'le="3.2768"'),
         router("chappe_router_append_seconds_bucket", "0+1005x30", 'le="+Inf"')], at=20,
    ),
    Alert(
        "ChappeRouterFull", WARNING,
        f"sum by (namespace, job, instance) (rate(chappe_router_refused_total{{{_FULL}}}[5m])) > 0", "5m",
        "A router refuses submits, since its queue is full",
        "{{ $labels.instance }} refuses {{ $value | humanize }} submits a second as a whole; their senders try again.",
        [router("chappe_router_refused_total", "0+6x20", _FULL)], [router("chappe_router_refused_total", "0+0x3 6+0x20", _FULL)],
    ),
    Alert(
        "ChappeRouterQueueLong", WARNING,
        f"chappe_router_queue_entries / chappe_router_queue_entries_max > 0.5\nor chappe_router_queue_bytes / {ROUTER_BYTES_MAX} > 0.5", "5m",
        "A router's queue is more than half full",
        "{{ $labels.instance }} has {{ $value | humanizePercentage }} of the entries or bytes of submits under way that it takes.",
        [router("chappe_router_queue_entries", "40000+0x20"), router("chappe_router_queue_entries_max", "65536+0x20"),
         router("chappe_router_queue_bytes", "40000000+0x20", instance="b")],
        [router("chappe_router_queue_entries", "30000+0x20"), router("chappe_router_queue_entries_max", "65536+0x20"),
         router("chappe_router_queue_bytes", "30000000+0x20", instance="b")], count=2,
    ),
    Alert(
        "ChappeDoorbellQueueLong", WARNING,
        f"chappe_gateway_doorbell_queue > {GATEWAY_BELLS_MAX // 2}\nor chappe_router_doorbell_queue > {ROUTER_BELLS_MAX // 2}", "5m",
        "A queue of doorbells is more than half full",
        "{{ $labels.instance }} of {{ $labels.job }} has {{ $value | humanize }} doorbells waiting.",
        [gateway("chappe_gateway_doorbell_queue", "9000+0x20")], [gateway("chappe_gateway_doorbell_queue", "8000+0x20"), router("chappe_router_doorbell_queue", "9000+0x20")],
    ),
    Alert(
        "ChappeDoorbellsDropped", WARNING,
        f"(\n  {rate(_BELLS_ROUTER, window='10m')}\n  + ({rate(_BELLS_BUS, window='10m')} or 0 * {rate(_BELLS_ROUTER, window='10m')})\n)\n"
        f"/ {rate('chappe_router_doorbells_total', window='10m')} > 0.01",
        "10m", "Doorbells are dropped",
        f"{WHERE} {SHARE} of all doorbells are dropped: devices that are attached get these envelopes by a probe, up to 90 s late.",
        [router(_BELLS_ROUTER, "0+0x30", 'where="router"'), router(_BELLS_BUS, "0+20x30", 'why="full"'), router("chappe_router_doorbells_total", "0+1000x30")],
        [router(_BELLS_ROUTER, "0+5x30", 'where="router"'), router(_BELLS_BUS, "0+4x30", 'why="full"'), router("chappe_router_doorbells_total", "0+1000x30")],
        at=25,
    ),
    Alert(
        "ChappeRequestsNotUnderstood", WARNING,
        'sum by (namespace, job, instance) (increase(chappe_router_refused_total{why="invalid"}[15m])) > 0', None,
        "A router refuses what gateways ask",
        "{{ $labels.instance }} has refused requests of gateways as invalid: two versions do not understand each other.",
        [router("chappe_router_refused_total", "0+0x3 0+1x10", 'why="invalid"')],
        [router("chappe_router_refused_total", "7+0x13", 'why="invalid"'), router("chappe_router_refused_total", "0+9x13", _FULL)],
    ),
]
