//! Connection ids that a load balancer can read. **Invariant:** all ids of one gateway hold the same server id in the clear,
//! and nothing else that could tie two of them together.

use aws_lc_rs::rand::fill;
use quinn::{ConnectionId, ConnectionIdGenerator};
use std::str::FromStr;
use std::time::Duration;

/// First octet, server id, nonce: what AWS's Network Load Balancer asks for.
const BYTES: usize = 16;
const SERVER_ID_BYTES: usize = 8;
/// Of an id that leads nowhere.
const RANDOM_BYTES: usize = 8;
/// Configuration 0 in the first three bits, the bytes that follow in the other five
/// (draft-ietf-quic-load-balancers, "Length Self-Description").
const FIRST_OCTET: u8 = 15;

/// Names a gateway in its connection ids: the plaintext layout of draft-ietf-quic-load-balancers, 1 + 8 + 7 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerId([u8; SERVER_ID_BYTES]);

impl FromStr for ServerId {
    type Err = &'static str;

    /// Reads 16 hex digits, with or without `0x` before them.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "16 hex digits are needed, such as 0x00a1b2c3d4e5f607";
        let digits = text.strip_prefix("0x").unwrap_or(text);
        if digits.len() != 2 * SERVER_ID_BYTES || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(WRONG);
        }
        u64::from_str_radix(digits, 16).map(|id| Self(id.to_be_bytes())).map_err(|_| WRONG)
    }
}

/// Makes the connection ids of one gateway; without a server id they are random.
///
/// Quinn's own generator marks ids with a key of the process, so that packets for another gateway's are ignored. Here they count
/// as possibly ours: a client whose packets were led astray is answered with a reset, which it believes since all gateways share
/// that key, and need not wait until it gives up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ids(pub(super) Option<ServerId>);

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; BYTES];
        let id = &mut id[..self.cid_len()];
        // Ids that repeat only make a handshake fail.
        let _ = fill(id);
        if let Some(ServerId(server)) = self.0 {
            id[0] = FIRST_OCTET;
            id[1..=SERVER_ID_BYTES].copy_from_slice(&server);
        }
        ConnectionId::new(id)
    }

    fn cid_len(&self) -> usize {
        if self.0.is_some() { BYTES } else { RANDOM_BYTES }
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_hold_the_server_id_where_the_draft_has_it_and_differ() {
        let mut named = Ids(Some("0x00a1B2c3d4e5f607".parse().unwrap()));
        let ids: Vec<ConnectionId> = (0..100).map(|_| named.generate_cid()).collect();
        for id in &ids {
            assert_eq!(id[..9], [0x0f, 0, 0xa1, 0xb2, 0xc3, 0xd4, 0xe5, 0xf6, 0x07]);
            assert_eq!(id.len(), 16);
        }
        let nonces: std::collections::BTreeSet<_> = ids.iter().map(|id| id[9..].to_vec()).collect();
        assert_eq!(nonces.len(), ids.len());
        let random: std::collections::BTreeSet<_> =
            (0..100).map(|_| Ids(None).generate_cid().to_vec()).collect();
        assert!(random.len() == 100 && random.iter().all(|id| id.len() == 8));
    }

    #[test]
    fn what_is_no_server_id_is_refused() {
        for text in
            ["", "0x", "1", "00a1b2c3d4e5f6070", "00a1b2c3d4e5f60g", "+0a1b2c3d4e5f607", "0x0x00a1b2c3d4e5f6"]
        {
            assert!(text.parse::<ServerId>().is_err(), "{text}");
        }
    }
}
