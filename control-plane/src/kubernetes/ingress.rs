//! Client certificates for ingress controllers, as Secrets of type `kubernetes.io/tls` with `ca.crt`, where MeshConfig
//! wants them. Outside of Kubernetes they are files ([`crate::certificates::ingress`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use byrnie_api::{IngressCertificate, labels::INGRESS_SECRET};
use byrnie_identity::{CertificateFacts, KeyPair, SpiffeId, Svid, certificates_from_pem};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, Preconditions},
};
use zeroize::Zeroizing;

use super::{
    apply, ca,
    client::{ApiError, call},
    is_managed, managed,
    writer::{Failures, Writer},
};
use crate::{
    certificates::ingress,
    journal::{Holder, unix},
    limits,
    plane::Plane,
};

/// Writes the Secrets, renews them, and removes those that MeshConfig no longer names.
pub(super) struct IngressSecrets {
    client: Client,
    /// Names of Secrets that MeshConfig has named, for their removal.
    names: BTreeSet<String>,
    /// What was wanted when it was last looked for what is not.
    swept: Option<(Duration, BTreeSet<(String, String)>)>,
}

/// Label of these Secrets.
const LABEL: &str = "byrnie.dev/ingress-certificate";

#[derive(Debug, thiserror::Error)]
enum SecretError {
    #[error("{0}")]
    Api(#[from] ApiError),
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Certificate(#[from] crate::certificates::CertificateError),
    #[error(
        "there is one that Byrnie has not made; delete it, or name another by spec.ingressCertificates[].secretName \
         of the MeshConfig"
    )]
    Foreign,
}

impl IngressSecrets {
    pub(super) fn new(client: Client) -> Self {
        Self { client, names: BTreeSet::from([INGRESS_SECRET.to_owned()]), swept: None }
    }

    async fn ensure(&self, plane: &Plane, wanted: &IngressCertificate) -> Result<(), SecretError> {
        let id = ingress::identity(&plane.model.load(), wanted).map_err(SecretError::Refused)?;
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &wanted.namespace);
        let found = call(secrets.get_opt(wanted.secret_name())).await?;
        let roots = plane.authority.bundle().to_pem();
        let read = found.as_ref().and_then(ResourceExt::resource_version);
        if let Some(mut secret) = found {
            let (ours, good) = (is_managed(&secret.metadata), is_good(plane, &mut secret, &id, &roots));
            ca::wipe(&mut secret);
            if !ours {
                return Err(SecretError::Foreign);
            }
            if good {
                return Ok(());
            }
        }
        let key = KeyPair::generate().map_err(crate::certificates::CertificateError::from)?;
        let workload = format!("{}/{}", wanted.namespace, wanted.service_account);
        let certificate = plane.issue(&key.spki_der(), &id, Holder::Ingress(id.clone()), &workload).await;
        let certificate = certificate.map_err(crate::certificates::CertificateError::from)?;
        let key_pem = key.to_pem();
        let svid = Svid::new(certificate.chain, key).map_err(crate::certificates::CertificateError::from)?;
        let mut secret = secret_of(wanted, &svid, &key_pem, &roots);
        // What was not there is made, and never taken from who makes it at the same time; what was is replaced as it was read.
        let first = read.is_none();
        let parameters = PatchParams { force: !first, ..apply() };
        secret.metadata.resource_version = read;
        let written = call(secrets.patch(wanted.secret_name(), &parameters, &Patch::Apply(&secret))).await;
        ca::wipe(&mut secret);
        let mut written = written.map_err(|error| match error.code() {
            Some(409) if first => SecretError::Foreign,
            _ => error.into(),
        })?;
        ca::wipe(&mut written);
        let (secret, serial) = (format!("{}/{}", wanted.namespace, wanted.secret_name()), svid.serial());
        tracing::info!(secret, id = id.as_str(), serial, "ingress certificate written");
        Ok(())
    }

    /// Keys that MeshConfig no longer asks for are not left lying about.
    async fn sweep(&self, wanted: &BTreeSet<(String, String)>, failures: &mut Failures) {
        let secrets: Api<Secret> = Api::all(self.client.clone());
        for name in &self.names {
            let mut page = ListParams::default().fields(&format!("metadata.name={name}")).limit(limits::LIST_PAGE);
            page = page.labels(LABEL);
            // The first page is enough: whoever has 500 of them gets rid of them in several goes.
            let Some(list) = failures.keep(format!("Secrets {name}"), call(secrets.list_metadata(&page)).await) else {
                continue;
            };
            for found in list.items {
                let namespace = found.namespace().unwrap_or_default();
                if !is_managed(&found.metadata) || wanted.contains(&(namespace.clone(), name.clone())) {
                    continue;
                }
                let unchanged = Preconditions { uid: found.uid(), resource_version: found.resource_version() };
                let api: Api<Secret> = Api::namespaced(self.client.clone(), &namespace);
                let removed = call(api.delete(name, &DeleteParams::default().preconditions(unchanged))).await;
                if failures.keep(format!("Secret {namespace}/{name}"), removed).is_some() {
                    tracing::info!(namespace, name, "ingress certificate removed: MeshConfig no longer names it");
                }
            }
        }
    }
}

impl Writer for IngressSecrets {
    const WHAT: &'static str = "ingress certificates";
    const EVERY: Duration = limits::INGRESS_COMPARED;

    async fn pass(&mut self, plane: &Plane) -> Failures {
        let mut failures = Failures::default();
        let settings = plane.model.load().settings.clone();
        let mut wanted = BTreeSet::new();
        for certificate in &settings.ingress_certificates {
            let name = certificate.secret_name();
            wanted.insert((certificate.namespace.clone(), name.to_owned()));
            if self.names.len() < limits::INGRESS_SECRET_NAMES {
                self.names.insert(name.to_owned());
            }
            failures.keep(format!("Secret {}/{name}", certificate.namespace), self.ensure(plane, certificate).await);
        }
        let now = plane.clock.boot();
        let fresh = |(at, then): &(Duration, BTreeSet<_>)| *then == wanted && now.saturating_sub(*at) < limits::SWEPT;
        if !self.swept.as_ref().is_some_and(fresh) {
            self.sweep(&wanted, &mut failures).await;
            if failures.is_empty() {
                self.swept = Some((now, wanted));
            }
        }
        failures
    }
}

/// Whether a Secret holds what it should, for a while yet.
fn is_good(plane: &Plane, secret: &mut Secret, id: &SpiffeId, roots: &str) -> bool {
    let mut data = secret.data.take().unwrap_or_default();
    let mut take = |key: &str| Zeroizing::new(data.remove(key).unwrap_or_default().0);
    let (chain, key, trusted) = (take("tls.crt"), take("tls.key"), take("ca.crt"));
    let Ok(chain) = certificates_from_pem(&chain) else {
        return false;
    };
    let Some(leaf) = chain.first().and_then(|leaf| CertificateFacts::read(leaf).ok()) else {
        return false;
    };
    let spki = std::str::from_utf8(&key).ok().and_then(|key| KeyPair::from_pem(key).ok()).map(|key| key.spki_der());
    let verified = plane.verifier.verify(&chain);
    verified.is_ok_and(|peer| peer.id() == id && peer.is_outside_mesh())
        && spki.as_ref() == Some(&leaf.spki)
        && *trusted == roots.as_bytes()
        && !plane.is_due(unix(leaf.not_before), unix(leaf.not_after))
}

fn secret_of(wanted: &IngressCertificate, svid: &Svid, key: &str, roots: &str) -> Secret {
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    let mut labels = managed();
    labels.insert(LABEL.to_owned(), "true".to_owned());
    Secret {
        metadata: ObjectMeta {
            name: Some(wanted.secret_name().to_owned()),
            namespace: Some(wanted.namespace.clone()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(BTreeMap::from([
            ("tls.crt".to_owned(), bytes(&svid.chain_pem())),
            ("tls.key".to_owned(), bytes(key)),
            ("ca.crt".to_owned(), bytes(roots)),
        ])),
        ..Secret::default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};

    use super::{
        super::testing::{Answer, Asked, fake, plane},
        *,
    };

    fn config() -> Value {
        json!({"apiVersion": "byrnie.dev/v1alpha1", "kind": "MeshConfig", "metadata": {"name": "default"},
            "spec": {"ingressCertificates": [{"namespace": "ingress", "serviceAccount": "nginx"}]}})
    }

    /// An API server with one Secret, in `ingress`, that keeps what is written to it.
    fn server(stored: Option<Value>) -> (IngressSecrets, Arc<Mutex<Vec<Asked>>>) {
        let mut stored = stored;
        let (client, seen) = fake(move |asked| match (asked.method.as_str(), &stored) {
            ("PATCH", _) => {
                stored = Some(asked.json());
                Answer::json(200, &asked.json())
            }
            ("DELETE", _) => Answer::json(200, &json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})),
            (_, _) if asked.path == "/api/v1/secrets" => Answer::list("PartialObjectMetadataList", &[]),
            (_, Some(secret)) => Answer::json(200, secret),
            (_, None) => Answer::status(404, "NotFound"),
        });
        (IngressSecrets::new(client), seen)
    }

    fn writes(seen: &Arc<Mutex<Vec<Asked>>>) -> Vec<Value> {
        seen.lock().unwrap().iter().filter(|asked| asked.method == "PATCH").map(Asked::json).collect()
    }

    #[tokio::test]
    async fn an_ingress_gets_its_certificate_once_and_a_damaged_one_is_replaced() {
        let home = tempfile::tempdir().unwrap();
        let plane = plane(home.path(), &[config()]);
        let (mut secrets, seen) = server(None);
        for _ in 0..2 {
            let failures = secrets.pass(&plane).await;
            assert!(failures.is_empty(), "{failures:?}");
        }
        let written = writes(&seen);
        assert_eq!(written.len(), 1);
        assert_eq!(written[0]["type"], "kubernetes.io/tls");
        for damage in ["tls.crt", "tls.key", "ca.crt"] {
            let mut secret = written[0].clone();
            secret["data"][damage] = "eA==".into();
            let (mut secrets, seen) = server(Some(secret));
            assert!(secrets.pass(&plane).await.is_empty());
            assert_eq!(writes(&seen).len(), 1, "{damage}");
        }
        let mut read = written[0].clone();
        read["data"]["tls.crt"] = "eA==".into();
        read["metadata"]["resourceVersion"] = "7".into();
        let (mut secrets, seen) = server(Some(read));
        assert!(secrets.pass(&plane).await.is_empty());
        assert_eq!(writes(&seen)[0]["metadata"]["resourceVersion"], "7");
    }

    #[tokio::test]
    async fn a_secret_that_somebody_makes_at_the_same_time_is_theirs() {
        let home = tempfile::tempdir().unwrap();
        let plane = plane(home.path(), &[config()]);
        let (client, _) = fake(|asked| match asked.method.as_str() {
            "PATCH" => Answer::status(409, "Conflict"),
            _ if asked.path == "/api/v1/secrets" => Answer::list("PartialObjectMetadataList", &[]),
            _ => Answer::status(404, "NotFound"),
        });
        let failures = IngressSecrets::new(client).pass(&plane).await;
        assert!(failures.all()[0].contains("that Byrnie has not made"), "{failures:?}");
    }

    #[tokio::test]
    async fn a_secret_that_somebody_else_has_made_is_not_written_over() {
        let home = tempfile::tempdir().unwrap();
        let plane = plane(home.path(), &[config()]);
        let theirs =
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": INGRESS_SECRET, "namespace": "ingress"}});
        let (mut secrets, seen) = server(Some(theirs));
        let failures = secrets.pass(&plane).await;
        let told = failures.all();
        assert!(told[0].contains("ingress/byrnie-ingress-client") && told[0].contains("secretName"), "{told:?}");
        assert!(writes(&seen).is_empty());
    }

    #[tokio::test]
    async fn the_service_account_of_a_meshed_pod_is_not_given_away() {
        let home = tempfile::tempdir().unwrap();
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "ingress", "uid": "u"},
            "spec": {"serviceAccountName": "nginx", "containers": [], "initContainers": [
                {"name": "byrnie-capture", "image": "x"}, {"name": "byrnie-proxy", "image": "x", "restartPolicy": "Always"}]},
            "status": {"podIP": "10.0.0.9"}});
        let plane = plane(home.path(), &[config(), pod]);
        let (mut secrets, seen) = server(None);
        let failures = secrets.pass(&plane).await;
        assert!(failures.all()[0].contains("outside of the mesh"), "{failures:?}");
        assert!(writes(&seen).is_empty());
    }
}
