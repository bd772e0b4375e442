//! What a gateway counts. **Invariant:** handles are resolved once; no label carries an id of a user, a device or a mailbox.

use crate::limits::LIMITS;
use crate::transport::Carrier;
use chappe_protocol::close::{CloseCode, ErrorCode};
use chappe_protocol::internode::Outcome;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    register_histogram_with_registry, register_int_counter_vec_with_registry,
    register_int_counter_with_registry, register_int_gauge_with_registry,
};

macro_rules! metrics {
    (counters { $($(#[doc = $cdoc:literal])+ $counter:ident = $cname:literal;)+ }
     labelled { $($(#[doc = $ldoc:literal])+ $labelled:ident = $lname:literal by $label:literal of $values:expr;)+ }
     gauges { $($(#[doc = $gdoc:literal])+ $gauge:ident = $gname:literal;)+ }
     histograms { $($(#[doc = $hdoc:literal])+ $histogram:ident = $hname:literal in $buckets:expr;)+ }) => {
        /// Counters, gauges and histograms of one gateway, all named `chappe_gateway_*`.
        #[derive(Debug)]
        pub struct GatewayMetrics {
            $($(#[doc = $cdoc])+ pub $counter: IntCounter,)+
            $($(#[doc = $ldoc])+ pub $labelled: IntCounterVec,)+
            $($(#[doc = $gdoc])+ pub $gauge: IntGauge,)+
            $($(#[doc = $hdoc])+ pub $histogram: Histogram,)+
        }

        impl GatewayMetrics {
            /// The names and help texts, for documents and tests.
            pub const NAMES: &'static [(&'static str, &'static str)] = &[
                $(($cname, concat!($($cdoc),+)),)+ $(($lname, concat!($($ldoc),+)),)+
                $(($gname, concat!($($gdoc),+)),)+ $(($hname, concat!($($hdoc),+)),)+
            ];

            /// Registers all of them; fails if one of the names is taken.
            pub fn new(registry: &Registry) -> prometheus::Result<Self> {
                let own = Self {
                    $($counter: register_int_counter_with_registry!(
                        Opts::new($cname, concat!($($cdoc),+).trim()), registry)?,)+
                    $($labelled: register_int_counter_vec_with_registry!(
                        Opts::new($lname, concat!($($ldoc),+).trim()), &[$label], registry)?,)+
                    $($gauge: register_int_gauge_with_registry!(
                        Opts::new($gname, concat!($($gdoc),+).trim()), registry)?,)+
                    $($histogram: register_histogram_with_registry!(
                        HistogramOpts::new($hname, concat!($($hdoc),+).trim()).buckets($buckets.to_vec()), registry)?,)+
                };
                // From 0 on: a rate does not see the first event of a series that begins with it.
                $(for value in $values {
                    own.$labelled.with_label_values(&[value]);
                })+
                Ok(own)
            }
        }
    };
}

/// For what users wait for while they are attached: probes find within 90 s what no doorbell told.
const LIVE_SECONDS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0, 90.0];
const SECONDS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];

metrics! {
    counters {
        /// Sockets and QUIC handshakes taken from the listeners.
        accepted_total = "chappe_gateway_accepted_total";
        /// Sockets and QUIC handshakes closed before any work, by the rate of handshakes, that of their source, or the ceiling of connections.
        refused_total = "chappe_gateway_refused_total";
        /// Handshakes that failed or took too long.
        handshake_failed_total = "chappe_gateway_handshake_failed_total";
        /// Sessions welcomed after a full attach.
        attached_total = "chappe_gateway_attached_total";
        /// Sessions welcomed by their resume token.
        resumed_total = "chappe_gateway_resumed_total";
        /// Envelopes written to devices.
        delivered_total = "chappe_gateway_delivered_total";
        /// Pages read from the log.
        pages_read_total = "chappe_gateway_pages_read_total";
        /// Pages shared with another session that asked for the same.
        pages_shared_total = "chappe_gateway_pages_shared_total";
        /// Reads of the log that failed and are tried again.
        read_failed_total = "chappe_gateway_read_failed_total";
        /// Cursors written.
        advanced_total = "chappe_gateway_advanced_total";
        /// Doorbells heard.
        doorbells_total = "chappe_gateway_doorbells_total";
        /// Doorbells whose payload was dropped because a session's inbox was full; only the head was kept.
        doorbell_payloads_dropped_total = "chappe_gateway_doorbell_payloads_dropped_total";
        /// Ephemeral payloads dropped because a session's inbox or socket was full.
        ephemerals_dropped_total = "chappe_gateway_ephemerals_dropped_total";
        /// Datagrams of clients that held no ephemeral submit.
        datagrams_ignored_total = "chappe_gateway_datagrams_ignored_total";
        /// QUIC handshakes that were first asked to prove their address.
        quic_retries_total = "chappe_gateway_quic_retries_total";
        /// Probes sent to routers.
        probes_total = "chappe_gateway_probes_total";
        /// Probes that got no answer.
        probe_failed_total = "chappe_gateway_probe_failed_total";
        /// Probes that no router answered and that were answered from the store.
        probes_alone_total = "chappe_gateway_probes_alone_total";
        /// Mailboxes whose growth was found by a probe and not by a doorbell.
        probe_news_total = "chappe_gateway_probe_news_total";
        /// Alarm: clients whose cursor lies beyond the head.
        cursor_ahead_total = "chappe_gateway_cursor_ahead_total";
        /// Mailboxes noted for the sweepers because a session ended with something that its device had not acked.
        left_unacked_total = "chappe_gateway_left_unacked_total";
        /// Submits taken.
        submits_total = "chappe_gateway_submits_total";
    }
    labelled {
        /// Connections closed by the gateway, by the reason's word.
        closed_total = "chappe_gateway_closed_total" by "reason" of CloseCode::ALL.iter().map(|code| code.reason());
        /// Sessions welcomed, by carrier: websocket, quic, webtransport.
        welcomed_total = "chappe_gateway_welcomed_total" by "carrier" of Carrier::ALL.map(Carrier::word);
        /// Targets of submits answered, by outcome.
        outcomes_total = "chappe_gateway_outcomes_total" by "outcome" of Outcome::WORDS;
        /// Requests of devices answered, by outcome: push_set, push_cleared, device_revoked, or the code of the error.
        requests_total = "chappe_gateway_requests_total" by "outcome" of
            ["push_set", "push_cleared", "device_revoked"].into_iter().chain(ErrorCode::ALL.iter().map(|code| code.as_str()));
        /// Frames and submits refused, by the name of the limit.
        limited_total = "chappe_gateway_limited_total" by "limit" of LIMITS;
        /// Fetches of the keys that tokens are checked with, by outcome: ok, empty, unreachable, unusable.
        token_key_fetches_total = "chappe_gateway_token_key_fetches_total" by "outcome" of
            ["ok", "empty", "unreachable", "unusable"];
    }
    gauges {
        /// Sockets in TLS, WebSocket and QUIC handshakes or waiting for their Hello.
        handshakes = "chappe_gateway_handshakes";
        /// Sessions, peeks included.
        sessions = "chappe_gateway_sessions";
        /// As many sessions as there may be: `limits.sessions_max`.
        sessions_max = "chappe_gateway_sessions_max";
        /// As many attaches as are let to the store at once: it falls while the store is slow or away, and grows while others wait.
        attaches_max = "chappe_gateway_attaches_max";
        /// Entries of submits that wait or are with a router.
        submit_entries = "chappe_gateway_submit_entries";
        /// Payload bytes of submits that wait or are with a router.
        submit_bytes = "chappe_gateway_submit_bytes";
        /// Requests of devices that wait or are with the store.
        requests_waiting = "chappe_gateway_requests_waiting";
        /// Cursor writes that wait or are with the store.
        advances_in_flight = "chappe_gateway_advances_in_flight";
        /// Timers armed.
        timers = "chappe_gateway_timers";
        /// Keys fetched for checking tokens; 0 with a key file.
        token_keys = "chappe_gateway_token_keys";
        /// Seconds since these keys were fetched, or since the start; 0 with a key file.
        token_keys_age_seconds = "chappe_gateway_token_keys_age_seconds";
        /// Doorbells waiting in the gateway's queue when last looked at.
        doorbell_queue = "chappe_gateway_doorbell_queue";
    }
    histograms {
        /// From a Submit's arrival to its result, in seconds.
        submit_seconds = "chappe_gateway_submit_seconds" in SECONDS;
        /// From the Hello to the Welcome, in seconds.
        attach_seconds = "chappe_gateway_attach_seconds" in SECONDS;
        /// From the acceptance of an envelope until it is written to a device that was attached when it was accepted, in seconds.
        deliver_seconds = "chappe_gateway_deliver_seconds" in LIVE_SECONDS;
    }
}
