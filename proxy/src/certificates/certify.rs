//! Asks the control plane for an SVID: with a token the first time, with the current SVID from then on. The token that
//! Kubernetes projects into a pod comes along every time: it names the pod, and an SVID only its service account.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use byrnie_identity::tls::{self, ALPN_H2};
use byrnie_identity::{
    KeyError, KeyPair, SharedBundles, SpiffeId, Svid, SvidError, SvidVerifier, TrustBundle, TrustBundles, VerifyError,
    control_plane_id,
};
use byrnie_proto::mesh::v1 as proto;
use byrnie_proto::mesh::v1::identity_client::IdentityClient;
use rustls::server::ParsedCertificate;
use rustls_pki_types::CertificateDer;

use super::token::{self, TokenError};
use super::{Generation, StateError, state};
use crate::config::CredentialFile;
use crate::control::channel::{self, ConnectError};
use crate::shared::Shared;

/// What proves who asks.
#[derive(Clone)]
pub(super) enum Credential {
    /// The token in the file that the operator named.
    Token,
    /// The SVID that is held.
    Svid(Arc<Generation>),
}

/// The key that a certificate is asked for.
///
/// A join token is good for one key. Where an answer gets lost, only the same key can ask again with the token: so it is
/// kept until an SVID was made of it.
#[derive(Default)]
pub(super) struct PendingKey(Mutex<Option<KeyPair>>);

/// What the control plane gave, verified.
pub(super) struct Issued {
    pub(super) svid: Svid,
    pub(super) bundle: Option<TrustBundle>,
}

/// Why there is no new SVID.
#[derive(Debug, thiserror::Error)]
pub(super) enum CertifyError {
    #[error(
        "no SVID is held and there is no file with a token to get one with; give --service-account-token-file in a pod, or \
         --join-token-file with what `byrnie token create` makes"
    )]
    NoToken,
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the control plane refused: {message} ({code:?})")]
    Refused { code: tonic::Code, message: String },
    #[error("the control plane did not answer within {} s", ANSWER.as_secs())]
    TimedOut,
    #[error("what the control plane issued is not usable: {0}")]
    Answer(String),
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl CertifyError {
    /// The label of the metric.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::NoToken | Self::Token(_) => "no-token",
            Self::State(_) => "no-bundle",
            Self::Connect(error) => error.as_str(),
            Self::Refused { .. } => "refused",
            Self::TimedOut => "timed-out",
            Self::Answer(_) => "bad-answer",
            Self::Key(_) => "no-key",
        }
    }
}

/// For a signature by a busy control plane; a Certify of 5,000 proxies at once takes 5 s at 1,000/s.
const ANSWER: Duration = Duration::from_secs(10);

/// Gets an SVID: with a join token for the key in `join_key`, which is made where there is none; otherwise for a new key.
pub(super) async fn certify(
    shared: &Shared,
    credential: Credential,
    join_key: &PendingKey,
) -> Result<Issued, CertifyError> {
    let new_key = PendingKey::default();
    let file = &shared.config.credential;
    let key = match (&credential, file) {
        (Credential::Token, CredentialFile::JoinToken(_)) => join_key,
        _ => &new_key,
    };
    let csr = key.csr_der()?;
    let (channel, token, expected) = match credential {
        Credential::Token => {
            let token = token::first(file)?.ok_or(CertifyError::NoToken)?;
            // The operator's word, read anew: it may have been replaced since the last attempt.
            let mounted = state::mounted_bundle(&shared.config.trust_bundle, &shared.config.trust_domain)?;
            let verifier = verifier(shared, mounted.into());
            let channel = open(shared, None, &verifier).await?;
            (channel, Some(token), None)
        }
        Credential::Svid(held) => {
            let token = token::service_account(file)?.map(proto::certify_request::Credential::ServiceAccountToken);
            let channel = open(shared, Some(&held.svid), shared.certificates.verifier()).await?;
            (channel, token, Some(held.svid.id().clone()))
        }
    };
    let request = proto::CertifyRequest { csr, credential: token };
    let mut client = IdentityClient::new(channel).max_decoding_message_size(MAX_ANSWER);
    let answer = tokio::time::timeout(ANSWER, client.certify(request)).await.map_err(|_| CertifyError::TimedOut)?;
    let answer = answer.map_err(|status| CertifyError::Refused {
        code: status.code(),
        message: status.message().chars().take(512).collect(),
    })?;
    verify(shared, answer.into_inner(), key, expected.as_ref())
}

/// A chain and a bundle: 8 + 64 certificates of 8 KiB.
const MAX_ANSWER: usize = 1024 * 1024;

async fn open(
    shared: &Shared,
    svid: Option<&Svid>,
    verifier: &Arc<SvidVerifier>,
) -> Result<tonic::transport::Channel, CertifyError> {
    let tls = tls::client_config(svid, verifier, ALPN_H2).map_err(StateError::from)?;
    let expected = control_plane_id(&shared.config.trust_domain);
    Ok(channel::connect(&shared.config.control_plane, shared.config.exempt, tls, verifier, &expected).await?)
}

fn verifier(shared: &Shared, bundles: TrustBundles) -> Arc<SvidVerifier> {
    let bundles: SharedBundles = bundles.shared();
    SvidVerifier::new(bundles, shared.clock.clone())
}

/// Looks at what came as a peer would, with the bundle that came along, before it replaces anything.
fn verify(
    shared: &Shared,
    answer: proto::CertifyResponse,
    key: &PendingKey,
    expected: Option<&SpiffeId>,
) -> Result<Issued, CertifyError> {
    let unusable = |reason: String| CertifyError::Answer(reason);
    let bundle = answer.bundle.as_ref().map(TrustBundle::try_from).transpose();
    let bundle = bundle.map_err(|error| unusable(error.to_string()))?;
    let mut bundles = TrustBundles::clone(&shared.certificates.bundles().load());
    if let Some(bundle) = &bundle {
        if bundle.trust_domain() != &shared.config.trust_domain {
            return Err(unusable(format!("a bundle of the trust domain {}", bundle.trust_domain())));
        }
        bundles.insert(bundle.clone());
    }
    let chain: Vec<_> = answer.chain.into_iter().map(CertificateDer::from).collect();
    let verified =
        verifier(shared, bundles).verify(&chain).map_err(|error: VerifyError| unusable(error.to_string()))?;
    let same_domain = verified.id().trust_domain() == &shared.config.trust_domain;
    if !same_domain || expected.is_some_and(|expected| expected != verified.id()) {
        let wanted = expected.map_or_else(|| format!("an ID in {}", shared.config.trust_domain), ToString::to_string);
        return Err(unusable(format!("expected {wanted}, found {}", verified.id())));
    }
    let key = key.take_for(&chain).ok_or_else(|| unusable("it is for another key".to_owned()))?;
    let svid = Svid::new(chain, key).map_err(|error: SvidError| unusable(error.to_string()))?;
    Ok(Issued { svid, bundle })
}

impl PendingKey {
    fn csr_der(&self) -> Result<Vec<u8>, KeyError> {
        let mut held = self.lock();
        let key = held.take().map_or_else(KeyPair::generate, Ok)?;
        held.insert(key).csr_der()
    }

    /// The key, if the leaf of this chain is for it; it is not held any more then.
    fn take_for(&self, chain: &[CertificateDer<'_>]) -> Option<KeyPair> {
        let leaf = ParsedCertificate::try_from(chain.first()?).ok()?;
        let certified = leaf.subject_public_key_info();
        self.lock().take_if(|key| key.spki_der() == *certified)
    }

    fn lock(&self) -> MutexGuard<'_, Option<KeyPair>> {
        // A key is put in or taken out in one step: a panic elsewhere can't leave it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
