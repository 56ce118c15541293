//! Puts the parts together.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use kube::Client;
use tracing::info;

use crate::certificate::{Files, Serving};
use crate::inject::ProxyImage;
use crate::mesh::Mesh;
use crate::server::{Listeners, Server};

/// How to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address of the webhooks.
    pub listen: SocketAddr,
    /// Address of the health.
    pub health_listen: SocketAddr,
    /// Directory with `tls.crt` and `tls.key`.
    pub certificate: PathBuf,
    /// The proxy's image where nobody names one.
    pub proxy_image: ProxyImage,
}

/// Why it could not start, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartError(pub String);

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Runs until `end`. What the API server and the Secret have to give is waited for, not required: meanwhile the health
/// says what is missing, and nothing is admitted.
///
/// # Errors
/// An address is taken, or nothing says where the API server is.
pub async fn run(options: Options, end: impl Future<Output = ()>) -> Result<(), StartError> {
    let listeners = Listeners::bind(options.listen, options.health_listen).await.map_err(StartError)?;
    let client = Client::try_default().await.map_err(|error| {
        StartError(format!(
            "there is no API server to ask: {error}; run it in a pod with a service account, or set KUBECONFIG"
        ))
    })?;
    let serving = Arc::new(Serving::default());
    let mesh = Arc::new(Mesh::new(options.proxy_image, Some(client.clone())));
    let server = Server::new(Arc::clone(&mesh), Arc::clone(&serving));
    info!(webhooks = %options.listen, health = %options.health_listen, "listening");
    tokio::select! {
        served = server.run(listeners, end) => served.map_err(|error| StartError(format!("TLS: {error}"))),
        () = mesh.follow(client) => Err(StartError("the watches on the API server ended".to_owned())),
        () = Files::new(&options.certificate, serving).follow() => Err(StartError("unreachable".to_owned())),
    }
}
