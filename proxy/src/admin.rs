//! What people and machines ask the proxy itself: status on loopback (read-only, and nothing secret, because the
//! application shares that loopback), metrics, health, and a Unix socket of mode 0600 for what changes the proxy.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

mod routes;
mod views;

use crate::probes::Prober;
use crate::shared::Shared;
use crate::telemetry::logging::LogLevel;

/// What the endpoints need.
pub struct Administration {
    /// The proxy.
    pub shared: Arc<Shared>,
    /// Changes the level of the log.
    pub log_level: LogLevel,
    /// Performs the kubelet's probes.
    pub prober: Prober,
}

impl Administration {
    /// Of this proxy.
    pub fn new(shared: Arc<Shared>, log_level: LogLevel) -> Self {
        let prober = Prober::new(shared.config.probes.clone(), shared.config.exempt);
        Self { shared, log_level, prober }
    }
}

/// Who may ask what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Loopback: everything that only reads.
    Status,
    /// `/metrics` alone.
    Metrics,
    /// `/healthz/…` and `/probe/…` alone.
    Health,
    /// The Unix socket: everything.
    Control,
}

/// Connections at once per listener: kubelet, Prometheus and an operator need a handful, and a pod of many containers one
/// per probe.
const CONNECTIONS: usize = 256;
/// Of one address: whoever takes all of them keeps nobody else, least of all the kubelet, from asking.
const CONNECTIONS_PER_SOURCE: usize = 64;
/// For a request's head to arrive, and for an idle connection to be kept.
const HEAD: Duration = Duration::from_secs(10);
/// Head of a request; hyper refuses more with 431.
const MAX_HEAD: usize = 16 * 1024;
/// Longest life of one connection: a scrape takes milliseconds.
const LIFE: Duration = Duration::from_secs(300);
/// Waits after an accept that failed: file descriptors may be short for a while.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Answers on a TCP listener, for as long as the process runs.
pub async fn serve(administration: Arc<Administration>, door: Door, listener: TcpListener) {
    let listener = Arc::new(listener);
    let accept = move || {
        let listener = Arc::clone(&listener);
        async move {
            let (stream, source) = listener.accept().await?;
            let at = stream.local_addr().ok().map(|at| at.ip().to_canonical());
            Ok((stream, Ends { at, source: Some(source.ip().to_canonical()) }))
        }
    };
    serve_on(administration, door, accept).await;
}

/// Answers on the Unix socket, for as long as the process runs.
pub async fn serve_unix(administration: Arc<Administration>, listener: UnixListener) {
    let listener = Arc::new(listener);
    let accept = move || {
        let listener = Arc::clone(&listener);
        async move { listener.accept().await.map(|(stream, _)| (stream, Ends::default())) }
    };
    serve_on(administration, Door::Control, accept).await;
}

/// Binds the Unix socket, for its owner alone. A socket that a proxy left behind is replaced; one that a living proxy
/// answers on, or anything that is no socket, is not.
///
/// # Errors
/// What the system says, or that somebody else is there.
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another proxy answers on it"));
            }
            std::fs::remove_file(path)?;
        }
        Ok(_) => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // Bound under another name and closed to others before anyone can know it: no moment with a wider mode.
    let hidden = path.with_extension(format!("{}.new", std::process::id()));
    let _ = std::fs::remove_file(&hidden);
    let listener = std::os::unix::net::UnixListener::bind(&hidden)?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&hidden, path)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Where a connection arrived, and from where.
#[derive(Debug, Clone, Copy, Default)]
struct Ends {
    at: Option<IpAddr>,
    source: Option<IpAddr>,
}

/// How many connections each address has.
#[derive(Clone, Default)]
struct Sources(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection of an address; it counts until this is dropped.
struct Counted {
    sources: Sources,
    source: Option<IpAddr>,
}

impl Sources {
    /// `None`: this address has as many as it may.
    fn enter(&self, source: Option<IpAddr>) -> Option<Counted> {
        if let Some(source) = source {
            let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let count = counts.entry(source).or_default();
            if *count >= CONNECTIONS_PER_SOURCE {
                return None;
            }
            *count += 1;
        }
        Some(Counted { sources: self.clone(), source })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let Some(source) = self.source else { return };
        let mut counts = self.sources.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&source);
            }
        }
    }
}

async fn serve_on<S, F>(administration: Arc<Administration>, door: Door, accept: impl Fn() -> F)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = io::Result<(S, Ends)>>,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let sources = Sources::default();
    loop {
        // Taken before accepting, so that further connections wait in the kernel's bounded queue.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match accept().await {
            Ok((stream, ends)) => {
                let Some(counted) = sources.enter(ends.source) else { continue };
                let administration = Arc::clone(&administration);
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(LIFE, answer(administration, door, stream, ends.at)).await;
                    drop((place, counted));
                });
            }
            Err(error) => {
                tracing::debug!(%error, ?door, "accepting an administrative connection failed");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

async fn answer<S>(administration: Arc<Administration>, door: Door, stream: S, at: Option<IpAddr>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let administration = Arc::clone(&administration);
        async move { routes::route(&administration, door, request, at).await }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, ?door, "an administrative connection failed");
    }
}

#[cfg(test)]
mod tests;
