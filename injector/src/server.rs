//! The servers: `/mutate` and `/validate` over TLS, and `/healthz` in the clear for the kubelet.

mod places;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Request as HttpRequest, StatusCode, header};
use axum::response::{IntoResponse, Response as HttpResponse};
use axum::routing::{get, post};
use futures::future::BoxFuture;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use crate::certificate::Serving;
use crate::limits;
use crate::mesh::Mesh;
use crate::mutate::mutate;
use crate::review::{Request, Response};
use crate::validate::validate;
use places::Places;

/// The two listeners.
#[derive(Debug)]
pub struct Listeners {
    /// For the API server, over TLS.
    pub webhooks: TcpListener,
    /// For the kubelet, in the clear.
    pub health: TcpListener,
}

impl Listeners {
    /// Binds both.
    ///
    /// # Errors
    /// The address, and the system's reason.
    pub async fn bind(webhooks: SocketAddr, health: SocketAddr) -> Result<Self, String> {
        let bind = async |address: SocketAddr| {
            TcpListener::bind(address).await.map_err(|error| format!("can't listen on {address}: {error}"))
        };
        Ok(Self { webhooks: bind(webhooks).await?, health: bind(health).await? })
    }
}

/// What answers.
pub struct Server {
    mesh: Arc<Mesh>,
    serving: Arc<Serving>,
    /// In KiB.
    room: Arc<Semaphore>,
}

impl Server {
    /// Answers by what `mesh` knows, under the certificate of `serving`.
    pub fn new(mesh: Arc<Mesh>, serving: Arc<Serving>) -> Arc<Self> {
        let room = Arc::new(Semaphore::new(limits::REVIEW_BYTES_AT_ONCE / KIB));
        Arc::new(Self { mesh, serving, room })
    }

    /// Serves until `end`, then finishes what was begun.
    ///
    /// # Errors
    /// When TLS can't be configured.
    pub async fn run(
        self: Arc<Self>,
        listeners: Listeners,
        end: impl Future<Output = ()>,
    ) -> Result<(), rustls::Error> {
        let tls = TlsAcceptor::from(self.serving.tls()?);
        let webhooks = Router::new()
            .route("/mutate", post(on_mutate))
            .route("/validate", post(on_validate))
            .with_state(Arc::clone(&self));
        let health = Router::new()
            .route("/healthz", get(on_ready))
            .route("/healthz/ready", get(on_ready))
            .route("/healthz/live", get(|| async { "live\n" }))
            .with_state(Arc::clone(&self));
        let secure = move |stream: TcpStream| -> BoxFuture<'static, Option<_>> {
            let tls = tls.clone();
            Box::pin(async move {
                let handshake = tokio::time::timeout(limits::HANDSHAKE, tls.accept(stream)).await;
                match handshake {
                    Ok(Ok(stream)) => return Some(stream),
                    Ok(Err(error)) => debug!(%error, "handshake failed"),
                    Err(_) => debug!("handshake timed out"),
                }
                None
            })
        };
        let clear = |stream| -> BoxFuture<'static, Option<TcpStream>> { Box::pin(async move { Some(stream) }) };
        let graceful = GracefulShutdown::new();
        tokio::select! {
            () = accept(listeners.webhooks, webhooks, secure, &graceful) => {}
            () = accept(listeners.health, health, clear, &graceful) => {}
            () = end => {}
        }
        if tokio::time::timeout(limits::DRAIN, graceful.shutdown()).await.is_err() {
            warn!("connections were still open after {} s and are cut", limits::DRAIN.as_secs());
        }
        Ok(())
    }
}

/// Takes connections, as many at once as there may be, until dropped.
async fn accept<S>(
    listener: TcpListener,
    router: Router,
    secure: impl Fn(TcpStream) -> BoxFuture<'static, Option<S>>,
    graceful: &GracefulShutdown,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let places = Places::default();
    loop {
        let (stream, source) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "no connection could be accepted");
                tokio::time::sleep(limits::ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = places.take(source.ip()) else {
            debug!(%source, "too many connections");
            continue;
        };
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "a connection ended at once");
        }
        let (secured, router, watcher) = (secure(stream), router.clone(), graceful.watcher());
        tokio::spawn(async move {
            let _place = place;
            let Some(stream) = secured.await else { return };
            let connection = builder();
            let served = connection.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
            if let Err(error) = watcher.watch(served.into_owned()).await {
                debug!(%error, "a connection broke");
            }
        });
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits::HANDSHAKE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits::STREAMS)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    builder
}

/// A connection whose other end is gone gives its place back after twice this.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const KIB: usize = 1024;

async fn on_ready(State(server): State<Arc<Server>>) -> HttpResponse {
    let mut missing = server.mesh.missing();
    if !server.serving.is_there() {
        missing.push("there is no serving certificate yet; the control plane makes it".to_owned());
    }
    if missing.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready:\n  {}\n", missing.join("\n  "))).into_response()
}

async fn on_mutate(State(server): State<Arc<Server>>, request: HttpRequest<Body>) -> HttpResponse {
    let mesh = Arc::clone(&server.mesh);
    answer(&server, request, async move |request| mutate(&request, &mesh).await).await
}

async fn on_validate(State(server): State<Arc<Server>>, request: HttpRequest<Body>) -> HttpResponse {
    let mesh = Arc::clone(&server.mesh);
    answer(&server, request, async move |request| validate(&request, &mesh)).await
}

async fn answer(
    server: &Server,
    request: HttpRequest<Body>,
    decide: impl AsyncFnOnce(Request) -> Response,
) -> HttpResponse {
    let answering = async {
        let (body, _room) = body(server, request).await?;
        let request = Request::read(&body).map_err(|reason| (StatusCode::BAD_REQUEST, reason))?;
        Ok::<_, (StatusCode, String)>(axum::Json(decide(request).await.review()).into_response())
    };
    match tokio::time::timeout(limits::REQUEST, answering).await {
        Ok(Ok(response)) => response,
        Ok(Err((status, reason))) => {
            debug!(%status, %reason, "a request is refused");
            (status, format!("byrnie-injector: {reason}\n")).into_response()
        }
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "byrnie-injector: too busy; try again\n").into_response(),
    }
}

/// The body, and the room that it takes until it is answered.
async fn body(
    server: &Server,
    request: HttpRequest<Body>,
) -> Result<(axum::body::Bytes, OwnedSemaphorePermit), (StatusCode, String)> {
    let length = content_length(request.headers())?;
    let room = u32::try_from(length / KIB + 1).unwrap_or(u32::MAX);
    let room = Arc::clone(&server.room).acquire_many_owned(room).await;
    let room = room.map_err(|_| (StatusCode::SERVICE_UNAVAILABLE, "is ending".to_owned()))?;
    let body = axum::body::to_bytes(request.into_body(), length).await;
    let body = body.map_err(|error| (StatusCode::BAD_REQUEST, format!("the body could not be read: {error}")))?;
    Ok((body, room))
}

fn content_length(headers: &HeaderMap) -> Result<usize, (StatusCode, String)> {
    let is_json =
        headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/json"));
    if !is_json {
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "expected content-type application/json".to_owned()));
    }
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let length = length.ok_or_else(|| (StatusCode::LENGTH_REQUIRED, "expected a content-length".to_owned()))?;
    if length > limits::REVIEW_BYTES {
        let reason = format!("expected a body of at most {} bytes, found {length}", limits::REVIEW_BYTES);
        return Err((StatusCode::PAYLOAD_TOO_LARGE, reason));
    }
    Ok(length)
}
