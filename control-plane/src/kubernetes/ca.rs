//! The root that all replicas share: the Secret `byrnie-ca`. The first replica makes it; of two that try at once one
//! succeeds, and the other takes that one's. What is there is never replaced because it can't be read.

use std::{collections::BTreeMap, path::Path};

use byrnie_api::labels::{BUNDLE_CONFIG_MAP, CA_SECRET, SYSTEM_NAMESPACE};
use byrnie_identity::{
    Clock, KeyPair, TrustDomain,
    authority::{AuthorityError, CertificateAuthority, IssueLimits, RootPem},
    certificates_from_pem,
};
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, Client,
    api::{ListParams, ObjectMeta, PostParams},
};
use zeroize::Zeroizing;

use super::client::{ApiError, call};
use crate::limits;

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaError {
    #[error("Secret {SYSTEM_NAMESPACE}/{CA_SECRET}: {0}")]
    Api(#[from] ApiError),
    #[error(
        "Secret {SYSTEM_NAMESPACE}/{CA_SECRET}: key {key}: {reason}; restore the Secret from a backup (to begin anew, so \
         that every workload needs a new identity: delete it and all ConfigMaps {BUNDLE_CONFIG_MAP}, and restart the \
         control plane and the workloads)"
    )]
    Content { key: &'static str, reason: String },
    #[error(
        "Secret {SYSTEM_NAMESPACE}/{CA_SECRET} is missing, although workloads trust a root: ConfigMap \
         {0}/{BUNDLE_CONFIG_MAP} is there. Restore the Secret from a backup (to begin anew, so that every workload needs a \
         new identity: delete all ConfigMaps {BUNDLE_CONFIG_MAP}, and restart the workloads)"
    )]
    Missing(String),
    #[error("{0}")]
    Authority(AuthorityError),
}

impl CaError {
    /// See [`ApiError::may_pass`].
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Api(error) if error.may_pass())
    }
}

/// The keys of the Secret.
pub(super) const CERTIFICATE: &str = "root.crt";
const KEY: &str = "root.key";

/// The authority of this replica: the shared root, and an intermediate of its own in `directory`.
///
/// # Errors
/// [`CaError`].
pub(crate) async fn authority(
    client: &Client,
    directory: &Path,
    trust_domain: &TrustDomain,
    clock: &Clock,
    limits: IssueLimits,
) -> Result<CertificateAuthority, CaError> {
    let root = root(client, trust_domain, clock).await?;
    CertificateAuthority::open_under_root(directory, trust_domain.clone(), &root, clock, limits).map_err(|error| {
        match error {
            AuthorityError::RootNotValid { .. }
            | AuthorityError::Bundle(_)
            | AuthorityError::Certificate(_)
            | AuthorityError::Verify(_) => CaError::Content { key: CERTIFICATE, reason: error.to_string() },
            error => CaError::Authority(error),
        }
    })
}

/// Reads the root, or makes it.
async fn root(client: &Client, trust_domain: &TrustDomain, clock: &Clock) -> Result<RootPem, CaError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    if let Some(secret) = call(secrets.get_opt(CA_SECRET)).await? {
        return read(secret);
    }
    if let Some(namespace) = trusted_in(client).await? {
        return Err(CaError::Missing(namespace));
    }
    let root = RootPem::create(trust_domain, clock).map_err(CaError::Authority)?;
    let mut secret = secret_of(&root);
    let created = call(secrets.create(&PostParams::default(), &secret)).await;
    wipe(&mut secret);
    match created {
        Ok(mut secret) => {
            wipe(&mut secret);
            tracing::info!(
                "a root was made: Secret {SYSTEM_NAMESPACE}/{CA_SECRET}. Back it up: who has it is the mesh"
            );
            Ok(root)
        }
        Err(error) if error.code() == Some(409) => {
            tracing::info!("another replica has made the root");
            read(call(secrets.get(CA_SECRET)).await?)
        }
        Err(error) => Err(error.into()),
    }
}

/// A namespace whose workloads trust a root that this mesh once had.
async fn trusted_in(client: &Client) -> Result<Option<String>, ApiError> {
    let maps: Api<ConfigMap> = Api::all(client.clone());
    let named = ListParams::default().fields(&format!("metadata.name={BUNDLE_CONFIG_MAP}")).limit(limits::LIST_PAGE);
    let found = call(maps.list_metadata(&named)).await?;
    Ok(found.items.into_iter().find_map(|map| map.metadata.namespace))
}

fn secret_of(root: &RootPem) -> Secret {
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    Secret {
        metadata: ObjectMeta {
            name: Some(CA_SECRET.to_owned()),
            namespace: Some(SYSTEM_NAMESPACE.to_owned()),
            labels: Some(super::managed()),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".to_owned()),
        data: Some(BTreeMap::from([
            (CERTIFICATE.to_owned(), bytes(&root.certificate)),
            (KEY.to_owned(), bytes(&root.key)),
        ])),
        ..Secret::default()
    }
}

fn read(mut secret: Secret) -> Result<RootPem, CaError> {
    let certificate = text(&mut secret, CERTIFICATE)?;
    let key = text(&mut secret, KEY)?;
    wipe(&mut secret);
    let content = |key, reason: String| CaError::Content { key, reason };
    KeyPair::from_pem(&key).map_err(|error| content(KEY, error.to_string()))?;
    let certificates =
        certificates_from_pem(certificate.as_bytes()).map_err(|error| content(CERTIFICATE, error.to_string()))?;
    if certificates.len() != 1 {
        return Err(content(CERTIFICATE, format!("expected one certificate, found {}", certificates.len())));
    }
    Ok(RootPem { certificate: certificate.to_string(), key })
}

fn text(secret: &mut Secret, key: &'static str) -> Result<Zeroizing<String>, CaError> {
    let content = |reason: &str| CaError::Content { key, reason: reason.to_owned() };
    let found = secret.data.as_mut().and_then(|data| data.remove(key));
    let bytes = Zeroizing::new(found.ok_or_else(|| content("expected PEM, found nothing"))?.0);
    let text = std::str::from_utf8(&bytes).map_err(|_| content("expected PEM, found bytes that are no text"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// What the client library leaves in memory of an answer can't be reached; what we hold can.
pub(super) fn wipe(secret: &mut Secret) {
    for (_, bytes) in secret.data.take().unwrap_or_default() {
        drop(Zeroizing::new(bytes.0));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::super::testing::{Answer, fake};
    use super::*;

    fn domain() -> TrustDomain {
        "cluster.local".parse().unwrap()
    }

    fn clock() -> Clock {
        Clock::system()
    }

    fn stored(root: &RootPem) -> serde_json::Value {
        serde_json::to_value(secret_of(root)).unwrap()
    }

    async fn open(client: &Client, directory: &Path) -> Result<CertificateAuthority, CaError> {
        authority(client, directory, &domain(), &clock(), IssueLimits::default()).await
    }

    #[tokio::test]
    async fn the_first_replica_makes_the_root_and_the_second_takes_it() {
        let home = tempfile::tempdir().unwrap();
        let mut made = None;
        let (client, seen) = fake(move |request| match (request.method.as_str(), request.path.as_str()) {
            ("POST", _) => {
                made = Some(request.json());
                Answer::json(201, &request.json())
            }
            (_, path) if path.ends_with("/secrets/byrnie-ca") => match &made {
                Some(secret) => Answer::json(200, secret),
                None => Answer::status(404, "NotFound"),
            },
            _ => Answer::list("ConfigMapList", &[]),
        });
        let first = open(&client, &home.path().join("a")).await.unwrap();
        let second = open(&client, &home.path().join("b")).await.unwrap();
        assert_eq!(first.bundle().to_pem(), second.bundle().to_pem());
        assert_eq!(seen.lock().unwrap().iter().filter(|request| request.method == "POST").count(), 1);
    }

    #[tokio::test]
    async fn who_comes_second_takes_the_root_of_who_came_first() {
        let home = tempfile::tempdir().unwrap();
        let theirs = RootPem::create(&domain(), &clock()).unwrap();
        let secret = stored(&theirs);
        let mut asked = 0;
        let (client, _) = fake(move |request| match request.method.as_str() {
            "POST" => Answer::status(409, "AlreadyExists"),
            _ if request.path.ends_with("/secrets/byrnie-ca") => {
                asked += 1;
                if asked == 1 { Answer::status(404, "NotFound") } else { Answer::json(200, &secret) }
            }
            _ => Answer::list("ConfigMapList", &[]),
        });
        let authority = open(&client, home.path()).await.unwrap();
        assert_eq!(authority.bundle().to_pem(), theirs.certificate);
    }

    #[tokio::test]
    async fn a_lost_root_that_workloads_trust_is_not_replaced() {
        let home = tempfile::tempdir().unwrap();
        let map = serde_json::json!({"metadata": {"name": "byrnie-trust-bundle", "namespace": "shop"}});
        let (client, seen) = fake(move |request| match request.path.as_str() {
            path if path.ends_with("/secrets/byrnie-ca") => Answer::status(404, "NotFound"),
            _ => Answer::list("PartialObjectMetadataList", std::slice::from_ref(&map)),
        });
        let told = open(&client, home.path()).await.unwrap_err().to_string();
        assert!(told.contains("byrnie-ca") && told.contains("shop") && told.contains("backup"), "{told}");
        assert!(seen.lock().unwrap().iter().all(|request| request.method == "GET"));
    }

    #[tokio::test]
    async fn a_damaged_secret_is_named_with_its_key_and_never_replaced() {
        let root = RootPem::create(&domain(), &clock()).unwrap();
        let foreign = RootPem::create(&"other.example".parse().unwrap(), &clock()).unwrap();
        let good = stored(&root);
        let with = |key: &str, value: serde_json::Value| {
            let mut secret = good.clone();
            secret["data"][key] = value;
            secret
        };
        let without = |key: &str| {
            let mut secret = good.clone();
            secret["data"].as_object_mut().unwrap().remove(key);
            secret
        };
        let cases = [
            (without(KEY), KEY),
            (with(KEY, "bm90aGluZw==".into()), KEY),
            (with(CERTIFICATE, "/w==".into()), CERTIFICATE),
            (with(CERTIFICATE, "".into()), CERTIFICATE),
            (with(CERTIFICATE, stored(&foreign)["data"][CERTIFICATE].clone()), CERTIFICATE),
            (stored(&foreign), CERTIFICATE),
        ];
        for (secret, key) in cases {
            let home = tempfile::tempdir().unwrap();
            let (client, seen) = fake(move |_| Answer::json(200, &secret));
            let error = open(&client, home.path()).await.unwrap_err();
            let told = error.to_string();
            assert!(
                told.contains("byrnie-system/byrnie-ca") && told.contains(key) && told.contains("restore"),
                "{told}"
            );
            assert!(!told.contains("BEGIN") && !error.may_pass());
            assert!(seen.lock().unwrap().iter().all(|request| request.method == "GET"));
        }
    }

    #[tokio::test]
    async fn an_api_server_that_is_away_is_waited_for() {
        let home = tempfile::tempdir().unwrap();
        let (client, _) = fake(|_| Answer::status(500, "InternalError"));
        assert!(open(&client, home.path()).await.unwrap_err().may_pass());
    }
}
