//! What is inside, where the cluster itself says so.

use byrnie_policy::DefaultAction;

use super::*;
use crate::source::{KUBERNETES, ObjectKey};

/// No MeshConfig states anything; `more` besides.
const UNSTATED: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {byrnie.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, uid: u-web, labels: {app: web}}
spec: {containers: []}
status: {podIP: 10.244.1.5, hostIP: 192.0.2.1}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {type: NodePort, clusterIP: 10.96.0.7, selector: {app: web}, ports: [{port: 80, nodePort: 30080}]}
";

const OPEN: &str = "---\napiVersion: byrnie.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec: {egress: {default: Allow}}\n";

/// The model of these objects and of what the API server says of its own network.
fn cluster(yaml: &str, nodes: &[serde_json::Value], service_cidr: Option<&str>) -> Model {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("mesh.yaml"), yaml).unwrap();
    let mut objects = Objects::clone(&DirectorySource::open(home.path()).unwrap().objects().borrow());
    objects.meshed_by = MeshedBy::Sidecar;
    let mut add = |kind: &str, name: &str, object: Object| {
        let key = ObjectKey { kind: kind.to_owned(), namespace: String::new(), name: name.to_owned() };
        let stored = Stored { object: Arc::new(object), file: KUBERNETES.into(), line: 0 };
        objects.items.insert(Arc::new(key), stored);
    };
    for (number, node) in nodes.iter().enumerate() {
        let node = serde_json::from_value(node.clone()).unwrap();
        add("Node", &format!("n{number}"), Object::Node(Box::new(node)));
    }
    if let Some(cidr) = service_cidr {
        let object = serde_json::json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": [cidr]}});
        add("ServiceCIDR", "kubernetes", Object::ServiceCidr(Box::new(serde_json::from_value(object).unwrap())));
    }
    let settings = Arc::new(settings(&objects, None).unwrap());
    Model::build(&objects, &settings)
}

fn node(address: &str, pods: &str) -> serde_json::Value {
    let spec = if pods.is_empty() { serde_json::json!({}) } else { serde_json::json!({"podCIDRs": [pods]}) };
    serde_json::json!({"spec": spec, "status": {"addresses": [{"type": "InternalIP", "address": address}]}})
}

fn kind(model: &Model, dialled: &str) -> DestinationKind {
    model.resolve(dialled.parse().unwrap()).kind
}

fn egress_of_web(model: &Model) -> DefaultAction {
    model.pod("shop", "web").unwrap().policies.egress_default
}

#[test]
fn an_address_in_a_network_of_the_cluster_is_inside_though_nobody_has_or_stated_it() {
    let nodes = [node("192.0.2.1", "10.244.1.0/24"), node("192.0.2.2", "10.244.2.0/24")];
    let learnt = cluster(UNSTATED, &nodes, Some("10.96.0.0/16"));
    for dialled in ["10.244.1.77:80", "10.244.2.1:80", "10.96.9.9:443"] {
        assert_eq!(kind(&learnt, dialled), DestinationKind::UnknownInternal, "{dialled}");
    }
    assert_eq!(kind(&learnt, "203.0.113.1:443"), DestinationKind::External);
    // An API server that has no ServiceCIDRs: the cluster IPs that are known are all that is.
    let older = cluster(UNSTATED, &nodes, None);
    assert_eq!(kind(&older, "10.96.0.7:80"), DestinationKind::Service);
    assert_eq!(kind(&older, "10.96.9.9:443"), DestinationKind::External);
}

#[test]
fn a_node_without_pods_is_a_node_too() {
    let model = cluster(UNSTATED, &[node("192.0.2.1", "10.244.1.0/24"), node("192.0.2.2", "10.244.2.0/24")], None);
    let by_node_port = model.resolve("192.0.2.2:30080".parse().unwrap());
    assert_eq!((by_node_port.kind, &*by_node_port.service), (DestinationKind::Service, "shop/web"));
    assert_eq!(kind(&model, "192.0.2.2:30081"), DestinationKind::UnknownInternal, "of a Service that is not known yet");
    assert_eq!(kind(&model, "192.0.2.2:10250"), DestinationKind::External, "the node's own: egress policy decides");
    assert_eq!(kind(&model, "192.0.2.3:30080"), DestinationKind::External, "no node");
}

#[test]
fn what_proxies_are_told_is_inside_is_what_was_stated_and_what_was_learnt() {
    let stated =
        format!("{UNSTATED}{OPEN}").replace("spec: {egress", "spec: {networks: {podCIDRs: [10.9.0.0/16]}, egress");
    let model = cluster(&stated, &[node("192.0.2.1", "10.244.1.0/24")], Some("10.96.0.0/16"));
    let view = MeshView { model: Arc::new(model), ..view(BASE, &[]) };
    let Body::Self_(own) = view.answer("self", &"u-web".into()) else { panic!("no answer") };
    assert_eq!(
        (own.pod_cidrs, own.service_cidrs),
        (vec!["10.9.0.0/16".into(), "10.244.1.0/24".into()], vec!["10.96.0.0/16".to_owned()])
    );
}

#[test]
fn egress_is_open_by_default_only_where_the_networks_of_all_pods_are_known() {
    let open = format!("{UNSTATED}{OPEN}");
    let known = cluster(&open, &[node("192.0.2.1", "10.244.1.0/24")], None);
    assert_eq!(egress_of_web(&known), DefaultAction::Allow);
    assert!(!known.statuses.iter().any(|status| !status.accepted), "{:?}", known.statuses);
    for (case, nodes, reason) in [
        ("no node says", vec![node("192.0.2.1", "")], "no Node names its podCIDRs"),
        ("no node", Vec::new(), "no Node names its podCIDRs"),
        ("another network plugin's", vec![node("192.0.2.1", "10.42.0.0/24")], "pod shop/web has 10.244.1.5"),
    ] {
        let held = cluster(&open, &nodes, None);
        assert_eq!(egress_of_web(&held), DefaultAction::Deny, "{case}");
        let told = status(&held, "MeshConfig default");
        assert!(!told.accepted && told.message.contains(reason), "{case}: {}", told.message);
        assert!(told.message.contains("spec.networks.podCIDRs"), "{case}: {}", told.message);
    }
    let stated = open.replace("spec: {egress", "spec: {networks: {podCIDRs: [10.0.0.0/8]}, egress");
    assert_eq!(egress_of_web(&cluster(&stated, &[], None)), DefaultAction::Allow);
    assert_eq!(egress_of_web(&cluster(UNSTATED, &[], None)), DefaultAction::Deny);
}
