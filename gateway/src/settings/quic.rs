//! Settings of the UDP port. **Invariant:** QUIC is served wherever TLS is, unless it is off.

use crate::TlsSource;
use crate::quic::{QuicDoor, ServerId};
use chappe_node::config::{ConfigError, variable};
use chappe_node::listen::bind_udp;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::Arc;

/// Where AWS's load balancer controller puts the id under which it knows a pod.
const NLB_SERVER_ID: &str = "AWS_LBC_QUIC_SERVER_ID";

/// QUIC and WebTransport, on the UDP port of the same number as the clients' port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuicConfig {
    /// Serve WebSocket only.
    pub off: bool,
    /// 16 hex digits that name this gateway in its connection ids, for load balancers that read them (QUIC-LB, AWS NLB); empty: the
    /// environment's `AWS_LBC_QUIC_SERVER_ID` if it is set, else ids are random.
    pub server_id: String,
}

impl QuicConfig {
    fn server_id(&self) -> Result<Option<ServerId>, ConfigError> {
        let given = Some(self.server_id.clone()).filter(|id| !id.is_empty());
        let Some(id) = given.or_else(|| variable(NLB_SERVER_ID)) else { return Ok(None) };
        id.parse().map(Some).map_err(|hint| ConfigError::value("quic.server_id", hint))
    }

    /// Refuses what cannot work.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.server_id().map(|_| ())
    }

    /// Binds the UDP port; `None`: QUIC is off, or there is no TLS here to serve it with.
    pub fn open(
        &self,
        listen: SocketAddr,
        tls: Option<Arc<dyn TlsSource>>,
        secret: &[u8; 32],
    ) -> anyhow::Result<Option<QuicDoor>> {
        let Some(tls) = tls.filter(|_| !self.off) else {
            tracing::info!("QUIC and WebTransport are not served here");
            return Ok(None);
        };
        let socket = bind_udp(listen, "--set listen=…, or leave QUIC out with --set quic.off=true")?;
        Ok(Some(QuicDoor::new(socket, tls, secret, self.server_id()?)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_id_is_checked_before_a_port_is_bound() {
        let config = |id: &str| QuicConfig { server_id: id.into(), ..QuicConfig::default() };
        assert!(config("").check().is_ok() && config("0x0011223344556677").check().is_ok());
        let error = config("12").check().unwrap_err().to_string();
        assert!(error.contains("quic.server_id") && error.contains("16 hex digits"), "{error}");
    }
}
