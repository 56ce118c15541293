//! A gRPC probe: the standard health service, without TLS, as the kubelet asks it.

use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;

use byrnie_proto::health::v1::HealthCheckRequest;
use byrnie_proto::health::v1::health_check_response::ServingStatus;
use byrnie_proto::health::v1::health_client::HealthClient;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::transport::Endpoint;

use super::Outcome;

/// More than any answer of the health service has.
const MAX_ANSWER: usize = 64 * 1024;

/// Asks the server at `address`, to which `stream` leads, for the health of `service`.
pub(super) async fn check(stream: TcpStream, address: SocketAddr, service: &str) -> Outcome {
    let once = Mutex::new(Some(TokioIo::new(stream)));
    let connector = tower::service_fn(move |_| {
        let stream = once.lock().ok().and_then(|mut stream| stream.take());
        async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
    let channel = endpoint.connect_with_connector(connector).await;
    let channel = channel.map_err(|error| format!("{address} does not speak HTTP/2: {error}"))?;
    let mut client = HealthClient::new(channel).max_decoding_message_size(MAX_ANSWER);
    let answer = client.check(HealthCheckRequest { service: service.to_owned() }).await.map_err(|status| {
        let said: String = status.message().chars().take(256).collect();
        match status.code() {
            tonic::Code::Unimplemented => format!("{address} does not implement grpc.health.v1.Health"),
            code => format!("{address} failed the health check: {code:?}: {said}"),
        }
    })?;
    match answer.into_inner().status() {
        ServingStatus::Serving => Ok(format!("{address} is SERVING")),
        other => Err(format!("{address} is {}", other.as_str_name())),
    }
}
