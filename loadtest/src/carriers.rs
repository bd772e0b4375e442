//! Which carrier each user of a run takes. **Invariant:** the addresses stay those that were named; only their scheme changes.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What users connect with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// WebSocket
    Ws,
    /// QUIC
    Quic,
    /// WebTransport
    Webtransport,
    /// QUIC or WebSocket, as the SDK finds out
    Auto,
    /// A third of the users each: WebSocket, QUIC, WebTransport
    Mix,
}

impl Choice {
    /// The address of a server for one user. Errors: the server is plain (`ws://`), and QUIC is never without TLS.
    pub fn address(self, server: &str, user: u32) -> Result<String, String> {
        let scheme = match (self, user % 3) {
            (Self::Ws, _) | (Self::Mix, 0) => "wss",
            (Self::Quic, _) | (Self::Mix, 1) => "chappe+quic",
            (Self::Webtransport | Self::Mix, _) => "chappe+webtransport",
            (Self::Auto, _) => "chappe",
        };
        let (own, rest) =
            server.split_once("://").ok_or_else(|| format!("--server {server}: write wss://host:port"))?;
        match (own, scheme) {
            ("ws", "wss") => Ok(server.to_owned()),
            ("ws", _) => Err(format!("--carrier: {server} has no TLS, and without TLS there is no QUIC")),
            _ => Ok(format!("{scheme}://{rest}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mix_is_a_third_each_and_plain_servers_have_websocket_only() {
        let address = |choice: Choice, user| choice.address("wss://127.0.0.1:7440/v1/connect", user).unwrap();
        let mix: Vec<String> = (0..4).map(|user| address(Choice::Mix, user)).collect();
        let rest = "127.0.0.1:7440/v1/connect";
        let third =
            ["wss", "chappe+quic", "chappe+webtransport", "wss"].map(|scheme| format!("{scheme}://{rest}"));
        assert_eq!(mix, third);
        assert_eq!(address(Choice::Auto, 1), format!("chappe://{rest}"));
        assert_eq!(Choice::Ws.address("ws://127.0.0.1:7440", 1).unwrap(), "ws://127.0.0.1:7440");
        assert!(Choice::Mix.address("ws://127.0.0.1:7440", 1).unwrap_err().contains("TLS"));
    }
}
