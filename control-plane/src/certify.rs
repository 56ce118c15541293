//! `Identity.Certify`: who gets a certificate, and for what.

use std::sync::Arc;

use byrnie_identity::{PeerIdentity, VerifyError, control_plane_id, csr};
use byrnie_proto::mesh::v1::{Bundle, CertifyRequest, CertifyResponse, certify_request::Credential};
use tonic::{Code, Status};
use zeroize::Zeroizing;

use crate::{
    journal::{Holder, TokenError},
    kubernetes::{ApiError, Claims, Reviewer, TokenRefused},
    limits,
    model::PodFacts,
    plane::{IssueFailure, Plane},
    server::Caller,
};

/// Why a call is refused: the same words in the caller's status, in the log and in `Observe`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("{0}")]
    Token(#[from] TokenError),
    #[error(
        "no credential: expected a join token in the request, or a current SVID of this mesh as the client certificate of the connection"
    )]
    NoCredential,
    #[error("a ServiceAccount token says nothing here: this control plane has a directory as its source")]
    NoKubernetes,
    #[error("a join token says nothing here: in Kubernetes a proxy proves its pod by a ServiceAccount token")]
    NoDirectory,
    #[error("{0}")]
    ServiceAccount(#[from] TokenRefused),
    #[error("the client certificate of the connection is no longer valid: {0}")]
    NotValid(VerifyError),
    #[error(
        "the certificate with serial {0} is not one that this control plane issued to a pod and remembers; a new join token is needed"
    )]
    UnknownSerial(String),
    #[error(
        "the certificate with serial {serial} was issued to {id} outside of the mesh; it opens no control plane calls"
    )]
    NotAProxy { serial: String, id: String },
    #[error("pod {0} is not in the source; add it there first")]
    NoPod(String),
    #[error("the pod with UID {0} is no longer in the source")]
    PodGone(Arc<str>),
    #[error("pod {pod} runs as service account {found}, and the credential is for {expected}")]
    WrongServiceAccount { pod: String, expected: String, found: String },
    #[error("namespace of pod {0} is not enrolled, or the pod opts out; label the namespace byrnie.dev/mesh: enabled")]
    NotEnrolled(String),
    #[error("pod {0} has ended")]
    Finished(String),
    #[error("{0} is the control plane's own identity")]
    Reserved(String),
    #[error("too many certificates for pod {0} in a short time; try again in a few seconds")]
    TooMany(String),
    #[error("certificate request: {0}")]
    Csr(String),
    #[error("certificate request of {0} bytes; expected at most {limit}", limit = limits::CSR_BYTES)]
    CsrTooLong(usize),
    #[error("the certificate could not be issued: {0}")]
    Issue(#[from] IssueFailure),
}

/// The pod that a caller speaks for.
pub(crate) struct Bound {
    pub(crate) pod: Arc<PodFacts>,
    /// Whose token said so; `None`: our own record of the certificate did.
    pub(crate) claims: Option<Claims>,
}

impl Plane {
    /// Answers one request; logs and remembers what it refuses.
    pub(crate) async fn certify(&self, caller: &Caller, request: CertifyRequest) -> Result<CertifyResponse, Status> {
        let refused = match self.try_certify(caller, request).await {
            Ok(response) => return Ok(response),
            Err(refused) => refused,
        };
        self.refuse(caller, &refused);
        Err(refused.status())
    }

    /// The pod that the presented certificate was issued to, if it is still that pod.
    pub(crate) fn bind(&self, identity: Option<&PeerIdentity>) -> Result<Bound, Refused> {
        let identity = identity.ok_or(Refused::NoCredential)?;
        self.verifier.check_still_valid(identity).map_err(Refused::NotValid)?;
        let serial = identity.serial();
        let issuance = self.journal.by_serial(serial).ok_or_else(|| Refused::UnknownSerial(serial.to_owned()))?;
        let Holder::Pod(uid) = &issuance.holder else {
            return Err(Refused::NotAProxy { serial: serial.to_owned(), id: identity.id().to_string() });
        };
        let model = self.model.load();
        let pod = model.pod_by_uid(uid).ok_or_else(|| Refused::PodGone(uid.clone()))?;
        if pod.spiffe_id != *identity.id() || issuance.spiffe_id != *identity.id() {
            return Err(Refused::WrongServiceAccount {
                pod: pod.place(),
                expected: identity.id().to_string(),
                found: pod.spiffe_id.to_string(),
            });
        }
        Ok(Bound { pod: pod.clone(), claims: None })
    }

    /// The pod that the token is bound to, in Kubernetes. A certificate that was presented besides must be that pod's.
    pub(crate) async fn bind_by_token(&self, caller: &Caller, token: &str) -> Result<Bound, Refused> {
        let reviewer = self.reviewer.as_ref().ok_or(Refused::NoKubernetes)?;
        if let Some(identity) = &caller.identity {
            self.check_presented(identity)?;
        }
        let reviewed = async {
            let claims = reviewer.review(token, || self.allowances.review(caller.address.ip())).await?;
            let pod = reviewer.pod(&self.model.load_full(), &claims).await?;
            Ok(Bound { pod, claims: Some(claims) })
        };
        let within = if caller.identity.is_some() { limits::REVIEW_RENEWAL } else { limits::REVIEW_FIRST };
        let reviewed = tokio::time::timeout(within, reviewed).await;
        let reviewed = reviewed.unwrap_or_else(|_| Err(TokenRefused::Unavailable(ApiError::Timeout(within))));
        let bound = match (reviewed, &caller.identity) {
            (Err(TokenRefused::Unavailable(error)), Some(identity)) => {
                self.bind_without_review(reviewer, identity, token, error)?
            }
            (reviewed, _) => reviewed?,
        };
        match &caller.identity {
            Some(identity) if *identity.id() != bound.pod.spiffe_id => Err(Refused::WrongServiceAccount {
                pod: bound.pod.place(),
                expected: identity.id().to_string(),
                found: bound.pod.spiffe_id.to_string(),
            }),
            Some(_) => Ok(bound),
            // Where no webhook looks, anyone may write containers of our names into a pod: who has no certificate yet gets
            // the first one in a namespace of the mesh only. Those that have one live on when their namespace is taken out.
            None if !self.model.load().enrolled.contains(&*bound.pod.namespace) => {
                Err(Refused::NotEnrolled(bound.pod.place()))
            }
            None => Ok(bound),
        }
    }

    /// The pod of a proxy that has a certificate, while the API server can't be asked: that of its token, by the API
    /// server's keys; where there are none, or kubelet could not replace the token in time, the one that this replica
    /// remembers to have issued the certificate to.
    fn bind_without_review(
        &self,
        reviewer: &Reviewer,
        identity: &PeerIdentity,
        token: &str,
        error: ApiError,
    ) -> Result<Bound, Refused> {
        // As it is now: the review may have taken seconds.
        let model = self.model.load_full();
        let (bound, by) = match reviewer.keys().pod(token, &model) {
            Ok((claims, pod)) => {
                let pod = claims.check(pod)?;
                (Bound { pod, claims: Some(claims) }, "the API server's keys")
            }
            Err(unverified) => match self.bind(Some(identity)) {
                Ok(bound) if unverified.is_no_refusal() => (bound, "the record of its certificate"),
                _ => return Err(TokenRefused::Unverified(error, unverified).into()),
            },
        };
        tracing::warn!(pod = bound.pod.place(), by, reason = %error, "no TokenReview says which pod this is");
        Ok(bound)
    }

    /// That a presented certificate is valid still, and a proxy's.
    pub(crate) fn check_presented(&self, identity: &PeerIdentity) -> Result<(), Refused> {
        self.verifier.check_still_valid(identity).map_err(Refused::NotValid)?;
        if identity.is_outside_mesh() {
            return Err(Refused::NotAProxy { serial: identity.serial().to_owned(), id: identity.id().to_string() });
        }
        Ok(())
    }

    /// Writes a refusal where operators look.
    pub(crate) fn refuse(&self, caller: &Caller, refused: &Refused) {
        let (cause, reason) = (refused.cause(), refused.to_string());
        tracing::warn!(peer.address = %caller.address, cause, reason, "refused");
        self.proxies.refused_here(&caller.address, cause, reason, self.clock.wall());
    }

    async fn try_certify(&self, caller: &Caller, request: CertifyRequest) -> Result<CertifyResponse, Refused> {
        if request.csr.len() > limits::CSR_BYTES {
            return Err(Refused::CsrTooLong(request.csr.len()));
        }
        let public_key = || csr::public_key(&request.csr).map_err(|error| Refused::Csr(error.to_string()));
        let mut token = None;
        let (pod, public_key) = match request.credential {
            Some(Credential::ServiceAccountToken(token)) => {
                let token = Zeroizing::new(token);
                (self.bind_by_token(caller, &token).await?.pod, public_key()?)
            }
            _ if self.reviewer.is_some() && request.credential.is_some() => return Err(Refused::NoDirectory),
            None if self.reviewer.is_some() => return Err(TokenRefused::Absent.into()),
            Some(Credential::JoinToken(join)) => {
                let public_key = public_key()?;
                let pod = self.pod_of_token(&join, &public_key)?;
                token = Some(join);
                (pod, public_key)
            }
            None => (self.bind(caller.identity.as_ref())?.pod, public_key()?),
        };
        if pod.finished {
            return Err(Refused::Finished(pod.place()));
        }
        if pod.spiffe_id == control_plane_id(self.authority.trust_domain()) {
            return Err(Refused::Reserved(pod.spiffe_id.to_string()));
        }
        if !self.allowances.certificate(&pod.uid) {
            return Err(Refused::TooMany(pod.place()));
        }
        // Last of the checks: a request that fails for another reason has not used its token up.
        if let Some(token) = &token {
            self.journal.spend_token(token, &public_key).await?;
        }
        let holder = Holder::Pod(pod.uid.clone());
        let certificate = match self.issue(&public_key, &pod.spiffe_id, holder, &pod.workload).await {
            Ok(certificate) => certificate,
            Err(failure) => {
                if let Some(token) = &token {
                    self.return_token(token).await;
                }
                return Err(failure.into());
            }
        };
        let (pod_name, id, serial) = (pod.place(), pod.spiffe_id.as_str(), certificate.issuance.serial.as_str());
        let first = caller.identity.is_none();
        tracing::info!(
            pod = pod_name,
            pod.uid = &*pod.uid,
            id,
            serial,
            first,
            not_after = certificate.issuance.not_after,
            "certificate issued"
        );
        // A pod that holds a certificate takes itself for ready, and until the others are told that it is meshed they
        // refuse to call it: so they are told first.
        // In Kubernetes that depends on the pod alone: they know as soon as the model has it.
        let mut published = self.published.subscribe();
        let told = published.wait_for(|meshed| match self.reviewer {
            Some(_) => self.model.load().pod_by_uid(&pod.uid).is_some(),
            None => meshed.contains_key(&pod.uid),
        });
        let _ = tokio::time::timeout(limits::PUBLISHED, told).await;
        Ok(CertifyResponse { chain: certificate.issuance.chain, bundle: Some(Bundle::from(&self.authority.bundle())) })
    }

    async fn return_token(&self, token: &str) {
        if let Err(error) = self.journal.give_back_token(token).await {
            tracing::warn!(%error, "a join token that was used for nothing counts as used after a restart");
        }
    }

    fn pod_of_token(&self, token: &str, public_key: &[u8]) -> Result<Arc<PodFacts>, Refused> {
        let binding = self.journal.check_token(token, public_key)?;
        let model = self.model.load();
        let pod = model
            .pod(&binding.namespace, &binding.pod)
            .ok_or_else(|| Refused::NoPod(format!("{}/{}", binding.namespace, binding.pod)))?;
        if *pod.service_account != *binding.service_account {
            return Err(Refused::WrongServiceAccount {
                pod: pod.place(),
                expected: binding.service_account,
                found: pod.service_account.to_string(),
            });
        }
        if !pod.enrolled {
            return Err(Refused::NotEnrolled(pod.place()));
        }
        Ok(pod.clone())
    }
}

impl Refused {
    /// A label from a closed set.
    pub(crate) fn cause(&self) -> &'static str {
        match self {
            Self::Token(TokenError::Unknown) => "join-token-unknown",
            Self::Token(TokenError::Used { .. }) => "join-token-used",
            Self::Token(TokenError::Expired { .. }) => "join-token-expired",
            Self::Token(TokenError::Revoked { .. }) => "join-token-revoked",
            Self::Token(TokenError::Journal(_)) | Self::Issue(IssueFailure::Journal(_)) => "journal",
            Self::NoCredential | Self::NoKubernetes | Self::NoDirectory => "no-credential",
            Self::ServiceAccount(refused) => refused.cause(),
            Self::NotValid(error) => error.cause.as_str(),
            Self::UnknownSerial(_) => "unknown-serial",
            Self::NotAProxy { .. } => "not-a-proxy",
            Self::NoPod(_) | Self::PodGone(_) => "no-such-pod",
            Self::WrongServiceAccount { .. } => "wrong-service-account",
            Self::NotEnrolled(_) => "not-enrolled",
            Self::Finished(_) => "pod-finished",
            Self::Reserved(_) => "reserved-identity",
            Self::TooMany(_) => "rate-limited",
            Self::Csr(_) | Self::CsrTooLong(_) => "bad-request",
            Self::Issue(IssueFailure::Authority(_)) => "authority",
        }
    }

    /// What a client may do about it: `FailedPrecondition` and `Unavailable` may pass by themselves.
    pub(crate) fn status(&self) -> Status {
        let code = match self {
            Self::Token(TokenError::Journal(_)) | Self::Issue(_) => Code::Unavailable,
            Self::ServiceAccount(refused) => refused.code(),
            Self::Token(_)
            | Self::NoCredential
            | Self::NoKubernetes
            | Self::NoDirectory
            | Self::NotValid(_)
            | Self::UnknownSerial(_) => Code::Unauthenticated,
            Self::NotAProxy { .. } | Self::PodGone(_) | Self::WrongServiceAccount { .. } | Self::Reserved(_) => {
                Code::PermissionDenied
            }
            Self::NoPod(_) | Self::NotEnrolled(_) | Self::Finished(_) => Code::FailedPrecondition,
            Self::TooMany(_) => Code::ResourceExhausted,
            Self::Csr(_) | Self::CsrTooLong(_) => Code::InvalidArgument,
        };
        Status::new(code, self.to_string())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
