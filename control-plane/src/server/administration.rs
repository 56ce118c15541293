//! What the command line asks.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use byrnie_identity::SpiffeId;
use byrnie_proto::mesh::v1::{
    Bundle, CreateTokenRequest, CreateTokenResponse, IssuedIdentity, ObserveRequest, ObserveResponse,
    RevokeTokenRequest, RevokeTokenResponse,
    administration_server::{Administration, AdministrationServer},
};
use tonic::{Request, Response, Status};

use crate::{
    journal::{JournalError, TokenBinding},
    limits,
    model::Model,
    plane::Plane,
};

/// The service of the Unix socket, and of the loopback port.
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
        Ok(Response::new(ObserveResponse {
            identities: identities(plane, &model),
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
        if self.0.reviewer.is_some() {
            return Err(Status::failed_precondition(
                "in Kubernetes a proxy proves its pod by a ServiceAccount token; label the pod's namespace \
                 byrnie.dev/mesh: enabled, and restart the pod",
            ));
        }
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

/// The newest certificate of everyone: those that were issued here, and those that connected proxies presented. In
/// Kubernetes another replica may have issued them, and a pod that is gone never comes back.
fn identities(plane: &Plane, model: &Model) -> Vec<IssuedIdentity> {
    let mut of: BTreeMap<(String, String, String), IssuedIdentity> = BTreeMap::new();
    let issued = plane.journal.all_newest();
    let issued = issued.iter().map(|issuance| issuance.observed());
    for identity in issued.chain(plane.proxies.presented()) {
        let gone = !identity.pod_uid.is_empty() && model.pod_by_uid(&identity.pod_uid).is_none();
        if gone && plane.reviewer.is_some() {
            continue;
        }
        let key = (identity.workload.clone(), identity.pod_uid.clone(), identity.spiffe_id.clone());
        match of.entry(key) {
            Entry::Vacant(free) => drop(free.insert(identity)),
            Entry::Occupied(mut known) if known.get().not_before < identity.not_before => {
                known.insert(identity);
            }
            Entry::Occupied(_) => {}
        }
    }
    of.into_values().collect()
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
