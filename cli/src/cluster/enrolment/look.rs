//! What enrolling a namespace would break, looked for before it does.

use byrnie_api::labels::{CONTROL_PLANE_PORT, SYSTEM_NAMESPACE};
use byrnie_api::{IngressPolicy, MtlsMode, MtlsPolicy, Problem, Selector};
use byrnie_injector::inject::{NamespaceFacts, Outcome, ProxyImage, Settings, inject};
use byrnie_proto::probes::Nonce;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicySpec};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{facts, mend, pods};
use crate::cluster::Cluster;
use crate::failure::Failure;

/// What a meshed pod must reach besides the control plane and what its application calls.
const DNS_PORT: i32 = 53;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Gravity {
    /// Worth knowing; nothing breaks.
    Note,
    /// Something that works now would not.
    Breaks,
}

/// One thing that enrolling would change for the worse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub gravity: Gravity,
    /// What it is about: `Kind name`.
    pub about: String,
    /// What would happen, and why.
    pub problem: String,
    /// The command, or the object, that mends it.
    pub mend: Option<String>,
}

/// Everything that enrolling `namespace` would break, and what is worth knowing.
///
/// # Errors
/// The API server does not answer, or refuses.
pub async fn findings(cluster: &Cluster, namespace: &Namespace) -> Result<Vec<Finding>, Failure> {
    let mut found: Vec<Finding> = of_namespace(namespace).into_iter().collect();
    let settings = Settings::new(&cluster.mesh_settings().await?, &ProxyImage::default());
    let facts = facts(namespace).with_our_label();
    let namespace = namespace.name_any();
    let namespace = namespace.as_str();
    let everything = ListParams::default();
    let client = || cluster.client();
    let pods = cluster.pods(Some(namespace)).await?;
    let services: Api<Service> = Api::namespaced(client(), namespace);
    let services = cluster.list("list Services", &services, &everything).await?;
    let policies: Api<NetworkPolicy> = Api::namespaced(client(), namespace);
    let policies = cluster.list("list NetworkPolicies", &policies, &everything).await?;
    for (caller, service, port) in called_by_the_api_server(cluster, namespace).await? {
        let named = services.iter().find(|each| each.name_any() == service);
        found.extend(api_server_calls(namespace, &caller, &service, port, named, &pods));
    }
    let opened = opened(cluster, namespace).await?;
    found.extend(pods.iter().filter(|pod| !pods::is_finished(pod)).flat_map(|pod| of_pod(pod, &facts, &settings)));
    found.extend(policies.iter().filter_map(|policy| of_policy(namespace, policy, &policies)));
    found.extend(services.iter().filter_map(|service| of_service(namespace, service, &opened)));
    // Several pods of one Deployment say the same.
    found.sort_by(|one, other| {
        (other.gravity, &one.about, &one.problem).cmp(&(one.gravity, &other.about, &other.problem))
    });
    found.dedup_by(|one, other| one.problem == other.problem && one.about == other.about);
    Ok(found)
}

/// Two of Kubernetes' Pod Security Standards do not let NET_ADMIN in, which the capture container has.
fn of_namespace(namespace: &Namespace) -> Option<Finding> {
    const ENFORCE: &str = "pod-security.kubernetes.io/enforce";
    let name = namespace.name_any();
    let level = namespace.labels().get(ENFORCE).filter(|level| matches!(level.as_str(), "baseline" | "restricted"))?;
    Some(Finding {
        gravity: Gravity::Breaks,
        about: format!("Namespace {name}"),
        problem: format!(
            "enforces the Pod Security Standard `{level}`, which refuses the capability NET_ADMIN of the container \
             byrnie-capture: no pod could be made"
        ),
        mend: Some(format!(
            "kubectl label namespace {name} --overwrite {ENFORCE}=privileged pod-security.kubernetes.io/warn={level}"
        )),
    })
}

/// Who of the API server's own calls a Service of the namespace: caller, Service, port.
async fn called_by_the_api_server(cluster: &Cluster, namespace: &str) -> Result<Vec<(String, String, i32)>, Failure> {
    let everything = ListParams::default();
    let mut calls = Vec::new();
    let mut add = |caller: String, of: &str, service: &str, port: Option<i32>| {
        if of == namespace {
            calls.push((caller, service.to_owned(), port.unwrap_or(443)));
        }
    };
    let api: Api<MutatingWebhookConfiguration> = Api::all(cluster.client());
    for each in cluster.list("list webhooks", &api, &everything).await? {
        for webhook in each.webhooks.iter().flatten() {
            if let Some(service) = &webhook.client_config.service {
                let caller = format!("MutatingWebhookConfiguration {}", each.name_any());
                add(caller, &service.namespace, &service.name, service.port);
            }
        }
    }
    let api: Api<ValidatingWebhookConfiguration> = Api::all(cluster.client());
    for each in cluster.list("list webhooks", &api, &everything).await? {
        for webhook in each.webhooks.iter().flatten() {
            if let Some(service) = &webhook.client_config.service {
                let caller = format!("ValidatingWebhookConfiguration {}", each.name_any());
                add(caller, &service.namespace, &service.name, service.port);
            }
        }
    }
    let api: Api<APIService> = Api::all(cluster.client());
    for each in cluster.list("list APIServices", &api, &everything).await? {
        if let Some(service) = each.spec.as_ref().and_then(|spec| spec.service.as_ref()) {
            let (of, name) = (service.namespace.as_deref(), service.name.as_deref());
            let caller = format!("APIService {}", each.name_any());
            add(caller, of.unwrap_or_default(), name.unwrap_or_default(), service.port);
        }
    }
    let api: Api<CustomResourceDefinition> = Api::all(cluster.client());
    for each in cluster.list("list CustomResourceDefinitions", &api, &everything).await? {
        let webhook = each.spec.conversion.as_ref().and_then(|conversion| conversion.webhook.as_ref());
        let client = webhook.and_then(|webhook| webhook.client_config.as_ref());
        if let Some(service) = client.and_then(|client| client.service.as_ref()) {
            let caller = format!("CustomResourceDefinition {}", each.name_any());
            add(caller, &service.namespace, &service.name, service.port);
        }
    }
    calls.sort();
    calls.dedup();
    Ok(calls)
}

fn api_server_calls(
    namespace: &str,
    caller: &str,
    service: &str,
    port: i32,
    found: Option<&Service>,
    pods: &[Pod],
) -> Option<Finding> {
    let behind = found.map(|service| mend::behind(service, port, pods));
    if let (Some(service), Some((Some(number), _))) = (found, &behind)
        && mend::is_excluded(service, *number, pods)
    {
        return None;
    }
    let mend = match behind {
        Some((Some(number), Some(workload))) => mend::exclude_inbound(namespace, &workload, number),
        _ => format!(
            "annotate the pods behind Service {service}: byrnie.dev/exclude-inbound-ports: \"PORT\" (the port of the \
             pod, not of the Service)"
        ),
    };
    Some(Finding {
        gravity: Gravity::Breaks,
        about: format!("Service {service}"),
        problem: format!(
            "the API server calls port {port} for {caller}, and has no identity of the mesh: it would be refused"
        ),
        mend: Some(mend),
    })
}

/// What admission would say of the pod, by the function that it asks; and who would be refused by it.
fn of_pod(pod: &Pod, namespace: &NamespaceFacts, settings: &Settings) -> Vec<Finding> {
    let about = mend::workload(pod).unwrap_or_else(|| format!("pod/{}", pod.name_any()));
    let finding = |gravity, problem, mend| Finding { gravity, about: about.clone(), problem, mend };
    let note = |problem: String| finding(Gravity::Note, problem, None);
    // What comes out is looked at and thrown away.
    let nonce = Nonce::new([0; 16]);
    let mut found = match inject(pod, namespace, settings, nonce) {
        Err(problems) => {
            let refused = |problem: &Problem| {
                let Problem { path, expected, found, hint } = problem;
                let words = format!("admission would refuse its pods: {path}: expected {expected}, found {found}");
                finding(Gravity::Breaks, words, Some(hint.clone()).filter(|hint| !hint.is_empty()))
            };
            problems.iter().map(refused).collect()
        }
        Ok(Outcome::PassedBy(reason)) if reason.is_worth_a_warning() => {
            let problem =
                format!("stays outside of the mesh: {reason}; meshed pods refuse it, unless a policy lets it in");
            return vec![note(problem)];
        }
        Ok(Outcome::PassedBy(_)) => Vec::new(),
        Ok(Outcome::Injected { warnings, .. }) => warnings.into_iter().map(note).collect(),
    };
    if pod.annotations().get("prometheus.io/scrape").is_some_and(|value| value == "true") {
        let port = pod.annotations().get("prometheus.io/port").map_or("PORT", String::as_str);
        let mend = format!("enrol Prometheus too, or annotate the pods: byrnie.dev/exclude-inbound-ports: \"{port}\"");
        let problem = "is scraped: a Prometheus outside of the mesh would be refused".to_owned();
        found.push(finding(Gravity::Note, problem, Some(crate::cluster::printable(&mend))));
    }
    found
}

/// An egress policy that has no rule for the control plane or for DNS keeps a pod from becoming ready. Policies add up:
/// what another one for the same pods lets out is let out.
fn of_policy(namespace: &str, policy: &NetworkPolicy, all: &[NetworkPolicy]) -> Option<Finding> {
    let restricts = |spec: &NetworkPolicySpec| match &spec.policy_types {
        Some(types) => types.iter().any(|each| each == "Egress"),
        None => spec.egress.is_some(),
    };
    let spec = policy.spec.as_ref().filter(|spec| restricts(spec))?;
    let pods = |spec: &NetworkPolicySpec| spec.pod_selector.clone().unwrap_or_default();
    let every = LabelSelector::default();
    let specs = all.iter().filter_map(|other| other.spec.as_ref()).filter(|other| restricts(other));
    let same = specs.filter(|other| pods(other) == every || pods(other) == pods(spec));
    let rules: Vec<&NetworkPolicyEgressRule> = same.flat_map(|other| other.egress.iter().flatten()).collect();
    let control_plane = rules.iter().any(|rule| opens(rule, i32::from(CONTROL_PLANE_PORT), "TCP", SYSTEM_NAMESPACE));
    let dns = rules.iter().any(|rule| opens(rule, DNS_PORT, "UDP", "kube-system"));
    if control_plane && dns {
        return None;
    }
    let named = format!("the control plane (TCP {CONTROL_PLANE_PORT} in {SYSTEM_NAMESPACE})");
    let missing = [(!control_plane).then_some(named), (!dns).then(|| format!("DNS (port {DNS_PORT})"))];
    let missing = missing.into_iter().flatten().collect::<Vec<_>>().join(" and ");
    Some(Finding {
        gravity: Gravity::Breaks,
        about: format!("NetworkPolicy {}", policy.name_any()),
        problem: format!("does not let its pods out to {missing}: their proxies would never be ready"),
        mend: Some(mend::network_policy(namespace)),
    })
}

/// Whether a rule lets traffic to that port of that namespace out, as far as can be said without looking at pods: a peer
/// that is named by pod labels alone is of the policy's own namespace.
fn opens(rule: &NetworkPolicyEgressRule, port: i32, protocol: &str, namespace: &str) -> bool {
    let port_open = rule.ports.as_ref().is_none_or(|ports| {
        ports.is_empty()
            || ports.iter().any(|each| {
                let number = match &each.port {
                    None => true,
                    Some(IntOrString::Int(first)) => (*first..=each.end_port.unwrap_or(*first)).contains(&port),
                    // A named port is resolved per pod, which nobody can do here; the usual name of DNS is `dns`.
                    Some(IntOrString::String(name)) => port == DNS_PORT && name.starts_with("dns"),
                };
                number && each.protocol.as_deref().unwrap_or("TCP") == protocol
            })
    });
    let peer_open = rule.to.as_ref().is_none_or(|peers| {
        peers.is_empty()
            || peers.iter().any(|peer| {
                if peer.ip_block.is_some() {
                    // Pods have addresses too; whether the block holds them is not known here.
                    return true;
                }
                peer.namespace_selector.as_ref().is_some_and(|selector| {
                    let labels = selector.match_labels.iter().flatten();
                    let by_label =
                        labels.clone().all(|(key, value)| key == "kubernetes.io/metadata.name" && value == namespace);
                    by_label && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
                })
            })
    });
    port_open && peer_open
}

/// Which pods somebody has thought of already: those that take plaintext now, or clients with a certificate of the mesh.
async fn opened(cluster: &Cluster, namespace: &str) -> Result<Vec<Selector>, Failure> {
    let everything = ListParams::default();
    let now = OffsetDateTime::now_utc();
    let api: Api<MtlsPolicy> = Api::namespaced(cluster.client(), namespace);
    let mtls = cluster.list("list MtlsPolicies", &api, &everything).await?.into_iter().map(|policy| policy.spec);
    let mtls = mtls.filter(|spec| spec.mode == MtlsMode::Permissive && spec.port.is_none());
    let mtls = mtls.filter(|spec| match &spec.until {
        Some(until) => OffsetDateTime::parse(until, &Rfc3339).is_ok_and(|until| until > now),
        None => true,
    });
    let api: Api<IngressPolicy> = Api::namespaced(cluster.client(), namespace);
    let ingress = cluster.list("list IngressPolicies", &api, &everything).await?.into_iter();
    let ingress = ingress.map(|policy| policy.spec.selector);
    Ok(mtls.map(|spec| spec.selector).chain(ingress).map(Option::unwrap_or_default).collect())
}

fn of_service(namespace: &str, service: &Service, opened: &[Selector]) -> Option<Finding> {
    let spec = service.spec.as_ref()?;
    let kind = spec.type_.as_deref()?;
    let pods = spec.selector.clone().unwrap_or_default();
    let is_open = opened.iter().any(|selector| selector.matches(&pods));
    (matches!(kind, "NodePort" | "LoadBalancer") && !is_open).then(|| Finding {
        gravity: Gravity::Breaks,
        about: format!("Service {}", service.name_any()),
        problem: format!(
            "is of type {kind}: who calls it from outside of the mesh, without a certificate, would be refused"
        ),
        mend: Some(mend::permissive(namespace, service)),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use serde_json::json;

    fn policy(spec: serde_json::Value) -> Option<Finding> {
        beside(spec, &[])
    }

    fn beside(spec: serde_json::Value, others: &[serde_json::Value]) -> Option<Finding> {
        let policy = |spec| serde_json::from_value(json!({"metadata": {"name": "egress"}, "spec": spec})).unwrap();
        let all: Vec<NetworkPolicy> = [&spec].into_iter().chain(others).map(policy).collect();
        of_policy("shop", &all[0], &all)
    }

    #[test]
    fn what_mends_a_finding_ends_it() {
        let shut = json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"]});
        let opens = |pods: serde_json::Value| json!({"podSelector": pods, "policyTypes": ["Egress"], "egress": [{}]});
        assert_eq!(beside(shut.clone(), &[opens(json!({}))]), None);
        assert_eq!(beside(shut.clone(), &[opens(json!({"matchLabels": {"app": "web"}}))]), None);
        assert!(beside(shut, &[opens(json!({"matchLabels": {"app": "other"}}))]).is_some());

        let outside: Service = serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": {"type": "NodePort",
            "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}}))
        .unwrap();
        let selector = |app: &str| Selector { match_labels: [("app".to_owned(), app.to_owned())].into() };
        assert!(of_service("shop", &outside, &[]).is_some());
        assert!(of_service("shop", &outside, &[selector("other")]).is_some());
        for opened in [selector("web"), Selector::default()] {
            assert_eq!(of_service("shop", &outside, &[opened]), None);
        }

        let pod = |ports: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"labels": {"app": "web"},
                "annotations": {"byrnie.dev/exclude-inbound-ports": ports}}, "spec": {"containers": []}}))
            .unwrap()
        };
        let calls = |pods: &[Pod]| api_server_calls("shop", "x", "web", 80, Some(&outside), pods);
        assert_eq!(calls(&[pod("9090, 8080")]), None);
        for pods in [vec![pod("80")], vec![pod("8080"), pod("")], Vec::new()] {
            assert!(calls(&pods).is_some(), "{pods:?}");
        }
    }

    #[test]
    fn a_network_policy_that_shuts_the_control_plane_out_breaks_the_proxies() {
        let dns = json!({"ports": [{"port": 53, "protocol": "UDP"}]});
        let found = policy(json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [dns]})).unwrap();
        assert!(found.problem.contains("15128") && !found.problem.contains("DNS"), "{}", found.problem);
        assert!(found.mend.unwrap().contains("kind: NetworkPolicy"));
        let found = policy(json!({"podSelector": {}, "policyTypes": ["Egress"]})).unwrap();
        assert!(found.problem.contains("15128") && found.problem.contains("DNS"), "{}", found.problem);
    }

    #[test]
    fn a_network_policy_that_lets_both_out_or_is_about_ingress_is_fine() {
        for spec in [
            json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
            json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]}),
            json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
                {"ports": [{"port": 53, "protocol": "UDP"}]},
                {"ports": [{"port": 15000, "endPort": 16000}],
                 "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "byrnie-system"}}}]},
            ]}),
        ] {
            assert_eq!(policy(spec.clone()), None, "{spec}");
        }
    }

    #[test]
    fn a_namespace_whose_standard_refuses_the_capture_container_is_named() {
        let with = |level: &str| {
            let labels = json!({"pod-security.kubernetes.io/enforce": level});
            of_namespace(&serde_json::from_value(json!({"metadata": {"name": "shop", "labels": labels}})).unwrap())
        };
        assert!(with("restricted").unwrap().mend.unwrap().contains("=privileged"));
        assert!(with("baseline").is_some());
        assert_eq!(with("privileged"), None);
    }

    fn pod(spec: serde_json::Value) -> Vec<Finding> {
        let pod = serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": spec})).unwrap();
        let settings = Settings::new(&byrnie_api::MeshSettings::default(), &ProxyImage::default());
        of_pod(&pod, &NamespaceFacts::enrolled("shop"), &settings)
    }

    #[test]
    fn a_pod_that_admission_would_refuse_is_named_with_the_reason() {
        let found = pod(json!({"securityContext": {"runAsUser": 1500}, "shareProcessNamespace": true, "containers": [
            {"name": "web", "ports": [{"containerPort": 8080, "hostPort": 15003}]},
            {"name": "istio-proxy", "securityContext": {"runAsUser": 1337}},
        ]}));
        let problems: Vec<&str> = found.iter().map(|each| each.problem.as_str()).collect();
        for part in ["runAsUser", "hostPort", "Istio", "shareProcessNamespace"] {
            assert!(problems.iter().any(|problem| problem.contains(part)), "{part}: {problems:?}");
        }
        assert!(found.iter().all(|each| each.gravity == Gravity::Breaks));
        assert!(found.iter().any(|each| each.mend.as_ref().is_some_and(|mend| mend.contains("byrnie.dev/"))));
    }

    #[test]
    fn what_admission_lets_in_breaks_nothing() {
        let udp = json!([{"containerPort": 15003, "protocol": "UDP"}]);
        assert_eq!(pod(json!({"containers": [{"name": "envoy", "ports": udp}]})), []);
    }

    #[test]
    fn a_pod_that_the_mesh_passes_by_stays_out_and_breaks_nothing() {
        let containers = json!([{"name": "x", "ports": [{"containerPort": 15000}]}]);
        for spec in [
            json!({"hostNetwork": true, "containers": containers}),
            json!({"nodeSelector": {"kubernetes.io/os": "windows"}, "containers": containers}),
        ] {
            let found = pod(spec);
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].gravity, Gravity::Note);
        }
    }

    #[test]
    fn what_the_api_server_calls_is_mended_at_the_pods_own_port() {
        let service = serde_json::from_value(json!({"metadata": {"name": "hook"}, "spec": {
            "selector": {"app": "hook"}, "ports": [{"port": 443, "targetPort": "https"}]}}));
        let pod = serde_json::from_value(json!({"metadata": {"name": "hook-5d", "labels": {"app": "hook"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "hook-5d4f8c7b9", "apiVersion": "apps/v1", "uid": ""}]},
            "spec": {"containers": [{"name": "hook", "ports": [{"name": "https", "containerPort": 9443}]}]}}));
        let found = api_server_calls("shop", "APIService v1.x", "hook", 443, Some(&service.unwrap()), &[pod.unwrap()]);
        let mend = found.unwrap().mend.unwrap();
        assert!(mend.contains("deployment/hook") && mend.contains("9443"), "{mend}");
    }
}
