//! From a provider's words to what to do: one table per provider, as data, and a table of our own words. **Invariant:** the
//! HTTP status decides first; a reason that no table knows only makes the answer less precise.

use crate::breaker::ASK_AGAIN;
use crate::provider::{Answer, Scope, Verdict};
use crate::transport::{Reply, SendError};
use chappe_protocol::time::{Millis, UnixMillis};

/// Which status a [`Row`] is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// This one.
    Is(u16),
    /// Its first digit.
    Class(u16),
    /// No HTTP answer: the word is ours.
    Own,
}

/// What a [`Row`] says to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// See [`Verdict::Done`].
    Done,
    /// See [`Verdict::Retry`]: whom it holds for, and how long to wait where the provider names no time (0 s: by the
    /// backoff).
    Retry(Scope, u64),
    /// See [`Verdict::Drop`].
    Drop,
    /// See [`Verdict::FixConfiguration`].
    FixConfiguration,
    /// See [`Verdict::Park`].
    Park,
    /// See [`Verdict::Held`].
    Hold,
}

/// One line of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// For which status.
    pub status: Status,
    /// For which reason; `None`: for all that no line above is for.
    pub reason: Option<&'static str>,
    /// [`Answer::reason`].
    pub label: &'static str,
    /// What to do.
    pub act: Act,
    /// In a few words, for the documents.
    pub why: &'static str,
}

/// A line for one reason.
pub(crate) const fn row(status: u16, reason: &'static str, act: Act, why: &'static str) -> Row {
    Row { status: Status::Is(status), reason: Some(reason), label: reason, act, why }
}

/// A line for whatever else comes with a status.
pub(crate) const fn rest(status: Status, label: &'static str, act: Act, why: &'static str) -> Row {
    Row { status, reason: None, label, act, why }
}

impl Answer {
    /// The same for one device: what one push service of many says holds for none but its own.
    pub(crate) fn for_device(self) -> Self {
        let verdict = match self.verdict {
            Verdict::Retry { after, scope: _ } => Verdict::Retry { after, scope: Scope::Device },
            Verdict::Held { span, scope: _ } => Verdict::Held { span, scope: Scope::Device },
            other @ (Verdict::Done | Verdict::Drop { .. } | Verdict::FixConfiguration | Verdict::Park) => {
                other
            }
        };
        Self { verdict, ..self }
    }
}

const fn own(label: &'static str, act: Act, why: &'static str) -> Row {
    Row { status: Status::Own, reason: None, label, act, why }
}

// Each app has connections and a breaker of its own: what goes wrong on them holds no other app back.
pub(crate) const BUSY: Row = own("busy", Act::Retry(Scope::App, 0), "too many wakes wait for a stream");
pub(crate) const UNREACHABLE: Row = own("unreachable", Act::Retry(Scope::App, 0), "no connection");
pub(crate) const NOT_PUBLIC: Row =
    own("not_public", Act::Park, "the host has no public address, and the configuration does not name it");
pub(crate) const TLS_FAILED: Row =
    own("tls_failed", Act::Retry(Scope::App, 15), "its certificate does not verify, or TLS broke");
pub(crate) const NO_HTTP2: Row = own("no_http2", Act::Retry(Scope::App, 15), "it offers no HTTP/2 by ALPN");
pub(crate) const REFUSED: Row =
    own("refused", Act::Retry(Scope::App, 0), "refused unprocessed on two connections");
pub(crate) const TIMEOUT: Row =
    own("timeout", Act::Retry(Scope::App, 0), "no status within 20 s; perhaps taken");
pub(crate) const LOST: Row =
    own("lost", Act::Retry(Scope::App, 0), "stream or connection ended without a status; perhaps taken");
pub(crate) const BREAKER_OPEN: Row =
    own("breaker_open", Act::Hold, "nothing was sent: the provider failed this app five times just now");
pub(crate) const TOKEN_UNAVAILABLE: Row =
    own("token_unavailable", Act::Retry(Scope::App, 10), "the token endpoint does not answer");
pub(crate) const TOKEN_REFUSED: Row =
    own("token_refused", Act::FixConfiguration, "the token endpoint refuses the service account");
pub(crate) const SIGNING_FAILED: Row =
    own("signing_failed", Act::FixConfiguration, "the app's key does not sign");
pub(crate) const EXPIRED: Row = own("expired", Act::Park, "the wake's time is over");
pub(crate) const BAD_WAKE: Row = own("bad_wake", Act::Park, "a collapse key that not every provider takes");
pub(crate) const BAD_TARGET: Row =
    own("bad_target", Act::Park, "a token or endpoint that no provider gives out");
pub(crate) const CALLS_ONLY: Row = own(
    "calls_only",
    Act::Park,
    "a VoIP token is for calls: iOS ends an app that is woken by one and does not ring",
);
pub(crate) const HOST_NOT_ALLOWED: Row =
    own("host_not_allowed", Act::Park, "the app's configuration allows no such push service");
pub(crate) const UNKNOWN_APP: Row =
    own("unknown_app", Act::Park, "no app of that name is configured for that provider");

pub(crate) const LOGGED: Row = own("logged", Act::Done, "the app is configured for the log alone");

/// The words that are ours, not a provider's.
pub const OWN: &[Row] = &[
    BUSY,
    UNREACHABLE,
    NOT_PUBLIC,
    TLS_FAILED,
    NO_HTTP2,
    REFUSED,
    TIMEOUT,
    LOST,
    BREAKER_OPEN,
    TOKEN_UNAVAILABLE,
    TOKEN_REFUSED,
    SIGNING_FAILED,
    EXPIRED,
    BAD_WAKE,
    BAD_TARGET,
    CALLS_ONLY,
    HOST_NOT_ALLOWED,
    UNKNOWN_APP,
    LOGGED,
];

impl Row {
    /// With what the provider said of times.
    pub fn answer(&self, retry_after: Option<Millis>, since: Option<UnixMillis>) -> Answer {
        let verdict = match self.act {
            Act::Done => Verdict::Done,
            Act::Retry(scope, seconds) => {
                let usual = (seconds > 0).then(|| Millis::from_secs(seconds));
                Verdict::Retry { after: retry_after.or(usual), scope }
            }
            Act::Drop => Verdict::Drop { since },
            Act::FixConfiguration => Verdict::FixConfiguration,
            Act::Park => Verdict::Park,
            Act::Hold => Verdict::Held { span: retry_after.unwrap_or(ASK_AGAIN), scope: Scope::App },
        };
        Answer { verdict, reason: self.label }
    }
}

/// The line for a status and a reason; the first that fits. Every table ends with lines for all statuses.
pub(crate) fn look_up(table: &'static [Row], status: u16, reason: Option<&str>) -> &'static Row {
    let fits = |row: &&Row| {
        let status = match row.status {
            Status::Is(is) => is == status,
            Status::Class(class) => status / 100 == class,
            Status::Own => false,
        };
        status && (row.reason.is_none() || row.reason == reason)
    };
    table.iter().find(fits).unwrap_or(&LOST)
}

/// What to do after a provider's reply.
pub(crate) fn decide(
    table: &'static [Row],
    reply: &Reply,
    reason: Option<&str>,
    since: Option<UnixMillis>,
) -> Answer {
    look_up(table, reply.status, reason).answer(reply.retry_after, since)
}

/// What to do without a reply.
pub(crate) fn unanswered(error: SendError) -> Answer {
    let row = match error {
        SendError::Busy => BUSY,
        SendError::Unreachable => UNREACHABLE,
        SendError::NotPublic => NOT_PUBLIC,
        SendError::Tls => TLS_FAILED,
        SendError::NoHttp2 => NO_HTTP2,
        SendError::Refused => REFUSED,
        SendError::Timeout => TIMEOUT,
        SendError::Lost => LOST,
    };
    row.answer(None, None)
}

/// `docs/push-answers.md`.
pub fn page() -> String {
    let mut lines = vec![
        "# What push providers answer, and what Chappe does".to_owned(),
        String::new(),
        "Made from the tables that the code itself uses: `CHAPPE_BLESS=1 cargo test -p chappe-pusher --test answers`".into(),
        "writes this file anew. The first line that fits counts. A body that is no JSON, a reason that is not listed:".into(),
        "the status alone decides. `Retry-After`, in seconds or as a date, is honoured up to an hour.".into(),
    ];
    let tables = [
        ("APNs", "Reasons as in Apple's \"Handling notification responses from APNs\".", crate::apns::TABLE),
        (
            "FCM",
            "`errorCode` of the details of type `FcmError`, else the `status` of the error.",
            crate::fcm::TABLE,
        ),
        ("Web Push", "RFC 8030 knows no reasons.", crate::webpush::TABLE),
    ];
    for (name, source, table) in tables {
        lines.extend([String::new(), format!("## {name}"), String::new(), source.to_owned(), String::new()]);
        lines.extend(["| Status | Reason | Chappe | Why |".to_owned(), "|---|---|---|---|".to_owned()]);
        lines.extend(table.iter().map(|row| format!("| {} {}", row.status.words(), row.line("any other"))));
    }
    lines.extend([
        String::new(),
        "## Without an answer".to_owned(),
        String::new(),
        "Reasons of our own, the same for every provider; but for Web Push, where it is always the device alone that".into(),
        "waits: one push service of many says nothing about the others.".into(),
        String::new(),
        "| Reason | Chappe | Why |".into(),
        "|---|---|---|".into(),
    ]);
    lines.extend(OWN.iter().map(|row| row.line(row.label)));
    lines.push(String::new());
    lines.join("\n")
}

impl Status {
    fn words(self) -> String {
        match self {
            Self::Is(status) => status.to_string(),
            Self::Class(class) => format!("{class}xx"),
            Self::Own => String::new(),
        }
    }
}

impl Row {
    fn line(&self, otherwise: &str) -> String {
        let reason = match (self.reason, self.status) {
            (Some(reason), _) => format!("`{reason}`"),
            (None, Status::Own) => format!("`{otherwise}`"),
            (None, Status::Is(_) | Status::Class(_)) => otherwise.to_owned(),
        };
        format!("| {reason} | {} | {} |", self.act.words(), self.why)
    }
}

impl Act {
    fn words(self) -> String {
        let scope = |scope| match scope {
            Scope::Device => "this device",
            Scope::App => "the app",
            Scope::Provider => "the provider",
        };
        match self {
            Self::Done => "done".into(),
            Self::Retry(whom, 0) => format!("retry, {} waits", scope(whom)),
            Self::Retry(whom, seconds) => format!("retry, {} waits {seconds} s or as asked", scope(whom)),
            Self::Drop => "drop the token".into(),
            Self::FixConfiguration => "fix the configuration".into(),
            Self::Park => "park".into(),
            Self::Hold => "the app waits for one wake of it that tries".into(),
        }
    }
}
