use std::collections::BTreeMap;

use byrnie_api::MeshConfigSpec;
use byrnie_proto::mesh::v1::{EdgeKind, ProxyStatus};
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};

use super::*;
use crate::source::{Object, ObjectKey, Objects, Stored};

/// Two pods, `web-0` and `db-0`.
fn model() -> Model {
    let mut items = BTreeMap::new();
    for (name, address) in [("web-0", "10.0.0.1"), ("db-0", "10.0.0.2")] {
        let mut pod = Pod::default();
        pod.metadata.uid = Some(format!("u-{name}"));
        pod.spec = Some(PodSpec::default());
        pod.status = Some(PodStatus { pod_ip: Some(address.to_owned()), ..PodStatus::default() });
        let key = ObjectKey { kind: "Pod".to_owned(), namespace: "shop".to_owned(), name: name.to_owned() };
        items.insert(
            Arc::new(key),
            Stored { object: Arc::new(Object::Pod(Box::new(pod))), file: "a.yaml".into(), line: 1 },
        );
    }
    let settings = Arc::new(MeshConfigSpec::default().settings().unwrap());
    Model::build(&Objects { items, ..Objects::default() }, &settings)
}

fn edge(direction: Direction, source: &str, destination: &str) -> Edge {
    Edge {
        kind: EdgeKind::Mesh.into(),
        direction: direction.into(),
        source: source.to_owned(),
        destination: destination.to_owned(),
        source_id: "spiffe://td/ns/shop/sa/web".to_owned(),
        destination_id: "spiffe://td/ns/shop/sa/db".to_owned(),
        secured: true,
        connections: 5,
        handshakes: 1,
        secured_since_ms: 100,
        ..Edge::default()
    }
}

fn merged(outbound: Option<Edge>, inbound: Option<Edge>) -> Vec<Edge> {
    let proxies = Arc::new(Proxies::default());
    let _connections = ["u-web-0", "u-db-0"].map(|uid| proxies.connect(&uid.into(), "1", None));
    let report = |edge: Option<Edge>| Report { edges: edge.into_iter().collect(), ..Report::default() };
    proxies.report(&"u-web-0".into(), report(outbound));
    proxies.report(&"u-db-0".into(), report(inbound));
    proxies.edges(&model())
}

#[test]
fn an_edge_is_secured_when_everyone_who_reported_says_so() {
    let (out, inn) = (edge(Direction::Outbound, "x", "shop/db-0"), edge(Direction::Inbound, "10.0.0.1:4711", "x"));
    let both = merged(Some(out.clone()), Some(inn.clone()));
    assert_eq!(both.len(), 1);
    assert_eq!((both[0].source.as_str(), both[0].destination.as_str()), ("shop/web-0", "shop/db-0"));
    assert_eq!((both[0].secured, both[0].connections, both[0].handshakes), (true, 5, 1));
    assert!(merged(Some(out.clone()), None)[0].secured);

    let plain = Edge { plaintext_connections: 1, ..inn.clone() };
    assert!(!merged(Some(out.clone()), Some(plain))[0].secured);
    let open = Edge { secured: false, ..inn.clone() };
    assert!(!merged(Some(out.clone()), Some(open))[0].secured);
    let other = Edge { source_id: "spiffe://td/ns/shop/sa/evil".to_owned(), ..inn.clone() };
    assert!(!merged(Some(out.clone()), Some(other))[0].secured, "two ends that saw different peers");
    let refusals = Edge { secured: false, connections: 0, handshakes: 0, refused: 3, ..inn };
    let edge = &merged(Some(out), Some(refusals))[0];
    assert!(edge.secured && edge.refused == 3, "a refusal is no connection");
}

#[test]
fn a_proxy_can_not_speak_for_another_pod_nor_leave_its_side_open() {
    let forged = edge(Direction::Outbound, "shop/bank", "shop/db-0");
    assert_eq!(merged(Some(forged), None)[0].source, "shop/web-0");
    assert!(merged(Some(edge(Direction::Unspecified, "a", "b")), None).is_empty());
}

#[test]
fn refusals_are_remembered_once_each_and_within_bounds() {
    let proxies = Arc::new(Proxies::default());
    let uid: Arc<str> = "u-db-0".into();
    let _connection = proxies.connect(&uid, "1", None);
    let refusal = |at_ms| Refusal {
        source: "10.0.0.1".to_owned(),
        at_ms,
        direction: Direction::Inbound.into(),
        ..Refusal::default()
    };
    for count in 1..=3 {
        proxies.report(&uid, Report { refusals: (0..count).map(refusal).collect(), ..Report::default() });
    }
    let refusals = proxies.refusals(&model());
    assert_eq!(refusals.len(), 3);
    assert_eq!((refusals[0].source.as_str(), refusals[0].destination.as_str()), ("shop/web-0", "shop/db-0"));
    for _ in 0..2 * limits::REFUSALS {
        proxies.refused_here(&"192.0.2.1:1".parse().unwrap(), "tls", "x".repeat(10_000), SystemTime::now());
    }
    let refusals = proxies.refusals(&model());
    assert_eq!(refusals.len(), limits::REFUSALS);
    assert!(refusals.iter().all(|refusal| refusal.reason.len() <= limits::REPORT_STRING_BYTES));
}

#[test]
fn reports_and_nacks_are_bounded() {
    let proxies = Arc::new(Proxies::default());
    let uid: Arc<str> = "u-web-0".into();
    let _connection = proxies.connect(&uid, &"v".repeat(10_000), None);
    let edges = (0..2 * limits::REPORT_EDGES)
        .map(|index| edge(Direction::Outbound, "", &format!("é{index}{}", "é".repeat(1000))))
        .collect();
    let status = Some(ProxyStatus { version: "v".repeat(10_000), ..ProxyStatus::default() });
    proxies.report(&uid, Report { edges, status, ..Report::default() });
    for index in 0..2 * limits::NACKS {
        proxies.not_acknowledged(&uid, Nack { name: format!("n{index}"), version: 1, reason: "r".repeat(10_000) });
    }
    let edges = proxies.edges(&model());
    assert_eq!(edges.len(), limits::REPORT_EDGES);
    assert!(edges.iter().all(|edge| edge.destination.len() <= limits::REPORT_STRING_BYTES));
    let state = proxies.lock();
    assert_eq!(state.of[&uid].nacks.len(), limits::NACKS);
    assert!(state.of[&uid].version.len() <= limits::REPORT_STRING_BYTES);
}

#[test]
fn the_newer_of_two_streams_of_a_pod_stays() {
    let proxies = Arc::new(Proxies::default());
    let uid: Arc<str> = "u-web-0".into();
    let mut first = proxies.connect(&uid, "1", None);
    let second = proxies.connect(&uid, "2", None);
    assert!(first.replaced.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
    drop(first);
    assert!(proxies.lock().of[&uid].connected.is_some());
    drop(second);
    assert!(proxies.lock().of[&uid].connected.is_none());
    proxies.retain(|_| false);
    assert!(proxies.lock().of.is_empty());
}

#[test]
fn a_refusal_of_nobodys_word_is_not_kept_and_a_new_proxy_has_refused_nothing() {
    let proxies = Arc::new(Proxies::default());
    let uid: Arc<str> = "u-web-0".into();
    let first = proxies.connect(&uid, "1", None);
    let refusal =
        Refusal { source: "shop/db-0".to_owned(), destination: "shop/api-0".to_owned(), ..Refusal::default() };
    proxies.report(&uid, Report { refusals: vec![refusal], ..Report::default() });
    assert!(proxies.refusals(&model()).is_empty());
    proxies.not_acknowledged(&uid, Nack { name: "self".to_owned(), version: 1, reason: "no".to_owned() });
    assert_eq!(proxies.lock().of[&uid].nacks.len(), 1);
    drop(first);
    let _second = proxies.connect(&uid, "1", None);
    assert!(proxies.lock().of[&uid].nacks.is_empty());
}
