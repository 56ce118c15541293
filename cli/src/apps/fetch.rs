//! One HTTP request on a connection of its own.

use std::io;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::{HOST, HeaderName, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Largest answer that is read.
const LARGEST: usize = 1 << 20;

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

/// Connects to the host and port of `url` and gets it.
pub(crate) async fn get(url: &Uri, header: Option<&(HeaderName, HeaderValue)>) -> io::Result<Answer> {
    let stream = connect(url).await?;
    get_on(stream, url, header).await
}

/// A connection to the host and port of `url`.
pub(crate) async fn connect(url: &Uri) -> io::Result<TcpStream> {
    let host = url.host().ok_or_else(|| io::Error::other(format!("`{url}` names no host")))?;
    let target = (host.trim_matches(['[', ']']), url.port_u16().unwrap_or(80));
    let connected = tokio::time::timeout(ANSWER, TcpStream::connect(target)).await;
    let stream = connected.map_err(|_| timed_out("connecting"))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Gets `url` on a connection that is there already.
pub(crate) async fn get_on(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    url: &Uri,
    header: Option<&(HeaderName, HeaderValue)>,
) -> io::Result<Answer> {
    let exchange = async {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = url.path_and_query().map_or_else(|| Uri::from_static("/"), |path| path.clone().into());
        let host = HeaderValue::from_str(url.authority().map_or("", |authority| authority.as_str()));
        request.headers_mut().insert(HOST, host.map_err(io::Error::other)?);
        if let Some((name, value)) = header {
            request.headers_mut().insert(name.clone(), value.clone());
        }
        let answer = async {
            let response = sender.send_request(request).await.map_err(io::Error::other)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), LARGEST).collect().await.map_err(io::Error::other)?;
            Ok(Answer { status, body: body.to_bytes() })
        };
        tokio::pin!(answer);
        tokio::pin!(connection);
        // The connection may end cleanly just before its answer is looked at.
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            ended = &mut connection => match ended {
                Ok(()) => answer.await,
                Err(error) => Err(io::Error::other(error)),
            },
        }
    };
    tokio::time::timeout(ANSWER, exchange).await.map_err(|_| timed_out("waiting for the answer"))?
}

fn timed_out(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{what} took more than {} s", ANSWER.as_secs()))
}
