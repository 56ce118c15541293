//! What the command line asks.

use std::{sync::Arc, time::Duration};

use byrnie_identity::SpiffeId;
use byrnie_proto::mesh::v1::{
    Bundle, CreateTokenRequest, CreateTokenResponse, ObserveRequest, ObserveResponse, RevokeTokenRequest,
    RevokeTokenResponse,
    administration_server::{Administration, AdministrationServer},
};
use tonic::{Request, Response, Status};

use crate::{
    journal::{JournalError, TokenBinding},
    limits,
    plane::Plane,
};

/// The service of the Unix socket.
pub(super) struct AdministrationService(Arc<Plane>);

impl AdministrationService {
    pub(super) fn server(plane: Arc<Plane>) -> AdministrationServer<Self> {
        // A large mesh's answer is larger than gRPC's default for what a client takes; the client raises it, too.
        AdministrationServer::new(Self(plane)).max_encoding_message_size(usize::MAX)
    }
}

#[tonic::async_trait]
impl Administration for AdministrationService {
    async fn observe(&self, _: Request<ObserveRequest>) -> Result<Response<ObserveResponse>, Status> {
        let plane = &self.0;
        let model = plane.model.load();
        let mut identities: Vec<_> = plane.journal.all_newest().iter().map(|issuance| issuance.observed()).collect();
        identities.sort_by(|one, other| (&one.workload, &one.pod_uid).cmp(&(&other.workload, &other.pod_uid)));
        Ok(Response::new(ObserveResponse {
            identities,
            edges: plane.proxies.edges(&model),
            proxies: plane.proxies.observed(&model, &plane.journal),
            objects: model.statuses.clone(),
            refusals: plane.proxies.refusals(&model),
            egress: plane.proxies.egress(&model),
            bundles: vec![Bundle::from(&plane.authority.bundle())],
        }))
    }

    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let CreateTokenRequest { namespace, service_account, pod, ttl_seconds } = request.into_inner();
        if let Err(error) = SpiffeId::workload(self.0.authority.trust_domain(), &namespace, &service_account) {
            return Err(Status::invalid_argument(format!("namespace and service account make no SPIFFE ID: {error}")));
        }
        if !is_subdomain(&pod) {
            return Err(Status::invalid_argument(format!(
                "pod: expected a name of at most 253 lower-case letters, digits, `-` and `.`, found {pod:?}"
            )));
        }
        let ttl = Duration::from_secs(u64::from(ttl_seconds));
        if ttl > limits::TOKEN_TTL_MAX {
            return Err(Status::invalid_argument(format!(
                "ttl: expected at most {} s, found {ttl_seconds}",
                limits::TOKEN_TTL_MAX.as_secs()
            )));
        }
        let binding = TokenBinding { namespace, service_account, pod };
        let made = self.0.journal.create_token(binding.clone(), ttl).await.map_err(status)?;
        let (id, pod) = (made.id.as_str(), format!("{}/{}", binding.namespace, binding.pod));
        tracing::info!(
            token = id,
            pod,
            service_account = binding.service_account,
            expires = made.expires,
            "join token made"
        );
        Ok(Response::new(CreateTokenResponse { token: made.token.to_string(), expires: made.expires, id: made.id }))
    }

    async fn revoke_token(
        &self,
        request: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        let id = request.into_inner().id;
        if !self.0.journal.revoke_token(&id).await.map_err(status)? {
            return Err(Status::not_found(format!("no join token {id:?} is on record")));
        }
        tracing::info!(token = id, "join token revoked");
        Ok(Response::new(RevokeTokenResponse {}))
    }
}

fn status(error: JournalError) -> Status {
    match error {
        JournalError::Store { .. } => Status::unavailable(error.to_string()),
        JournalError::TooManyTokens(_) => Status::resource_exhausted(error.to_string()),
    }
}

fn is_subdomain(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    (1..=253).contains(&text.len()) && text.bytes().all(plain)
}
