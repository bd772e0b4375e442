//! Where a push provider reaches a device. **Invariant:** what is in here was checked once, and none of it prints itself:
//! a push token is a capability to ring somebody's phone.

mod quiet;

pub use quiet::{BadQuiet, DAY_MIN, QUIET_WINDOWS_MAX, Quiet, QuietHours};

use crate::time::UnixMillis;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// Push targets of one device.
pub const PUSH_TARGETS_MAX: usize = 4;
/// Bytes of an [`AppName`].
pub const APP_NAME_BYTES_MAX: usize = 64;
/// Bytes of a device token of Apple's; they are 32 today, and their length is said to vary.
pub const APNS_TOKEN_BYTES_MAX: usize = 128;
/// Bytes of a registration token of Google's.
pub const FCM_TOKEN_BYTES_MAX: usize = 4096;
/// Bytes of the address of a Web Push subscription (RFC 8030 §5).
pub const ENDPOINT_BYTES_MAX: usize = 2048;

/// What is wrong with a push target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PushTargetError {
    /// See [`AppName::new`].
    #[error("the app's name is not 1 to 64 of a-z, 0-9, '.', '_' and '-'")]
    App,
    /// Its length, or its letters.
    #[error("the push token is empty, too long, or holds what no push token holds")]
    Token,
    /// No `https` address, too long, or with a user or fragment.
    #[error("the endpoint is no https address of at most 2048 bytes")]
    Endpoint,
    /// The subscription's keys (RFC 8291 §2): `p256dh` is an uncompressed point of 65 bytes, `auth` has 16 bytes.
    #[error("the subscription's keys have not the form of RFC 8291")]
    Keys,
}

/// One of the apps that a pusher is configured for: a topic of Apple's, a project of Google's, a VAPID key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AppName(String);

impl AppName {
    /// 1 to 64 bytes of `a-z`, `0-9`, `.`, `_`, `-`.
    pub fn new(name: &str) -> Result<Self, PushTargetError> {
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
        if name.is_empty() || name.len() > APP_NAME_BYTES_MAX || !name.bytes().all(good) {
            return Err(PushTargetError::App);
        }
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Which of Apple's kinds of push a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ApnsKind {
    /// Shown by the device; carries background wakes too.
    Alert,
    /// PushKit: rings.
    Voip,
}

/// Where one provider reaches one device.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum PushAddress {
    /// Apple Push Notification service.
    Apns {
        /// As Apple gave it to the device, in bytes, not in hex.
        token: Vec<u8>,
        /// What it is for.
        kind: ApnsKind,
    },
    /// Firebase Cloud Messaging, HTTP v1.
    Fcm {
        /// Printable ASCII.
        token: String,
    },
    /// Web Push (RFC 8030), UnifiedPush among it.
    WebPush {
        /// Where to post to; `https`.
        endpoint: String,
        /// The subscription's public key: an uncompressed point on P-256.
        p256dh: [u8; 65],
        /// Its authentication secret.
        auth: [u8; 16],
    },
}

impl fmt::Debug for PushAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Apns { kind: ApnsKind::Alert, .. } => "Apns(…)",
            Self::Apns { kind: ApnsKind::Voip, .. } => "ApnsVoip(…)",
            Self::Fcm { .. } => "Fcm(…)",
            Self::WebPush { .. } => "WebPush(…)",
        })
    }
}

/// A device's wish to be woken through one provider.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PushTarget {
    /// For which app.
    pub app: AppName,
    /// Where.
    pub address: PushAddress,
    /// When the device registered it, by the store's clock. A provider that calls a token dead since before this is
    /// speaking of an earlier life of it.
    pub registered_at: UnixMillis,
}

/// All that one device has said about being woken.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct PushSettings {
    /// Through whom; at most [`PUSH_TARGETS_MAX`]. None: it is not woken.
    pub targets: Vec<PushTarget>,
    /// When not.
    pub quiet: Quiet,
}

impl PushAddress {
    /// Refuses what no provider gives out.
    pub fn check(&self) -> Result<(), PushTargetError> {
        match self {
            Self::Apns { token, .. } if token.is_empty() || token.len() > APNS_TOKEN_BYTES_MAX => {
                Err(PushTargetError::Token)
            }
            Self::Fcm { token }
                if token.is_empty()
                    || token.len() > FCM_TOKEN_BYTES_MAX
                    || !token.bytes().all(|byte| byte.is_ascii_graphic()) =>
            {
                Err(PushTargetError::Token)
            }
            Self::WebPush { endpoint, p256dh, .. } => {
                if p256dh[0] != 4 {
                    return Err(PushTargetError::Keys);
                }
                check_endpoint(endpoint)
            }
            Self::Apns { .. } | Self::Fcm { .. } => Ok(()),
        }
    }
}

fn check_endpoint(endpoint: &str) -> Result<(), PushTargetError> {
    let rest = endpoint.strip_prefix("https://").ok_or(PushTargetError::Endpoint)?;
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    let good = endpoint.len() <= ENDPOINT_BYTES_MAX
        && endpoint.bytes().all(|byte| byte.is_ascii_graphic())
        && !host.is_empty()
        && !host.contains(['@', '\\'])
        && !rest.contains('#');
    if good { Ok(()) } else { Err(PushTargetError::Endpoint) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::vec;

    fn web(endpoint: &str, first: u8) -> PushAddress {
        let mut p256dh = [0; 65];
        p256dh[0] = first;
        PushAddress::WebPush { endpoint: endpoint.into(), p256dh, auth: [0; 16] }
    }

    #[test]
    fn what_providers_give_out_passes_and_nothing_else() {
        let good = [
            PushAddress::Apns { token: vec![7; 32], kind: ApnsKind::Voip },
            PushAddress::Fcm { token: "cX:APA91b_-".into() },
            web("https://push.example/send/abc?x=1", 4),
            web("https://push.example", 4),
        ];
        assert!(good.iter().all(|address| address.check() == Ok(())), "{good:?}");
        let refused = [
            (PushAddress::Apns { token: vec![], kind: ApnsKind::Alert }, PushTargetError::Token),
            (PushAddress::Apns { token: vec![7; 129], kind: ApnsKind::Alert }, PushTargetError::Token),
            (PushAddress::Fcm { token: String::new() }, PushTargetError::Token),
            (PushAddress::Fcm { token: "a b".into() }, PushTargetError::Token),
            (PushAddress::Fcm { token: "a".repeat(4097) }, PushTargetError::Token),
            (web("http://push.example/", 4), PushTargetError::Endpoint),
            (web("https:///nowhere", 4), PushTargetError::Endpoint),
            (web("https://user@push.example/", 4), PushTargetError::Endpoint),
            (web("https://push.example/#part", 4), PushTargetError::Endpoint),
            (web("https://push.example/a b", 4), PushTargetError::Endpoint),
            (web(&format!("https://push.example/{}", "a".repeat(2048)), 4), PushTargetError::Endpoint),
            (web("https://push.example/", 3), PushTargetError::Keys),
        ];
        for (address, error) in refused {
            assert_eq!(address.check(), Err(error), "{address:?}");
        }
        assert!(AppName::new("org.example.app-1_b").is_ok());
        for name in ["", "Upper", "a b", &"a".repeat(65)] {
            assert_eq!(AppName::new(name), Err(PushTargetError::App));
        }
    }

    #[test]
    fn none_of_it_prints_itself() {
        let address = PushAddress::Fcm { token: "kvqz".into() };
        assert!(!format!("{address:?}{:?}", web("https://kvqz/", 4)).contains("kvqz"));
    }
}
