mod kubernetes;
mod networks;
mod services;

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use byrnie_identity::{Clock, authority::CertificateAuthority};
use byrnie_proto::mesh::v1::{AppProtocol, Destination, DestinationKind, Endpoint, Meshed, resource::Body};

use super::*;
use crate::{
    hub::View,
    journal::unix,
    limits,
    source::{DirectorySource, Source},
};

const BASE: &str = "
apiVersion: byrnie.dev/v1alpha1
kind: MeshConfig
metadata: {name: default}
spec: {networks: {podCIDRs: [10.0.0.0/16, 'fd00::/64'], serviceCIDRs: [10.1.0.0/16]}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {byrnie.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: db-0, namespace: shop, uid: u-db, labels: {app: db}, annotations: {byrnie.dev/exclude-inbound-ports: '9999'}}
spec: {serviceAccountName: db, containers: [{name: db, ports: [{name: sql, containerPort: 3307}]}]}
status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIPs: [10.1.0.1, 'fd01::1'], selector: {app: db}, ports: [{name: sql, port: 3306, targetPort: sql, appProtocol: mysql}, {name: dns, port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Pod
metadata: {name: old-0, namespace: legacy, uid: u-old, labels: {app: old}}
spec: {containers: []}
status: {podIP: 10.0.0.2}
";

fn model(yaml: &str) -> Model {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("mesh.yaml"), yaml).unwrap();
    let objects = DirectorySource::open(home.path()).unwrap().objects().borrow().clone();
    let settings = Arc::new(settings(&objects, None).unwrap());
    Model::build(&objects, &settings)
}

fn view(yaml: &str, meshed: &[&str]) -> MeshView {
    let clock = Clock::system();
    let model = Arc::new(model(yaml));
    let forever = unix(SystemTime::now()) + 1000;
    MeshView {
        bundle: CertificateAuthority::create(model.settings.trust_domain.clone(), &clock).unwrap().bundle(),
        meshed: Arc::new(meshed.iter().map(|uid| (Arc::from(*uid), forever)).collect()),
        now: clock.wall(),
        model,
    }
}

fn with(more: &str) -> String {
    format!("{BASE}---\n{more}")
}

fn dial(view: &MeshView, address: &str) -> Destination {
    view.destination(address.parse().unwrap(), "viewer")
}

fn at(endpoint: &Endpoint) -> SocketAddr {
    let ip: std::net::IpAddr = match <[u8; 4]>::try_from(endpoint.address.as_slice()) {
        Ok(four) => four.into(),
        Err(_) => <[u8; 16]>::try_from(endpoint.address.as_slice()).unwrap().into(),
    };
    SocketAddr::new(ip, u16::try_from(endpoint.port).unwrap())
}

fn status<'a>(model: &'a Model, object: &str) -> &'a ObjectStatus {
    model.statuses.iter().find(|status| status.object == object).unwrap()
}

#[test]
fn a_cluster_ip_stands_for_the_services_pods_of_its_family_at_their_named_port() {
    let view = view(BASE, &["u-db"]);
    for (dialled, expected) in [
        ("10.1.0.1:3306", "10.0.0.1:3307"),
        ("[fd01::1]:3306", "[fd00::1]:3307"),
        ("[::ffff:10.1.0.1]:3306", "10.0.0.1:3307"),
    ] {
        let found = dial(&view, dialled);
        assert_eq!((found.kind(), found.service.as_str()), (DestinationKind::Service, "shop/db"), "{dialled}");
        assert_eq!(found.protocol(), AppProtocol::ServerFirst);
        let [endpoint] = found.endpoints.as_slice() else { panic!("{found:?}") };
        assert_eq!(at(endpoint), expected.parse().unwrap());
        assert_eq!(
            (endpoint.meshed(), endpoint.spiffe_id.as_str()),
            (Meshed::Yes, "spiffe://cluster.local/ns/shop/sa/db")
        );
    }
    assert_eq!(dial(&view, "10.1.0.1:99").kind(), DestinationKind::UnknownInternal, "no such port");
}

#[test]
fn addresses_that_nobody_has_are_told_apart_by_the_networks() {
    let view = view(BASE, &[]);
    for (dialled, kind) in [
        ("10.0.77.1:80", DestinationKind::UnknownInternal),
        ("10.1.77.1:80", DestinationKind::UnknownInternal),
        ("[fd00::77]:80", DestinationKind::UnknownInternal),
        ("192.0.2.1:443", DestinationKind::External),
    ] {
        let found = dial(&view, dialled);
        assert_eq!((found.kind(), found.endpoints.len()), (kind, 0), "{dialled}");
    }
}

#[test]
fn meshed_is_a_fact_per_pod_and_port() {
    let issued = view(BASE, &["u-db"]);
    let endpoint = |view: &MeshView, address: &str| dial(view, address).endpoints[0].clone();
    assert_eq!(endpoint(&issued, "10.0.0.1:1").meshed(), Meshed::Yes);
    let excluded = endpoint(&issued, "10.0.0.1:9999");
    assert_eq!(
        (excluded.meshed(), excluded.spiffe_id.as_str(), excluded.permissive),
        (Meshed::EnrolledUnmeshed, "", false)
    );
    assert_eq!(endpoint(&view(BASE, &[]), "10.0.0.1:1").meshed(), Meshed::EnrolledUnmeshed);
    assert_eq!(endpoint(&issued, "10.0.0.2:1").meshed(), Meshed::NotEnrolled);
    let mut later = issued;
    later.now += Duration::from_secs(2000);
    assert_eq!(endpoint(&later, "10.0.0.1:1").meshed(), Meshed::Yes, "an expired certificate opens no plaintext");
    let opted_out = BASE.replace("annotations: {", "annotations: {byrnie.dev/inject: 'false', ");
    let mut later = view(&opted_out, &["u-db"]);
    assert_eq!(endpoint(&later, "10.0.0.1:1").meshed(), Meshed::Yes, "its certificate still holds");
    later.now += Duration::from_secs(2000);
    assert_eq!(endpoint(&later, "10.0.0.1:1").meshed(), Meshed::NotEnrolled);
}

#[test]
fn plaintext_to_an_unmeshed_pod_is_what_its_policies_permit_and_until_when() {
    let policy = "apiVersion: byrnie.dev/v1alpha1\nkind: MtlsPolicy\nmetadata: {name: soft, namespace: shop}\nspec: {mode: Permissive, port: 80, until: '2100-01-01T00:00:00Z'}\n";
    let view = view(&with(policy), &[]);
    let endpoint = dial(&view, "10.0.0.1:80").endpoints[0].clone();
    assert_eq!((endpoint.permissive, endpoint.permissive_until), (true, 4_102_444_800));
    assert!(!dial(&view, "10.0.0.1:81").endpoints[0].permissive);
}

#[test]
fn pods_that_are_not_ready_get_nothing_and_those_that_go_away_are_marked() {
    let pods = "apiVersion: v1\nkind: Pod\nmetadata: {name: db-1, namespace: shop, labels: {app: db}}\nspec: {containers: []}\nstatus: {podIP: 10.0.0.3, conditions: [{type: Ready, status: 'False'}]}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: db-2, namespace: shop, labels: {app: db}, deletionTimestamp: '2026-01-01T00:00:00Z'}\nspec: {containers: []}\nstatus: {podIP: 10.0.0.4}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: all, namespace: shop}\nspec: {clusterIP: 10.1.0.2, selector: {app: db}, publishNotReadyAddresses: true, ports: [{port: 80}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: ready, namespace: shop}\nspec: {clusterIP: 10.1.0.3, selector: {app: db}, ports: [{port: 80}]}\n";
    let view = view(&with(pods), &[]);
    let ready = dial(&view, "10.1.0.3:80").endpoints;
    assert_eq!(ready.iter().map(|endpoint| endpoint.terminating).collect::<Vec<_>>(), [false, true]);
    assert_eq!(dial(&view, "10.1.0.2:80").endpoints.len(), 3);
}

#[test]
fn a_headless_services_pod_stands_for_itself_and_names_the_service_where_there_is_one() {
    let service = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{clusterIP: None, selector: {{app: db}}, ports: [{{port: 5432, appProtocol: postgres}}]}}\n"
        )
    };
    let one = view(&with(&service("a")), &[]);
    let found = dial(&one, "10.0.0.1:5432");
    assert_eq!(
        (found.kind(), found.service.as_str(), found.protocol()),
        (DestinationKind::Pod, "shop/a", AppProtocol::Tcp)
    );
    assert_eq!(dial(&one, "10.0.0.1:1").service, "");
    let two = view(&with(&format!("{}---\n{}", service("a"), service("b"))), &[]);
    assert_eq!(dial(&two, "10.0.0.1:5432").service, "");
}

#[test]
fn two_pods_with_one_address_are_told_and_the_first_has_it() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: thief, namespace: shop, uid: u-thief, labels: {app: db}}\nspec: {containers: []}\nstatus: {podIP: 10.0.0.1}\n";
    let view = view(&with(pod), &[]);
    assert_eq!(dial(&view, "10.0.0.1:80").endpoints[0].pod_uid, "u-db");
    let status = status(&view.model, "Pod shop/thief");
    assert!(!status.accepted && status.message.contains("shop/db-0"), "{}", status.message);
}

#[test]
fn a_workload_has_its_controllers_name_and_a_pod_without_uid_always_the_same() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: web-6d4b75cb6d-x2x, namespace: shop, labels: {pod-template-hash: 6d4b75cb6d}, ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-6d4b75cb6d, uid: x, controller: true}]}\nspec: {containers: []}\n";
    let (one, two) = (model(&with(pod)), model(&with(pod)));
    let (first, second) =
        (one.pod("shop", "web-6d4b75cb6d-x2x").unwrap(), two.pod("shop", "web-6d4b75cb6d-x2x").unwrap());
    assert_eq!(&*first.workload, "shop/web");
    assert_eq!(first.uid, second.uid);
    assert_eq!((first.uid.len(), first.uid.as_bytes()[14], &*first.service_account), (36, b'8', "default"));
}

#[test]
fn a_large_service_gives_each_client_its_own_lasting_subset_of_its_zone() {
    let mut yaml = with(
        "apiVersion: v1\nkind: Service\nmetadata: {name: big, namespace: shop}\nspec: {clusterIP: 10.1.0.7, selector: {app: big}, ports: [{port: 80}]}\n",
    );
    let pod = |name: &str, app: &str, zone: &str, address: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: u-{name}, labels: {{app: {app}, topology.kubernetes.io/zone: {zone}}}}}\nspec: {{containers: []}}\nstatus: {{podIP: {address}}}\n"
        )
    };
    for index in 0..200 {
        let zone = if index % 2 == 0 { "a" } else { "b" };
        yaml += &pod(&format!("big-{index}"), "big", zone, &format!("10.0.1.{index}"));
    }
    for client in ["x", "y"] {
        yaml += &pod(client, client, "a", if client == "x" { "10.0.2.1" } else { "10.0.2.2" });
    }
    let view = view(&yaml, &[]);
    assert!(view.is_personal("destination/10.1.0.7:80") && !view.is_personal("destination/10.1.0.1:3306"));
    let uids = |viewer: &str| -> Vec<String> {
        view.destination("10.1.0.7:80".parse().unwrap(), viewer)
            .endpoints
            .into_iter()
            .map(|endpoint| endpoint.pod_uid)
            .collect()
    };
    let (x, y) = (uids("u-x"), uids("u-y"));
    assert_eq!(x.len(), limits::ENDPOINTS);
    assert_eq!(x, uids("u-x"), "the same each time");
    assert_ne!(x, y, "different clients load different pods");
    assert!(
        view.destination("10.1.0.7:80".parse().unwrap(), "u-x").endpoints.iter().all(|endpoint| endpoint.zone == "a")
    );
}

#[test]
fn a_trust_domain_can_not_change_and_what_held_before_stays() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(
        home.path().join("mesh.yaml"),
        BASE.replace("spec: {networks", "spec: {trustDomain: other.example, networks"),
    )
    .unwrap();
    let objects = DirectorySource::open(home.path()).unwrap().objects().borrow().clone();
    let before = model(BASE).settings;
    let now = Model::build(&objects, &before);
    assert_eq!(now.settings, before);
    let status = status(&now, "MeshConfig default");
    assert!(!status.accepted && status.message.contains("cluster.local"), "{}", status.message);
}

#[test]
fn no_resource_name_breaks_an_answer() {
    let view = view(BASE, &[]);
    let viewer: Arc<str> = "u-db".into();
    for name in [
        "",
        "self ",
        "selfish",
        "bundle/",
        "bundle/other.example",
        "destination/",
        "destination/x",
        "destination/10.0.0.1",
        "destination/10.0.0.1:0",
        "destination/[::1]:99999",
        "destination/fd00::1:80",
        "\u{0}",
    ] {
        assert!(!view.is_personal(name), "{name:?}");
        assert!(matches!(view.answer(name, &viewer), Body::Error(_)), "{name:?}");
    }
    assert!(matches!(view.answer("self", &Arc::from("nobody")), Body::Error(_)));
    assert!(matches!(view.answer("self", &viewer), Body::Self_(own) if own.ports[0].port == 3307));
}

const PERMISSIVE: &str = "---\napiVersion: byrnie.dev/v1alpha1\nkind: MtlsPolicy\nmetadata: {name: soft, namespace: shop}\nspec: {mode: Permissive, port: 8080}\n";

#[test]
fn a_mesh_config_that_nobody_can_read_leaves_what_held_before_and_not_the_defaults() {
    let strict = BASE.replace("spec: {networks", "spec: {authorization: {default: Deny}, networks");
    let before = model(&strict).settings;
    for unreadable in [
        strict.replace("spec: {auth", "spec: {telemetry: {}, auth"),
        strict.replace("spec: {auth", "spec: {nonsense: 1, auth"),
        strict.replace("spec: {auth", "spec: [auth"),
    ] {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("mesh.yaml"), &unreadable).unwrap();
        let objects = DirectorySource::open(home.path()).unwrap().objects().borrow().clone();
        let now = Model::build(&objects, &before);
        assert_eq!(now.settings, before);
        assert!(now.statuses.iter().any(|status| status.message.contains("what held before stays in force")));
    }
}

#[test]
fn the_pods_of_a_namespace_that_nobody_can_read_are_not_called_in_plaintext() {
    for unreadable in [
        BASE.replace("apiVersion: v1\nkind: Namespace", "apiVersion: v2\nkind: Namespace"),
        BASE.replace("byrnie.dev/mesh: enabled}", "["),
    ] {
        let found = dial(&view(&unreadable, &[]), "10.0.0.1:80").endpoints[0].clone();
        assert_eq!((found.meshed(), found.permissive), (Meshed::EnrolledUnmeshed, false));
    }
}

#[test]
fn an_enrolled_pods_address_is_not_lost_to_a_pod_that_may_be_called_in_plaintext() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: thief, namespace: legacy}\nspec: {containers: []}\nstatus: {podIP: 10.0.0.1}\n";
    let view = view(&with(pod), &["u-db"]);
    let found = dial(&view, "10.0.0.1:80").endpoints[0].clone();
    assert_eq!((found.pod_uid.as_str(), found.meshed()), ("u-db", Meshed::Yes));
    assert!(status(&view.model, "Pod legacy/thief").message.contains("shop/db-0"));
}

#[test]
fn of_two_pods_with_one_uid_the_second_is_refused() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a-0, namespace: shop, uid: u-db}\nspec: {containers: []}\nstatus: {podIP: 10.0.0.9}\n";
    let model = model(&with(pod));
    let refused = status(&model, "Pod shop/db-0");
    assert!(!refused.accepted && refused.message.contains("shop/a-0"), "{}", refused.message);
    assert_eq!(model.pod_by_uid("u-db").unwrap().place(), "shop/a-0");
    assert!(model.pod("shop", "db-0").is_none());
}

#[test]
fn an_address_in_ipv6_clothes_is_the_ipv4_address() {
    let yaml = BASE.replace("{ip: 10.0.0.1}", "{ip: '::ffff:10.0.0.1'}").replace("[10.1.0.1, ", "['::ffff:10.1.0.1', ");
    let view = view(&yaml, &["u-db"]);
    assert_eq!(dial(&view, "10.0.0.1:80").endpoints[0].pod_uid, "u-db");
    assert_eq!(at(&dial(&view, "10.1.0.1:3306").endpoints[0]), "10.0.0.1:3307".parse().unwrap());
}

#[test]
fn plaintext_that_is_permitted_at_one_port_of_a_pod_is_not_at_another() {
    let slice = |name: &str, port: u16| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: manual}}}}\naddressType: IPv4\nports: [{{name: x, port: {port}}}]\nendpoints: [{{addresses: [10.0.0.1]}}]\n"
        )
    };
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: manual, namespace: shop}\nspec: {clusterIP: 10.1.0.5, ports: [{name: x, port: 80}]}\n";
    let view = view(&(with(service) + &slice("m-1", 8080) + &slice("m-2", 9090) + PERMISSIVE), &[]);
    let found = dial(&view, "10.1.0.5:80").endpoints;
    let permitted: Vec<_> = found.iter().map(|endpoint| (endpoint.port, endpoint.permissive)).collect();
    assert_eq!(permitted, [(8080, true), (9090, false)]);
}

#[test]
fn where_services_disagree_on_a_port_nothing_is_declared_however_many_they_are() {
    let service = |name: &str, protocol: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{clusterIP: None, selector: {{app: db}}, ports: [{{port: 80, appProtocol: {protocol}}}]}}\n"
        )
    };
    let view = view(&(BASE.to_owned() + &service("a", "http") + &service("b", "grpc") + &service("c", "http")), &[]);
    assert_eq!(dial(&view, "10.0.0.1:80").protocol(), AppProtocol::Unspecified);
}
