//! TLS 1.3 for servers and to them, with certificates that are read anew without a restart.
//! **Invariant:** a certificate that cannot be used never replaces one that can.

use crate::metrics::Family;
use prometheus::{IntGauge, Registry};
use rustls::ServerConfig;
use rustls::server::NoServerSessionStorage;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, RwLock};
use std::time::{Duration, SystemTime};
use tokio_util::sync::CancellationToken;
use x509_parser::pem::Pem;

/// Why a certificate or key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read or holds no PEM of the right kind.
    #[error("tls_file: {path}: {message}")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong and what to do.
        message: String,
    },
    /// Certificate and key do not belong together, or are of a kind that TLS 1.3 does not know.
    #[error("tls_pair: {certificate} and {key}: {message}")]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What rustls said.
        message: String,
    },
}

/// Makes aws-lc-rs the process's crypto provider. Call first in `main` and in tests; calling it again does nothing.
pub fn install_crypto_provider() {
    // An error means that it is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// TLS 1.3 to a server inside the cluster, whose certificate this authority (a PEM file) has signed. An empty path: no TLS.
pub fn client_config(authority: &Path) -> Result<Option<Arc<rustls::ClientConfig>>, TlsError> {
    if authority.as_os_str().is_empty() {
        return Ok(None);
    }
    let file = |message: String| TlsError::File { path: authority.to_owned(), message };
    let mut roots = rustls::RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(authority).map_err(|error| file(error.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| file(error.to_string()))?;
        roots.add(certificate).map_err(|error| file(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(file("there is no certificate in it".into()));
    }
    with_roots(roots).map(Some).map_err(|error| file(error.to_string()))
}

/// TLS to a server outside, whose certificate this authority (a PEM file) has signed; an empty path: one of the public ones.
pub fn trusting(authority: &Path) -> Result<Arc<rustls::ClientConfig>, TlsError> {
    if let Some(config) = client_config(authority)? {
        return Ok(config);
    }
    let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let message =
        |error: rustls::Error| TlsError::File { path: authority.to_owned(), message: error.to_string() };
    with_roots(roots).map_err(message)
}

fn with_roots(roots: rustls::RootCertStore) -> Result<Arc<rustls::ClientConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

/// A server's certificate chain and key in files, and the configuration made of them.
#[derive(Debug)]
pub struct ReloadingTls {
    certificate: PathBuf,
    key: PathBuf,
    current: RwLock<Arc<ServerConfig>>,
    /// When the certificate ends, once there are metrics.
    ends: OnceLock<IntGauge>,
}

const LOOK_EVERY: Duration = Duration::from_secs(30);

impl ReloadingTls {
    /// Reads both files.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let current = RwLock::new(Arc::new(read_config(certificate, key)?));
        let ends = OnceLock::new();
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), current, ends })
    }

    /// Registers `chappe_tls_not_after_seconds`. Fails if the registry has it already.
    pub fn tell(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        let own = Family { registry, prefix: "chappe_tls" };
        let help = "When the certificate of the clients' port ends, seconds of Unix time.";
        let _ = self.ends.set(own.gauge("not_after_seconds", help)?);
        self.tell_end();
        Ok(())
    }

    fn tell_end(&self) {
        if let Some(ends) = self.ends.get() {
            ends.set(validity(&self.certificate).map_or(0, |(_, to)| to));
        }
    }

    /// The configuration for the next handshake.
    pub fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Reads both files anew; on an error the old configuration stays.
    pub fn reload(&self) -> Result<(), TlsError> {
        let fresh = Arc::new(read_config(&self.certificate, &self.key)?);
        *self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner) = fresh;
        self.tell_end();
        Ok(())
    }

    /// Reloads when `reloads` changes (SIGHUP) and when a file's time of change does, looked at every 30 s; until `stop`.
    pub async fn watch(&self, mut reloads: tokio::sync::watch::Receiver<u64>, stop: CancellationToken) {
        let mut seen = self.changed_at();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = reloads.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK_EVERY) => {
                    let now = self.changed_at();
                    if now == seen { continue }
                    seen = now;
                }
            }
            match self.reload() {
                Ok(()) => tracing::info!("certificate and key were read anew"),
                Err(error) => {
                    tracing::error!(%error, "the new certificate cannot be used, the old one stays");
                }
            }
        }
    }

    fn changed_at(&self) -> [Option<SystemTime>; 2] {
        [&self.certificate, &self.key]
            .map(|path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok())
    }
}

/// From when until when the first certificate of a PEM file is good (RFC 5280, section 4.1.2.5), seconds of Unix time.
pub fn validity(certificate: &Path) -> Result<(i64, i64), TlsError> {
    let bad = |message: String| TlsError::File { path: certificate.to_owned(), message };
    let bytes = std::fs::read(certificate).map_err(|error| bad(error.to_string()))?;
    let first = Pem::iter_from_buffer(&bytes).next();
    let first = first.and_then(Result::ok).ok_or_else(|| bad("there is no PEM certificate in it".into()))?;
    let parsed = first.parse_x509().map_err(|_| bad("there is no X.509 certificate in it".into()))?;
    let validity = parsed.validity();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

fn read_config(certificate: &Path, key: &Path) -> Result<ServerConfig, TlsError> {
    let file = |path: &Path, message: String| TlsError::File { path: path.to_owned(), message };
    let chain =
        CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(
            |error| file(certificate, format!("{error}; a PEM file with the certificate chain is expected")),
        )?;
    if chain.is_empty() {
        return Err(file(certificate, "there is no certificate in it".into()));
    }
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| file(key, format!("{error}; a PEM file with the private key is expected")))?;
    let pair = |error: rustls::Error| TlsError::Pair {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        message: error.to_string(),
    };
    server_config(chain, private).map_err(pair)
}

/// What clients are served with: TLS 1.3 alone, one session ticket (RFC 8446, section 4.6.1) that this process remembers nothing for,
/// no early data, ALPN `http/1.1` for clients that ask. Errors: the key does not fit the certificate.
pub fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.send_tls13_tickets = 1;
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// A self-made certificate and key for `localhost`, `127.0.0.1` and `::1`, as PEM: (certificate, key).
pub fn development_certificate() -> Result<(String, String), String> {
    let names = ["localhost", "127.0.0.1", "::1"].map(String::from);
    let made = rcgen::generate_simple_self_signed(names).map_err(|error| error.to_string())?;
    Ok((made.cert.pem(), made.signing_key.serialize_pem()))
}

/// A self-made Ed25519 key pair for development tokens, as PEM: (public, private).
pub fn development_token_key() -> Result<(String, String), String> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(|error| error.to_string())?;
    Ok((key.public_key_pem(), key.serialize_pem()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_pair(folder: &Path) -> (PathBuf, PathBuf) {
        let (certificate, key) = development_certificate().unwrap();
        let paths = (folder.join("cert.pem"), folder.join("key.pem"));
        std::fs::write(&paths.0, certificate).unwrap();
        std::fs::write(&paths.1, key).unwrap();
        paths
    }

    #[test]
    fn a_reload_takes_the_new_pair_and_a_bad_one_leaves_the_old() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = write_pair(folder.path());
        let tls = ReloadingTls::load(&certificate, &key).unwrap();
        let first = tls.current();
        write_pair(folder.path());
        tls.reload().unwrap();
        let second = tls.current();
        assert!(!Arc::ptr_eq(&first, &second));
        let registry = Registry::new();
        tls.tell(&registry).unwrap();
        let told = || registry.gather()[0].get_metric()[0].get_gauge().get_value();
        let (from, to) = validity(&certificate).unwrap();
        assert_eq!((from < to, format!("{}", told())), (true, format!("{to}")));
        std::fs::write(&key, "no key").unwrap();
        let error = tls.reload().unwrap_err().to_string();
        assert!(error.starts_with("tls_file"), "{error}");
        assert!(Arc::ptr_eq(&second, &tls.current()));
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (certificate, _) = write_pair(one.path());
        let (_, key) = write_pair(other.path());
        let error = ReloadingTls::load(&certificate, &key).unwrap_err().to_string();
        assert!(error.starts_with("tls_pair"), "{error}");
    }

    #[tokio::test]
    async fn a_hangup_reloads() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = write_pair(folder.path());
        let tls = Arc::new(ReloadingTls::load(&certificate, &key).unwrap());
        let first = tls.current();
        let (hangups, reloads) = tokio::sync::watch::channel(0);
        let stop = CancellationToken::new();
        let watching = {
            let (tls, stop) = (Arc::clone(&tls), stop.clone());
            async move { tls.watch(reloads, stop).await }
        };
        let hangup = async {
            write_pair(folder.path());
            hangups.send(1).unwrap();
            while Arc::ptr_eq(&first, &tls.current()) {
                tokio::task::yield_now().await;
            }
            stop.cancel();
        };
        tokio::join!(watching, hangup);
    }
}
