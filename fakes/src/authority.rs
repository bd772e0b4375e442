//! A certificate authority of one's own. **Invariant:** its key signs one server certificate and is dropped.

use crate::error::FakeError;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::sync::Arc;

/// HTTP/2 in ALPN (RFC 9113 §3.1).
pub(crate) const H2: &[u8] = b"h2";
/// HTTP/1.1 in ALPN (RFC 7301 §6).
pub(crate) const HTTP_1_1: &[u8] = b"http/1.1";

/// An authority and the one certificate it signed: for `localhost` and 127.0.0.1.
#[derive(Debug)]
pub struct Authority {
    root: CertificateDer<'static>,
    pem: String,
    certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
}

impl Authority {
    /// Makes keys and certificates.
    pub fn new() -> Result<Self, FakeError> {
        Self::make().map_err(|error| FakeError::Keys(error.to_string()))
    }

    fn make() -> Result<Self, rcgen::Error> {
        let root_key = KeyPair::generate()?;
        let mut root = CertificateParams::new(Vec::new())?;
        root.distinguished_name.push(DnType::CommonName, "Chappe push fakes");
        root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root_certificate = root.self_signed(&root_key)?;
        let key = KeyPair::generate()?;
        let mut leaf = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        leaf.distinguished_name.push(DnType::CommonName, "localhost");
        leaf.use_authority_key_identifier_extension = true;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = leaf.signed_by(&key, &Issuer::new(root, root_key))?;
        Ok(Self {
            pem: root_certificate.pem(),
            root: root_certificate.der().clone(),
            certificate: certificate.der().clone(),
            key: PrivatePkcs8KeyDer::from(key.serialize_der()),
        })
    }

    /// The authority's certificate: what a client has to trust.
    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    /// A client's TLS that trusts this authority alone and offers these protocols.
    pub fn client_config(&self, protocols: &[&[u8]]) -> Result<Arc<ClientConfig>, FakeError> {
        let wrong = |error: rustls::Error| FakeError::Keys(error.to_string());
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).map_err(wrong)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(wrong)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Ok(Arc::new(config))
    }

    pub(crate) fn server_config(&self, protocols: &[&[u8]]) -> Result<Arc<ServerConfig>, FakeError> {
        let wrong = |error: rustls::Error| FakeError::Keys(error.to_string());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(wrong)?
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], PrivateKeyDer::Pkcs8(self.key.clone_key()))
            .map_err(wrong)?;
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Ok(Arc::new(config))
    }
}
