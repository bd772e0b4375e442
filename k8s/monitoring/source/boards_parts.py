"""The dashboards of the store, of wakes and of what Chappe depends on."""

from .panels import BYTES, COUNT, PER_SECOND, SECONDS, SHARE, Row, dashboard, highest, line, mean, of, quantiles, rate, rate_or_0, stat, total


def store():
    return dashboard("chappe-store", "Chappe / Store", "The slot log and the database below it.", [
        Row("Appends"),
        line("Append", SECONDS, "Time of one append.", *quantiles("chappe_router_append_seconds"), steps=[(1, "red")]),
        line("Appends", PER_SECOND, "Appends, and those tried again under the same ids.", (rate("chappe_router_append_seconds_count"), "appends"),
             (rate("chappe_router_append_retries_total"), "tried again")),
        line("Under way", COUNT, "Appends under way in the store; each router takes 1,024.", (highest("chappe_router_appends_in_flight"), "{{instance}}")),
        Row("Slot log"),
        line("Slots", PER_SECOND, "Slots committed, entries that were there already, and appends without a clear answer.",
             *[(rate("chappe_log_events_total", labels=f'event="{event}"'), event) for event in ("committed", "duplicate", "undecided")]),
        line("Contention", PER_SECOND, "Compare-and-sets refused, since another router was faster or the head had moved.",
             *[(rate("chappe_log_events_total", labels=f'event="{event}"'), event) for event in ("refused", "crossing", "head_read", "galloped")]),
        line("Look-backs and quota", PER_SECOND, "Buckets read for ids before an append, what was found there, and appends refused for quota.",
             *[(rate("chappe_log_events_total", labels=f'event="{event}"'), event) for event in ("look_back_read", "look_back_hit", "quota_refused")]),
        line("Ends and trims", PER_SECOND, "Buckets trimmed, and reads that met what is trimmed: devices that are told of a gap.",
             *[(rate("chappe_log_events_total", labels=f'event="{event}"'), event) for event in ("trimmed", "truncated")]),
        line("Holes and loss", PER_SECOND, "Rows missing at first sight, those that were there after all, and what must not be: slots lost, heads that went back, cursors beyond the head.",
             *[(rate("chappe_log_events_total", labels=f'event="{event}"'), event) for event in ("hole", "hole_healed", "lost", "head_back", "cursor_ahead")]),
        Row("Database"),
        line("Reached", COUNT, "1 while a process reaches the database.", (highest("chappe_store_up"), "{{instance}}"), max=1),
        line("Statements", PER_SECOND, "Statements sent to the database, by kind.", (rate("chappe_store_statements_total", "kind"), "{{kind}}"), stacked=True),
        line("Time by statement", SECONDS, "Mean, by kind.", (mean("chappe_store_seconds_total", "chappe_store_statements_total", "kind"), "{{kind}}")),
        line("Statements at once", COUNT, "Statements under way on average: their time by second.", (rate("chappe_store_seconds_total", "job"), "{{job}}")),
        line("Failed", PER_SECOND, "Statements that failed, by class. append_refused is contention, not failure; invalid and misshapen must not be.",
             (rate("chappe_store_errors_total", "class"), "{{class}}")),
        line("Slots and joined reads", PER_SECOND, "Slots sent in batches, and reads that joined an equal one.", (rate("chappe_store_slots_total"), "slots"), (rate("chappe_store_coalesced_total"), "joined reads")),
        Row("Embedded store (chappe serve)"),
        line("Reads", PER_SECOND, "Reads of a few rows, and of ranges.", (rate("chappe_embedded_reads_total"), "rows"), (rate("chappe_embedded_range_reads_total"), "ranges")),
        line("Writes", PER_SECOND, "Writes, and batches: each batch is one sync of the disk.", (rate("chappe_embedded_writes_total"), "writes"), (rate("chappe_embedded_batches_total"), "batches")),
        line("Writes by sync", COUNT, "How many writes share a sync.", (f"{rate('chappe_embedded_writes_total')} / {rate('chappe_embedded_batches_total')}", "writes")),
        line("Checkpoints", PER_SECOND, "Memtables taken into the pages, about every 16 MiB.", (rate("chappe_embedded_checkpoints_total"), "checkpoints")),
    ])


def wakes():
    by_provider = "provider"
    return dashboard("chappe-wakes", "Chappe / Wakes", "From an envelope for a device that sleeps to the push provider.", [
        Row("Wakes"),
        line("First wake", SECONDS, "From the acceptance of an envelope to that of its first wake by the provider, over all providers. P6: 30 s.",
             *quantiles("chappe_pusher_wake_seconds"), steps=[(30, "red")]),
        line("First wake, p99 by provider", SECONDS, "The same by provider.", *quantiles("chappe_pusher_wake_seconds", by_provider, "{{provider}}", (0.99,))),
        line("Wakes", PER_SECOND, "Wakes that a provider took: first for their envelopes, or repeated.", (rate("chappe_pusher_wakes_total", "provider, attempt"), "{{provider}} {{attempt}}")),
        line("Answers", PER_SECOND, "Answers of providers, by verdict.", (rate("chappe_pusher_answers_total", "provider, verdict"), "{{provider}} {{verdict}}")),
        line("Answers that are no success", PER_SECOND, "By reason; docs/push-answers.md says what each means.",
             (f"sum by (provider, reason) (rate({of('chappe_pusher_answers_total', 'verdict!=' + DONE)}[$__rate_interval])) or vector(0)", "{{provider}} {{reason}}")),
        line("Targets called dead", PER_SECOND, "Push targets removed, since their provider called them dead.", (rate("chappe_pusher_dead_targets_total", by_provider), "{{provider}}")),
        line("Not needed", PER_SECOND, "Wakes whose device had acked everything by then.", (rate("chappe_pusher_noise_total", by_provider), "{{provider}}")),
        line("Not sent", PER_SECOND, "Wakes not sent, by reason, and put off (quiet hours, quotas, a full outbox).", (rate("chappe_pusher_skipped_total", "why"), "{{why}}"),
             (rate("chappe_pusher_deferred_total"), "put off")),
        line("Given up, unwritten", PER_SECOND, "Wakes that will never pass, and wakes whose trace the database did not take.", (rate("chappe_pusher_parked_total"), "given up"),
             (rate("chappe_pusher_unwritten_total"), "unwritten")),
        Row("Outbox"),
        line("Wakes in the outbox", COUNT, "By state.", (total("chappe_pusher_queue", "state"), "{{state}}"), (total("chappe_pusher_queue_max"), "ceiling")),
        line("Oldest wake", SECONDS, "Age of the wake that has been longest in an outbox. P6: 30 s.", (highest("chappe_pusher_oldest_wake_seconds"), "{{instance}}"), steps=[(30, "red")]),
        line("Outbox, bytes", BYTES, "Bytes held for wakes.", (total("chappe_pusher_queue_bytes", "instance"), "{{instance}}")),
        stat("Apps held back", COUNT, "Apps whose provider asked for a pause, fails or refuses them.", (total("chappe_pusher_apps_paused"), "apps"), steps=[(1, "red")], width=8, height=8),
        Row("Sweeps and looks"),
        line("Age of the oldest unswept note", SECONDS, "After a sweep. Above 10 s wakes that hang on the sweep are late.", (highest("chappe_pusher_sweep_behind_seconds"), "{{instance}}"), steps=[(10, "red")]),
        line("Sweep", SECONDS, "Time of a sweep of all shards of a pusher.", *quantiles("chappe_pusher_sweep_seconds", of_all=(0.5, 0.99))),
        line("Shards", COUNT, "Shards by pusher; 16 together, or more while they do not see each other.", (total("chappe_pusher_shards", "instance"), "{{instance}}"), stacked=True),
        line("Looks", PER_SECOND, "Looks at mailboxes, by what they found.", (rate("chappe_pusher_looks_total", "found"), "{{found}}"), stacked=True),
        line("Looks waiting", COUNT, "Mailboxes that wait to be looked at.", (total("chappe_pusher_looks_waiting", "instance"), "{{instance}}")),
        line("Notes swept, failures", PER_SECOND, "Noted mailboxes that sweeps passed; sweeps and looks that the database did not answer.", (rate("chappe_pusher_notes_total"), "notes"),
             (rate("chappe_pusher_sweeps_failed_total"), "sweeps failed"), (rate("chappe_pusher_looks_failed_total"), "looks failed")),
        Row("Hints"),
        line("Hints of routers", PER_SECOND, "Handed on by routers, taken by JetStream, merged with another of their mailbox, lost.", (rate("chappe_router_wake_hints_total"), "handed on"),
             (rate("chappe_bus_wakes_stored_total"), "stored"), (rate("chappe_bus_wakes_merged_total"), "merged"), (rate("chappe_bus_wakes_lost_total", "why"), "lost: {{why}}")),
        line("Hints of pushers", PER_SECOND, "By what became of them; and those that had come before.", (rate("chappe_bus_wake_jobs_total", "fate"), "{{fate}}"),
             (rate("chappe_bus_wake_jobs_repeated_total"), "came again"), (rate("chappe_bus_wake_job_answers_lost_total"), "answer lost")),
        line("Hints arrived", PER_SECOND, "Hints that reached a pusher's work, and those that found no place.", (rate("chappe_pusher_hints_total"), "arrived"), (rate("chappe_pusher_hints_lost_total"), "no place")),
        line("Hints waiting", COUNT, "At routers, on the way, and behind the latest that a pusher got.", (total("chappe_bus_wake_queue"), "at routers"), (total("chappe_bus_wakes_in_flight"), "on the way"),
             (f"max ({of('chappe_bus_wake_jobs_waiting')})", "behind pushers")),
        line("JetStream", COUNT, "1 while routers can store hints, pushers get them, and servers sync before they answer (-1: not known).", (f"min ({of('chappe_bus_wake_stream_up')})", "stored"),
             (f"min ({of('chappe_bus_wake_jobs_up')})", "got"), (f"min ({of('chappe_bus_wake_synced')})", "synced"), min=-1, max=1),
        line("Made anew", COUNT, "Streams and consumers created within the last hour: at first, or since they were gone.", (f"sum (increase({of('chappe_bus_wake_streams_created_total')}[1h]))", "streams"),
             (f"sum (increase({of('chappe_bus_wake_consumers_created_total')}[1h]))", "consumers")),
    ])


DONE = '"done"'


def dependencies():
    return dashboard("chappe-dependencies", "Chappe / Dependencies", "NATS, Redis and the database as Chappe sees them.", [
        Row("All"),
        stat("Database", COUNT, "Processes that do not reach the database.", (f"count ({of('chappe_store_up')} == 0) or vector(0)", "without"), steps=[(1, "red")], width=8, decimals=0),
        stat("NATS", COUNT, "Processes without a connection to NATS.", (f"count ({of('chappe_bus_connected')} == 0) or vector(0)", "without"), steps=[(1, "red")], width=8, decimals=0),
        stat("Redis", SHARE, "Calls of Redis that went well.", (f"sum (rate({of('chappe_presence_calls_total', 'outcome=' + OK)}[$__rate_interval])) / {rate('chappe_presence_calls_total')}", "well"),
             color="red", steps=[(0.95, "orange"), (0.99, "green")], width=8, max=1),
        Row("NATS"),
        line("Connected", COUNT, "1 while the connection stands.", (highest("chappe_bus_connected"), "{{instance}}"), max=1),
        line("Request", SECONDS, "From a gateway's request to a router's answer.", *quantiles("chappe_bus_request_seconds")),
        line("Requests", PER_SECOND, "Requests of gateways, by outcome; and those sent again.", (rate("chappe_bus_requests_total", "outcome"), "{{outcome}}"), (rate("chappe_bus_requests_repeated_total"), "sent again")),
        line("Requests under way", COUNT, "At gateways and at routers.", (total("chappe_bus_requests_in_flight"), "gateways"), (total("chappe_bus_serving"), "routers")),
        line("Requests under way, bytes", BYTES, "Bytes of them.", (total("chappe_bus_requests_in_flight_bytes"), "gateways"), (total("chappe_bus_serving_bytes"), "routers")),
        line("Served", PER_SECOND, "Requests that reached a router, by outcome.", (rate("chappe_bus_served_total", "outcome"), "{{outcome}}")),
        line("Routers heard", COUNT, "Routers that a gateway hears of; it should be all of them.", (f"min by (instance) ({of('chappe_bus_routers', GATEWAYS)})", "{{instance}}")),
        line("Announcements, suspicions", PER_SECOND, "Announcements of routers heard, and routers avoided as silent or late.", (rate("chappe_bus_announcements_total"), "announcements"),
             (rate("chappe_bus_routers_suspected_total"), "avoided")),
        line("Lag", SECONDS, "Upper bound of the wait before a router reads a message.", (highest("chappe_bus_lag_seconds"), "{{instance}}"), steps=[(1, "red")]),
        line("Connection lost and made", COUNT, "Within the last hour.", (f"sum (increase({of('chappe_bus_disconnects_total')}[1h]))", "lost"),
             (f"sum (increase({of('chappe_bus_reconnects_total')}[1h]))", "made again")),
        line("What must not be", PER_SECOND, "Messages dropped since a process reads too slowly, forbidden by permissions, of another cluster, unreadable.",
             (rate("chappe_bus_slow_consumers_total"), "read too slowly"), (rate("chappe_bus_denied_total"), "forbidden"), (rate("chappe_bus_foreign_total"), "foreign"),
             (rate("chappe_bus_invalid_total"), "unreadable")),
        Row("Redis"),
        line("Call", SECONDS, "Time of a call.", *quantiles("chappe_presence_seconds")),
        line("Calls", PER_SECOND, "By call.", (rate("chappe_presence_calls_total", "call"), "{{call}}"), stacked=True),
        line("Calls that failed", PER_SECOND, "By call and outcome.", (f"sum by (call, outcome) (rate({of('chappe_presence_calls_total', 'outcome!=' + OK)}[$__rate_interval])) or vector(0)", "{{call}} {{outcome}}")),
        Row("Database"),
        line("Time by statement", SECONDS, "Mean, by kind.", (mean("chappe_store_seconds_total", "chappe_store_statements_total", "kind"), "{{kind}}")),
        line("Failed", PER_SECOND, "Statements that failed, by class; without append_refused, which is contention.",
             (f"sum by (class) (rate({of('chappe_store_errors_total', 'class!=' + CONTENTION)}[$__rate_interval]))", "{{class}}")),
        Row("Push providers"),
        line("Apps held back", COUNT, "Apps whose provider asked for a pause, fails or refuses them.", (total("chappe_pusher_apps_paused", "instance"), "{{instance}}")),
        line("Answers", PER_SECOND, "By provider and verdict.", (rate("chappe_pusher_answers_total", "provider, verdict"), "{{provider}} {{verdict}}"), (rate_or_0("chappe_pusher_answers_total"), "all")),
    ])


OK, CONTENTION, GATEWAYS = '"ok"', '"append_refused"', 'job="chappe-gateway"'


def every_board():
    return [store(), wakes(), dependencies()]
