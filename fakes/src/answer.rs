//! An answer as it goes out. **Invariant:** a body travels with the content type that it has.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

/// The body of a scripted answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// What the provider sends with this status and reason.
    Provider,
    /// No body.
    Empty,
    /// This JSON, as it stands.
    Json(String),
    /// This HTML, as a proxy before the provider would send it.
    Html(String),
}

/// A scripted answer. The request that gets it is not judged, and not accepted whatever the status says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status, 100 to 599; anything else is sent as 500.
    pub status: u16,
    /// The provider's word for it: `reason` of APNs, `errorCode` of FCM, free text of Web Push.
    pub reason: String,
    /// Further headers.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Body,
    /// APNs: `timestamp` in the body, in milliseconds since 1970.
    pub timestamp_ms: Option<u64>,
}

impl Answer {
    /// This status and reason, with the body that the provider would send.
    pub fn new(status: u16, reason: &str) -> Self {
        let reason = reason.to_owned();
        Self { status, reason, headers: Vec::new(), body: Body::Provider, timestamp_ms: None }
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// `Retry-After` in seconds (RFC 9110 §10.2.3).
    #[must_use]
    pub fn retry_after_seconds(self, seconds: u64) -> Self {
        self.header("retry-after", &seconds.to_string())
    }

    /// `Retry-After` as an HTTP date (RFC 9110 §5.6.7), for this time in seconds since 1970.
    #[must_use]
    pub fn retry_after_date(self, unix_seconds: u64) -> Self {
        self.header("retry-after", &crate::codec::http_date(unix_seconds))
    }

    /// With this body instead.
    #[must_use]
    pub fn body(mut self, body: Body) -> Self {
        self.body = body;
        self
    }

    /// APNs: since when the token is dead, in milliseconds since 1970.
    #[must_use]
    pub fn timestamp_ms(mut self, unix_ms: u64) -> Self {
        self.timestamp_ms = Some(unix_ms);
        self
    }
}

/// What goes out.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn empty(status: u16) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, headers: HeaderMap::new(), body: Bytes::new() }
    }

    pub(crate) fn typed(status: u16, kind: &'static str, body: String) -> Self {
        let mut reply = Self::empty(status);
        reply.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        reply.body = Bytes::from(body);
        reply
    }

    pub(crate) fn json(status: u16, body: &serde_json::Value) -> Self {
        Self::typed(status, "application/json; charset=UTF-8", body.to_string())
    }

    /// Adds a header; one that HTTP cannot carry is left out.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            self.headers.insert(name, value);
        }
        self
    }

    /// A scripted answer, with `provider` as the provider's own body.
    pub(crate) fn scripted(answer: &Answer, provider: Reply) -> Self {
        let mut reply = match &answer.body {
            Body::Provider => provider,
            Body::Empty => Self::empty(answer.status),
            Body::Json(text) => Self::typed(answer.status, "application/json; charset=UTF-8", text.clone()),
            Body::Html(text) => Self::typed(answer.status, "text/html; charset=UTF-8", text.clone()),
        };
        for (name, value) in &answer.headers {
            reply = reply.with(name, value);
        }
        reply
    }
}
