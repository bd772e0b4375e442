//! Why a connection ends, and errors as data. **Invariant:** a close code says by its range whether to reconnect:
//! 3000–3499 and 4000–4499 yes, 3500–3999 and 4500–4999 no. One exception, 4409: another socket of the device took over.

use alloc::string::{String, ToString};

macro_rules! close_codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)+) => {
        /// Why the server closes a connection; the code travels in the carrier's close.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum CloseCode { $($(#[$doc])* $name,)+ }

        impl CloseCode {
            /// Every code, for documents and tests.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The number on the wire.
            pub const fn code(self) -> u16 {
                match self { $(Self::$name => $code,)+ }
            }

            /// The short text beside it, the same word as an error's `code`.
            pub const fn reason(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// The code with this number, if we know it.
            pub const fn from_code(code: u16) -> Option<Self> {
                match code { $($code => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

close_codes! {
    /// The gateway drains; reconnect after the hint of its `GoAway`.
    Drained = 3000, "drained";
    /// No frame for two heartbeats.
    HeartbeatMissed = 3001, "heartbeat_missed";
    /// Something un-acked and no frame of any kind for 20 s.
    AckTimeout = 3002, "ack_timeout";
    /// The client did not read for 20 s.
    WriteTimeout = 3003, "write_timeout";
    /// The store cannot be reached.
    StoreUnavailable = 3004, "store_unavailable";
    /// Too many sessions or handshakes, or this connection left too many submits undecided; come back later.
    Overloaded = 3005, "overloaded";
    /// No Hello within 5 s.
    HelloTimeout = 3006, "hello_timeout";
    /// Too many frames for too long.
    RateLimited = 3007, "rate_limited";
    /// A peek ended: backlog delivered or 30 s over.
    PeekEnded = 3008, "peek_ended";
    /// The keys that tokens are checked with cannot be fetched now. The token may be good: come back with it.
    KeysUnavailable = 3009, "keys_unavailable";
    /// Bytes that are no frame, or a field that is missing or out of its bounds.
    BadFrame = 3500, "bad_frame";
    /// A frame beyond `frame_bytes_max`.
    FrameTooLarge = 3501, "frame_too_large";
    /// The first frame was not a Hello, or a second Hello came.
    HelloExpected = 3502, "hello_expected";
    /// An ack beyond what was delivered.
    AckBeyondDelivered = 3503, "ack_beyond_delivered";
    /// The token ran out; reconnect with a fresh one.
    TokenExpired = 4401, "token_expired";
    /// A newer connection of the same device took over. Do not reconnect by yourself.
    ConnectedElsewhere = 4409, "connected_elsewhere";
    /// The token is not valid, or not for this device.
    TokenInvalid = 4500, "token_invalid";
    /// The device was revoked.
    DeviceRevoked = 4501, "device_revoked";
    /// The client's cursor lies beyond the head: its state is not of this mailbox. An alarm was raised.
    CursorAhead = 4502, "cursor_ahead";
    /// The user was erased.
    UserErased = 4503, "user_erased";
}

impl CloseCode {
    /// Whether a client should connect again by itself.
    pub const fn reconnect(self) -> bool {
        let code = self.code();
        !matches!(self, Self::ConnectedElsewhere) && (matches!(code, 3000..=3499 | 4000..=4499))
    }

    /// Whether a code, known or not, asks for a reconnect: the rule of the ranges and the one exception.
    pub const fn code_reconnects(code: u16) -> bool {
        code != 4409 && !matches!(code, 3500..=3999 | 4500..=4999)
    }
}

/// Why one frame, one submit or one request was refused while the connection goes on. The codes of [`ErrorScope::Connection`] are the
/// reasons of [`CloseCode`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorCode {
    /// A limit was exceeded, named in `limit_name`; the frame had no effect.
    Limit,
    /// The fresh token of a Refresh was not taken; the session goes on until the old one ends.
    RefreshRefused,
    /// A Request with a field that is missing or out of its bounds.
    BadRequest,
    /// A Request of a kind that this server does not know.
    UnknownRequest,
    /// A Request that only the main session of a device may send.
    NotMain,
    /// This server does not wake devices: nobody has given it a key for push targets.
    PushUnavailable,
    /// Too many Requests.
    Rate,
    /// The store did not answer: the Request is perhaps done. Send it again.
    Unavailable,
}

impl ErrorCode {
    /// Every code, for documents and tests.
    pub const ALL: &'static [Self] = &[
        Self::Limit,
        Self::RefreshRefused,
        Self::BadRequest,
        Self::UnknownRequest,
        Self::NotMain,
        Self::PushUnavailable,
        Self::Rate,
        Self::Unavailable,
    ];

    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::RefreshRefused => "refresh_refused",
            Self::BadRequest => "bad_request",
            Self::UnknownRequest => "unknown_request",
            Self::NotMain => "not_main",
            Self::PushUnavailable => "push_unavailable",
            Self::Rate => "rate",
            Self::Unavailable => "unavailable",
        }
    }
}

/// What an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorScope {
    /// One frame was refused; the connection goes on.
    Frame,
    /// One submit was refused; the connection goes on.
    Submit,
    /// The connection closes after it.
    Connection,
}

/// An error as data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorFrame {
    /// A stable word, listed in PROTOCOL.md.
    pub code: String,
    /// For people: what happened, what to do.
    pub message: String,
    /// Whether the same thing may succeed later.
    pub retryable: bool,
    /// The limit that was hit, by its name in `Limits`; else empty.
    pub limit_name: String,
    /// Wait so long before trying again; 0: no hint.
    pub retry_after_ms: u32,
    /// What it is about.
    pub scope: ErrorScope,
    /// With [`ErrorScope::Submit`]: which.
    pub submit_id: Option<crate::id::SubmitId>,
}

impl ErrorFrame {
    /// A limit was exceeded: by a submit, or by a frame of another kind. `limit_name` is a field of `Limits` in the schema;
    /// `retry_after_ms` of 0 means that the same frame never passes.
    pub fn limit(
        limit_name: &str,
        retry_after_ms: u32,
        submit_id: Option<crate::id::SubmitId>,
        message: &str,
    ) -> Self {
        Self {
            code: ErrorCode::Limit.as_str().to_string(),
            message: message.to_string(),
            retryable: retry_after_ms > 0,
            limit_name: limit_name.to_string(),
            retry_after_ms,
            scope: if submit_id.is_some() { ErrorScope::Submit } else { ErrorScope::Frame },
            submit_id,
        }
    }

    /// A Refresh was not taken.
    pub fn refresh_refused(message: &str) -> Self {
        Self {
            code: ErrorCode::RefreshRefused.as_str().to_string(),
            message: message.to_string(),
            retryable: true,
            limit_name: String::new(),
            retry_after_ms: 0,
            scope: ErrorScope::Frame,
            submit_id: None,
        }
    }

    /// A Request was refused, with [`ErrorScope::Frame`]; `retry_after_ms` of 0 means that the same one never passes here.
    pub fn request(code: ErrorCode, retry_after_ms: u32, message: &str) -> Self {
        Self {
            code: code.as_str().to_string(),
            message: message.to_string(),
            retryable: retry_after_ms > 0,
            limit_name: String::new(),
            retry_after_ms,
            scope: ErrorScope::Frame,
            submit_id: None,
        }
    }

    /// The error that goes before a close.
    pub fn closing(code: CloseCode, message: &str) -> Self {
        Self {
            code: code.reason().to_string(),
            message: message.to_string(),
            retryable: code.reconnect(),
            limit_name: String::new(),
            retry_after_ms: 0,
            scope: ErrorScope::Connection,
            submit_id: None,
        }
    }
}
