//! Accepting HTTP connections: the part that all applications share.

use std::convert::Infallible;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

/// The two ends of a connection as the application sees them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    /// Who called.
    pub(super) peer: SocketAddr,
    /// At which of its own addresses.
    pub(super) local: SocketAddr,
}

/// Serves every address of `listen`, for ever; writes one line per request to standard output.
pub(super) async fn serve<H, F>(listen: &[SocketAddr], handler: H) -> io::Result<()>
where
    H: Fn(Request<Incoming>, Ends) -> F + Clone + 'static,
    F: Future<Output = Response<Full<Bytes>>> + 'static,
{
    let local = tokio::task::LocalSet::new();
    let mut listeners = Vec::new();
    for address in listen {
        listeners.push(
            TcpListener::bind(address)
                .await
                .map_err(|error| io::Error::new(error.kind(), format!("listening at {address}: {error}")))?,
        );
    }
    say(format_args!("listening at {listen:?}"));
    local
        .run_until(async move {
            for listener in listeners {
                tokio::task::spawn_local(accept(listener, handler.clone()));
            }
            std::future::pending::<()>().await;
        })
        .await;
    Ok(())
}

/// One line on standard output, which the demo keeps in a file.
pub(super) fn say(line: std::fmt::Arguments<'_>) {
    // Without its log an application still serves.
    let _ = writeln!(io::stdout(), "{line}");
}

/// A JSON answer.
pub(super) fn json(status: StatusCode, body: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    response
}

async fn accept<H, F>(listener: TcpListener, handler: H)
where
    H: Fn(Request<Incoming>, Ends) -> F + Clone + 'static,
    F: Future<Output = Response<Full<Bytes>>> + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                tokio::task::spawn_local(connection(stream, peer, handler.clone()));
            }
            // Out of file descriptors, say: others will be closed.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn connection<H, F>(stream: TcpStream, peer: SocketAddr, handler: H)
where
    H: Fn(Request<Incoming>, Ends) -> F + Clone,
    F: Future<Output = Response<Full<Bytes>>>,
{
    let Ok(local) = stream.local_addr() else { return };
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request: Request<Incoming>| {
        say(format_args!("{} {} from {peer} at {local}", request.method(), request.uri().path()));
        let answer = handler(request, Ends { peer, local });
        async move { Ok::<_, Infallible>(answer.await) }
    });
    // What a client breaks off is the client's business.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}
