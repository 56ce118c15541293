//! Whose a ServiceAccount token is: the API server says so (TokenReview, authentication.k8s.io/v1), and the pod that the
//! token is bound to must still be there under the same UID. A token of a deleted pod passes the review for some ten
//! seconds more; the pod's UID does not.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aws_lc_rs::digest;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use byrnie_api::labels::TOKEN_AUDIENCE;
use byrnie_identity::Clock;
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo},
    core::v1::Pod,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tonic::Code;

use super::{
    client::{ApiError, call},
    keys::{Keys, Unverified},
};
use crate::{
    limits,
    model::{Model, PodFacts},
    proxies::cut,
    source::MeshedBy,
};

/// Asks the API server about tokens and pods. Shared by reference.
pub(crate) struct Reviewer {
    client: Client,
    clock: Clock,
    /// By SHA-256 of the token: what was found, and until when it counts.
    known: Mutex<HashMap<[u8; 32], (Duration, Claims)>>,
    turns: Semaphore,
    keys: Arc<Keys>,
}

/// The pod that a token is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claims {
    pub(crate) namespace: String,
    pub(crate) service_account: String,
    pub(crate) pod: String,
    pub(crate) uid: Arc<str>,
}

/// Why a token opens nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenRefused {
    #[error(
        "no ServiceAccount token: expected that of the pod, audience {TOKEN_AUDIENCE}, found nothing; the proxy needs --service-account-token-file"
    )]
    Absent,
    #[error("a ServiceAccount token of {0} bytes; expected at most {limit}", limit = limits::SERVICE_ACCOUNT_TOKEN_BYTES)]
    TooLong(usize),
    #[error("the ServiceAccount token is damaged: expected a signed JSON Web Token")]
    Malformed,
    #[error(
        "the ServiceAccount token is for audience {0}; expected {TOKEN_AUDIENCE}: a projected token of the pod, not the API server's"
    )]
    WrongAudience(String),
    #[error("the API server does not accept the ServiceAccount token: {0}")]
    Rejected(String),
    #[error("the token is that of {0}; expected a service account")]
    NotServiceAccount(String),
    #[error("the ServiceAccount token is not bound to a pod; expected a token that kubelet projects into one")]
    NotPodBound,
    #[error("the pod {place} with UID {uid} is gone; its token opens nothing any more")]
    PodGone { place: String, uid: Arc<str> },
    #[error("pod {place} runs as service account {found}, and its token is for {expected}")]
    WrongServiceAccount { place: String, expected: String, found: String },
    #[error(
        "pod {0} has no proxy of the injector's making; label its namespace byrnie.dev/mesh: enabled and restart it"
    )]
    NotInjected(String),
    #[error("pod {place} can't be a member of the mesh: {reason}")]
    NotTaken { place: String, reason: String },
    #[error("the token can't be checked: {0}")]
    Unavailable(ApiError),
    #[error("the token can't be checked: {0}; nor by the API server's keys: {1}")]
    Unverified(ApiError, Unverified),
    #[error("too many tokens to check at once; try again in a few seconds")]
    Busy,
}

impl TokenRefused {
    /// A label from a closed set.
    pub(crate) fn cause(&self) -> &'static str {
        match self {
            Self::Absent => "no-credential",
            Self::TooLong(_) | Self::Malformed => "token-malformed",
            Self::WrongAudience(_) => "wrong-audience",
            Self::Rejected(_) => "token-review-failed",
            Self::NotServiceAccount(_) => "not-a-service-account",
            Self::NotPodBound => "token-not-bound",
            Self::PodGone { .. } => "pod-gone",
            Self::WrongServiceAccount { .. } => "wrong-service-account",
            Self::NotInjected(_) => "not-injected",
            Self::NotTaken { .. } => "pod-refused",
            Self::Unavailable(_) | Self::Unverified(..) => "api-server-unavailable",
            Self::Busy => "rate-limited",
        }
    }

    pub(crate) fn code(&self) -> Code {
        match self {
            Self::TooLong(_) => Code::InvalidArgument,
            Self::Absent | Self::Malformed | Self::WrongAudience(_) | Self::Rejected(_) => Code::Unauthenticated,
            Self::NotServiceAccount(_)
            | Self::NotPodBound
            | Self::PodGone { .. }
            | Self::WrongServiceAccount { .. } => Code::PermissionDenied,
            Self::NotInjected(_) | Self::NotTaken { .. } => Code::FailedPrecondition,
            Self::Unavailable(_) | Self::Unverified(..) => Code::Unavailable,
            Self::Busy => Code::ResourceExhausted,
        }
    }
}

impl Reviewer {
    pub(crate) fn new(client: Client, clock: Clock) -> Self {
        let turns = Semaphore::new(limits::TOKEN_REVIEWS);
        let keys = Arc::new(Keys::new(clock.clone()));
        Self { client, clock, known: Mutex::default(), turns, keys }
    }

    /// The API server's keys; somebody has to run [`Keys::keep`].
    pub(crate) fn keys(&self) -> &Arc<Keys> {
        &self.keys
    }

    /// Whose the token is. `may_ask` is called before the API server is asked, and not where the answer is known.
    ///
    /// # Errors
    /// [`TokenRefused`].
    pub(crate) async fn review(&self, token: &str, may_ask: impl FnOnce() -> bool) -> Result<Claims, TokenRefused> {
        check_form(token)?;
        let mut key = [0_u8; 32];
        key.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
        if let Some(claims) = self.recall(&key) {
            return Ok(claims);
        }
        if !may_ask() {
            return Err(TokenRefused::Busy);
        }
        let Ok(_turn) = self.turns.acquire().await else {
            return Err(TokenRefused::Busy);
        };
        let claims = read(self.ask(token).await?)?;
        self.remember(key, &claims);
        Ok(claims)
    }

    /// The pod of the claims as it is now: the model's, or where the model does not know it (yet), the API server's.
    ///
    /// # Errors
    /// It is gone, or can't be a member.
    pub(crate) async fn pod(&self, model: &Model, claims: &Claims) -> Result<Arc<PodFacts>, TokenRefused> {
        match model.pod_by_uid(&claims.uid) {
            Some(pod) => claims.check(pod),
            None => claims.check(&self.live(model, claims).await?),
        }
    }

    /// The pod as the API server has it.
    async fn live(&self, model: &Model, claims: &Claims) -> Result<Arc<PodFacts>, TokenRefused> {
        let place = claims.place();
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &claims.namespace);
        let pod = call(pods.get_opt(&claims.pod)).await.map_err(TokenRefused::Unavailable)?;
        let uid = |pod: &Pod| pod.metadata.uid.as_deref() == Some(&*claims.uid);
        // One of the same name and another UID is another pod, such as the next one of a StatefulSet.
        let Some(pod) = pod.filter(uid) else {
            return Err(TokenRefused::PodGone { place, uid: claims.uid.clone() });
        };
        match PodFacts::read(&pod, &claims.namespace, &claims.pod, &model.settings.trust_domain, MeshedBy::Sidecar) {
            Ok((facts, _)) => Ok(Arc::new(facts)),
            Err(reason) => Err(TokenRefused::NotTaken { place, reason }),
        }
    }

    async fn ask(&self, token: &str) -> Result<TokenReviewStatus, TokenRefused> {
        let review = TokenReview {
            metadata: ObjectMeta::default(),
            spec: TokenReviewSpec { audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]), token: token.to_owned() },
            status: None,
        };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let answer = call(reviews.create(&PostParams::default(), &review)).await.map_err(TokenRefused::Unavailable)?;
        Ok(answer.status.unwrap_or_default())
    }

    fn recall(&self, key: &[u8; 32]) -> Option<Claims> {
        let now = self.clock.boot();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(key).filter(|(until, _)| *until > now).map(|(_, claims)| claims.clone())
    }

    fn remember(&self, key: [u8; 32], claims: &Claims) {
        let now = self.clock.boot();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= limits::TOKENS_KNOWN {
            known.retain(|_, (until, _)| *until > now);
        }
        // Where all of them are fresh, this one is asked about again.
        if known.len() < limits::TOKENS_KNOWN {
            known.insert(key, (now + limits::TOKEN_KNOWN, claims.clone()));
        }
    }
}

/// What can be seen without the API server: spares it the question, and tells the commonest mistake by its name. Nothing
/// is granted by it.
fn check_form(token: &str) -> Result<(), TokenRefused> {
    if token.is_empty() {
        return Err(TokenRefused::Absent);
    }
    if token.len() > limits::SERVICE_ACCOUNT_TOKEN_BYTES {
        return Err(TokenRefused::TooLong(token.len()));
    }
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(TokenRefused::Malformed);
    };
    let payload = BASE64_URL_SAFE_NO_PAD.decode(payload).map_err(|_| TokenRefused::Malformed)?;
    let payload: Payload = serde_json::from_slice(&payload).map_err(|_| TokenRefused::Malformed)?;
    let audiences = match payload.aud {
        None => Vec::new(),
        Some(Audience::One(audience)) => vec![audience],
        Some(Audience::Several(audiences)) => audiences,
    };
    if audiences.iter().any(|audience| audience == TOKEN_AUDIENCE) {
        return Ok(());
    }
    let named = audiences.join(", ");
    Err(TokenRefused::WrongAudience(if named.is_empty() { "none".to_owned() } else { cut(named) }))
}

/// RFC 7519 section 4.1.3: one string, or an array of them.
#[derive(Deserialize)]
struct Payload {
    aud: Option<Audience>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

/// Reads the answer; what it does not say clearly counts as refused.
fn read(status: TokenReviewStatus) -> Result<Claims, TokenRefused> {
    let TokenReviewStatus { audiences, authenticated, error, user } = status;
    if authenticated != Some(true) {
        return Err(TokenRefused::Rejected(cut(error.filter(|error| !error.is_empty()).unwrap_or_else(|| {
            "it does not say why (expired, of a pod that is gone, or of another cluster)".to_owned()
        }))));
    }
    // A server that does not know of audiences returns none (Kubernetes API, TokenReviewStatus.audiences).
    let audiences = audiences.unwrap_or_default();
    if !audiences.iter().any(|audience| audience == TOKEN_AUDIENCE) {
        return Err(TokenRefused::WrongAudience(cut(format!("[{}]", audiences.join(", ")))));
    }
    let UserInfo { username, extra, .. } = user.unwrap_or_default();
    let username = username.unwrap_or_default();
    let account = username.strip_prefix("system:serviceaccount:").and_then(|account| account.split_once(':'));
    let Some((namespace, service_account)) = account.filter(|(namespace, name)| is_name(namespace) && is_name(name))
    else {
        return Err(TokenRefused::NotServiceAccount(cut(format!("{username:?}"))));
    };
    let extra = extra.unwrap_or_default();
    let one = |key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([value]) => Some(value.as_str()),
        _ => None,
    };
    let (pod, uid) = one(POD_NAME).zip(one(POD_UID)).ok_or(TokenRefused::NotPodBound)?;
    Claims::new(namespace, service_account, pod, uid).ok_or(TokenRefused::NotPodBound)
}

impl Claims {
    /// `None`: these are no names of Kubernetes, or no UID.
    pub(super) fn new(namespace: &str, service_account: &str, pod: &str, uid: &str) -> Option<Self> {
        let names = [namespace, service_account, pod].into_iter().all(is_name);
        (names && (1..=128).contains(&uid.len())).then(|| Self {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            pod: pod.to_owned(),
            uid: uid.into(),
        })
    }

    fn place(&self) -> String {
        format!("{}/{}", self.namespace, self.pod)
    }

    /// Whether the pod of their UID is the one that they name, and a member of the mesh.
    ///
    /// # Errors
    /// It is not.
    pub(crate) fn check(&self, pod: &Arc<PodFacts>) -> Result<Arc<PodFacts>, TokenRefused> {
        if *pod.namespace != *self.namespace || *pod.name != *self.pod {
            return Err(TokenRefused::PodGone { place: self.place(), uid: self.uid.clone() });
        }
        if *pod.service_account != *self.service_account {
            return Err(TokenRefused::WrongServiceAccount {
                place: self.place(),
                expected: self.service_account.clone(),
                found: pod.service_account.to_string(),
            });
        }
        if !has_proxy(pod) {
            return Err(TokenRefused::NotInjected(self.place()));
        }
        Ok(pod.clone())
    }
}

/// Who is no member of the mesh gets no identity of it.
fn has_proxy(pod: &PodFacts) -> bool {
    pod.injected
}

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// A DNS subdomain as Kubernetes names objects: it becomes a part of a path.
fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    (1..=253).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with('.')
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
