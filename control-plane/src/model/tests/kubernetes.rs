//! What is otherwise where the API server is the source.

use super::*;
use crate::source::ObjectKey;

/// The same objects as if the API server had told of them.
pub(super) fn in_kubernetes(yaml: &str) -> MeshView {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("mesh.yaml"), yaml).unwrap();
    let mut objects = Objects::clone(&DirectorySource::open(home.path()).unwrap().objects().borrow());
    objects.meshed_by = MeshedBy::Sidecar;
    let settings = Arc::new(settings(&objects, None).unwrap());
    MeshView { model: Arc::new(Model::build(&objects, &settings)), ..view(BASE, &[]) }
}

/// A pod with both of our containers.
pub(super) fn injected(name: &str, address: &str, capture: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: u-{name}, labels: {{app: {name}}}, annotations: {{byrnie.dev/exclude-inbound-ports: '1'}}}}\nspec: {{nodeName: n1, initContainers: [{{name: byrnie-capture, command: [/byrnie-proxy, capture, apply, {capture}]}}, {{name: byrnie-proxy, restartPolicy: Always}}], containers: [{{name: c}}]}}\nstatus: {{podIP: {address}, hostIP: 192.0.2.1, phase: Running}}\n"
    )
}

#[test]
pub(super) fn in_kubernetes_a_pod_is_meshed_by_its_spec_and_its_exclusions_are_those_of_the_capture_container() {
    let view = in_kubernetes(&with(&injected("web", "10.0.0.7", "'--exclude-inbound-ports=9090'")));
    let endpoint = |address: &str| dial(&view, address).endpoints[0].clone();
    let web = endpoint("10.0.0.7:80");
    assert_eq!((web.meshed(), web.spiffe_id.as_str()), (Meshed::Yes, "spiffe://cluster.local/ns/shop/sa/default"));
    assert_eq!(endpoint("10.0.0.7:9090").meshed(), Meshed::EnrolledUnmeshed);
    assert_eq!(endpoint("10.0.0.7:1").meshed(), Meshed::Yes, "an annotation can be changed at any time");
    assert_eq!(endpoint("10.0.0.1:80").meshed(), Meshed::EnrolledUnmeshed);
    assert_eq!(endpoint("10.0.0.2:80").meshed(), Meshed::NotEnrolled);
    let outside =
        with(&injected("web", "10.0.0.7", "'--exclude-inbound-ports=9090'")).replace("mesh: enabled", "mesh: disabled");
    let view = in_kubernetes(&outside);
    let found = |address: &str| dial(&view, address).endpoints[0].meshed();
    assert_eq!(found("10.0.0.7:80"), Meshed::Yes, "its proxy is still there");
    assert_eq!(found("10.0.0.7:9090"), Meshed::EnrolledUnmeshed);
}

#[test]
pub(super) fn in_kubernetes_a_pod_that_should_be_meshed_and_is_not_is_listed() {
    let view = in_kubernetes(&with(&injected("web", "10.0.0.7", "'--prove'")));
    let status = status(&view.model, "Pod shop/db-0");
    assert!(status.accepted && status.message.starts_with("should be meshed and is not"), "{}", status.message);
    assert!(!view.model.statuses.iter().any(|status| status.object == "Pod shop/web"), "nothing to say of it");
}

#[test]
fn a_pod_on_its_nodes_network_is_known_and_its_nodes_address_is_not_taken_for_its_own() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: agent, namespace: shop, uid: u-agent}\nspec: {hostNetwork: true, containers: []}\nstatus: {podIP: 192.0.2.1, hostIP: 192.0.2.1}\n";
    let view = in_kubernetes(&with(pod));
    let agent = view.model.pod_by_uid("u-agent").unwrap();
    assert_eq!((agent.host_network, agent.injected, agent.addresses.len()), (true, false, 0));
    assert!(view.model.pod_by_address("192.0.2.1".parse().unwrap()).is_none());
    let status = status(&view.model, "Pod shop/agent");
    assert!(status.accepted && status.message.contains("outside of the mesh"), "{}", status.message);
}

#[test]
fn every_object_of_the_mesh_has_a_condition_that_names_what_was_judged() {
    let yaml = BASE.replace("spec: {networks", "spec: {mtls: {floor: Strict}, networks") + PERMISSIVE;
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("mesh.yaml"), yaml).unwrap();
    let mut objects = Objects::clone(&DirectorySource::open(home.path()).unwrap().objects().borrow());
    let ours = objects.items.iter().filter(|(_, stored)| matches!(&*stored.object, Object::Mesh(_)));
    objects.generations = ours.map(|(key, _)| (key.clone(), 3)).collect();
    let settings = Arc::new(settings(&objects, None).unwrap());
    let conditions = Model::build(&objects, &settings).conditions;
    let told: Vec<_> = conditions
        .iter()
        .map(|it| (it.object.to_string(), it.generation, it.accepted, it.message.is_empty()))
        .collect();
    let expected =
        [("MeshConfig default".to_owned(), 3, true, true), ("MtlsPolicy shop/soft".to_owned(), 3, false, false)];
    assert_eq!(told, expected);
    let object = objects.items.keys().find(|key| key.kind == "MeshConfig").map(|key| ObjectKey::clone(key));
    let message = "spec.x: unknown; its last good version stays in force".to_owned();
    objects.problems.push(crate::source::Problem { file: "kubernetes".into(), line: 0, object, message });
    let refused = &Model::build(&objects, &settings).conditions[0];
    assert!(!refused.accepted && refused.message.contains("last good"), "{}", refused.message);
}
