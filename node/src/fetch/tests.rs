//! Answers that no sign-in service should give. **Invariant:** each ends in time, with an error that says what was wrong.

use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_util::task::TaskTracker;

#[test]
fn only_https_or_this_machine() {
    let good = [
        "https://id.example/keys",
        "https://id.example:8443",
        "http://127.0.0.1:1/k?a=b",
        "http://localhost/k",
        "http://[::1]:9/k",
    ];
    for url in good {
        assert!(is_allowed(url), "{url}");
    }
    let bad = [
        "http://id.example/keys",
        "http://127.0.0.1.id.example/keys",
        "ftp://id.example",
        "id.example",
        "https://",
        "https://a:b@id.example/",
        "file:///etc/passwd",
        "",
    ];
    for url in bad {
        assert!(!is_allowed(url), "{url}");
    }
    assert!(is_encrypted("https://id.example/k") && !is_encrypted("http://localhost/k"));
}

/// A server that answers every request with these bytes, then holds the connection open or closes it.
fn serving(answer: Vec<u8>, holds: bool) -> Connector {
    let tasks = TaskTracker::new();
    Arc::new(move |_, _| {
        let (ours, mut theirs) = tokio::io::duplex(16 * 1024);
        let answer = answer.clone();
        tasks.spawn(async move {
            read_head(&mut theirs).await;
            let _ = theirs.write_all(&answer).await;
            if holds {
                std::future::pending::<()>().await;
            }
        });
        Box::pin(async move { Ok(Box::new(ours) as Box<dyn Stream>) })
    })
}

async fn read_head(io: &mut DuplexStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match io.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

fn public_roots() -> Arc<rustls::ClientConfig> {
    crate::tls::trusting(std::path::Path::new("")).unwrap()
}

async fn get(answer: impl Into<Vec<u8>>, holds: bool) -> Result<Bytes, FetchError> {
    let fetcher = Fetcher::over(public_roots(), serving(answer.into(), holds));
    fetcher.get("http://localhost/keys?x=canary-kvqz").await
}

fn whole(kind: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test(start_paused = true)]
async fn a_document_comes_whole_with_a_length_in_chunks_or_up_to_the_end() {
    assert_eq!(&get(whole("application/json", "{}"), true).await.unwrap()[..], b"{}");
    let chunks = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n";
    assert_eq!(&get(chunks, true).await.unwrap()[..], b"{}");
    assert_eq!(&get("HTTP/1.1 200 OK\r\n\r\n{}", false).await.unwrap()[..], b"{}");
    let largest = "x".repeat(BYTES_MAX);
    assert_eq!(get(whole("text/plain", &largest), true).await.unwrap().len(), BYTES_MAX);
}

#[tokio::test(start_paused = true)]
async fn bad_answers_are_told_apart_and_name_the_host_only() {
    let huge = "x".repeat(BYTES_MAX + 1);
    let endless = format!("HTTP/1.1 200 OK\r\n\r\n{huge}");
    let redirect = "HTTP/1.1 302 Found\r\nlocation: https://evil.example/\r\ncontent-length: 0\r\n\r\n";
    let cases = [
        (whole("application/json", &huge), true, "more than 256 KiB"),
        (endless, false, "more than 256 KiB"),
        (redirect.to_owned(), true, "302 Found: redirects are not followed"),
        ("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".to_owned(), true, "answers 503"),
        ("HTTP/1.1 204 No Content\r\n\r\n".to_owned(), true, "answers 204"),
        (whole("text/html; charset=utf-8", "<html>"), true, "a web page"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{".to_owned(), false, "does not answer"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{".to_owned(), true, "within 5 s"),
        (String::new(), true, "within 5 s"),
        (String::new(), false, "does not answer"),
        ("SSH-2.0-OpenSSH_9.9\r\n\r\n".to_owned(), true, "does not answer"),
    ];
    for (answer, holds, said) in cases {
        let begin: String = answer.chars().take(60).collect();
        let error = get(answer, holds).await.unwrap_err().to_string();
        assert!(error.contains(said) && error.contains("localhost"), "{begin:?}: {error}");
        assert!(!error.contains("kvqz") && !error.contains("evil"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_takes_no_connection_is_given_up() {
    let never: Connector = Arc::new(|_, _| Box::pin(std::future::pending()));
    let error = Fetcher::over(public_roots(), never).get("http://localhost/").await.unwrap_err();
    assert!(matches!(error, FetchError::Slow(_)), "{error}");
    let refuses: Connector =
        Arc::new(|_, _| Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) }));
    let error = Fetcher::over(public_roots(), refuses).get("http://localhost/").await.unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
}

/// A server with a self-made certificate for `localhost`.
fn serving_tls(certificate: &str, key: &str) -> Connector {
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let tasks = TaskTracker::new();
    Arc::new(move |_, _| {
        let (ours, theirs) = tokio::io::duplex(16 * 1024);
        let acceptor = acceptor.clone();
        tasks.spawn(async move {
            let Ok(mut tls) = acceptor.accept(theirs).await else { return };
            let mut request = [0; 1024];
            let _ = tls.read(&mut request).await;
            let _ = tls.write_all(whole("application/json", "{}").as_bytes()).await;
            let _ = tls.shutdown().await;
        });
        Box::pin(async move { Ok(Box::new(ours) as Box<dyn Stream>) })
    })
}

#[tokio::test]
async fn a_private_authority_is_trusted_where_it_is_named_and_nowhere_else() {
    let (certificate, key) = crate::tls::development_certificate().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("authority.pem");
    std::fs::write(&path, &certificate).unwrap();
    let trusting = crate::tls::client_config(&path).unwrap().unwrap();
    let server = serving_tls(&certificate, &key);
    let fetcher = Fetcher::over(trusting, Arc::clone(&server));
    assert_eq!(&fetcher.get("https://localhost/keys").await.unwrap()[..], b"{}");
    let error = fetcher.get("https://id.example/keys").await.unwrap_err().to_string();
    assert!(error.contains("certificate"), "another name: {error}");
    let error = Fetcher::over(public_roots(), server).get("https://localhost/keys").await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
}
