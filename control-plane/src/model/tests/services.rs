//! What kinds of Services there are, and which endpoints a client gets of them.

use super::{kubernetes::in_kubernetes, *};

/// Three pods of one application on three nodes and in two zones, and a client on the first node.
const APP: &str = "
apiVersion: v1
kind: Pod
metadata: {name: app-0, namespace: shop, uid: u-app-0, labels: {app: app, topology.kubernetes.io/zone: a}}
spec: {nodeName: n1, containers: [{name: c, ports: [{containerPort: 8080, hostPort: 80}]}]}
status: {podIP: 10.0.1.0, hostIP: 192.0.2.1}
---
apiVersion: v1
kind: Pod
metadata: {name: app-1, namespace: shop, uid: u-app-1, labels: {app: app, topology.kubernetes.io/zone: b}}
spec: {nodeName: n2, containers: []}
status: {podIP: 10.0.1.1, hostIP: 192.0.2.2}
---
apiVersion: v1
kind: Pod
metadata: {name: app-2, namespace: shop, uid: u-app-2, labels: {app: app, topology.kubernetes.io/zone: b}}
spec: {nodeName: n3, containers: []}
status: {podIP: 10.0.1.2, hostIP: 192.0.2.3}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, uid: u-client, labels: {topology.kubernetes.io/zone: b}}
spec: {nodeName: n1, containers: []}
status: {podIP: 10.0.1.9, hostIP: 192.0.2.1}
";

const ALL: [&str; 3] = ["10.0.1.0:8080", "10.0.1.1:8080", "10.0.1.2:8080"];

fn app(spec: &str, status: &str) -> MeshView {
    let service = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: app, namespace: shop}}\nspec: {{clusterIP: 10.1.0.9, selector: {{app: app}}, ports: [{{name: http, port: 80, targetPort: 8080, nodePort: 30080}}], {spec}}}\nstatus: {{{status}}}\n"
    );
    view(&with(&(APP.to_owned() + &service)), &[])
}

fn service(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: shop}}\nspec: {{{spec}}}\n")
}

fn manual(endpoints: &str, more: &str) -> String {
    let service = service("clusterIP: 10.1.0.5, ports: [{name: x, port: 80}]");
    with(&format!(
        "{more}---\n{service}---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s-1, namespace: shop, labels: {{kubernetes.io/service-name: s}}}}\naddressType: IPv4\nports: [{{name: x, port: 8081}}]\nendpoints: [{endpoints}]\n"
    ))
}

fn reached(view: &MeshView, dialled: &str, viewer: &str) -> Vec<String> {
    let found = view.destination(dialled.parse().unwrap(), viewer);
    found.endpoints.iter().map(|endpoint| at(endpoint).to_string()).collect()
}

#[test]
fn a_service_is_reached_by_node_port_external_ip_and_load_balancer_as_by_its_cluster_ip() {
    let view = app(
        "type: LoadBalancer, externalIPs: [203.0.113.7]",
        "loadBalancer: {ingress: [{ip: 203.0.113.8}, {ip: 203.0.113.9, ipMode: Proxy}]}",
    );
    for dialled in ["10.1.0.9:80", "192.0.2.1:30080", "192.0.2.3:30080", "203.0.113.7:80", "203.0.113.8:80"] {
        assert_eq!(reached(&view, dialled, "u-client"), ALL, "{dialled}");
        assert_eq!(dial(&view, dialled).service, "shop/app", "{dialled}");
    }
    for dialled in ["192.0.2.9:30080", "192.0.2.1:10250", "203.0.113.7:81", "203.0.113.9:80"] {
        assert_eq!(dial(&view, dialled).kind(), DestinationKind::External, "{dialled}");
    }
    assert_eq!(dial(&view, "192.0.2.1:30081").kind(), DestinationKind::UnknownInternal, "a node port of nobody's yet");
}

#[test]
fn a_host_port_leads_to_its_pod_on_that_node_only() {
    let view = app("type: ClusterIP", "");
    assert_eq!(reached(&view, "192.0.2.1:80", "u-client"), ["10.0.1.0:8080"]);
    assert_eq!(dial(&view, "192.0.2.2:80").kind(), DestinationKind::External);
}

#[test]
fn an_address_that_a_load_balancer_was_given_is_neither_another_services_nor_a_node_ports_owners() {
    let claims = "---\napiVersion: v1\nkind: Service\nmetadata: {name: aaa, namespace: aaa}\nspec: {clusterIP: 10.1.0.77, externalIPs: [203.0.113.8, 192.0.2.1], ports: [{port: 80}]}\n";
    let given = "---\napiVersion: v1\nkind: Service\nmetadata: {name: app, namespace: shop}\nspec: {clusterIP: 10.1.0.9, selector: {app: app}, ports: [{port: 80, targetPort: 8080}]}\nstatus: {loadBalancer: {ingress: [{ip: 203.0.113.8}, {ip: 192.0.2.1}]}}\n";
    let view = view(&with(&(APP.to_owned() + claims + given)), &[]);
    // The second one is the address of a node, and the first pod has its port 80 there.
    for dialled in ["203.0.113.8:80", "192.0.2.1:80"] {
        assert_eq!(reached(&view, dialled, "u-client"), ALL, "{dialled}");
    }
}

#[test]
fn an_external_address_takes_nothing_that_is_inside() {
    let view = app("externalIPs: [10.0.0.1, 10.0.44.44, 10.1.0.1]", "");
    assert_eq!(dial(&view, "10.0.0.1:80").endpoints[0].pod_uid, "u-db");
    assert_eq!(dial(&view, "10.0.44.44:80").kind(), DestinationKind::UnknownInternal);
    assert_eq!(dial(&view, "10.1.0.1:3306").service, "shop/db");
    let status = status(&view.model, "Service shop/app");
    assert!(status.accepted && status.message.contains("10.0.44.44 lies inside"), "{}", status.message);
}

#[test]
fn with_session_affinity_each_client_has_one_lasting_endpoint_and_clients_have_different_ones() {
    let view = app("sessionAffinity: ClientIP", "");
    assert!(view.is_personal("destination/10.1.0.9:80"));
    let mut chosen = BTreeMap::new();
    for client in 0..32 {
        let one = reached(&view, "10.1.0.9:80", &format!("u-{client}"));
        assert_eq!((one.len(), &one), (1, &reached(&view, "10.1.0.9:80", &format!("u-{client}"))));
        *chosen.entry(one).or_insert(0) += 1;
    }
    assert_eq!(chosen.len(), 3, "{chosen:?}");
}

#[test]
fn internal_traffic_policy_local_keeps_a_client_on_its_node_and_only_on_the_cluster_ip() {
    let view = app("type: NodePort, internalTrafficPolicy: Local", "");
    assert!(view.is_personal("destination/10.1.0.9:80"));
    assert_eq!(reached(&view, "10.1.0.9:80", "u-client"), ["10.0.1.0:8080"]);
    assert!(reached(&view, "10.1.0.9:80", "nobody").is_empty());
    assert_eq!(reached(&view, "192.0.2.2:30080", "u-client"), ALL);
}

#[test]
fn traffic_distribution_prefers_what_is_near_as_long_as_it_is_there() {
    for (spec, expected) in [
        ("trafficDistribution: PreferSameZone", &ALL[1..]),
        ("trafficDistribution: PreferClose", &ALL[1..]),
        ("trafficDistribution: PreferSameNode", &ALL[..1]),
        ("trafficDistribution: PreferTheMoon", &ALL[..]),
    ] {
        assert_eq!(reached(&app(spec, ""), "10.1.0.9:80", "u-client"), expected, "{spec}");
    }
    let alone = app("trafficDistribution: PreferSameZone", "");
    assert_eq!(reached(&alone, "10.1.0.9:80", "u-db"), ALL, "a client of no known zone");
}

#[test]
fn a_service_that_is_refused_leads_nowhere_and_its_address_is_not_taken_for_an_outside_one() {
    for spec in ["type: Other", "sessionAffinity: Cookie", "internalTrafficPolicy: Near"] {
        let yaml = service(&format!("clusterIP: 10.2.0.9, {spec}, selector: {{app: db}}, ports: [{{port: 80}}]"));
        let view = view(&with(&yaml), &[]);
        assert!(!status(&view.model, "Service shop/s").accepted, "{spec}");
        assert_eq!(dial(&view, "10.2.0.9:80").kind(), DestinationKind::UnknownInternal, "{spec}");
    }
}

#[test]
fn an_external_name_is_a_name_in_the_dns_only() {
    let alias = service("type: ExternalName, externalName: example.com, selector: {app: db}, ports: [{port: 1}]");
    let view = view(&with(&alias), &[]);
    let status = status(&view.model, "Service shop/s");
    assert!(status.accepted && status.message.contains("a name in the DNS"), "{}", status.message);
    assert_eq!(dial(&view, "10.0.0.1:1").service, "");
}

#[test]
fn ports_of_other_protocols_are_told_and_leave_the_others_alone() {
    let base = model(BASE);
    let udp = status(&base, "Service shop/db");
    assert!(udp.accepted && udp.message.contains("UDP is not carried"), "{}", udp.message);
    let only = service("clusterIP: 10.1.0.10, selector: {app: db}, ports: [{port: 53, protocol: UDP}]");
    let view = view(&with(&only), &[]);
    assert!(status(&view.model, "Service shop/s").accepted);
    assert_eq!(dial(&view, "10.1.0.10:53").kind(), DestinationKind::UnknownInternal);
}

#[test]
fn behind_a_service_without_selector_may_be_pods_nodes_and_outsiders_each_as_what_it_is() {
    let yaml = manual("{addresses: [10.0.0.1]}, {addresses: [192.0.2.1]}, {addresses: [203.0.113.9]}", APP);
    let found = dial(&view(&yaml, &["u-db"]), "10.1.0.5:80").endpoints;
    let found: Vec<_> = found
        .iter()
        .map(|endpoint| (at(endpoint).to_string(), endpoint.meshed(), endpoint.workload.as_str()))
        .collect();
    let expected = [
        ("10.0.0.1:8081".to_owned(), Meshed::Yes, "shop/db-0"),
        ("192.0.2.1:8081".to_owned(), Meshed::NotEnrolled, "192.0.2.1"),
        ("203.0.113.9:8081".to_owned(), Meshed::External, "203.0.113.9"),
    ];
    assert_eq!(found, expected);
}

#[test]
fn no_endpoint_slice_leads_around_the_mesh_to_a_pod() {
    let other = "apiVersion: v1\nkind: Service\nmetadata: {name: np, namespace: shop}\nspec: {clusterIP: 10.1.0.6, externalIPs: [203.0.113.1], selector: {app: db}, ports: [{port: 8081, nodePort: 8081}]}\n---\n";
    let refused = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: refused, namespace: shop, uid: u-db}\nspec: {containers: []}\nstatus: {podIP: 10.9.9.9}\n";
    for (address, reason) in [
        ("10.0.99.9", "lies inside"),
        ("10.9.9.9", "of an object that is refused"),
        ("10.1.0.1", "is the address of a Service"),
        ("203.0.113.1", "is the address of a Service"),
        ("192.0.2.1", "at a port that leads to pods"),
        ("127.0.0.1", "can be nobody's"),
        ("0.0.0.0", "can be nobody's"),
    ] {
        let view = view(&manual(&format!("{{addresses: [{address}]}}"), &format!("{other}{APP}{refused}")), &[]);
        assert!(dial(&view, "10.1.0.5:80").endpoints.is_empty(), "{address}");
        let status = status(&view.model, "EndpointSlice shop/s-1");
        assert!(status.accepted && status.message.contains(reason), "{address}: {}", status.message);
    }
}

#[test]
fn the_api_server_is_reached_by_its_service() {
    let yaml = with(
        "apiVersion: v1\nkind: Service\nmetadata: {name: kubernetes, namespace: default}\nspec: {clusterIP: 10.1.0.100, ports: [{name: https, port: 443, targetPort: 6443}]}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: kubernetes, namespace: default, labels: {kubernetes.io/service-name: kubernetes}}\naddressType: IPv4\nports: [{name: https, port: 6443}]\nendpoints: [{addresses: [192.0.2.77], conditions: {ready: true}}]\n",
    );
    let found = dial(&in_kubernetes(&yaml), "10.1.0.100:443");
    let [endpoint] = found.endpoints.as_slice() else { panic!("{found:?}") };
    assert_eq!((at(endpoint).to_string().as_str(), endpoint.meshed()), ("192.0.2.77:6443", Meshed::NotEnrolled));
}

#[test]
fn an_endpoint_that_terminates_is_used_while_it_serves_and_one_that_is_not_ready_is_not() {
    let yaml = manual(
        "{addresses: [203.0.113.1], conditions: {ready: false, serving: true, terminating: true}}, {addresses: [203.0.113.2], conditions: {ready: false, serving: false, terminating: true}}, {addresses: [203.0.113.3], conditions: {ready: false}}, {addresses: [203.0.113.4]}",
        "",
    );
    let found = dial(&view(&yaml, &[]), "10.1.0.5:80").endpoints;
    let found: Vec<_> = found.iter().map(|endpoint| (at(endpoint).to_string(), endpoint.terminating)).collect();
    assert_eq!(found, [("203.0.113.1:8081".to_owned(), true), ("203.0.113.4:8081".to_owned(), false)]);
}

#[test]
fn pods_on_their_nodes_network_serve_at_the_nodes_address_and_unmeshed() {
    let yaml = with(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: agent, namespace: legacy, uid: u-agent, labels: {app: agent}}\nspec: {hostNetwork: true, containers: []}\nstatus: {podIP: 192.0.2.1, hostIP: 192.0.2.1, phase: Running}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: agent, namespace: legacy}\nspec: {clusterIP: 10.1.0.20, selector: {app: agent}, ports: [{port: 9100}]}\n",
    );
    let found = dial(&in_kubernetes(&yaml), "10.1.0.20:9100");
    let [endpoint] = found.endpoints.as_slice() else { panic!("{found:?}") };
    assert_eq!((at(endpoint).to_string().as_str(), endpoint.meshed()), ("192.0.2.1:9100", Meshed::NotEnrolled));
    let enrolled = dial(&in_kubernetes(&yaml.replace("namespace: legacy", "namespace: shop")), "10.1.0.20:9100");
    assert_eq!(enrolled.endpoints[0].meshed(), Meshed::EnrolledUnmeshed);
}

#[test]
fn a_pod_whose_containers_have_ended_is_behind_no_service_and_has_no_address() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: job, namespace: shop, uid: u-job, labels: {app: db}}\nspec: {containers: []}\nstatus: {podIP: 10.0.0.50, phase: Succeeded}\n";
    let view = view(&with(pod), &[]);
    assert_eq!(dial(&view, "10.1.0.1:3306").endpoints.len(), 1);
    assert_eq!(dial(&view, "10.0.0.50:3307").kind(), DestinationKind::UnknownInternal);
    assert!(view.model.pod_by_uid("u-job").unwrap().finished);
}
