//! What the two ServiceAccounts may do. That it is enough, every other scenario shows: all run with their tokens.

use byrnie_kubelab::{Cluster, World};
use serde_json::json;

pub(crate) async fn the_service_accounts_may_do_what_they_need_and_nothing_more(world: World) {
    let (cluster, control_plane, injector) = Cluster::running(&world).await;
    cluster.enrolled("shop").await;
    // (who, verb, group, resource, namespace)
    let refused = [
        ("byrnie-control-plane", "get", "", "secrets", "shop"),
        ("byrnie-control-plane", "list", "", "secrets", ""),
        ("byrnie-control-plane", "list", "", "secrets", "kube-system"),
        ("byrnie-control-plane", "create", "", "pods", "shop"),
        ("byrnie-control-plane", "delete", "", "pods", "shop"),
        ("byrnie-control-plane", "create", "", "serviceaccounts/token", "shop"),
        ("byrnie-control-plane", "create", "", "serviceaccounts/token", "kube-system"),
        ("byrnie-control-plane", "patch", "", "namespaces", ""),
        ("byrnie-control-plane", "patch", "", "nodes", ""),
        ("byrnie-control-plane", "watch", "", "configmaps", "shop"),
        ("byrnie-control-plane", "create", "rbac.authorization.k8s.io", "clusterrolebindings", ""),
        ("byrnie-control-plane", "escalate", "rbac.authorization.k8s.io", "clusterroles", ""),
        ("byrnie-control-plane", "impersonate", "", "users", ""),
        ("byrnie-control-plane", "create", "", "pods/exec", "shop"),
        ("byrnie-control-plane", "update", "byrnie.dev", "authorizationpolicies", "shop"),
        ("byrnie-control-plane", "create", "admissionregistration.k8s.io", "mutatingwebhookconfigurations", ""),
        ("byrnie-injector", "get", "", "secrets", "byrnie-system"),
        ("byrnie-injector", "create", "", "pods", "shop"),
        ("byrnie-injector", "update", "", "configmaps", "shop"),
        ("byrnie-injector", "create", "authentication.k8s.io", "tokenreviews", ""),
        ("byrnie-injector", "update", "admissionregistration.k8s.io", "mutatingwebhookconfigurations", ""),
    ];
    let mut wrong = Vec::new();
    for (account, verb, group, resource, namespace) in refused {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": format!("system:serviceaccount:byrnie-system:{account}"),
                "groups": ["system:serviceaccounts", "system:serviceaccounts:byrnie-system", "system:authenticated"],
                "resourceAttributes": { "verb": verb, "group": group, "resource": resource,
                    "subresource": subresource, "namespace": namespace },
            },
        });
        let answer = cluster.api.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review).await.unwrap();
        if answer["status"]["allowed"] == true {
            wrong.push(format!("{account} may {verb} {group}/{resource} {subresource} in {namespace:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // A request that was refused would be in their logs.
    let web = cluster.pod("shop", "web").await;
    web.svid(control_plane.address).await;
    for child in [&control_plane.child, &injector.child] {
        let log = child.log();
        let refused: Vec<&str> = log.lines().filter(|line| line.to_lowercase().contains("forbidden")).collect();
        assert!(refused.is_empty(), "{}", refused.join("\n"));
    }
}
