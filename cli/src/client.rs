//! A client of the control plane's administration service, over its Unix socket or a port that the API server forwards.

use std::io;
use std::path::Path;
use std::time::Duration;

use byrnie_proto::mesh::v1::administration_client::AdministrationClient;
use byrnie_proto::mesh::v1::{
    CreateTokenRequest, CreateTokenResponse, ObserveRequest, ObserveResponse, RevokeTokenRequest,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::failure::{Exit, Failure};

/// Longest wait for an answer: the control plane is on this machine.
const ANSWER: Duration = Duration::from_secs(10);

/// Largest answer that is read: 64 MiB hold some hundred thousand edges.
const LARGEST_ANSWER: usize = 64 << 20;

/// A connection to the control plane of one mesh.
#[derive(Debug, Clone)]
pub struct Client {
    place: String,
    inner: AdministrationClient<Channel>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// [`Exit::Unreachable`] where nothing answers at `socket`.
    pub async fn connect(socket: &Path) -> Result<Self, Failure> {
        // One attempt by hand, because the transport's own error hides what the kernel said.
        let first = UnixStream::connect(socket).await.map_err(|error| unreachable(socket, &error))?;
        let mut first = Some(first);
        let path = socket.to_owned();
        // tonic wants an address; the connector below never looks at it.
        let channel = Endpoint::from_static("http://control-plane.invalid")
            .timeout(ANSWER)
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                let (ready, path) = (first.take(), path.clone());
                async move {
                    let stream = match ready {
                        Some(stream) => stream,
                        None => UnixStream::connect(path).await?,
                    };
                    Ok::<_, io::Error>(TokioIo::new(stream))
                }
            }))
            .await
            .map_err(|error| unreachable(socket, &error))?;
        Ok(Self {
            place: socket.display().to_string(),
            inner: AdministrationClient::new(channel).max_decoding_message_size(LARGEST_ANSWER),
        })
    }

    /// Speaks over a stream that is open already; `place` is its other end, for errors.
    ///
    /// # Errors
    /// [`Exit::Unreachable`] where nobody answers in HTTP/2.
    pub async fn over<S>(stream: S, place: &str) -> Result<Self, Failure>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        let mut stream = Some(stream);
        let channel = Endpoint::from_static("http://control-plane.invalid")
            .timeout(ANSWER)
            .connect_timeout(ANSWER)
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                let stream = stream.take().map(TokioIo::new);
                async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
            }))
            .await
            .map_err(|error| unanswered(place, &error))?;
        Ok(Self {
            place: place.to_owned(),
            inner: AdministrationClient::new(channel).max_decoding_message_size(LARGEST_ANSWER),
        })
    }

    /// What the mesh is now.
    ///
    /// # Errors
    /// The control plane went away or refused.
    pub async fn observe(&mut self) -> Result<ObserveResponse, Failure> {
        let answer = self.inner.observe(ObserveRequest {}).await;
        answer.map(tonic::Response::into_inner).map_err(|status| self.refused(&status))
    }

    /// Makes a join token.
    ///
    /// # Errors
    /// The control plane went away or refused: no such pod, no such service account.
    pub async fn create_token(&mut self, request: CreateTokenRequest) -> Result<CreateTokenResponse, Failure> {
        let answer = self.inner.create_token(request).await;
        answer.map(tonic::Response::into_inner).map_err(|status| self.refused(&status))
    }

    /// Makes a join token worthless.
    ///
    /// # Errors
    /// The control plane went away, or knows no such token.
    pub async fn revoke_token(&mut self, id: String) -> Result<(), Failure> {
        let answer = self.inner.revoke_token(RevokeTokenRequest { id }).await;
        answer.map(|_| ()).map_err(|status| self.refused(&status))
    }

    fn refused(&self, status: &tonic::Status) -> Failure {
        // What was not said by the other end has an error of this end behind it.
        let local = std::error::Error::source(status).is_some();
        if local || status.code() == tonic::Code::Unavailable {
            return unanswered(&self.place, &status.message());
        }
        Failure::new(Exit::Refused, format!("the control plane said no: {}", status.message())).found(format!(
            "{:?} from {}",
            status.code(),
            self.place
        ))
    }
}

/// A runtime for one command.
///
/// # Errors
/// The kernel refused an epoll instance or a timer.
pub fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Refused, "cannot start the asynchronous runtime").found(error))
}

fn unreachable(socket: &Path, found: &dyn std::fmt::Display) -> Failure {
    unanswered(&socket.display().to_string(), found)
}

fn unanswered(place: &str, found: &dyn std::fmt::Display) -> Failure {
    Failure::new(Exit::Unreachable, "no control plane answers")
        .expected(format!("a control plane's administration service at {place}"))
        .found(found)
        .next("byrnie demo   (or name another mesh with --mesh NAME or --socket PATH)")
}
