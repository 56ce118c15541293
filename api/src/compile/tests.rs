#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::time::{Duration, UNIX_EPOCH};

use byrnie_identity::SpiffeId;
use byrnie_policy::{Caller, DefaultAction, EgressRequest, MtlsMode, Question, Reason, evaluate_egress, what_if};
use serde_json::{Value, json};

use super::*;
use crate::parse;

fn object(kind: &str, namespace: &str, name: &str, spec: Value) -> Object {
    let metadata = json!({"namespace": namespace, "name": name});
    parse(json!({"apiVersion": "byrnie.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec})).unwrap()
}

fn stand_in(kind: &str, spec: Value) -> Object {
    let metadata = json!({"namespace": "shop", "name": "bad"});
    let value = json!({"apiVersion": "byrnie.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec});
    parse(value).unwrap_err().stand_in().unwrap().clone()
}

/// The policies of `shop/orders`, a pod with the label `app: orders`.
fn orders(objects: &[Object]) -> Policies {
    compile_for("shop", "orders", &MeshSettings::default(), objects)
}

fn compile_for(namespace: &str, name: &str, mesh: &MeshSettings, objects: &[Object]) -> Policies {
    let labels = BTreeMap::from([("app".to_owned(), name.to_owned())]);
    compile(mesh, objects, &Workload { namespace, labels: &labels, service_account: name })
}

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn mesh_call(policies: &Policies, caller: &str, port: u16) -> byrnie_policy::Decision {
    what_if(policies, &Question { caller: Caller::Mesh(&id(caller)), port, now: UNIX_EPOCH })
}

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

#[test]
fn without_objects_the_policies_are_the_strict_default() {
    assert_eq!(orders(&[]), Policies::default());
}

#[test]
fn the_defaults_are_those_of_the_mesh() {
    let mesh = MeshSettings {
        authorization_default: DefaultAction::Deny,
        egress_default: DefaultAction::Allow,
        ..MeshSettings::default()
    };
    let policies = compile_for("shop", "orders", &mesh, &[]);
    assert_eq!(policies.authorization_default, DefaultAction::Deny);
    assert_eq!(policies.egress_default, DefaultAction::Allow);
}

#[test]
fn an_allow_lets_in_whom_it_names_and_is_named_in_the_decision() {
    let rules = json!([
        {"from": [{"serviceAccount": "other"}]},
        {"from": [{"serviceAccount": "web"}], "to": [{"ports": [8080]}, {"ports": [9090]}]},
    ]);
    let policies =
        orders(&[object("AuthorizationPolicy", "shop", "orders-allow", json!({"action": "Allow", "rules": rules}))]);
    let decision = mesh_call(&policies, WEB, 9_090);
    assert_eq!(decision.rule.as_deref(), Some("AuthorizationPolicy shop/orders-allow[1]"));
    assert_eq!(mesh_call(&policies, WEB, 80).reason, Reason::NoAllowRule);
    assert_eq!(mesh_call(&policies, "spiffe://cluster.local/ns/shop/sa/stock", 8_080).reason, Reason::NoAllowRule);
    let elsewhere = "spiffe://cluster.local/ns/elsewhere/sa/web";
    assert!(!mesh_call(&policies, elsewhere, 8_080).allowed, "the service account of another namespace");
}

#[test]
fn without_rules_an_authorization_policy_matches_everything() {
    let deny = orders(&[object("AuthorizationPolicy", "shop", "closed", json!({"action": "Deny"}))]);
    let decision = mesh_call(&deny, WEB, 80);
    assert_eq!((decision.allowed, decision.rule.as_deref()), (false, Some("AuthorizationPolicy shop/closed")));
    let allow = orders(&[object("AuthorizationPolicy", "shop", "open", json!({"action": "Allow"}))]);
    assert!(mesh_call(&allow, WEB, 80).allowed);
}

#[test]
fn an_allow_by_namespace_means_this_mesh_and_a_deny_every_mesh() {
    let federated = "spiffe://elsewhere.example/ns/shop/sa/web";
    let by_namespace = |action: &str| {
        let spec = json!({"action": action, "rules": [{"from": [{"namespace": "shop"}]}]});
        orders(&[object("AuthorizationPolicy", "shop", "x", spec)])
    };
    assert!(mesh_call(&by_namespace("Allow"), WEB, 80).allowed);
    assert!(!mesh_call(&by_namespace("Allow"), federated, 80).allowed);
    assert!(!mesh_call(&by_namespace("Deny"), WEB, 80).allowed);
    assert!(!mesh_call(&by_namespace("Deny"), federated, 80).allowed);
    let spec =
        json!({"action": "Allow", "rules": [{"from": [{"namespace": "shop", "trustDomain": "elsewhere.example"}]}]});
    assert!(mesh_call(&orders(&[object("AuthorizationPolicy", "shop", "x", spec)]), federated, 80).allowed);
}

#[test]
fn an_object_binds_only_within_its_namespace() {
    let objects = [
        object("AuthorizationPolicy", "elsewhere", "a", json!({"action": "Deny"})),
        object("MtlsPolicy", "elsewhere", "m", json!({"mode": "Permissive"})),
        object("IngressPolicy", "elsewhere", "i", json!({"principals": [WEB]})),
        object("EgressPolicy", "elsewhere", "e", json!({"to": [{"cidrs": ["0.0.0.0/0"]}]})),
    ];
    assert_eq!(orders(&objects), Policies::default());
    assert_ne!(compile_for("elsewhere", "orders", &MeshSettings::default(), &objects), Policies::default());
}

#[test]
fn an_object_binds_only_the_workloads_that_it_selects() {
    let selector = json!({"matchLabels": {"app": "orders"}});
    let objects = [
        object("AuthorizationPolicy", "shop", "a", json!({"selector": selector, "action": "Deny"})),
        object("MtlsPolicy", "shop", "m", json!({"selector": selector, "mode": "Permissive"})),
        object("IngressPolicy", "shop", "i", json!({"selector": selector, "principals": [WEB]})),
        object("EgressPolicy", "shop", "e", json!({"serviceAccounts": ["orders"], "to": [{"cidrs": ["0.0.0.0/0"]}]})),
    ];
    let selected = orders(&objects);
    assert_eq!(
        (selected.authorization.len(), selected.mtls.len(), selected.ingress.len(), selected.egress.len()),
        (1, 1, 1, 1)
    );
    assert_eq!(compile_for("shop", "web", &MeshSettings::default(), &objects), Policies::default());
}

#[test]
fn the_rank_of_an_mtls_policy_is_what_it_selects() {
    let orders_only = json!({"matchLabels": {"app": "orders"}});
    let policies = orders(&[
        object("MtlsPolicy", "shop", "namespace", json!({"mode": "Strict"})),
        object("MtlsPolicy", "shop", "same", json!({"selector": {}, "mode": "Strict"})),
        object("MtlsPolicy", "shop", "workload", json!({"selector": orders_only, "mode": "Permissive"})),
        object("MtlsPolicy", "shop", "port", json!({"port": 81, "mode": "Strict"})),
    ]);
    assert_eq!(policies.mtls_mode(80, UNIX_EPOCH), MtlsMode::Permissive);
    assert_eq!(policies.mtls_mode(81, UNIX_EPOCH), MtlsMode::Strict);
}

#[test]
fn permissive_ends_at_the_time_that_is_written() {
    let spec = json!({"mode": "Permissive", "until": "2030-01-31T19:00:00+01:00"});
    let policies = orders(&[object("MtlsPolicy", "shop", "m", spec)]);
    let end = UNIX_EPOCH + Duration::from_secs(1_896_112_800);
    assert_eq!(policies.mtls_mode(80, end - Duration::from_secs(1)), MtlsMode::Permissive);
    assert_eq!(policies.mtls_mode(80, end), MtlsMode::Strict);
}

#[test]
fn a_permissive_policy_under_a_strict_floor_does_nothing() {
    let mesh = MeshSettings { mtls_floor: crate::MtlsMode::Strict, ..MeshSettings::default() };
    let objects = [object("MtlsPolicy", "shop", "m", json!({"mode": "Permissive"}))];
    assert_eq!(compile_for("shop", "orders", &mesh, &objects).mtls_mode(80, UNIX_EPOCH), MtlsMode::Strict);
}

#[test]
fn an_ingress_policy_lets_its_principal_in_at_its_ports() {
    let nginx = "spiffe://cluster.local/ns/ingress/sa/nginx";
    let policies = orders(&[object("IngressPolicy", "shop", "in", json!({"ports": [8443], "principals": [nginx]}))]);
    let call = |caller: &str, port| {
        what_if(&policies, &Question { caller: Caller::Ingress(&id(caller)), port, now: UNIX_EPOCH })
    };
    assert_eq!(call(nginx, 8_443).rule.as_deref(), Some("IngressPolicy shop/in"));
    assert_eq!(call(nginx, 80).reason, Reason::NoIngressRule);
    assert_eq!(call(WEB, 8_443).reason, Reason::NoIngressRule);
}

#[test]
fn an_egress_policy_lets_out_to_its_networks_and_ports() {
    let spec =
        json!({"to": [{"cidrs": ["198.51.100.0/24"]}, {"cidrs": ["203.0.113.0/24", "2001:db8::/32"], "ports": [443]}]});
    let policies = orders(&[object("EgressPolicy", "shop", "out", spec)]);
    let source = id("spiffe://cluster.local/ns/shop/sa/orders");
    let call = |destination: &str, port| {
        let destination = destination.parse().unwrap();
        evaluate_egress(&policies, &EgressRequest { source: &source, destination, port })
    };
    assert_eq!(call("2001:db8::1", 443).rule.as_deref(), Some("EgressPolicy shop/out[1]"));
    assert!(call("198.51.100.1", 25).allowed);
    assert_eq!(call("203.0.113.1", 80).reason, Reason::EgressDefaultDeny);
}

#[test]
fn a_refused_authorization_policy_keeps_everyone_out_of_what_it_selects() {
    let everyone = object("AuthorizationPolicy", "shop", "open", json!({"action": "Allow"}));
    let bad = stand_in(
        "AuthorizationPolicy",
        json!({"selector": {"matchLabels": {"app": "orders"}}, "action": "Allow", "rules": [{"to": [{"methods": ["GET"]}]}]}),
    );
    let objects = [everyone, bad];
    let decision = mesh_call(&orders(&objects), WEB, 80);
    assert_eq!(decision.rule.as_deref(), Some("AuthorizationPolicy shop/bad (refused: see its status)"));
    assert!(!decision.allowed);
    let other = compile_for("shop", "stock", &MeshSettings::default(), &objects);
    assert!(mesh_call(&other, WEB, 80).allowed, "a workload that it does not select is unharmed");
}

#[test]
fn a_refused_mtls_policy_keeps_all_plaintext_out_of_what_it_selects() {
    let wide = object("MtlsPolicy", "shop", "wide", json!({"port": 80, "mode": "Permissive"}));
    let policies = orders(&[wide.clone(), stand_in("MtlsPolicy", json!({"mode": "strict"})), wide]);
    assert_eq!(policies.mtls_mode(80, UNIX_EPOCH), MtlsMode::Strict);
    let caller = Caller::Plaintext;
    let decision = what_if(&policies, &Question { caller, port: 80, now: UNIX_EPOCH });
    assert_eq!(decision.rule.as_deref(), Some("MtlsPolicy shop/bad (refused: see its status)"));
}

#[test]
fn a_malformed_object_that_came_around_parse_fails_closed() {
    let Object::AuthorizationPolicy(mut policy) =
        object("AuthorizationPolicy", "shop", "x", json!({"action": "Allow"}))
    else {
        panic!("an AuthorizationPolicy")
    };
    policy.spec.rules = Some(Vec::new());
    assert!(!mesh_call(&orders(&[Object::AuthorizationPolicy(policy)]), WEB, 80).allowed);

    let Object::MtlsPolicy(mut policy) = object("MtlsPolicy", "shop", "x", json!({"mode": "Permissive"})) else {
        panic!("an MtlsPolicy")
    };
    policy.spec.until = Some("soon".into());
    assert_eq!(orders(&[Object::MtlsPolicy(policy)]).mtls_mode(80, UNIX_EPOCH), MtlsMode::Strict);
}

#[test]
fn what_is_compiled_can_be_sent() {
    let policies = orders(&[
        object(
            "AuthorizationPolicy",
            "shop",
            "a",
            json!({"action": "Allow", "rules": [{"from": [{"serviceAccount": "web"}]}]}),
        ),
        object("MtlsPolicy", "shop", "m", json!({"port": 80, "mode": "Permissive", "until": "2030-01-31T18:00:00Z"})),
        object("IngressPolicy", "shop", "i", json!({"principals": [WEB]})),
        object("EgressPolicy", "shop", "e", json!({"to": [{"cidrs": ["::ffff:203.0.113.0/120"]}]})),
    ]);
    let message = byrnie_proto::mesh::v1::Policies::from(&policies);
    assert_eq!(Policies::try_from(message), Ok(policies));
}
