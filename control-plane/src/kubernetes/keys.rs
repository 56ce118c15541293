//! The API server's own keys, by which a ServiceAccount token says whose it is while the API server can't be asked
//! (Kubernetes, "ServiceAccount issuer discovery"; RFC 7517, RFC 7519).
//!
//! It says less than a TokenReview, which also knows what was deleted meanwhile: who has nothing else to show gets nothing
//! by it.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use byrnie_api::labels::TOKEN_AUDIENCE;
use byrnie_identity::Clock;
use hyper::Request;
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};
use kube::Client;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    client::{ApiError, call, longer},
    token::Claims,
};
use crate::{
    journal::unix,
    limits,
    model::{Model, PodFacts},
};

/// The keys as they were read last. Shared by reference.
pub(crate) struct Keys {
    clock: Clock,
    known: ArcSwapOption<Known>,
}

struct Known {
    issuer: String,
    keys: Vec<Key>,
    /// By the boot clock.
    read: Duration,
}

/// A key, and the one algorithm that it signs by.
struct Key {
    id: String,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// Why the keys say nothing of a token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unverified {
    #[error("the API server's keys could not be read")]
    NoKeys,
    #[error("it names no key that the API server had when its keys were last read")]
    UnknownKey,
    #[error("{0}")]
    Refused(#[from] jsonwebtoken::errors::Error),
    #[error("it has expired")]
    Expired,
    #[error("it does not hold yet")]
    Early,
    #[error("it is not bound to a pod")]
    NotPodBound,
    #[error("the pod of UID {0} was not there when the API server was last heard of")]
    UnknownPod(Arc<str>),
}

impl Unverified {
    /// Whether there were no keys to ask, or the token was good until it ended: the keys do not speak against who shows it.
    pub(crate) fn is_no_refusal(&self) -> bool {
        matches!(self, Self::NoKeys | Self::Expired)
    }
}

impl Keys {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, known: ArcSwapOption::empty() }
    }

    /// Keeps them fresh, for ever.
    pub(crate) async fn keep(self: Arc<Self>, client: Client) {
        let (mut wait, mut told) = (limits::API_RETRY, String::new());
        loop {
            let pause = match fetch(&client).await {
                Ok((issuer, keys)) => {
                    self.set(issuer, keys);
                    (wait, told) = (limits::API_RETRY, String::new());
                    limits::KEYS_READ
                }
                Err(error) => {
                    let reason = error.to_string();
                    if reason != told {
                        tracing::warn!(reason, "the API server's keys can't be read; renewals depend on TokenReviews");
                        told = reason;
                    }
                    wait = longer(wait);
                    wait
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    fn set(&self, issuer: String, keys: Vec<Key>) {
        let read = self.clock.boot();
        self.known.store(Some(Arc::new(Known { issuer, keys, read })));
    }

    /// What a test says that they are.
    #[cfg(test)]
    pub(crate) fn know(&self, issuer: &str, keys: &[Value]) {
        self.set(issuer.to_owned(), keys.iter().filter_map(Key::read).collect());
    }

    /// The pod that the token is bound to: it is signed by one of the keys, by that key's algorithm, from their issuer, for
    /// our audience, and holds now.
    ///
    /// # Errors
    /// [`Unverified`].
    fn verify(&self, token: &str) -> Result<Claims, Unverified> {
        let fresh = |known: &Arc<Known>| self.clock.boot().saturating_sub(known.read) <= limits::KEYS_HELD;
        let known = self.known.load_full().filter(fresh).ok_or(Unverified::NoKeys)?;
        let id = decode_header(token)?.kid.ok_or(Unverified::UnknownKey)?;
        let mut refused = Unverified::UnknownKey;
        for key in known.keys.iter().filter(|key| key.id == id) {
            match decode::<TokenClaims>(token, &key.key, &key.validation(&known.issuer)) {
                Ok(token) => return self.claims(token.claims),
                Err(error) => refused = error.into(),
            }
        }
        Err(refused)
    }

    /// The same, with the pod as the model has it; one that it does not have may be gone, or be too new.
    ///
    /// # Errors
    /// [`Unverified`].
    pub(crate) fn pod<'a>(&self, token: &str, model: &'a Model) -> Result<(Claims, &'a Arc<PodFacts>), Unverified> {
        let claims = self.verify(token)?;
        let pod = model.pod_by_uid(&claims.uid).ok_or_else(|| Unverified::UnknownPod(claims.uid.clone()))?;
        Ok((claims, pod))
    }

    fn claims(&self, claims: TokenClaims) -> Result<Claims, Unverified> {
        let now = unix(self.clock.wall());
        if claims.exp <= now {
            return Err(Unverified::Expired);
        }
        if claims.nbf > now.saturating_add(limits::TOKEN_EARLY) {
            return Err(Unverified::Early);
        }
        let TokenClaims { sub, kubernetes: KubernetesClaims { namespace, serviceaccount, pod }, .. } = claims;
        if sub != format!("system:serviceaccount:{namespace}:{}", serviceaccount.name) {
            return Err(Unverified::NotPodBound);
        }
        let pod = pod.ok_or(Unverified::NotPodBound)?;
        Claims::new(&namespace, &serviceaccount.name, &pod.name, &pod.uid).ok_or(Unverified::NotPodBound)
    }
}

impl Key {
    /// `None`: not one that tokens are signed with.
    fn read(key: &Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(key.clone()).ok()?;
        if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
            return None;
        }
        let algorithm = match (&jwk.algorithm, jwk.common.key_algorithm) {
            (AlgorithmParameters::RSA(_), None | Some(KeyAlgorithm::RS256)) => Algorithm::RS256,
            (AlgorithmParameters::RSA(_), Some(KeyAlgorithm::RS384)) => Algorithm::RS384,
            (AlgorithmParameters::RSA(_), Some(KeyAlgorithm::RS512)) => Algorithm::RS512,
            (AlgorithmParameters::EllipticCurve(key), algorithm) => match (&key.curve, algorithm) {
                (EllipticCurve::P256, None | Some(KeyAlgorithm::ES256)) => Algorithm::ES256,
                (EllipticCurve::P384, None | Some(KeyAlgorithm::ES384)) => Algorithm::ES384,
                _ => return None,
            },
            // A symmetric key would be a public secret.
            _ => return None,
        };
        Some(Self { id: jwk.common.key_id.clone()?, algorithm, key: DecodingKey::from_jwk(&jwk).ok()? })
    }

    /// Times are checked by our own clock.
    fn validation(&self, issuer: &str) -> Validation {
        let mut validation = Validation::new(self.algorithm);
        validation.set_audience(&[TOKEN_AUDIENCE]);
        validation.set_issuer(&[issuer]);
        validation.set_required_spec_claims(&["aud", "iss", "exp", "nbf", "sub"]);
        (validation.validate_exp, validation.validate_nbf) = (false, false);
        validation
    }
}

/// What both documents say.
async fn fetch(client: &Client) -> Result<(String, Vec<Key>), ApiError> {
    #[derive(Deserialize)]
    struct Discovery {
        issuer: String,
    }
    #[derive(Deserialize)]
    struct KeySet {
        keys: Vec<Value>,
    }
    let Discovery { issuer } = get(client, DISCOVERY).await?;
    let KeySet { keys } = get(client, KEY_SET).await?;
    Ok((issuer, keys.iter().filter_map(Key::read).take(limits::SIGNING_KEYS).collect()))
}

async fn get<T: DeserializeOwned>(client: &Client, path: &str) -> Result<T, ApiError> {
    let request = Request::get(path).body(Vec::new()).map_err(|error| ApiError::Kube(kube::Error::HttpError(error)))?;
    call(client.request(request)).await
}

const DISCOVERY: &str = "/.well-known/openid-configuration";
const KEY_SET: &str = "/openid/v1/jwks";

/// Of a token that is bound to a pod (KEP-1205).
#[derive(Deserialize)]
struct TokenClaims {
    exp: i64,
    nbf: i64,
    sub: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: KubernetesClaims,
}

#[derive(Deserialize)]
struct KubernetesClaims {
    namespace: String,
    serviceaccount: Named,
    pod: Option<Bound>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct Bound {
    name: String,
    uid: String,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
