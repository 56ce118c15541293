#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use serde_json::json;

use super::*;

fn object(kind: &str, spec: Value) -> Value {
    let metadata =
        if kind == "MeshConfig" { json!({"name": "default"}) } else { json!({"namespace": "shop", "name": "x"}) };
    json!({"apiVersion": "byrnie.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec})
}

fn refused(value: Value) -> ParseError {
    parse(value).unwrap_err()
}

fn places(error: &ParseError) -> Vec<&str> {
    error.problems.iter().map(|problem| problem.path.as_str()).collect()
}

#[test]
fn one_object_of_each_kind_with_every_field_is_taken() {
    let id = "spiffe://cluster.local/ns/ingress/sa/nginx";
    let whole = [
        object(
            "MeshConfig",
            json!({
                "trustDomain": "example.org", "svidTtl": "1h", "mtls": {"floor": "Strict"}, "authorization": {"default": "Deny"},
                "egress": {"default": "Allow"}, "networks": {"serviceCIDRs": ["10.96.0.0/12"], "podCIDRs": ["10.0.0.0/16", "fd00::/64"]},
                "ingressCertificates": [{"namespace": "ingress", "serviceAccount": "nginx"}],
                "sidecar": {
                    "image": "registry.example/byrnie/proxy:1", "logLevel": "debug",
                    "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "64Mi"}},
                    "exclude": {
                        "inboundPorts": [9090], "outboundPorts": [53], "outboundCIDRs": ["203.0.113.0/24"], "uids": [0],
                        "interfaces": ["eth1"],
                    },
                },
                "adoptedMeshes": ["osm"],
            }),
        ),
        object(
            "MtlsPolicy",
            json!({
                "selector": {"matchLabels": {"app": "web"}}, "port": 80, "mode": "Permissive", "until": "2030-01-31T18:00:00Z",
            }),
        ),
        object(
            "AuthorizationPolicy",
            json!({
                "selector": {"matchLabels": {"app": "web"}}, "action": "Allow", "enforcement": "audit",
                "rules": [{
                    "from": [{"namespace": "shop", "serviceAccount": "web", "spiffeId": "spiffe://a/*", "trustDomain": "a"}],
                    "to": [{"ports": [80, 81]}, {"ports": [82]}],
                }],
            }),
        ),
        object("IngressPolicy", json!({"selector": {"matchLabels": {}}, "ports": [8443], "principals": [id]})),
        object(
            "EgressPolicy",
            json!({"serviceAccounts": ["web"], "to": [{"cidrs": ["203.0.113.0/24"], "ports": [443]}]}),
        ),
    ];
    for (kind, value) in Kind::ALL.into_iter().zip(whole) {
        let taken = parse(value.clone()).unwrap();
        assert_eq!(taken.kind(), kind);
        assert!(taken.validate().is_empty());
        let written = match &taken {
            Object::MeshConfig(object) => serde_json::to_value(object),
            Object::MtlsPolicy(object) => serde_json::to_value(object),
            Object::AuthorizationPolicy(object) => serde_json::to_value(object),
            Object::IngressPolicy(object) => serde_json::to_value(object),
            Object::EgressPolicy(object) => serde_json::to_value(object),
            Object::Refused(_) => unreachable!("parse does not make one"),
        };
        if kind != Kind::IngressPolicy {
            assert_eq!(written.unwrap(), value, "what is written is what was read");
        }
    }
}

#[test]
fn an_object_is_named_by_kind_namespace_and_name() {
    assert_eq!(parse(object("MeshConfig", json!({}))).unwrap().to_string(), "MeshConfig default");
    let policy = parse(object("MtlsPolicy", json!({"mode": "Strict"}))).unwrap();
    assert_eq!(policy.to_string(), "MtlsPolicy shop/x");
}

#[test]
fn kinds_of_later_versions_and_unknown_ones_are_refused() {
    for (kind, hint) in
        [("ServicePolicy", "not supported yet"), ("TrustRoot", "not supported yet"), ("Mtlspolicy", "unknown kind")]
    {
        let error = refused(object(kind, json!({})));
        assert_eq!(places(&error), ["kind"]);
        assert_eq!(error.problems[0].hint, hint);
        assert!(error.stand_in().is_none());
    }
}

#[test]
fn what_is_no_object_of_ours_is_refused_with_the_place() {
    assert_eq!(places(&refused(json!([]))), ["object"]);
    assert_eq!(places(&refused(json!({}))), ["apiVersion", "kind"]);
    assert_eq!(places(&refused(json!({"apiVersion": "byrnie.dev/v1", "kind": 7}))), ["apiVersion", "kind"]);
    assert!(is_ours("byrnie.dev/v1") && is_ours("byrnie.dev/v1alpha1"));
    assert!(!is_ours("v1") && !is_ours("byrnie.dev.example/v1"));
}

#[test]
fn names_and_namespaces_must_be_there_and_well_formed() {
    let with = |kind: &str, metadata: Value| {
        let mut value = object(kind, json!({"mode": "Strict"}));
        value["metadata"] = metadata;
        if kind == "MeshConfig" {
            value["spec"] = json!({});
        }
        value
    };
    assert_eq!(places(&refused(with("MtlsPolicy", json!({})))), ["metadata.name", "metadata.namespace"]);
    assert_eq!(
        places(&refused(with("MtlsPolicy", json!({"name": "A", "namespace": "a.b"})))),
        ["metadata.name", "metadata.namespace"]
    );
    assert_eq!(places(&refused(with("MtlsPolicy", json!({"name": 7})))), ["metadata"]);
    let error = refused(with("MeshConfig", json!({"name": "other", "namespace": "shop"})));
    assert_eq!(places(&error), ["metadata.name", "metadata.namespace"]);
    assert_eq!(
        error.to_string(),
        "MeshConfig shop/other is refused: metadata.name: expected `default`, found `other` (a mesh has one MeshConfig); \
         metadata.namespace: expected nothing: the object is the cluster's, found `shop`"
    );
}

#[test]
fn a_mesh_config_that_says_nothing_has_the_documented_defaults() {
    let Object::MeshConfig(config) = parse(object("MeshConfig", json!({}))).unwrap() else { panic!("a MeshConfig") };
    let settings = config.spec.settings().unwrap();
    assert_eq!(settings, MeshSettings::default());
    assert_eq!(settings.trust_domain.as_str(), "cluster.local");
    assert_eq!(settings.svid_ttl.as_secs(), 24 * 3_600);
    assert_eq!(settings.egress_default, byrnie_policy::DefaultAction::Deny);
    assert_eq!(settings.authorization_default, byrnie_policy::DefaultAction::Allow);
}

#[test]
fn every_ingress_certificate_has_a_secret_of_its_own() {
    let entry = |account: &str| json!({"namespace": "ingress", "serviceAccount": account});
    let spec = json!({"ingressCertificates": [entry("nginx"), entry("traefik")]});
    assert_eq!(places(&refused(object("MeshConfig", spec))), ["spec.ingressCertificates[1].secretName"]);
    let mut named = entry("traefik");
    named["secretName"] = "traefik-client".into();
    let spec = json!({"ingressCertificates": [entry("nginx"), named]});
    let Object::MeshConfig(config) = parse(object("MeshConfig", spec)).unwrap() else { panic!("a MeshConfig") };
    let certificates = config.spec.settings().unwrap().ingress_certificates;
    let names: Vec<&str> = certificates.iter().map(|certificate| certificate.secret_name()).collect();
    assert_eq!(names, ["byrnie-ingress-client", "traefik-client"]);
}

#[test]
fn a_malformed_mesh_config_is_refused_with_every_place() {
    let spec = json!({
        "trustDomain": "Example Org", "svidTtl": "59m", "networks": {"serviceCIDRs": ["10.0.0.1/8"], "podCIDRs": ["pods"]},
        "ingressCertificates": [{"namespace": "a b", "serviceAccount": "nginx"}, {"namespace": "ingress", "serviceAccount": ""}],
    });
    assert_eq!(
        places(&refused(object("MeshConfig", spec))),
        [
            "spec.trustDomain",
            "spec.svidTtl",
            "spec.networks.serviceCIDRs[0]",
            "spec.networks.podCIDRs[0]",
            "spec.ingressCertificates[0].namespace",
            "spec.ingressCertificates[1].serviceAccount",
        ]
    );
    for ttl in ["8d", "169h", "24", "", "59m59s"] {
        assert_eq!(places(&refused(object("MeshConfig", json!({"svidTtl": ttl})))), ["spec.svidTtl"], "{ttl}");
    }
    assert!(parse(object("MeshConfig", json!({"svidTtl": "7d"}))).is_ok());
}

#[test]
fn a_malformed_mtls_policy_is_refused() {
    let spec = json!({"mode": "Strict", "until": "2030-01-31T18:00:00Z"});
    assert_eq!(places(&refused(object("MtlsPolicy", spec))), ["spec.until"]);
    let spec =
        json!({"mode": "Permissive", "until": "next week", "selector": {"matchLabels": {"a b": "c", "d": "e f"}}});
    assert_eq!(
        places(&refused(object("MtlsPolicy", spec))),
        ["spec.selector.matchLabels[a b]", "spec.selector.matchLabels[d]", "spec.until"]
    );
}

#[test]
fn a_malformed_authorization_policy_is_refused() {
    let from = json!([
        {}, {"namespace": "*"}, {"serviceAccount": "a/b"}, {"spiffeId": "*"}, {"spiffeId": "spiffe://a/b*"}, {"trustDomain": "*"},
    ]);
    assert_eq!(
        places(&refused(object("AuthorizationPolicy", json!({"action": "Deny", "rules": [{"from": from}]})))),
        [
            "spec.rules[0].from[0]",
            "spec.rules[0].from[1].namespace",
            "spec.rules[0].from[2].serviceAccount",
            "spec.rules[0].from[3].spiffeId",
            "spec.rules[0].from[4].spiffeId",
            "spec.rules[0].from[5].trustDomain",
        ]
    );
}

#[test]
fn an_empty_list_is_refused_wherever_left_out_means_everything() {
    for spec in [
        json!({"action": "Allow", "rules": []}),
        json!({"action": "Allow", "rules": [{"from": []}]}),
        json!({"action": "Allow", "rules": [{"to": []}]}),
        json!({"action": "Allow", "rules": [{"to": [{"ports": []}]}]}),
        json!({"action": "Allow", "rules": [{"to": [{}]}]}),
    ] {
        assert_eq!(refused(object("AuthorizationPolicy", spec.clone())).problems.len(), 1, "{spec}");
    }
    for spec in [json!({"principals": []}), json!({"principals": ["spiffe://a/b"], "ports": []}), json!({})] {
        assert_eq!(refused(object("IngressPolicy", spec.clone())).problems.len(), 1, "{spec}");
    }
    for spec in [
        json!({"to": []}),
        json!({}),
        json!({"to": [{"cidrs": []}]}),
        json!({"to": [{"ports": [443]}]}),
        json!({"to": [{"cidrs": ["::/0"], "ports": []}]}),
        json!({"to": [{"cidrs": ["::/0"]}], "serviceAccounts": []}),
    ] {
        assert_eq!(refused(object("EgressPolicy", spec.clone())).problems.len(), 1, "{spec}");
    }
}

#[test]
fn principals_of_an_ingress_policy_are_exact() {
    for principal in ["spiffe://cluster.local/ns/ingress/*", "*", "spiffe://cluster.local", "CN=nginx", ""] {
        let error = refused(object("IngressPolicy", json!({"principals": [principal]})));
        assert_eq!(places(&error), ["spec.principals[0]"], "{principal}");
    }
}

#[test]
fn a_malformed_egress_policy_is_refused() {
    let spec = json!({"serviceAccounts": ["A"], "to": [{"cidrs": ["203.0.113.9/24", "example.com"]}]});
    assert_eq!(
        places(&refused(object("EgressPolicy", spec))),
        ["spec.serviceAccounts[0]", "spec.to[0].cidrs[0]", "spec.to[0].cidrs[1]"]
    );
}

#[test]
fn what_validates_here_and_came_around_parse_is_still_checked() {
    let spec = crate::EgressPolicySpec { service_accounts: None, to: Vec::new() };
    let mut policy = EgressPolicy::new("x", spec);
    let paths = |policy: &EgressPolicy| -> Vec<String> {
        Object::EgressPolicy(policy.clone()).validate().into_iter().map(|problem| problem.path).collect()
    };
    assert_eq!(paths(&policy), ["spec.to", "metadata.namespace"]);
    policy.metadata.namespace = Some("shop".into());
    assert_eq!(paths(&policy), ["spec.to"]);
}

#[test]
fn a_permissive_policy_under_a_strict_floor_is_refused_with_the_reason() {
    let policy = parse(object("MtlsPolicy", json!({"mode": "Permissive"}))).unwrap();
    assert!(policy.against(&MeshSettings::default()).is_empty());
    let mesh = MeshSettings { mtls_floor: crate::MtlsMode::Strict, ..MeshSettings::default() };
    assert_eq!(
        policy.against(&mesh)[0].to_string(),
        "spec.mode: expected `Strict`, found `Permissive` (MeshConfig's spec.mtls.floor is `Strict`, and no namespace \
         may go under it)"
    );
    assert!(parse(object("MtlsPolicy", json!({"mode": "Strict"}))).unwrap().against(&mesh).is_empty());
}

#[test]
fn what_could_have_forbidden_something_leaves_a_stand_in() {
    let stand_in = |kind: &str, spec: Value| refused(object(kind, spec)).stand_in().cloned();
    let selector = json!({"matchLabels": {"app": "web"}});
    let Some(Object::Refused(policy)) = stand_in("AuthorizationPolicy", json!({"selector": selector, "action": "?"}))
    else {
        panic!("a refused policy")
    };
    assert_eq!(
        (policy.kind, policy.namespace.as_str(), policy.name.as_str()),
        (Kind::AuthorizationPolicy, "shop", "x")
    );
    assert!(policy.selector.is_some_and(|selector| selector.match_labels["app"] == "web"));
    let unreadable = json!({"selector": {"matchExpressions": []}, "action": "Deny"});
    assert!(
        matches!(stand_in("AuthorizationPolicy", unreadable), Some(Object::Refused(policy)) if policy.selector.is_none())
    );
    assert!(stand_in("AuthorizationPolicy", json!({"action": "?", "enforcement": "audit"})).is_none());
    assert!(stand_in("MtlsPolicy", json!({"mode": "?"})).is_some());
    assert!(stand_in("IngressPolicy", json!({})).is_none());
    assert!(stand_in("EgressPolicy", json!({})).is_none());
    assert!(stand_in("MeshConfig", json!({"mtls": 7})).is_none());
}
