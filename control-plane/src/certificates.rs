//! Certificates that the control plane makes for itself and for ingress controllers, renewed at half their life.

pub(crate) mod ingress;

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use byrnie_identity::{KeyPair, Svid, control_plane_id, tls};
use rustls::ServerConfig;

use crate::{
    journal::{Holder, unix},
    plane::{IssueFailure, Plane},
};

/// How often is looked whether something is due; by wall clock, so that a suspended machine renews when it wakes.
pub(crate) const CHECK: Duration = Duration::from_secs(1);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error("{0}")]
    Key(#[from] byrnie_identity::KeyError),
    #[error("{0}")]
    Issue(#[from] IssueFailure),
    #[error("{0}")]
    Svid(#[from] byrnie_identity::SvidError),
    #[error("{0}")]
    Tls(#[from] tls::TlsError),
    #[error("{path}: {source}")]
    File { path: String, source: std::io::Error },
}

/// The control plane's own SVID, and the TLS configuration made of it.
pub(crate) struct Own {
    svid: Svid,
    config: Arc<ArcSwap<ServerConfig>>,
}

impl Own {
    pub(crate) async fn issue(plane: &Plane) -> Result<Self, CertificateError> {
        let svid = issue(plane).await?;
        let config = Arc::new(ArcSwap::new(server_config(plane, &svid)?));
        Ok(Self { svid, config })
    }

    /// What new connections are accepted with.
    pub(crate) fn config(&self) -> Arc<ArcSwap<ServerConfig>> {
        self.config.clone()
    }

    /// Renews for as long as the control plane runs. A failure keeps what there is, and is tried again.
    pub(crate) async fn keep(mut self, plane: Arc<Plane>) {
        loop {
            tokio::time::sleep(CHECK).await;
            if !plane.is_due(unix(self.svid.not_before()), unix(self.svid.not_after())) {
                continue;
            }
            match self.renew(&plane).await {
                Ok(()) => tracing::info!(serial = self.svid.serial(), "the control plane's own certificate is renewed"),
                Err(error) => tracing::error!(%error, "the control plane's own certificate can't be renewed"),
            }
        }
    }

    async fn renew(&mut self, plane: &Plane) -> Result<(), CertificateError> {
        let svid = issue(plane).await?;
        self.config.store(server_config(plane, &svid)?);
        self.svid = svid;
        Ok(())
    }
}

async fn issue(plane: &Plane) -> Result<Svid, CertificateError> {
    let key = KeyPair::generate()?;
    let id = control_plane_id(plane.authority.trust_domain());
    let certificate =
        plane.issue(&key.spki_der(), &id, Holder::ControlPlane, "byrnie-system/byrnie-control-plane").await?;
    Ok(Svid::new(certificate.chain, key)?)
}

fn server_config(plane: &Plane, svid: &Svid) -> Result<Arc<ServerConfig>, tls::TlsError> {
    tls::server_config(svid, &plane.verifier, tls::ALPN_H2, tls::ClientAuth::Optional)
}
