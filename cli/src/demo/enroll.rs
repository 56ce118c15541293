//! Gets an X.509-SVID with a join token, as a proxy does at its first start: the key is made here, and the control plane
//! sees its public half and the token. The demo does this for a pod whose address somebody else then takes.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use byrnie_identity::tls::{self, ALPN_H2};
use byrnie_identity::{Clock, KeyPair, Svid, SvidVerifier, TrustBundle, TrustBundles, control_plane_id};
use byrnie_netlab::Host;
use byrnie_proto::mesh::v1::identity_client::IdentityClient;
use byrnie_proto::mesh::v1::{CertifyRequest, certify_request};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tonic::transport::{Channel, Endpoint, Uri};

use super::load::sources;
use crate::failure::{Exit, Failure};

/// Longest wait for the certificate.
const ANSWER: Duration = Duration::from_secs(10);

/// Makes a key on `host`, and gets a certificate for it with `token` from the control plane at `target`.
///
/// # Errors
/// Where the control plane can't be reached, is not who `bundle` says, or refuses the token.
pub(super) async fn enroll(
    host: &Host,
    target: SocketAddr,
    bundle: &TrustBundle,
    token: String,
) -> Result<Svid, Failure> {
    let wrong = |error: &dyn std::fmt::Display| Failure::new(Exit::Refused, "cannot get a certificate").found(error);
    let key = KeyPair::generate().map_err(|error| wrong(&error))?;
    let csr = key.csr_der().map_err(|error| wrong(&error))?;
    let request = CertifyRequest { csr, credential: Some(certify_request::Credential::JoinToken(token)) };
    let answer = IdentityClient::new(connect(host, target, bundle).await?).certify(request).await;
    let answer = answer.map_err(|status| wrong(&format!("{:?}: {}", status.code(), status.message())))?;
    let chain = answer.into_inner().chain.into_iter().map(Into::into).collect();
    Svid::new(chain, key).map_err(|error| wrong(&error))
}

/// A channel to the control plane, whose identity is checked. The connector does TLS itself: tonic's takes no verifier.
async fn connect(host: &Host, target: SocketAddr, bundle: &TrustBundle) -> Result<Channel, Failure> {
    let verifier = SvidVerifier::new(TrustBundles::from(bundle.clone()).shared(), Clock::system());
    let config = tls::client_config(None, &verifier, ALPN_H2)
        .map_err(|error| Failure::new(Exit::Refused, "cannot prepare TLS").found(error))?;
    let (host, expected) = (host.clone(), control_plane_id(bundle.trust_domain()));
    let connector = tower::service_fn(move |_: Uri| {
        let (host, config) = (host.clone(), Arc::clone(&config));
        let (verifier, expected) = (Arc::clone(&verifier), expected.clone());
        async move {
            let stream = host.connect_async(target).await?;
            let name = ServerName::from(target.ip());
            let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await?;
            let peer = tls::peer_identity(stream.get_ref().1, &verifier).map_err(io::Error::other)?;
            peer.expect(&expected).map_err(io::Error::other)?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    let endpoint = Endpoint::from_static("http://control-plane.invalid").timeout(ANSWER).connect_timeout(ANSWER);
    endpoint.connect_with_connector(connector).await.map_err(|error| {
        Failure::new(Exit::Unreachable, "the control plane can't be reached")
            .expected(format!("a control plane of `{}` at {target}", bundle.trust_domain()))
            .found(sources(&error))
    })
}
