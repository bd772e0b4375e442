//! TLS towards providers. **Invariant:** the peer is always verified, and only HTTP/2 is offered.

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use std::sync::Arc;

/// The file of roots is not usable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the file holds no certificate in PEM")]
pub struct RootsError;

/// The public roots (Mozilla's list).
pub fn public_roots() -> RootCertStore {
    RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }
}

/// These and no others, for providers of one's own.
pub fn roots_from_pem(pem: &[u8]) -> Result<RootCertStore, RootsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.map_err(|_| RootsError)?).map_err(|_| RootsError)?;
    }
    if roots.is_empty() { Err(RootsError) } else { Ok(roots) }
}

/// A client that trusts these roots and offers `h2` by ALPN (RFC 9113 §3.2).
#[allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "the default provider has suites for the default versions"
)]
pub fn client_config(roots: RootCertStore) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions =
        ClientConfig::builder_with_provider(provider).with_protocol_versions(rustls::DEFAULT_VERSIONS);
    let mut config = versions.expect("default versions").with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}
