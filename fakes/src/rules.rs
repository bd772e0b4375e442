//! The seam between carriers and providers. **Invariant:** a carrier knows no provider, a provider knows no carrier.

use crate::answer::{Answer, Reply};
use crate::record::{Kind, Verdict};
use bytes::Bytes;
use http::HeaderMap;
use std::collections::BTreeMap;

/// A request, whole.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) method: http::Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// The body was longer than a fake reads; `body` is empty then.
    pub(crate) too_long: bool,
    pub(crate) now_ms: u64,
}

impl Incoming {
    /// The one value of a header: an error if there are several, or it is no text.
    pub(crate) fn header(&self, name: &str) -> Result<Option<&str>, String> {
        let mut values = self.headers.get_all(name).iter();
        let Some(first) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(format!("{name} is there more than once"));
        }
        first.to_str().map(Some).map_err(|_| format!("{name} is not visible ASCII"))
    }

    /// A header that is an integer in decimal digits, without sign.
    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, String> {
        let Some(text) = self.header(name)? else { return Ok(None) };
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = if digits { text.parse().ok() } else { None };
        number.map(Some).ok_or_else(|| format!("{name} must be a decimal number"))
    }
}

/// What a provider remembers of one connection.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// The last token of each key, and when it was issued (APNs).
    pub(crate) tokens: BTreeMap<String, (String, u64)>,
}

/// How many streams the client may have open from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Streams {
    Unchanged,
    One,
    Many,
}

/// What a provider makes of a request.
#[derive(Debug)]
pub(crate) struct Judgement {
    pub(crate) reply: Reply,
    pub(crate) verdict: Verdict,
    pub(crate) plain: Option<Bytes>,
    pub(crate) streams: Streams,
}

impl Judgement {
    pub(crate) fn accepted(reply: Reply, id: String) -> Self {
        Self { reply, verdict: Verdict::Accepted { id }, plain: None, streams: Streams::Many }
    }

    pub(crate) fn refused(reply: Reply, reason: &str, why: String) -> Self {
        let verdict = Verdict::Refused { status: reply.status.as_u16(), reason: reason.to_owned(), why };
        Self { reply, verdict, plain: None, streams: Streams::Unchanged }
    }
}

/// A provider.
pub(crate) trait Rules: Send + Sync + 'static {
    /// What the request wants.
    fn kind(&self, request: &Incoming) -> Kind;

    /// Whom it is for, as the script and the token states name it.
    fn target(&self, request: &Incoming) -> Option<String>;

    /// Judges it.
    fn judge(&self, request: &Incoming, memory: &mut Memory) -> Judgement;

    /// The provider's own form of a scripted answer.
    fn scripted(&self, answer: &Answer, request: &Incoming) -> Reply;

    /// Whether a client starts with one stream until a request of it was accepted.
    fn starts_with_one_stream(&self) -> bool;
}
