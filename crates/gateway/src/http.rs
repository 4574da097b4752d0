//! HTTP for operators: metrics and health.
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | the registry, in the Prometheus text format |
//! | `/healthz` | 200 while the process can do its job; 503 and why once it cannot and has to be started again |
//! | `/readyz` | 200 while readings are accepted; 503 and one word otherwise: `starting`, `draining`, or why the log refuses |
//! | `/` | this list |
//!
//! Constraints: a stranger who connects can hold [`MAX_CONNECTIONS`] connections, each for [`LIFETIME`] and a little, and no
//! memory beyond: no resource takes a body, and headers have [`HEADER_TIMEOUT`] and [`HEADER_BYTES`].

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tracing::{debug, warn};

/// Connections served at a time; more wait to be accepted. A scraper and a probe hold one each; the rest is for people.
const MAX_CONNECTIONS: usize = 64;

/// Time for the headers of a request, the wait for it on a kept connection included: several scrapes at the usual 15 s.
const HEADER_TIMEOUT: Duration = Duration::from_secs(75);

/// Longest headers of a request: hyper's least buffer, and more than a scraper or a browser sends.
const HEADER_BYTES: usize = 8 << 10;

/// Time after which a connection is closed behind its current answer, so that nobody holds one for ever.
const LIFETIME: Duration = Duration::from_secs(300);

/// Time for that answer.
const LAST_ANSWER: Duration = Duration::from_secs(10);

/// Pause after the system refused to accept (no file descriptor is free), so that waiting for one takes no CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whether readings can be accepted, as those who accept them know it.
pub trait Door: Send + Sync {
    /// In a word, why readings are refused; `None` while they are accepted.
    fn refusing(&self) -> Option<&'static str>;

    /// Why nothing can be stored any more; `None` while it can.
    fn failure(&self) -> Option<String>;
}

/// How the process is, for `/healthz` and `/readyz`; cloned freely. It begins as `starting`.
#[derive(Clone, Default)]
pub struct Health(Arc<Inner>);

#[derive(Default)]
struct Inner {
    door: OnceLock<Arc<dyn Door>>,
    draining: AtomicBool,
}

impl Health {
    /// A process that starts.
    #[must_use]
    pub fn new() -> Health {
        Health::default()
    }

    /// All listeners are bound; from here on `door` says whether readings are accepted. Said once.
    pub fn set_ready(&self, door: Arc<dyn Door>) {
        let _ = self.0.door.set(door);
    }

    /// No more readings are accepted; final.
    pub fn set_draining(&self) {
        self.0.draining.store(true, Ordering::SeqCst);
    }

    /// Why the process has to be started again, if so.
    fn failure(&self) -> Option<String> {
        self.0.door.get()?.failure()
    }

    /// In a word, why readings are not accepted, if so.
    fn not_ready(&self) -> Option<&'static str> {
        let Some(door) = self.0.door.get() else { return Some("starting") };
        if self.0.draining.load(Ordering::SeqCst) {
            return Some("draining");
        }
        door.failure().map(|_| "failed").or_else(|| door.refusing())
    }
}

/// The HTTP listener; dropping it ends it and its connections.
pub struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    /// Binds `address` and serves it on the current runtime.
    pub async fn bind(address: SocketAddr, registry: Registry, health: Health) -> anyhow::Result<Server> {
        let bind = async {
            let listener = TcpListener::bind(address).await?;
            Ok::<_, io::Error>((listener.local_addr()?, listener))
        };
        let (address, listener) = bind.await.with_context(|| format!("http.listen: binding {address}"))?;
        Ok(Server { address, task: tokio::spawn(accept(listener, router(registry, health))) })
    }

    /// The address that was bound.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, router: Router) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(serve(stream, router.clone(), slot));
            }
            Err(error) => {
                warn!(%error, "http: cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, router: Router, _slot: OwnedSemaphorePermit) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = match tokio::time::timeout(LIFETIME, connection.as_mut()).await {
        Ok(ended) => ended,
        Err(_) => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(LAST_ANSWER, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        debug!(%error, "http: a connection broke");
    }
}

#[derive(Clone)]
struct Resources {
    registry: Registry,
    health: Health,
}

fn router(registry: Registry, health: Health) -> Router {
    Router::new()
        .route("/", get(|| async { text(StatusCode::OK, "Tidegate\n\n/metrics\n/healthz\n/readyz\n") }))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(|| async { text(StatusCode::NOT_FOUND, "not found\n") })
        .method_not_allowed_fallback(|| async {
            text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are allowed\n")
        })
        .layer(middleware::from_fn(no_body))
        .with_state(Resources { registry, health })
}

async fn no_body(request: Request, next: Next) -> Response {
    if !request.body().is_end_stream() {
        return text(StatusCode::PAYLOAD_TOO_LARGE, "no resource here takes a body\n");
    }
    next.run(request).await
}

async fn metrics(State(resources): State<Resources>) -> Response {
    let encoder = TextEncoder::new();
    let mut body = Vec::new();
    match encoder.encode(&resources.registry.gather(), &mut body) {
        Ok(()) => ([(header::CONTENT_TYPE, encoder.format_type().to_owned())], Body::from(body)).into_response(),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

async fn healthz(State(resources): State<Resources>) -> Response {
    match resources.health.failure() {
        None => text(StatusCode::OK, "ok\n"),
        Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

async fn readyz(State(resources): State<Resources>) -> Response {
    match resources.health.not_ready() {
        None => text(StatusCode::OK, "ready\n"),
        Some(word) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{word}\n")),
    }
}

fn text(status: StatusCode, body: impl Into<Body>) -> Response {
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::CACHE_CONTROL, "no-store")];
    (status, headers, body.into()).into_response()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[derive(Default)]
    struct Said {
        refusing: Mutex<Option<&'static str>>,
        failure: Mutex<Option<String>>,
    }

    impl Door for Said {
        fn refusing(&self) -> Option<&'static str> {
            *self.refusing.lock().unwrap()
        }

        fn failure(&self) -> Option<String> {
            self.failure.lock().unwrap().clone()
        }
    }

    async fn server(health: Health) -> Server {
        let registry = Registry::new();
        let counter = prometheus::IntCounter::new("tidegate_test_total", "A test.").unwrap();
        counter.inc_by(7);
        registry.register(Box::new(counter)).unwrap();
        Server::bind("127.0.0.1:0".parse().unwrap(), registry, health).await.unwrap()
    }

    async fn send(server: &Server, request: &str) -> String {
        let mut stream = TcpStream::connect(server.local_addr()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    async fn fetch(server: &Server, path: &str) -> (u16, String) {
        let answer = send(server, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    #[tokio::test]
    async fn metrics_are_in_the_text_format() {
        let server = server(Health::new()).await;
        let answer = send(&server, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{answer}");
        assert!(answer.contains("\ntidegate_test_total 7\n"), "{answer}");
    }

    #[tokio::test]
    async fn readiness_follows_the_life_of_the_process() {
        let health = Health::new();
        let server = server(health.clone()).await;
        assert_eq!(fetch(&server, "/readyz").await, (503, "starting\n".into()));
        assert_eq!(fetch(&server, "/healthz").await, (200, "ok\n".into()));

        let door = Arc::new(Said::default());
        health.set_ready(door.clone());
        assert_eq!(fetch(&server, "/readyz").await, (200, "ready\n".into()));

        *door.refusing.lock().unwrap() = Some("disk_low");
        assert_eq!(fetch(&server, "/readyz").await, (503, "disk_low\n".into()));
        assert_eq!(fetch(&server, "/healthz").await, (200, "ok\n".into()), "a full disk is not cured by a restart");

        *door.refusing.lock().unwrap() = None;
        assert_eq!(fetch(&server, "/readyz").await, (200, "ready\n".into()));

        *door.failure.lock().unwrap() = Some("fdatasync: EIO".into());
        assert_eq!(fetch(&server, "/readyz").await, (503, "failed\n".into()));
        assert_eq!(fetch(&server, "/healthz").await, (503, "fdatasync: EIO\n".into()));

        *door.failure.lock().unwrap() = None;
        health.set_draining();
        assert_eq!(fetch(&server, "/readyz").await, (503, "draining\n".into()));
        assert_eq!(fetch(&server, "/healthz").await, (200, "ok\n".into()));
    }

    #[tokio::test]
    async fn other_paths_methods_and_bodies_are_refused() {
        let server = server(Health::new()).await;
        assert_eq!(fetch(&server, "/").await.0, 200);
        assert_eq!(fetch(&server, "/nothing").await, (404, "not found\n".into()));
        let close = "Host: x\r\nConnection: close\r\n";
        let answer = send(&server, &format!("DELETE /metrics HTTP/1.1\r\n{close}\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 405 ") && answer.to_lowercase().contains("allow: get,head"), "{answer}");
        let answer = send(&server, &format!("GET / HTTP/1.1\r\n{close}Content-Length: 4\r\n\r\nabcd")).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        let answer =
            send(&server, &format!("GET / HTTP/1.1\r\n{close}X: {}\r\n\r\n", "x".repeat(2 * HEADER_BYTES))).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{}", &answer[..60.min(answer.len())]);
        let answer = send(&server, &format!("HEAD /healthz HTTP/1.1\r\n{close}\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    }

    #[tokio::test]
    async fn one_connection_more_is_served_once_another_ends() {
        let server = server(Health::new()).await;
        let mut idle = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            // An answer shows that this connection has its slot.
            let mut stream = TcpStream::connect(server.local_addr()).await.unwrap();
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), b'H');
            idle.push(stream);
        }
        let mut late = TcpStream::connect(server.local_addr()).await.unwrap();
        late.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut first = [0];
        let early = tokio::time::timeout(Duration::from_millis(50), late.read_exact(&mut first)).await;
        assert!(early.is_err(), "answered beyond the limit");
        idle.pop();
        late.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"H");
    }

    #[tokio::test]
    async fn an_address_in_use_is_named() {
        let server = server(Health::new()).await;
        let taken = server.local_addr();
        let error = Server::bind(taken, Registry::new(), Health::new()).await.err().unwrap();
        assert!(format!("{error:#}").contains(&taken.to_string()), "{error:#}");
    }
}
