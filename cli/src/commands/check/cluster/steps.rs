//! The steps, in their order.

use byrnie_api::labels::{BUNDLE_CONFIG_MAP, BUNDLE_KEY, CONTROL_PLANE, INJECTOR, PROXY_CONTAINER, SYSTEM_NAMESPACE};
use byrnie_proto::mesh::v1::ObserveResponse;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::api::rbac::v1::{ClusterRole, Role};
use kube::ResourceExt;
use kube::api::{Api, ListParams, PostParams};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::super::findings;
use super::Step;
use crate::cluster::{Cluster, pods as pod};
use crate::failure::Failure;
use crate::install::{self, Manifest, OLDEST_KUBERNETES, VERSION_LABEL, Values, ready};

/// Workloads that one line names; the others are counted.
const MOST_NAMED: usize = 5;

const INSTALL: &str = "byrnie install   (the same command again repairs)";

pub(super) async fn api_server(cluster: &Cluster) -> Step {
    let check = "API server";
    let (least_major, least_minor) = OLDEST_KUBERNETES;
    match cluster.version().await {
        Ok((major, minor)) if (major, minor) >= OLDEST_KUBERNETES => {
            Step::ok(check, format!("Kubernetes {major}.{minor}"))
        }
        Ok((major, minor)) => Step::failed(
            check,
            format!("Kubernetes {major}.{minor}, and {least_major}.{least_minor} or later is needed"),
            "upgrade the cluster",
        ),
        Err(failure) => Step::from_failure(check, &failure),
    }
}

pub(super) async fn installation(cluster: &Cluster) -> Step {
    let check = "installation";
    let api: Api<Deployment> = Api::namespaced(cluster.client(), SYSTEM_NAMESPACE);
    let found = match cluster.call("look for an installation", api.get_opt(CONTROL_PLANE)).await {
        Ok(Some(found)) => found,
        Ok(None) => return Step::failed(check, "Byrnie is not installed in this cluster", "byrnie install"),
        Err(failure) => return Step::from_failure(check, &failure),
    };
    let version = found.labels().get(VERSION_LABEL).map_or("unknown", String::as_str);
    let api: Api<Pod> = Api::namespaced(cluster.client(), SYSTEM_NAMESPACE);
    let params = ListParams::default().labels("app.kubernetes.io/name=byrnie");
    match cluster.list("list our pods", &api, &params).await {
        Ok(pods) => versions(check, version, &pods),
        Err(failure) => Step::from_failure(check, &failure),
    }
}

/// Whether what is installed, what runs and this program are of one version.
fn versions(check: &'static str, installed: &str, pods: &[Pod]) -> Step {
    let own = env!("CARGO_PKG_VERSION");
    let others = pods.iter().filter(|each| !pod::is_finished(each));
    let others = others.filter_map(|each| Some((each, pod::version(each).filter(|found| found != installed)?)));
    let others: Vec<String> = others.map(|(each, found)| format!("{} ({found})", each.name_any())).collect();
    let printed = crate::cluster::printable(installed);
    if !others.is_empty() {
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        return Step::warning(
            check,
            crate::cluster::printable(&format!("version {printed}, and pods of others: {}", named(&others))),
            format!(
                "kubectl -n {SYSTEM_NAMESPACE} rollout status deployment; where no update is going on, byrnie upgrade"
            ),
        );
    }
    if installed != own {
        return Step::warning(
            check,
            format!("version {printed}, and this program is {own}"),
            "byrnie upgrade, or that version's byrnie",
        );
    }
    Step::ok(check, format!("version {printed}"))
}

pub(super) async fn definitions(cluster: &Cluster) -> Step {
    let check = "definitions";
    match ready::definitions(cluster).await {
        Ok(None) => Step::ok(check, format!("{} kinds of byrnie.dev", byrnie_api::crds().len())),
        Ok(Some(missing)) => Step::failed(check, missing, INSTALL),
        Err(failure) => Step::from_failure(check, &failure),
    }
}

/// The roles and the policy as they are, against what this version has them be.
pub(super) async fn permissions(cluster: &Cluster) -> Step {
    let kinds = [
        "ClusterRole",
        "Role",
        "ClusterRoleBinding",
        "RoleBinding",
        "ServiceAccount",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    ];
    installed(cluster, "permissions", &kinds, "roles, bindings and policies").await
}

/// By what name the API server and the proxies find us, and what keeps a drain from ending all of us.
pub(super) async fn services(cluster: &Cluster) -> Step {
    installed(cluster, "services", &["Service", "PodDisruptionBudget"], "Services and disruption budgets").await
}

/// Whether the objects of these kinds are there, and roles with the rules of this version.
async fn installed(cluster: &Cluster, check: &'static str, kinds: &[&str], what: &str) -> Step {
    let (mut looked, mut wrong) = (0_usize, Vec::new());
    for wanted in install::objects(&Values::default()) {
        if !kinds.contains(&wanted.kind()) {
            continue;
        }
        looked += 1;
        match rules(cluster, &wanted).await {
            Ok(None) => wrong.push(format!("{wanted} is missing")),
            Ok(Some(rules)) if !rules.is_null() && Some(&rules) != wanted.object.data.get("rules") => {
                wrong.push(format!("{wanted} has other rules than those of this version"));
            }
            Ok(Some(_)) => {}
            Err(failure) => return Step::from_failure(check, &failure),
        }
    }
    if wrong.is_empty() {
        Step::ok(check, format!("{looked} {what}"))
    } else {
        Step::failed(check, wrong.join("\n"), INSTALL)
    }
}

/// The rules of a role, `Null` for what has none, and nothing where the object is not there.
async fn rules(cluster: &Cluster, wanted: &Manifest) -> Result<Option<Value>, Failure> {
    let doing = format!("get {wanted}");
    match wanted.kind() {
        "ClusterRole" => {
            let api: Api<ClusterRole> = Api::all(cluster.client());
            let found = cluster.call(&doing, api.get_opt(wanted.name())).await?;
            Ok(found.map(|found| json!(found.rules)))
        }
        "Role" => {
            let api: Api<Role> = Api::namespaced(cluster.client(), wanted.namespace().unwrap_or_default());
            let found = cluster.call(&doing, api.get_opt(wanted.name())).await?;
            Ok(found.map(|found| json!(found.rules)))
        }
        _ => there(cluster, wanted).await,
    }
}

async fn there(cluster: &Cluster, wanted: &Manifest) -> Result<Option<Value>, Failure> {
    let api: Api<kube::api::DynamicObject> = match wanted.namespace() {
        Some(namespace) => Api::namespaced_with(cluster.client(), namespace, &wanted.resource),
        None => Api::all_with(cluster.client(), &wanted.resource),
    };
    let found = cluster.call(&format!("get {wanted}"), api.get_metadata_opt(wanted.name())).await?;
    Ok(found.map(|_| Value::Null))
}

pub(super) async fn control_plane(cluster: &Cluster) -> Step {
    deployment(cluster, "control plane", CONTROL_PLANE).await
}

pub(super) async fn injector(cluster: &Cluster) -> Step {
    deployment(cluster, "injector", INJECTOR).await
}

async fn deployment(cluster: &Cluster, check: &'static str, name: &str) -> Step {
    match ready::deployment(cluster, name).await {
        Ok(None) => Step::ok(check, "available, and up to date"),
        Ok(Some(missing)) => Step::failed(
            check,
            missing,
            format!(
                "kubectl -n {SYSTEM_NAMESPACE} describe deployment {name}; kubectl -n {SYSTEM_NAMESPACE} logs deploy/{name}"
            ),
        ),
        Err(failure) => Step::from_failure(check, &failure),
    }
}

/// The configurations; and, where a namespace is enrolled, a pod that is made for a test and never stored.
pub(super) async fn webhooks(cluster: &Cluster) -> Step {
    let check = "webhooks";
    match ready::certificates(cluster).await {
        Ok(None) => {}
        Ok(Some(missing)) => {
            let next =
                format!("kubectl -n {SYSTEM_NAMESPACE} logs deploy/{CONTROL_PLANE}; if it is missing: byrnie install");
            return Step::failed(check, missing, next);
        }
        Err(failure) => return Step::from_failure(check, &failure),
    }
    let enrolled = match cluster.enrolled().await {
        Ok(enrolled) => enrolled,
        Err(failure) => return Step::from_failure(check, &failure),
    };
    let Some(namespace) = enrolled.first() else {
        return Step::ok(check, "known to the API server; no namespace is enrolled to try them in");
    };
    let api: Api<Pod> = Api::namespaced(cluster.client(), namespace);
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    match tokio::time::timeout(std::time::Duration::from_secs(30), api.create(&dry_run, &trial())).await {
        Ok(Ok(made)) if pod::is_meshed(&made) => {
            Step::ok(check, format!("a pod made for a test in {namespace} got its proxy"))
        }
        Ok(Ok(_)) => Step::failed(
            check,
            format!("a pod made for a test in {namespace} got no {PROXY_CONTAINER}"),
            format!("kubectl get mutatingwebhookconfiguration {INJECTOR} -o yaml"),
        ),
        Ok(Err(kube::Error::Api(status))) => {
            let said = crate::cluster::printable(&status.message);
            if said.contains("byrnie.dev") || status.code >= 500 {
                return Step::failed(check, said, format!("kubectl -n {SYSTEM_NAMESPACE} logs deploy/{INJECTOR}"));
            }
            // Quotas and policies of others may not let a test pod in; that says nothing about ours.
            Step::warning(check, format!("no test pod may be made in {namespace}: {said}"), "make a pod there yourself")
        }
        Ok(Err(error)) => Step::failed(check, crate::cluster::printable(&error.to_string()), "kubectl cluster-info"),
        Err(_) => Step::failed(
            check,
            "the API server did not answer within 30 s",
            format!("kubectl -n {SYSTEM_NAMESPACE} logs deploy/{INJECTOR}"),
        ),
    }
}

fn trial() -> Pod {
    use k8s_openapi::api::core::v1::{Capabilities, Container, PodSpec, SeccompProfile, SecurityContext};
    Pod {
        metadata: kube::api::ObjectMeta { name: Some("byrnie-check".into()), ..Default::default() },
        spec: Some(PodSpec {
            containers: vec![Container {
                name: "check".into(),
                image: Some("byrnie/check".into()),
                security_context: Some(SecurityContext {
                    run_as_non_root: Some(true),
                    run_as_user: Some(65_534),
                    allow_privilege_escalation: Some(false),
                    capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
                    seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), ..Default::default() }),
                    ..Default::default()
                }),
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// One in every enrolled namespace, and the same in all.
pub(super) async fn trust_bundles(cluster: &Cluster) -> Vec<Step> {
    let check = "trust bundles";
    let found = async {
        let enrolled = cluster.enrolled().await?;
        let api: Api<ConfigMap> = Api::all(cluster.client());
        let params = ListParams::default().fields(&format!("metadata.name={BUNDLE_CONFIG_MAP}"));
        Ok::<_, Failure>((enrolled, cluster.list("list the trust bundles", &api, &params).await?))
    };
    let (enrolled, maps) = match found.await {
        Ok(found) => found,
        Err(failure) => return vec![Step::from_failure(check, &failure)],
    };
    let of = |namespace: &String| {
        let map = maps.iter().find(|map| map.namespace().as_ref() == Some(namespace))?;
        map.data.as_ref()?.get(BUNDLE_KEY).map(|pem| pem.trim())
    };
    let missing: Vec<&str> = enrolled.iter().filter(|each| of(each).is_none()).map(String::as_str).collect();
    if !missing.is_empty() {
        let found = format!("missing in {}", named(&missing));
        return vec![Step::failed(check, found, format!("kubectl -n {SYSTEM_NAMESPACE} logs deploy/{CONTROL_PLANE}"))];
    }
    let first = enrolled.first().and_then(of);
    let others: Vec<&str> = enrolled.iter().filter(|each| of(each) != first).map(String::as_str).collect();
    if !others.is_empty() {
        let found = format!("not the same everywhere: another one in {}", named(&others));
        return vec![Step::failed(check, found, format!("kubectl -n {SYSTEM_NAMESPACE} logs deploy/{CONTROL_PLANE}"))];
    }
    vec![Step::ok(check, format!("one in each of {} enrolled namespaces", enrolled.len()))]
}

/// Pods of enrolled namespaces that have no proxy.
pub(super) async fn pods(cluster: &Cluster) -> Vec<Step> {
    let check = "pods";
    let all = match cluster.enrolments().await {
        Ok(all) => all,
        Err(failure) => return vec![Step::from_failure(check, &failure)],
    };
    let mut steps = Vec::new();
    for each in all.iter().filter(|each| each.enrolled && each.unmeshed > 0) {
        steps.push(Step::warning(
            check,
            format!(
                "{}: {} pods have no proxy; they were made before the namespace was enrolled",
                each.namespace, each.unmeshed
            ),
            format!("byrnie namespace add {} --restart", each.namespace),
        ));
    }
    for each in all.iter().filter(|each| !each.enrolled && each.meshed > 0) {
        steps.push(Step::warning(
            check,
            format!("{}: {} pods still have a proxy, and the namespace is not enrolled", each.namespace, each.meshed),
            format!("byrnie namespace remove {} --restart", each.namespace),
        ));
    }
    if steps.is_empty() {
        let (namespaces, meshed) =
            all.iter().filter(|each| each.enrolled).fold((0, 0), |(count, sum), each| (count + 1, sum + each.meshed));
        let found = format!("{meshed} in {namespaces} enrolled namespaces, all of them with a proxy");
        steps.push(match namespaces {
            0 => Step::warning(check, "no namespace is enrolled", "byrnie namespace add NAMESPACE"),
            _ => Step::ok(check, found),
        });
    }
    steps
}

/// What the control plane knows: refused objects, proxies that are not well, certificates that end.
pub(super) async fn mesh(cluster: &Cluster, min_cert_days: Option<u32>) -> Vec<Step> {
    let check = "mesh";
    let found = async { Ok::<_, Failure>((cluster.observe().await?, cluster.enrolled().await?)) };
    let (mut observed, enrolled) = match found.await {
        Ok(found) => found,
        Err(failure) => return vec![Step::from_failure(check, &failure)],
    };
    let notes = notes(&observed, &enrolled);
    observed.objects.retain(|object| !object.accepted);
    let mut steps: Vec<Step> = findings(&observed)
        .into_iter()
        .map(|finding| {
            let next = match finding.about.split(' ').next() {
                Some("Proxy") => "byrnie proxy status -o wide",
                Some("APIResource") => "if it stays so: kubectl -n byrnie-system logs deploy/byrnie-control-plane",
                _ => "kubectl get byrnie -A",
            };
            Step::failed(check, format!("{}: {}", finding.about, finding.problem), next)
        })
        .collect();
    steps.extend(notes);
    steps.extend(ending(&observed, min_cert_days, OffsetDateTime::now_utc().unix_timestamp()));
    if steps.is_empty() {
        let count = observed.proxies.iter().filter(|proxy| !proxy.terminating).count();
        steps.push(Step::ok(check, format!("{count} proxies ready, every object in force, certificates fresh")));
    }
    steps
}

/// What is in force, and not quite what somebody may think: of enrolled namespaces, and of the cluster's own objects. The
/// same about other namespaces is nobody's business here (there is UDP at every cluster's DNS), and pods without a proxy
/// have a step of their own.
fn notes(observed: &ObserveResponse, enrolled: &[String]) -> Vec<Step> {
    let noted = observed.objects.iter().filter(|object| object.accepted && !object.message.is_empty());
    let concern = noted.filter(|object| match object.object.split_once(' ') {
        Some(("Pod", _)) => false,
        Some((_, place)) => {
            place.split_once('/').is_none_or(|(namespace, _)| enrolled.iter().any(|each| each == namespace))
        }
        None => true,
    });
    let step = |object: &byrnie_proto::mesh::v1::ObjectStatus| {
        let found = crate::cluster::printable(&format!("{}: {}", object.object, object.message));
        Step::warning("mesh", found, "kubectl describe it; its events say the same")
    };
    concern.map(step).collect()
}

/// Certificates that end within so many days; without a number, those past three quarters of their life, which should have
/// been renewed at half of it.
fn ending(observed: &ObserveResponse, min_cert_days: Option<u32>, now: i64) -> Option<Step> {
    const DAY: i64 = 86_400;
    let soon = |not_before: i64, not_after: i64| match min_cert_days {
        Some(days) => not_after.saturating_sub(now) < i64::from(days).saturating_mul(DAY),
        None => not_after.saturating_sub(now) < not_after.saturating_sub(not_before) / 4,
    };
    let ending = observed.identities.iter().filter(|each| soon(each.not_before, each.not_after));
    let ending: Vec<&str> = ending.map(|each| each.workload.as_str()).collect();
    (!ending.is_empty()).then(|| {
        let what = min_cert_days
            .map_or_else(|| "should have been renewed by now".to_owned(), |days| format!("end within {days} days"));
        Step::warning("mesh", format!("certificates of {} {what}", named(&ending)), "byrnie identity list -o wide")
    })
}

fn named(all: &[&str]) -> String {
    let first: Vec<&str> = all.iter().take(MOST_NAMED).copied().collect();
    match all.len().saturating_sub(MOST_NAMED) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::Outcome;
    use super::*;
    use byrnie_proto::mesh::v1::IssuedIdentity;

    fn observed(not_before: i64, not_after: i64) -> ObserveResponse {
        let identity = IssuedIdentity { workload: "shop/web".into(), not_before, not_after, ..Default::default() };
        ObserveResponse { identities: vec![identity], ..Default::default() }
    }

    #[test]
    fn a_certificate_past_three_quarters_of_its_life_should_have_been_renewed() {
        assert_eq!(ending(&observed(0, 1_000), None, 700), None);
        let step = ending(&observed(0, 1_000), None, 800).unwrap();
        assert_eq!(step.outcome, Outcome::Warning);
        assert!(step.found.contains("shop/web"));
        assert!(ending(&observed(0, 1_000), None, 2_000).is_some(), "expired");
    }

    fn of_ours(name: &str, image: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name, "labels": {VERSION_LABEL: "0.1.0"}},
            "spec": {"containers": [{"name": "x", "image": image}]}}))
        .unwrap()
    }

    #[test]
    fn pods_of_another_version_than_is_installed_are_named() {
        let own = env!("CARGO_PKG_VERSION");
        let ours = of_ours("a", &format!("registry:5000/byrnie/control-plane:{own}"));
        let step = versions("x", own, std::slice::from_ref(&ours));
        assert_eq!((step.outcome, step.found), (Outcome::Ok, format!("version {own}")));

        let mut gone = of_ours("c", "byrnie/injector:0.0.2");
        gone.metadata.deletion_timestamp = serde_json::from_value(json!("2030-01-01T00:00:00Z")).unwrap();
        let step = versions("x", own, &[ours, of_ours("b", "byrnie/control-plane:0.0.1"), gone]);
        assert_eq!(step.outcome, Outcome::Warning);
        assert_eq!(step.found, format!("version {own}, and pods of others: b (0.0.1)"));

        let step = versions("x", "99.0.0", &[of_ours("a", "byrnie/injector:99.0.0")]);
        assert!(step.outcome == Outcome::Warning && step.found.contains(own), "{step:?}");
    }

    #[test]
    fn a_note_is_a_warning_where_it_concerns_the_mesh() {
        let note = |object: &str, accepted| byrnie_proto::mesh::v1::ObjectStatus {
            object: object.into(),
            accepted,
            message: "UDP".into(),
            ..Default::default()
        };
        let objects = vec![
            note("Service kube-system/kube-dns", true),
            note("Service shop/dns", true),
            note("Pod shop/web", true),
            note("MeshConfig default", true),
            note("MtlsPolicy shop/x", false),
        ];
        let observed = ObserveResponse { objects, ..Default::default() };
        let told: Vec<String> = notes(&observed, &["shop".to_owned()]).into_iter().map(|step| step.found).collect();
        assert_eq!(told, ["Service shop/dns: UDP", "MeshConfig default: UDP"]);
    }

    #[test]
    fn how_many_days_must_be_left_can_be_said() {
        let day = 86_400;
        assert!(ending(&observed(0, 10 * day), Some(3), 8 * day).is_some());
        assert_eq!(ending(&observed(0, 10 * day), Some(3), 2 * day), None);
    }

    #[test]
    fn the_pod_for_the_test_meets_the_restricted_standard() {
        let context = trial().spec.unwrap().containers.remove(0).security_context.unwrap();
        assert_eq!(context.run_as_non_root, Some(true));
        assert_eq!(context.allow_privilege_escalation, Some(false));
    }

    #[test]
    fn a_long_list_is_cut() {
        assert_eq!(named(&["a", "b"]), "a, b");
        assert_eq!(named(&["a", "b", "c", "d", "e", "f", "g"]), "a, b, c, d, e and 2 more");
    }
}
