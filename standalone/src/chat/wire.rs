//! What a chat puts into an envelope. **Invariant:** a reader refuses what it does not know instead of guessing.
//!
//! One version byte (1), one kind byte, then the body:
//!
//! | kind | body |
//! |---|---|
//! | 1 offer | offer id (16 bytes), then a key package (RFC 9420 §10), in TLS encoding |
//! | 2 welcome | id of the offer that it answers (16 bytes), then an MLSMessage with the Welcome (§12.4.3.1), ratchet tree included |
//! | 3 message | an MLSMessage with a PrivateMessage (§6.3), padded so that its content has a multiple of 256 bytes |
//!
//! Offers and welcomes hold public keys and what is encrypted to them. The text of a message is UTF-8.

use bytes::Bytes;

const VERSION: u8 = 1;
const OFFER: u8 = 1;
const WELCOME: u8 = 2;
const MESSAGE: u8 = 3;
const ID_BYTES: usize = 16;

/// Names an offer.
pub(super) type OfferId = [u8; ID_BYTES];

/// A payload, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wire {
    Offer { id: OfferId, key_package: Vec<u8> },
    Welcome { answers: OfferId, welcome: Vec<u8> },
    Message(Vec<u8>),
}

impl Wire {
    pub(super) fn encode(&self) -> Vec<u8> {
        let (kind, id, body): (u8, &[u8], &[u8]) = match self {
            Self::Offer { id, key_package } => (OFFER, id, key_package),
            Self::Welcome { answers, welcome } => (WELCOME, answers, welcome),
            Self::Message(message) => (MESSAGE, &[], message),
        };
        [&[VERSION, kind], id, body].concat()
    }

    /// `None`: not ours, or of a newer version.
    pub(super) fn decode(payload: &Bytes) -> Option<Self> {
        let (head, body) = payload.split_at_checked(2)?;
        let named = || {
            let (id, rest) = body.split_at_checked(ID_BYTES)?;
            Some((OfferId::try_from(id).ok()?, rest.to_vec()))
        };
        match head {
            [VERSION, OFFER] => named().map(|(id, key_package)| Self::Offer { id, key_package }),
            [VERSION, WELCOME] => named().map(|(answers, welcome)| Self::Welcome { answers, welcome }),
            [VERSION, MESSAGE] => Some(Self::Message(body.to_vec())),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_the_rest_is_refused() {
        let all = [
            Wire::Offer { id: [1; 16], key_package: b"kp".to_vec() },
            Wire::Welcome { answers: [2; 16], welcome: b"w".to_vec() },
            Wire::Message(b"m".to_vec()),
        ];
        for wire in all {
            assert_eq!(Wire::decode(&wire.encode().into()), Some(wire));
        }
        for bad in [&b""[..], b"\x01", b"hello", b"\x02\x03x", b"\x01\x01short", b"\x01\x04"] {
            assert_eq!(Wire::decode(&Bytes::from_static(bad)), None);
        }
    }
}
