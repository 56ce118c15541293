//! The server.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::{get, post};
use bytes::Bytes;
use clap::Args;
use http_body::Frame;
use http_body_util::StreamBody;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_rustls::TlsAcceptor;

/// While this file exists, the application is not healthy.
const UNHEALTHY: &str = "/tmp/unhealthy";

/// The service that its gRPC health endpoint knows.
const GRPC_SERVICE: &[u8] = b"app";

#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// What it calls itself.
    #[arg(long, default_value = "app")]
    name: String,
    #[arg(long)]
    http: Vec<u16>,
    #[arg(long)]
    https: Option<u16>,
    #[arg(long)]
    tcp: Option<u16>,
    #[arg(long)]
    grpc: Option<u16>,
    /// `/healthz` is good only with this header `x-probe`.
    #[arg(long)]
    probe_header: Option<String>,
}

/// Until SIGTERM; then what was begun is finished, and nothing else taken.
pub(crate) async fn run(options: Options) -> ExitCode {
    let mut tasks = tokio::task::JoinSet::new();
    let (stop, stopping) = tokio::sync::watch::channel(false);
    let routes = routes(&options);
    for port in &options.http {
        tasks.spawn(serve_http(*port, routes.clone(), None, stopping.clone()));
    }
    if let Some(port) = options.grpc {
        tasks.spawn(serve_http(port, routes.clone(), None, stopping.clone()));
    }
    if let Some(port) = options.https {
        let acceptor = acceptor(&options.name);
        tasks.spawn(serve_http(port, routes, Some(acceptor), stopping.clone()));
    }
    if let Some(port) = options.tcp {
        tasks.spawn(serve_echo(port, stopping));
    }
    println!("serving");
    if let Ok(mut terminated) = signal(SignalKind::terminate()) {
        terminated.recv().await;
    }
    println!("ending");
    stop.send_replace(true);
    tasks.join_all().await;
    ExitCode::SUCCESS
}

fn routes(options: &Options) -> Router {
    Router::new()
        .route("/", get(|State(options): State<Arc<Options>>| async move { format!("{}\n", options.name) }))
        .route("/healthz", get(health))
        .route("/headers", get(|headers: HeaderMap| async move { format!("{headers:?}\n") }))
        .route("/slow", get(slow))
        .route("/grpc.health.v1.Health/Check", post(grpc_health))
        .with_state(Arc::new(options.clone()))
}

fn healthy() -> bool {
    !Path::new(UNHEALTHY).exists()
}

async fn health(State(options): State<Arc<Options>>, headers: HeaderMap) -> StatusCode {
    let said = headers.get("x-probe").and_then(|value| value.to_str().ok());
    if options.probe_header.as_deref().is_some_and(|wanted| said != Some(wanted)) {
        return StatusCode::FORBIDDEN;
    }
    if healthy() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// Answers after two seconds: a request that is still running when the pod is told to end.
async fn slow() -> &'static str {
    tokio::time::sleep(Duration::from_secs(2)).await;
    "slow\n"
}

/// `grpc.health.v1.Health/Check` by hand: a request of one field, an answer of one enum.
async fn grpc_health(request: Bytes) -> Response {
    let service = request.get(5..).and_then(|message| message.get(2..)).unwrap_or_default();
    let known = service.is_empty() || service == GRPC_SERVICE;
    // SERVING is 1, NOT_SERVING 2; a frame is one byte and the length before it.
    let frame = Bytes::from(vec![0, 0, 0, 0, 2, 8, if healthy() { 1 } else { 2 }]);
    let mut trailers = HeaderMap::new();
    // 5: NOT_FOUND.
    trailers.insert("grpc-status", HeaderValue::from_static(if known { "0" } else { "5" }));
    let frames = known.then_some(Frame::data(frame)).into_iter().chain([Frame::trailers(trailers)]);
    let body = StreamBody::new(futures::stream::iter(frames.map(Ok::<_, std::convert::Infallible>)));
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

async fn listener(port: u16) -> TcpListener {
    let address = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
    let any_v4 = SocketAddr::from(([0, 0, 0, 0], port));
    match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind(any_v4).await.unwrap_or_else(|error| {
            println!("port {port}: {error}");
            std::process::exit(1)
        }),
    }
}

async fn serve_http(
    port: u16,
    routes: Router,
    tls: Option<TlsAcceptor>,
    mut stopping: tokio::sync::watch::Receiver<bool>,
) {
    let listener = listener(port).await;
    let graceful = Arc::new(GracefulShutdown::new());
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stop| *stop) => break,
        };
        let Ok((stream, _)) = stream else { continue };
        let (routes, tls, watcher) = (routes.clone(), tls.clone(), graceful.watcher());
        connections.spawn(async move {
            let _ = match tls {
                None => serve_one(stream, routes, watcher).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => serve_one(stream, routes, watcher).await,
                    Err(_) => Ok(()),
                },
            };
        });
    }
    drop(listener);
    if let Some(graceful) = Arc::into_inner(graceful) {
        graceful.shutdown().await;
    }
    connections.join_all().await;
}

async fn serve_one<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    routes: Router,
    watcher: hyper_util::server::graceful::Watcher,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let builder = Builder::new(TokioExecutor::new());
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    watcher.watch(connection.into_owned()).await
}

/// Echoes; while the application is not healthy its port is closed, as that of a program that hangs before it listens.
async fn serve_echo(port: u16, mut stopping: tokio::sync::watch::Receiver<bool>) {
    loop {
        while !healthy() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let listener = listener(port).await;
        while healthy() {
            tokio::select! {
                accepted = listener.accept() => {
                    if let Ok((stream, _)) = accepted {
                        tokio::spawn(echo(stream));
                    }
                }
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
                _ = stopping.wait_for(|stop| *stop) => return,
            }
        }
    }
}

async fn echo(mut stream: TcpStream) {
    let (mut read, mut write) = stream.split();
    let _ = tokio::io::copy(&mut read, &mut write).await;
}

/// A certificate that nobody has a reason to trust: a kubelet does not verify it.
fn acceptor(name: &str) -> TlsAcceptor {
    let config = rcgen::generate_simple_self_signed(vec![name.to_owned()]).ok().and_then(|own| {
        let key = PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config =
            rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
        config.with_no_client_auth().with_single_cert(vec![own.cert.der().clone()], key.into()).ok()
    });
    match config {
        Some(config) => TlsAcceptor::from(Arc::new(config)),
        None => {
            println!("no certificate could be made");
            std::process::exit(1)
        }
    }
}
