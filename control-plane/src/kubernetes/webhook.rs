//! The injector's serving certificate, and the `caBundle` by which the API server knows it.
//!
//! The certificate vouches for itself and is trusted as such, so no authority of the mesh is trusted for webhooks. A new
//! one is trusted before it is served: first both webhook configurations get it, beside the present one, then the Secret.
//! The present one is what the injector serves, whatever has become of the Secret: the kubelet takes up to a minute to
//! bring it another.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use byrnie_api::labels::{INJECTOR, INJECTOR_SECRET, SYSTEM_NAMESPACE};
use byrnie_identity::{CertificateFacts, KeyPair, SelfSigned, certificate_to_pem, certificates_from_pem};
use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
        core::v1::Secret,
    },
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ObjectMeta, Patch, PostParams},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use zeroize::Zeroizing;

use super::{
    apply, ca,
    client::{ApiError, call},
    managed,
    writer::{Failures, Writer},
};
use crate::{limits, plane::Plane};

/// Keeps the certificate and what refers to it.
pub(super) struct WebhookCertificate {
    client: Client,
}

/// What there should be.
struct Plan {
    /// Whom the API server is to trust, PEM.
    trusted: String,
    /// To be served from now on, and what was served before.
    renewed: Option<(SelfSigned, Option<String>)>,
}

/// What the Secret holds, as far as it is any good.
#[derive(Default)]
struct Served {
    /// PEM, of this name, with its key, and still valid.
    current: Option<(String, CertificateFacts)>,
    /// PEM, and still valid; where there is no current one, what the injector serves all the same.
    previous: Option<String>,
}

/// The name by which the API server calls the injector.
const DNS_NAME: &str = "byrnie-injector.byrnie-system.svc";
/// Beside the keys that the type `kubernetes.io/tls` has: what was served before, and is by a replica that has not read
/// the new one yet.
const PREVIOUS: &str = "previous.crt";

impl WebhookCertificate {
    pub(super) fn new(client: Client) -> Self {
        Self { client }
    }

    async fn write_secret(
        &self,
        found: Option<&ObjectMeta>,
        made: &SelfSigned,
        previous: Option<String>,
    ) -> Result<(), ApiError> {
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        let mut data = BTreeMap::from([
            ("tls.crt".to_owned(), bytes(&made.certificate)),
            ("tls.key".to_owned(), bytes(&made.key)),
        ]);
        if let Some(previous) = previous {
            data.insert(PREVIOUS.to_owned(), bytes(&previous));
        }
        let mut secret = Secret {
            metadata: ObjectMeta {
                name: Some(INJECTOR_SECRET.to_owned()),
                namespace: Some(SYSTEM_NAMESPACE.to_owned()),
                labels: Some(managed()),
                // What has changed meanwhile is not written over.
                resource_version: found.and_then(|metadata| metadata.resource_version.clone()),
                ..ObjectMeta::default()
            },
            type_: Some("kubernetes.io/tls".to_owned()),
            data: Some(data),
            ..Secret::default()
        };
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        let written = match found {
            Some(_) => call(secrets.replace(INJECTOR_SECRET, &PostParams::default(), &secret)).await,
            None => call(secrets.create(&PostParams::default(), &secret)).await,
        };
        ca::wipe(&mut secret);
        ca::wipe(&mut written?);
        tracing::info!("the injector's serving certificate is written: Secret {SYSTEM_NAMESPACE}/{INJECTOR_SECRET}");
        Ok(())
    }
}

impl Writer for WebhookCertificate {
    const WHAT: &'static str = "the injector's certificate";
    const EVERY: Duration = limits::INJECTOR_CHECK;

    async fn pass(&mut self, plane: &Plane) -> Failures {
        let mut failures = Failures::default();
        let secret_name = format!("Secret {SYSTEM_NAMESPACE}/{INJECTOR_SECRET}");
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        let Some(found) = failures.keep(&secret_name, call(secrets.get_opt(INJECTOR_SECRET)).await) else {
            return failures;
        };
        let mutating: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let validating: Api<ValidatingWebhookConfiguration> = Api::all(self.client.clone());
        let (metadata, mut served) = match found {
            Some(mut secret) => {
                let served = Served::read(&mut secret, plane.clock.wall());
                ca::wipe(&mut secret);
                (Some(secret.metadata), served)
            }
            None => (None, Served::default()),
        };
        if served.current.is_none() {
            let found = failures.keep(format!("MutatingWebhookConfiguration {INJECTOR}"), trusted(&mutating).await);
            served.previous = still_served(&found.unwrap_or_default(), plane.clock.wall());
        }
        let Some(plan) = failures.keep(&secret_name, Plan::of(served, plane.clock.wall())) else {
            return failures;
        };
        let trusted = plan.trusted.as_bytes();
        failures.keep(format!("MutatingWebhookConfiguration {INJECTOR}"), trust(&mutating, trusted).await);
        failures.keep(format!("ValidatingWebhookConfiguration {INJECTOR}"), trust(&validating, trusted).await);
        // One that is not trusted yet is not served.
        if failures.is_empty()
            && let Some((made, previous)) = plan.renewed
        {
            failures.keep(&secret_name, self.write_secret(metadata.as_ref(), &made, previous).await);
        }
        failures
    }
}

impl Plan {
    fn of(served: Served, now: SystemTime) -> Result<Self, String> {
        let kept = |served: Served| (served.current.map(|(pem, _)| pem), served.previous);
        if served.current.as_ref().is_some_and(|(_, facts)| !is_due(facts, now)) {
            let (current, previous) = kept(served);
            let trusted = [current, previous].into_iter().flatten().collect();
            return Ok(Self { trusted, renewed: None });
        }
        let made =
            SelfSigned::server(DNS_NAME, now, limits::INJECTOR_CERTIFICATE).map_err(|error| error.to_string())?;
        let (current, previous) = kept(served);
        let present = current.or(previous);
        let trusted = [Some(made.certificate.clone()), present.clone()].into_iter().flatten().collect();
        Ok(Self { trusted, renewed: Some((made, present)) })
    }
}

impl Served {
    fn read(secret: &mut Secret, now: SystemTime) -> Self {
        let mut data = secret.data.take().unwrap_or_default();
        let mut take = |key: &str| Zeroizing::new(data.remove(key).unwrap_or_default().0);
        let (certificate, key, previous) = (take("tls.crt"), take("tls.key"), take(PREVIOUS));
        let spki = std::str::from_utf8(&key).ok().and_then(|key| KeyPair::from_pem(key).ok()).map(|key| key.spki_der());
        let current = one(&certificate, now).filter(|(_, facts)| Some(&facts.spki) == spki.as_ref());
        Self { current, previous: one(&previous, now).map(|(pem, _)| pem) }
    }
}

/// The one certificate of a text, where it is for the injector and valid.
fn one(text: &[u8], now: SystemTime) -> Option<(String, CertificateFacts)> {
    let certificates = certificates_from_pem(text).ok()?;
    let [certificate] = certificates.as_slice() else {
        return None;
    };
    let facts = CertificateFacts::read(certificate).ok()?;
    (facts.dns_names == [DNS_NAME] && facts.is_valid(now)).then(|| (certificate_to_pem(certificate), facts))
}

/// Of what the API server trusts, newest first, the certificate that the injector serves.
fn still_served(bundle: &[u8], now: SystemTime) -> Option<String> {
    let certificates = certificates_from_pem(bundle).ok()?;
    certificates.iter().find_map(|each| one(certificate_to_pem(each).as_bytes(), now)).map(|(pem, _)| pem)
}

fn is_due(facts: &CertificateFacts, now: SystemTime) -> bool {
    let life = facts.not_after.duration_since(facts.not_before).unwrap_or_default();
    now + life / 2 >= facts.not_after
}

/// A webhook configuration of either kind.
trait Configuration: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug {
    /// Name and `caBundle` of each webhook.
    fn webhooks(&self) -> Vec<(&str, Option<&[u8]>)>;
}

impl Configuration for MutatingWebhookConfiguration {
    fn webhooks(&self) -> Vec<(&str, Option<&[u8]>)> {
        let webhooks = self.webhooks.iter().flatten();
        webhooks
            .map(|hook| (hook.name.as_str(), hook.client_config.ca_bundle.as_ref().map(|b| b.0.as_slice())))
            .collect()
    }
}

impl Configuration for ValidatingWebhookConfiguration {
    fn webhooks(&self) -> Vec<(&str, Option<&[u8]>)> {
        let webhooks = self.webhooks.iter().flatten();
        webhooks
            .map(|hook| (hook.name.as_str(), hook.client_config.ca_bundle.as_ref().map(|b| b.0.as_slice())))
            .collect()
    }
}

/// What the API server trusts.
async fn trusted<C: Configuration>(api: &Api<C>) -> Result<Vec<u8>, ApiError> {
    let found = call(api.get_opt(INJECTOR)).await?;
    let first = found.as_ref().and_then(|found| found.webhooks().into_iter().find_map(|(_, bundle)| bundle));
    Ok(first.map(<[u8]>::to_vec).unwrap_or_default())
}

/// Has the API server trust these certificates in every webhook of the configuration. One that is not there (not
/// installed, or removed) needs none.
async fn trust<C: Configuration>(api: &Api<C>, trusted: &[u8]) -> Result<(), ApiError> {
    let Some(found) = call(api.get_opt(INJECTOR)).await? else {
        return Ok(());
    };
    let webhooks = found.webhooks();
    if webhooks.iter().all(|(_, bundle)| *bundle == Some(trusted)) {
        return Ok(());
    }
    let bundle = ByteString(trusted.to_vec());
    let webhooks: Vec<_> =
        webhooks.iter().map(|(name, _)| json!({"name": name, "clientConfig": {"caBundle": bundle}})).collect();
    let patch = json!({
        "apiVersion": C::api_version(&()),
        "kind": C::kind(&()),
        // A webhook that was removed meanwhile is not brought back.
        "metadata": {"name": INJECTOR, "resourceVersion": found.resource_version()},
        "webhooks": webhooks,
    });
    call(api.patch(INJECTOR, &apply(), &Patch::Apply(&patch))).await?;
    tracing::info!("caBundle of {} {INJECTOR} written", C::kind(&()));
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn secret(made: &SelfSigned, previous: Option<&str>) -> Secret {
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        let mut data = BTreeMap::from([
            ("tls.crt".to_owned(), bytes(&made.certificate)),
            ("tls.key".to_owned(), bytes(&made.key)),
        ]);
        data.extend(previous.map(|previous| (PREVIOUS.to_owned(), bytes(previous))));
        Secret { data: Some(data), ..Secret::default() }
    }

    fn plan(mut secret: Secret, now: SystemTime) -> Plan {
        Plan::of(Served::read(&mut secret, now), now).unwrap()
    }

    #[test]
    fn a_new_certificate_is_trusted_beside_the_one_that_is_served() {
        let first = Plan::of(Served::default(), start()).unwrap();
        let (made, previous) = first.renewed.unwrap();
        assert!(previous.is_none() && first.trusted == made.certificate);

        let half = plan(secret(&made, None), start() + 14 * DAY);
        assert!(half.renewed.is_none() && half.trusted == made.certificate);

        let due = plan(secret(&made, None), start() + 15 * DAY);
        let (next, previous) = due.renewed.unwrap();
        assert_eq!(previous.as_deref(), Some(made.certificate.as_str()));
        assert!(due.trusted.contains(&made.certificate) && due.trusted.contains(&next.certificate));

        // A replica may serve the old one until kubelet has brought it the new one.
        let after = plan(secret(&next, previous.as_deref()), start() + 16 * DAY);
        assert!(after.renewed.is_none() && after.trusted.contains(&made.certificate));
        let later = plan(secret(&next, previous.as_deref()), start() + 29 * DAY);
        assert!(later.trusted.contains(&made.certificate));
    }

    #[test]
    fn what_the_injector_serves_stays_trusted_though_the_secret_is_damaged() {
        let first = SelfSigned::server(DNS_NAME, start(), limits::INJECTOR_CERTIFICATE).unwrap();
        let second = SelfSigned::server(DNS_NAME, start() + DAY, limits::INJECTOR_CERTIFICATE).unwrap();
        let foreign = SelfSigned::server("evil.example", start(), limits::INJECTOR_CERTIFICATE).unwrap();
        let bundle = [&foreign, &second, &first].map(|made| made.certificate.as_str()).concat();
        let served = still_served(bundle.as_bytes(), start() + 2 * DAY);
        assert_eq!(served.as_deref(), Some(second.certificate.as_str()));
        let plan = Plan::of(Served { current: None, previous: served.clone() }, start() + 2 * DAY).unwrap();
        let (next, previous) = plan.renewed.unwrap();
        assert!(plan.trusted.contains(&next.certificate) && plan.trusted.contains(&second.certificate));
        assert_eq!(previous, served);
        for (bundle, now) in [(bundle.as_str(), start() + 40 * DAY), ("", start()), ("no PEM", start())] {
            assert_eq!(still_served(bundle.as_bytes(), now), None);
        }
    }

    #[test]
    fn what_is_damaged_foreign_or_over_is_replaced_and_not_trusted() {
        let made = SelfSigned::server(DNS_NAME, start(), limits::INJECTOR_CERTIFICATE).unwrap();
        let other = SelfSigned::server(DNS_NAME, start(), limits::INJECTOR_CERTIFICATE).unwrap();
        let foreign = SelfSigned::server("evil.example", start(), limits::INJECTOR_CERTIFICATE).unwrap();
        let mixed = SelfSigned { certificate: made.certificate.clone(), key: other.key };
        let damaged = SelfSigned { certificate: "no PEM".to_owned(), key: Zeroizing::default() };
        let cases = [
            (secret(&mixed, None), start()),
            (secret(&foreign, Some(&foreign.certificate)), start()),
            (secret(&damaged, Some("x")), start()),
            (secret(&made, None), start() + 31 * DAY),
            (Secret::default(), start()),
        ];
        for (secret, now) in cases {
            let plan = plan(secret, now);
            let (next, previous) = plan.renewed.unwrap();
            assert!(previous.is_none() && plan.trusted == next.certificate);
        }
    }
}
