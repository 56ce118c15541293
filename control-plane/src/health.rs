//! What kubelet asks: `/healthz/live` from the start on, `/healthz/ready` once proxies are served and until the end
//! begins.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
};

use crate::{limits, server};

/// Answers until it is dropped.
pub(crate) struct Health {
    ready: Arc<AtomicBool>,
    address: Option<SocketAddr>,
    task: Option<JoinHandle<()>>,
}

impl Health {
    /// Listens where an address is given.
    ///
    /// # Errors
    /// It can't, and what to do about it.
    pub(crate) fn start(address: Option<SocketAddr>) -> Result<Self, String> {
        let ready = Arc::new(AtomicBool::new(false));
        let Some(address) = address else {
            return Ok(Self { ready, address: None, task: None });
        };
        let listener = server::bind(address, "--health-listen")?;
        let address = listener.local_addr().ok();
        let task = tokio::spawn(serve(listener, ready.clone()));
        Ok(Self { ready, address, task: Some(task) })
    }

    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    pub(crate) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn serve(listener: TcpListener, ready: Arc<AtomicBool>) {
    let places = Arc::new(Semaphore::new(limits::HEALTH_CONNECTIONS));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Beyond them it is not kubelet that asks.
                let Ok(place) = places.clone().try_acquire_owned() else {
                    continue;
                };
                let ready = ready.clone();
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(limits::HEALTH_REQUEST, answer_one(stream, ready)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection to the health port could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer_one(stream: TcpStream, ready: Arc<AtomicBool>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(request.method(), request.uri().path(), ready.load(Ordering::Relaxed));
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEALTH_REQUEST)
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    // What a client of this port does wrong is its own concern.
    let _ = connection.await;
}

/// Head of a request; kubelet's has some 200 bytes. The least that hyper takes.
const HEAD_BYTES: usize = 8192;

fn answer(method: &Method, path: &str, ready: bool) -> Response<Full<Bytes>> {
    let (status, text) = match (method, path) {
        (&Method::GET | &Method::HEAD, "/healthz/live") => (StatusCode::OK, "live\n"),
        (&Method::GET | &Method::HEAD, "/healthz/ready") if ready => (StatusCode::OK, "ready\n"),
        (&Method::GET | &Method::HEAD, "/healthz/ready") => {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready: starting (the log says what is waited for) or ending\n")
        }
        _ => (StatusCode::NOT_FOUND, "expected /healthz/live or /healthz/ready\n"),
    };
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn it_lives_from_the_start_on_and_is_ready_when_it_says_so() {
        let health = Health::start(Some("127.0.0.1:0".parse().unwrap())).unwrap();
        let address = health.address().unwrap();
        assert!(get(address, "/healthz/live").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/healthz/ready").await.starts_with("HTTP/1.1 503"));
        health.set_ready(true);
        assert!(get(address, "/healthz/ready").await.starts_with("HTTP/1.1 200"));
        health.set_ready(false);
        assert!(get(address, "/healthz/ready").await.starts_with("HTTP/1.1 503"));
        assert!(get(address, "/metrics/../x").await.starts_with("HTTP/1.1 404"));
    }
}
