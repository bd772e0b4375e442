//! The admin port: `/healthz`, `/readyz`, `/metrics`, `/console` and what a process adds. **Invariant:** it never shares a port with clients.

use crate::console::{self, Console};
use crate::vitals;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
pub use hyper::{Method, StatusCode};
use hyper::{Request, Response, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder, Registry, TextEncoder};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A call of an operator, read in full (at most 64 KiB).
#[derive(Debug)]
pub struct AdminCall {
    /// The HTTP method.
    pub method: Method,
    /// The path, without the query.
    pub path: String,
    /// What stands behind `Authorization: Bearer`.
    pub bearer: Option<String>,
    /// The body.
    pub body: Bytes,
}

/// An answer: status and JSON.
#[derive(Debug)]
pub struct AdminReply {
    /// The HTTP status.
    pub status: StatusCode,
    /// A JSON document.
    pub json: String,
}

/// What a process adds to the port: `None` for a path that is not its own.
pub type AdminHandler =
    Arc<dyn Fn(AdminCall) -> Pin<Box<dyn Future<Output = Option<AdminReply>> + Send>> + Send + Sync>;

/// What the port shows.
#[derive(Clone)]
pub struct Admin {
    registry: Registry,
    ready: watch::Receiver<bool>,
    handler: Option<AdminHandler>,
    console: Arc<Console>,
}

/// What a process brings to its admin port.
pub struct Process {
    /// `gateway`, `router`, `pusher`, `standalone` or `loadtest`.
    pub role: &'static str,
    /// Its metrics; those that every process has are added to it.
    pub registry: Registry,
    /// `true` once it serves, `false` again from the start of a drain.
    pub ready: watch::Receiver<bool>,
    /// Cancelled at the start of a drain.
    pub stop: CancellationToken,
    /// The process's own calls.
    pub handler: Option<AdminHandler>,
}

impl Admin {
    /// For the port at this address. Fails if the registry has one of the names of [`vitals`] already.
    pub fn new(process: Process, at: SocketAddr) -> Result<Self, prometheus::Error> {
        let Process { role, registry, ready, stop, handler } = process;
        vitals::register(&registry, role, ready.clone())?;
        let console = Arc::new(Console::new(role, at, registry.clone(), ready.clone(), stop));
        Ok(Self { registry, ready, handler, console })
    }

    /// What the process shows of itself and of the others.
    pub fn console(&self) -> Arc<Console> {
        Arc::clone(&self.console)
    }
}

const ROUTES: &str = "there is /healthz, /readyz, /metrics and /console\n";
const CALL_BYTES_MAX: usize = 64 * 1024;
const CONNECTIONS_MAX: usize = 64;
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves until `stop` is cancelled; each connection is a task of `tasks`.
pub async fn serve(listener: TcpListener, admin: Admin, stop: CancellationToken, tasks: TaskTracker) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let (socket, permit) = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = accept(&listener, &permits) => match accepted {
                Some(accepted) => accepted,
                None => continue,
            },
        };
        let (admin, stop) = (admin.clone(), stop.clone());
        tasks.spawn(async move {
            let service = hyper::service::service_fn(move |request| answer(admin.clone(), request));
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(socket), service);
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                done = connection => if let Err(error) = done {
                    tracing::debug!(%error, "an admin connection ended early");
                },
            }
            drop(permit);
        });
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((socket, _)) => Some((socket, permit)),
        Err(error) => {
            tracing::warn!(%error, "the admin port cannot accept");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

async fn answer(admin: Admin, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    Ok(match (request.method().clone(), path.as_str()) {
        (Method::GET, "/healthz") => plain(StatusCode::OK, "ok\n"),
        (Method::GET, "/readyz") if *admin.ready.borrow() => plain(StatusCode::OK, "ready\n"),
        (Method::GET, "/readyz") => {
            plain(StatusCode::SERVICE_UNAVAILABLE, "not ready: starting or draining\n")
        }
        (Method::GET, "/metrics") => metrics(&admin.registry),
        (Method::GET, path) if path.starts_with(console::PREFIX) => shown(&admin.console, path).await,
        (method, _) => match own(&admin, method, path.clone(), request).await {
            Some(reply) => respond(reply.status, "application/json", reply.json),
            None => plain(StatusCode::NOT_FOUND, ROUTES),
        },
    })
}

/// The console's page and its data.
async fn shown(console: &Console, path: &str) -> Response<Full<Bytes>> {
    let mut response = match console::file(path) {
        Some((kind, content)) => respond(StatusCode::OK, kind, content),
        None if path == "/console/data" => respond(StatusCode::OK, "application/json", console.data().await),
        None => return plain(StatusCode::NOT_FOUND, ROUTES),
    };
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, console::POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        response.headers_mut().insert(name, header::HeaderValue::from_static(value));
    }
    response
}

async fn own(admin: &Admin, method: Method, path: String, request: Request<Incoming>) -> Option<AdminReply> {
    let handler = admin.handler.as_ref()?;
    let bearer = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .map(str::to_owned);
    let Ok(body) = Limited::new(request.into_body(), CALL_BYTES_MAX).collect().await else {
        let json = r#"{"code":"call_too_large","message":"an admin call has at most 64 KiB"}"#.to_owned();
        return Some(AdminReply { status: StatusCode::PAYLOAD_TOO_LARGE, json });
    };
    handler(AdminCall { method, path, bearer, body: body.to_bytes() }).await
}

fn metrics(registry: &Registry) -> Response<Full<Bytes>> {
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    match encoder.encode(&registry.gather(), &mut text) {
        Ok(()) => respond(StatusCode::OK, encoder.format_type(), text),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be encoded");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be encoded\n")
        }
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", text)
}

fn respond(status: StatusCode, kind: &str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    if let Ok(kind) = header::HeaderValue::from_str(kind) {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    response
}

/// Calls an admin port: one request, its whole answer (at most 16 MiB) within 10 s.
pub async fn request(
    admin: SocketAddr,
    method: &str,
    path: &str,
    bearer: Option<&str>,
    body: Bytes,
) -> io::Result<(StatusCode, String)> {
    let asked = async {
        let socket = tokio::net::TcpStream::connect(admin).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.map_err(io::Error::other)?;
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, admin.to_string());
        if let Some(bearer) = bearer {
            request = request.header(header::AUTHORIZATION, format!("Bearer {bearer}"));
        }
        let request = request.body(Full::new(body)).map_err(io::Error::other)?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(io::Error::other)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
                .collect()
                .await
                .map_err(io::Error::other)?;
            Ok((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
        };
        tokio::pin!(exchange, connection);
        tokio::select! {
            biased;
            answer = &mut exchange => answer,
            ended = &mut connection => match ended {
                Ok(()) => exchange.await,
                Err(error) => Err(io::Error::other(error)),
            },
        }
    };
    tokio::time::timeout(Duration::from_secs(10), asked).await?
}

const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    async fn get(port: u16, path: &str) -> (u16, String) {
        let admin = SocketAddr::from(([127, 0, 0, 1], port));
        let (status, text) = request(admin, "GET", path, None, Bytes::new()).await.unwrap();
        (status.as_u16(), text)
    }

    #[tokio::test]
    async fn health_readiness_metrics_and_own_calls_are_answered() {
        let registry = Registry::new();
        let counter = prometheus::IntCounter::new("chappe_test_total", "a test").unwrap();
        registry.register(Box::new(counter.clone())).unwrap();
        counter.inc();
        let (ready, watch) = watch::channel(false);
        let handler: AdminHandler = Arc::new(|call| {
            Box::pin(async move {
                (call.path == "/v1/own").then(|| AdminReply { status: StatusCode::OK, json: "{}".into() })
            })
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let tasks = TaskTracker::new();
        let (role, stop) = ("gateway", CancellationToken::new());
        let process = Process { role, registry, ready: watch, stop: stop.clone(), handler: Some(handler) };
        let admin = Admin::new(process, listener.local_addr().unwrap()).unwrap();
        tasks.spawn(serve(listener, admin, stop.clone(), tasks.clone()));

        assert!(get(port, "/healthz").await.0 == 200);
        assert!(get(port, "/readyz").await.0 == 503);
        assert!(get(port, "/metrics").await.1.contains("\nchappe_ready 0\n"));
        ready.send(true).unwrap();
        assert!(get(port, "/readyz").await.0 == 200);
        let metrics = get(port, "/metrics").await.1;
        for line in ["chappe_test_total 1", "chappe_ready 1", "chappe_build_info{role=\"gateway\",version="] {
            assert!(metrics.contains(&format!("\n{line}")), "{line} is not in {metrics}");
        }
        assert!(metrics.contains("\nprocess_open_fds "), "{metrics}");
        assert!(get(port, "/console").await.1.contains("console.js"));
        let data = get(port, "/console/data").await.1;
        assert!(data.contains("\"chappe_test_total\":1.0") && data.contains("\"ready\":true"), "{data}");
        assert!(get(port, "/console/../metrics").await.0 == 404);
        assert!(get(port, "/v1/own").await.0 == 200);
        assert!(get(port, "/v1/other").await.0 == 404);
        stop.cancel();
        tasks.close();
        tasks.wait().await;
    }
}
