//! The slot log over TLS to a real database (`CHAPPE_TEST_CQL_URL`): a gate of the test's own speaks TLS in front of it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

#[path = "support/cql.rs"]
mod cql;

/// Names the database.
const URL: &str = "CHAPPE_TEST_CQL_URL";

use chappe_protocol::id::UserId;
use chappe_protocol::testing::TestWorld;
use chappe_protocol::world::World;
use chappe_storage::Store;
use chappe_storage::scylla::{ScyllaConfig, ScyllaRows};
use chappe_storage::slotlog::{LogConfig, SlotLog};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// Takes TLS and passes on what is in it; counts connections.
async fn gate(
    key: &rcgen::CertifiedKey<rcgen::KeyPair>,
    tasks: &mut JoinSet<()>,
) -> (String, Arc<AtomicUsize>) {
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![key.cert.der().clone()], der).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let behind = cql::config_of("unused").nodes[0].clone();
    let passed = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&passed);
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((socket, _)) = listener.accept().await {
            let (acceptor, behind, counted) = (acceptor.clone(), behind.clone(), Arc::clone(&counted));
            connections.spawn(async move {
                let Ok(mut outer) = acceptor.accept(socket).await else { return };
                counted.fetch_add(1, Ordering::Relaxed);
                let mut inner = TcpStream::connect(behind).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut outer, &mut inner).await;
            });
        }
    });
    (address, passed)
}

fn trusting(certificate: &rcgen::Certificate) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Arc::new(builder.unwrap().with_root_certificates(roots).with_no_client_auth())
}

#[tokio::test]
async fn the_log_is_kept_over_tls_and_only_with_whom_the_authority_vouches_for() {
    let ours = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let mut tasks = JoinSet::new();
    let (address, passed) = gate(&ours, &mut tasks).await;
    let world: Arc<dyn World> = Arc::new(TestWorld::new(1));
    let keyspace = cql::keyspace().await;
    let config = |certificate| ScyllaConfig {
        nodes: vec![address.clone()],
        tls: Some(trusting(certificate)),
        ..cql::config_of(keyspace)
    };
    let rows = Arc::new(ScyllaRows::connect(config(&ours.cert), Arc::clone(&world)).await.unwrap());
    let log = SlotLog::new(Arc::clone(&rows), Arc::clone(&world), LogConfig::default());
    let user = UserId::new("over tls").unwrap();
    let made = log.create_user(&user).await.unwrap();
    assert_eq!(log.user(&user).await.unwrap(), Some(made));
    assert!(passed.load(Ordering::Relaxed) > 0, "all of it went through the gate");

    let refused = ScyllaRows::connect(config(&other.cert), world).await.err().expect("another authority");
    assert_eq!(refused.code(), "cql_tls", "{refused}");
}
