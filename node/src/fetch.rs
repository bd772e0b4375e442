//! Small documents over HTTPS, such as a sign-in service's keys, and small ones brought to somebody, such as a collector of traces.
//! **Invariant:** an answer is bounded in bytes and time; no redirect is followed; what is fetched, and what bears a secret, goes by
//! plain HTTP to this machine only.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::http::request::Builder;
use hyper::{Method, Request, Response, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// For the whole exchange, from the name's resolution to the last byte.
pub const FETCH_MAX: Duration = Duration::from_secs(5);
/// Bytes of an answer's body.
pub const BYTES_MAX: usize = 256 * 1024;

/// Why there is no document. Names the host at most: a path or a query may hold a secret.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The URL cannot be fetched, or a secret cannot go there.
    #[error("the URL must be https://host/… without a name and password, or http:// on this machine")]
    Url,
    /// No connection, no TLS, or an answer that breaks off.
    #[error("{0} does not answer: {1}")]
    Unreachable(String, io::Error),
    /// Not within [`FETCH_MAX`].
    #[error("{0} gives no whole answer within 5 s")]
    Slow(String),
    /// Another place is named.
    #[error("{0} answers {1}: redirects are not followed, name the place itself")]
    Redirect(String, StatusCode),
    /// An answer without a document.
    #[error("{0} answers {1}")]
    Status(String, StatusCode),
    /// More than [`BYTES_MAX`].
    #[error("{0} answers with more than 256 KiB")]
    TooLarge(String),
    /// A page for people.
    #[error("{0} answers with a web page")]
    Page(String),
}

/// Bytes in, bytes out.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for T {}

/// What a [`Connector`] returns.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;
/// Opens a connection to a host (a name or an address) and a port.
pub type Connector = Arc<dyn Fn(String, u16) -> Connecting + Send + Sync>;

/// Fetches documents.
#[derive(Clone)]
pub struct Fetcher {
    tls: Arc<rustls::ClientConfig>,
    connector: Connector,
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fetcher(…)")
    }
}

/// A URL, taken apart.
struct Place {
    encrypted: bool,
    /// As in the URL: an IPv6 address stands in brackets.
    host: String,
    port: u16,
    /// For the `Host` field.
    authority: String,
    path: String,
}

impl Place {
    fn of(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let authority = uri.authority()?.as_str().to_owned();
        let host = uri.host()?.to_owned();
        // A name and a password in a URL end up in logs.
        if host.is_empty() || authority.contains('@') {
            return None;
        }
        let encrypted = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let port = uri.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Some(Self { encrypted, host, port, authority, path })
    }

    fn request(&self, method: Method) -> Builder {
        let request = Request::builder().method(method).uri(&self.path);
        request.header(header::HOST, &self.authority).header(header::USER_AGENT, "chappe")
    }

    /// Whether what goes there is for its eyes only.
    fn is_private(&self) -> bool {
        self.encrypted || is_local(&self.host)
    }

    fn name(&self) -> String {
        self.host.trim_start_matches('[').trim_end_matches(']').to_owned()
    }
}

fn is_local(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Whether [`Fetcher::get`] would try this URL.
pub fn is_allowed(url: &str) -> bool {
    Place::of(url).is_some_and(|place| place.is_private())
}

/// Whether [`Fetcher::post`] would try this URL without a secret.
pub fn is_postable(url: &str) -> bool {
    Place::of(url).is_some()
}

/// Whether this URL is fetched through TLS.
pub fn is_encrypted(url: &str) -> bool {
    Place::of(url).is_some_and(|place| place.encrypted)
}

/// TCP. A name that stands for this machine is not believed to: only addresses that do are tried.
fn dial(host: String, port: u16) -> Connecting {
    Box::pin(async move {
        let local = is_local(&host);
        let addresses = tokio::net::lookup_host((host.as_str(), port)).await?;
        let addresses: Vec<_> = addresses.filter(|address| !local || address.ip().is_loopback()).collect();
        let socket = TcpStream::connect(addresses.as_slice()).await?;
        Ok(Box::new(socket) as Box<dyn Stream>)
    })
}

impl Fetcher {
    /// Over TCP; `tls` says which servers are trusted.
    pub fn new(tls: Arc<rustls::ClientConfig>) -> Self {
        Self::over(tls, Arc::new(dial))
    }

    /// Over what the connector opens.
    pub fn over(tls: Arc<rustls::ClientConfig>, connector: Connector) -> Self {
        Self { tls, connector }
    }

    /// Gets a document.
    pub async fn get(&self, url: &str) -> Result<Bytes, FetchError> {
        let place = Place::of(url).filter(Place::is_private).ok_or(FetchError::Url)?;
        let request = place.request(Method::GET).header(header::ACCEPT, "application/json");
        self.within(&place, request, Bytes::new()).await
    }

    /// Brings a document of this media type, in plain HTTP to anybody unless there is an `Authorization` (empty: none); returns
    /// what is answered.
    pub async fn post(
        &self,
        url: &str,
        kind: &'static str,
        authorization: &str,
        body: Bytes,
    ) -> Result<Bytes, FetchError> {
        let place = Place::of(url).filter(|place| authorization.is_empty() || place.is_private());
        let place = place.ok_or(FetchError::Url)?;
        let mut request = place.request(Method::POST).header(header::CONTENT_TYPE, kind);
        if !authorization.is_empty() {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        self.within(&place, request, body).await
    }

    async fn within(&self, place: &Place, request: Builder, body: Bytes) -> Result<Bytes, FetchError> {
        let request = request.body(Full::new(body)).map_err(|_| FetchError::Url)?;
        match tokio::time::timeout(FETCH_MAX, self.ask(place, request)).await {
            Ok(answer) => answer,
            Err(_) => Err(FetchError::Slow(place.host.clone())),
        }
    }

    async fn ask(&self, place: &Place, request: Request<Full<Bytes>>) -> Result<Bytes, FetchError> {
        let away = |error: io::Error| FetchError::Unreachable(place.host.clone(), error);
        let stream = (self.connector)(place.name(), place.port).await.map_err(away)?;
        if !place.encrypted {
            return exchange(stream, place, request).await;
        }
        let server = ServerName::try_from(place.name()).map_err(|error| away(io::Error::other(error)))?;
        let stream = TlsConnector::from(Arc::clone(&self.tls)).connect(server, stream).await.map_err(away)?;
        exchange(stream, place, request).await
    }
}

/// One request and its answer on a fresh connection, in one future: nothing runs on when it is dropped.
async fn exchange<IO>(stream: IO, place: &Place, request: Request<Full<Bytes>>) -> Result<Bytes, FetchError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let away = |error: hyper::Error| FetchError::Unreachable(place.host.clone(), io::Error::other(error));
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(away)?;
    let asked = async {
        let response = sender.send_request(request).await.map_err(away)?;
        document(response, place).await
    };
    tokio::pin!(asked, connection);
    tokio::select! {
        biased;
        answer = &mut asked => answer,
        // However it ended: the answer may be here already, and else its future says what is missing.
        _ended = &mut connection => asked.await,
    }
}

async fn document(response: Response<Incoming>, place: &Place) -> Result<Bytes, FetchError> {
    let (host, status) = (place.host.clone(), response.status());
    if status.is_redirection() {
        return Err(FetchError::Redirect(host, status));
    }
    if status != StatusCode::OK {
        return Err(FetchError::Status(host, status));
    }
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if kind.is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("text/html")) {
        return Err(FetchError::Page(host));
    }
    match Limited::new(response.into_body(), BYTES_MAX).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(FetchError::TooLarge(host)),
        Err(error) => Err(FetchError::Unreachable(host, io::Error::other(error))),
    }
}

#[cfg(test)]
mod tests;
