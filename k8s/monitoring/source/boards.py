"""The dashboards: overview, connections and delivery here, the rest in boards_parts.py."""

from . import boards_parts
from .panels import BYTES, COUNT, PER_SECOND, SECONDS, SHARE, Row, Text, dashboard, highest, line, of, quantiles, rate, rate_or_0, stat, total
from .slo import SLOS

PROMISES = """
| promise | shown by | not shown by any metric |
|---|---|---|
| P1 what was accepted is never lost | *Accepted* says whether senders are served at all; a cursor beyond the head, or a slot that is gone, means loss | |
| P2 once in a mailbox, each device, the app once | retries answered as duplicates (delivery) | what apps show twice |
| P3 one order | | order: the load harness audits it |
| P4 nothing to anybody else | | misdelivery: the load harness audits it |
| P5 online in milliseconds, within 90 s at worst | *Attached*, *Told by a doorbell*, *Delivered within a second*, *Probes answered* | |
| P6 asleep: woken within 30 s | *Woken within 30 s*, age of the sweep, of the oldest wake that waits | |

Run `loadtest` before a release for what stands on the right. What to do about an alert: `docs/operations/alerts.md`.
""".strip()

LOST = '"lost|head_back"'
_NAMESPACE = 'namespace=~"$namespace"'


def _good(slo):
    return stat(
        f"{slo.promise} {slo.title}", SHARE, f"{slo.means} Over 3 days, or as long as it is recorded; at least {slo.objective:g} % is promised.",
        (f'1 - max(chappe:slo_bad_ratio:3d{{slo="{slo.name}",{_NAMESPACE}}})', slo.title),
        color="red", steps=[(slo.objective / 100, "green")], max=1, decimals=3,
    )


def overview():
    burn = [(f'max by (slo) (chappe:slo_burn:1h{{{_NAMESPACE}}})', "{{slo}}")]
    return dashboard("chappe-overview", "Chappe / Overview", "What is promised, whether it is kept, and how much is going on.", [
        Row("Promises"),
        *[_good(slo) for slo in SLOS],
        line("How fast the budgets burn", COUNT,
             "Share of bad events of the last hour by the share that may be bad. 1 uses the budget of 30 days up in 30 days; from 14.4 on it pages.",
             *burn, width=12, steps=[(1, "orange"), (14.4, "red")]),
        stat("Alerts", COUNT, "Alerts that fire now.", (f'count(ALERTS{{alertname=~"Chappe.+",alertstate="firing",{_NAMESPACE}}}) or vector(0)', "firing"),
             steps=[(1, "red")], decimals=0, height=8),
        stat("Cursors beyond the head", COUNT, "Devices that have acked what the store does not have. More than none means loss, or a foreign device.",
             (f"sum (increase({of('chappe_gateway_cursor_ahead_total')}[1d]))", "a day"), steps=[(1, "red")], decimals=0, height=8),
        stat("Slots lost", COUNT, "Slots that the store had and has no more, and heads that went back. More than none is loss.",
             (f"sum (increase({of('chappe_log_events_total', 'event=~' + LOST)}[1d]))", "a day"), steps=[(1, "red")], decimals=0, height=8),
        stat("Processes", COUNT, "Processes that answer Prometheus, by role.", (f"sum by (job) ({of('up')})", "{{job}}"), names=True, height=8),
        Row("Now"),
        stat("Sessions", COUNT, "Sessions attached, peeks included.", (total("chappe_gateway_sessions"), "sessions")),
        stat("Submits", PER_SECOND, "Submits taken by gateways.", (rate("chappe_gateway_submits_total"), "submits")),
        stat("Accepted", PER_SECOND, "Targets of submits answered with accepted.", (rate("chappe_gateway_outcomes_total", labels='outcome="accepted"'), "accepted")),
        stat("Delivered", PER_SECOND, "Envelopes written to devices.", (rate("chappe_gateway_delivered_total"), "delivered")),
        stat("Wakes", PER_SECOND, "Wakes that providers took.", (rate("chappe_pusher_wakes_total"), "wakes")),
        stat("Store", COUNT, "1 while every process reaches the database. A standalone server has none.", (f"min ({of('chappe_store_up')})", "up"), color="red", steps=[(1, "green")]),
        Row("Speed"),
        line("Submit", SECONDS, "From a submit's arrival at the gateway to its result.", *quantiles("chappe_gateway_submit_seconds"), steps=[(0.25, "red")]),
        line("Delivery", SECONDS, "From the acceptance of an envelope until it is written to a device that was attached by then.",
             *quantiles("chappe_gateway_deliver_seconds"), steps=[(1, "red")]),
        line("Attach", SECONDS, "From the Hello to the Welcome.", *quantiles("chappe_gateway_attach_seconds"), steps=[(1, "red")]),
        line("First wake", SECONDS, "From the acceptance of an envelope to that of its first wake by the provider.",
             *quantiles("chappe_pusher_wake_seconds"), steps=[(30, "red")]),
        line("Traffic", PER_SECOND, "Envelopes accepted and delivered.", (rate("chappe_gateway_outcomes_total", labels='outcome="accepted"'), "accepted"),
             (rate("chappe_gateway_delivered_total"), "delivered"), width=12),
        line("Sessions", COUNT, "Sessions by process.", (total("chappe_gateway_sessions", "instance"), "{{instance}}"), width=12, stacked=True),
        Row("Processes"),
        line("Memory", BYTES, "Resident memory by process.", (highest("process_resident_memory_bytes"), "{{instance}}")),
        line("Mapped memory", BYTES, "Address space by process; it says little.", (highest("process_virtual_memory_bytes"), "{{instance}}")),
        line("CPU", COUNT, "Cores in use by process.", (rate("process_cpu_seconds_total", "instance"), "{{instance}}")),
        line("Open files", SHARE, "Of as many as there may be; a socket is one.",
             (f"max by (instance) ({of('process_open_fds')} / {of('process_max_fds')})", "{{instance}}"), steps=[(0.9, "red")], max=1),
        line("Threads", COUNT, "By process.", (highest("process_threads"), "{{instance}}")),
        line("Ready", COUNT, "1 while a process serves.", (highest("chappe_ready"), "{{instance}}"), max=1),
        line("Up since", SECONDS, "Time since the process was started.", (f"time() - max by (instance) ({of('process_start_time_seconds')})", "{{instance}}")),
        line("Versions", COUNT, "Processes by role and version; two of a role only during an upgrade.",
             (f"count by (role, version) ({of('chappe_build_info')})", "{{role}} {{version}}"), stacked=True),
        line("Spans", PER_SECOND, "Spans for a collector of traces, by what became of them; none unless traces are on.",
             (rate("chappe_spans_total", "result"), "{{result}}"), (rate_or_0("chappe_spans_total"), "all")),
        Row("What the metrics show"),
        Text("Promises and metrics", PROMISES, height=10),
    ])


def connections():
    return dashboard("chappe-connections", "Chappe / Connections", "Handshakes, sessions, how they begin and end.", [
        Row("Sessions"),
        line("Sessions", COUNT, "Sessions by process, peeks included.", (total("chappe_gateway_sessions", "instance"), "{{instance}}"), stacked=True),
        line("Welcomed", PER_SECOND, "Sessions welcomed, by carrier.", (rate("chappe_gateway_welcomed_total", "carrier"), "{{carrier}}"), stacked=True),
        line("Attached and resumed", PER_SECOND, "A resume costs one read; a full attach some more. Many full attaches mean that resume tokens do not hold (resume_key), or Redis is away.",
             (rate("chappe_gateway_attached_total"), "attached"), (rate("chappe_gateway_resumed_total"), "resumed")),
        line("Attach", SECONDS, "From the Hello to the Welcome.", *quantiles("chappe_gateway_attach_seconds")),
        line("Closed by the gateway", PER_SECOND, "Connections that a gateway closed, by reason; PROTOCOL.md lists them.",
             (rate("chappe_gateway_closed_total", "reason"), "{{reason}}"), (rate_or_0("chappe_gateway_closed_total"), "all"), width=16),
        Row("The door"),
        line("Sockets and handshakes", PER_SECOND, "Taken from the listeners, sent away before any work (admission bucket, ceiling of connections), and failed.",
             (rate("chappe_gateway_accepted_total"), "taken"), (rate("chappe_gateway_refused_total"), "sent away"), (rate("chappe_gateway_handshake_failed_total"), "failed")),
        line("Handshakes under way", COUNT, "Sockets in a handshake or waiting for their Hello.", (total("chappe_gateway_handshakes", "instance"), "{{instance}}")),
        line("QUIC retries", PER_SECOND, "QUIC handshakes that were first asked to prove their address: they come when many are under way.", (rate("chappe_gateway_quic_retries_total"), "retries")),
        line("Certificate", SECONDS, "Until the certificate of the clients' port ends.",
             (f"min by (instance) ({of('chappe_tls_not_after_seconds')}) - time()", "{{instance}}")),
        line("Sessions by ceiling", SHARE, "Of as many sessions as there may be (limits.sessions_max).",
             (f"max by (instance) ({of('chappe_gateway_sessions')} / {of('chappe_gateway_sessions_max')})", "{{instance}}"), steps=[(0.9, "red")], max=1),
        line("Attaches at once", COUNT, "As many as a gateway lets to the store: it falls while the store is slow or away, and grows while others wait.",
             (highest("chappe_gateway_attaches_max"), "{{instance}}")),
        Row("What clients ask"),
        line("Requests", PER_SECOND, "Requests of devices answered, by outcome.", (rate("chappe_gateway_requests_total", "outcome"), "{{outcome}}"),),
        line("Limits hit", PER_SECOND, "Frames and submits refused, by the limit.", (rate("chappe_gateway_limited_total", "limit"), "{{limit}}"), (rate_or_0("chappe_gateway_limited_total"), "all")),
        line("Dropped", PER_SECOND, "Ephemeral payloads dropped since an inbox or a socket was full, and datagrams that held no ephemeral submit.",
             (rate("chappe_gateway_ephemerals_dropped_total"), "ephemerals"), (rate("chappe_gateway_datagrams_ignored_total"), "datagrams")),
        Row("Keys of tokens"),
        line("Keys", COUNT, "Keys fetched for checking tokens; 0 with a key file.", (highest("chappe_gateway_token_keys"), "{{instance}}"), width=8),
        line("Age of the keys", SECONDS, "Since they were fetched; every 5 minutes is right. 0 with a key file.", (highest("chappe_gateway_token_keys_age_seconds"), "{{instance}}"),
             steps=[(3600, "red")]),
        line("Fetches", PER_SECOND, "Fetches of the keys, by outcome.", (rate("chappe_gateway_token_key_fetches_total", "outcome"), "{{outcome}}"), (rate_or_0("chappe_gateway_token_key_fetches_total"), "all")),
        Row("Work under way in gateways"),
        line("Submits", COUNT, "Entries of submits that wait or are with a router.", (total("chappe_gateway_submit_entries", "instance"), "{{instance}}")),
        line("Submits, bytes", BYTES, "Payload bytes of them.", (total("chappe_gateway_submit_bytes", "instance"), "{{instance}}")),
        line("Requests and cursor writes", COUNT, "Requests of devices and cursor writes that wait or are with the store.", (total("chappe_gateway_requests_waiting"), "requests"),
             (total("chappe_gateway_advances_in_flight"), "cursor writes")),
        line("Timers", COUNT, "Timers armed.", (total("chappe_gateway_timers", "instance"), "{{instance}}")),
    ])


def delivery():
    return dashboard("chappe-delivery", "Chappe / Delivery", "The way of an envelope: submit, append, doorbell, delivery, ack.", [
        Row("Submits"),
        line("Outcomes", PER_SECOND, "Targets of submits answered by gateways, by outcome.", (rate("chappe_gateway_outcomes_total", "outcome"), "{{outcome}}"), stacked=True),
        line("Entries at routers", PER_SECOND, "Entries answered by routers, by outcome.", (rate("chappe_router_entries_total", "outcome"), "{{outcome}}"), stacked=True),
        line("Submit", SECONDS, "From a submit's arrival at the gateway to its result.", *quantiles("chappe_gateway_submit_seconds"), steps=[(0.25, "red")]),
        line("Submits", PER_SECOND, "Taken by gateways, received by routers, and those that routers refused as a whole.", (rate("chappe_gateway_submits_total"), "gateways"),
             (rate("chappe_router_submits_total"), "routers"), (rate("chappe_router_refused_total", "why"), "refused: {{why}}")),
        line("Entries under way", COUNT, "Entries of submits under way in routers, and as many as one takes.", (highest("chappe_router_queue_entries"), "{{instance}}"),
             (f"min ({of('chappe_router_queue_entries_max')})", "ceiling")),
        line("Bytes under way", BYTES, "Payload bytes of submits under way in routers; each takes 64 MiB.", (highest("chappe_router_queue_bytes"), "{{instance}}"), steps=[(33554432, "red")]),
        line("Mailboxes and appends under way", COUNT, "Mailboxes with a round, and appends in the store.", (total("chappe_router_mailboxes"), "mailboxes"),
             (total("chappe_router_appends_in_flight"), "appends")),
        line("Entries by append", COUNT, "How many entries share a batch.", *quantiles("chappe_router_batch_entries", of_all=(0.5, 0.99))),
        line("Shared payloads", PER_SECOND, "Payloads stored once for several mailboxes.", (rate("chappe_router_shared_payloads_total"), "payloads")),
        Row("Doorbells"),
        line("Doorbells", PER_SECOND, "Handed to the links, sent and heard on the bus, heard by gateways.", (rate("chappe_router_doorbells_total"), "rung by routers"),
             (rate("chappe_bus_doorbells_sent_total"), "sent on the bus"), (rate("chappe_bus_doorbells_heard_total"), "heard on the bus"), (rate("chappe_gateway_doorbells_total"), "heard by gateways")),
        line("Doorbells dropped", PER_SECOND, "By place. Devices get these envelopes by a probe.", (rate("chappe_router_doorbells_dropped_total", "where"), "{{where}}"),
             (rate("chappe_bus_doorbells_dropped_total", "why"), "bus: {{why}}"), (rate("chappe_gateway_doorbell_payloads_dropped_total"), "payloads only")),
        line("Doorbells waiting", COUNT, "Waiting in gateways, being rung by routers, waiting for the bus.", (total("chappe_gateway_doorbell_queue"), "gateways"),
             (total("chappe_router_doorbell_queue"), "routers"), (total("chappe_router_gateway_queue_bells"), "routers, for gateways of the same process"),
             (total("chappe_bus_doorbell_queue"), "bus")),
        line("Doorbells waiting, bytes", BYTES, "Bytes of them.", (total("chappe_router_doorbell_queue_bytes"), "routers"), (total("chappe_bus_doorbell_queue_bytes"), "bus")),
        Row("Delivery"),
        line("Delivered and acked", PER_SECOND, "Envelopes written to devices, and cursors written.", (rate("chappe_gateway_delivered_total"), "delivered"), (rate("chappe_gateway_advanced_total"), "cursors")),
        line("Reads of the log", PER_SECOND, "Pages read, pages shared with another session, reads that failed.", (rate("chappe_gateway_pages_read_total"), "read"),
             (rate("chappe_gateway_pages_shared_total"), "shared"), (rate("chappe_gateway_read_failed_total"), "failed")),
        line("Delivery", SECONDS, "From the acceptance of an envelope until it is written to a device that was attached by then.",
             *quantiles("chappe_gateway_deliver_seconds"), steps=[(1, "red")]),
        line("Left un-acked", PER_SECOND, "Mailboxes noted for the sweepers, because a session ended with something un-acked.", (rate("chappe_gateway_left_unacked_total"), "mailboxes")),
        Row("Probes, the net below the doorbells"),
        line("Probes", PER_SECOND, "Sent, answered by routers, without an answer, answered from the store.", (rate("chappe_gateway_probes_total"), "sent"), (rate("chappe_router_probes_total"), "answered by routers"),
             (rate("chappe_gateway_probe_failed_total"), "no answer"), (rate("chappe_gateway_probes_alone_total"), "answered from the store")),
        line("News by probe", PER_SECOND, "Mailboxes whose growth a probe told and no doorbell had; and what routers reported.", (rate("chappe_gateway_probe_news_total"), "gateways"),
             (rate("chappe_router_probe_news_total"), "routers")),
        line("Told by a doorbell", SHARE, "Of all news, the share that came by a doorbell.",
             (f'1 - chappe:slo_bad_ratio:5m{{slo="live",{_NAMESPACE}}}', "{{namespace}}"), min=0, max=1),
        line("Leases in the process", COUNT, "Leases in the directory of a process, and those not taken for want of room (standalone).", (total("chappe_router_leases"), "leases"),
             (rate("chappe_router_leases_dropped_total"), "dropped a second")),
    ])


def every_board():
    return [overview(), connections(), delivery(), *boards_parts.every_board()]
