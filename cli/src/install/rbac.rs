//! What the control plane and the injector may do in the cluster, and why. The Roles and `docs/rbac.md` are made of this
//! one table.

use byrnie_api::labels::{
    BUNDLE_CONFIG_MAP, CA_SECRET, CONTROL_PLANE, INGRESS_SECRET, INJECTOR, INJECTOR_SECRET, SYSTEM_NAMESPACE,
};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject};

use super::manifest::metadata;
use super::{Manifest, Values};

/// One permission.
#[derive(Debug, Clone, Copy)]
pub struct Grant {
    /// Who has it: [`CONTROL_PLANE`] or [`INJECTOR`].
    pub account: &'static str,
    /// In all namespaces, or in [`SYSTEM_NAMESPACE`] alone.
    pub everywhere: bool,
    /// The API group; empty for the core.
    pub group: &'static str,
    /// The resources; where they begin with a slash, paths that are no resources.
    pub resources: &'static [&'static str],
    /// Only objects of these names; empty: all.
    pub names: &'static [&'static str],
    /// What may be done.
    pub verbs: &'static [&'static str],
    /// What for.
    pub why: &'static str,
}

const FOLLOW: &[&str] = &["list", "watch"];
const KINDS: &[&str] = &["authorizationpolicies", "egresspolicies", "ingresspolicies", "meshconfigs", "mtlspolicies"];
const STATUSES: &[&str] = &[
    "authorizationpolicies/status",
    "egresspolicies/status",
    "ingresspolicies/status",
    "meshconfigs/status",
    "mtlspolicies/status",
];

/// Everything that Byrnie may do.
pub const GRANTS: &[Grant] = &[
    Grant {
        account: CONTROL_PLANE,
        everywhere: true,
        group: "",
        resources: &["namespaces", "pods", "services"],
        names: &[],
        verbs: FOLLOW,
        why: "who is in the mesh, and what is where",
    },
    Grant {
        account: CONTROL_PLANE,
        everywhere: true,
        group: "",
        resources: &["pods"],
        names: &[],
        verbs: &["get"],
        why: "whether a token's pod still lives",
    },
    Grant {
        account: CONTROL_PLANE,
        everywhere: true,
        group: "",
        resources: &["nodes"],
        names: &[],
        verbs: FOLLOW,
        why: "the nodes' addresses and their pods' networks: what is inside of the cluster",
    },
    Grant {
        account: CONTROL_PLANE,
        everywhere: true,
        group: "networking.k8s.io",
        resources: &["servicecidrs"],
        names: &[],
        verbs: FOLLOW,
        why: "the networks of cluster IPs, where the API server says them (Kubernetes 1.33)",
    },
    Grant {
        account: CONTROL_PLANE,
        everywhere: true,
        group: "discovery.k8s.io",
        resources: &["endpointslices"],
        names: &[],
        verbs: FOLLOW,
        why: "which pods are behind a Service, and where they are",
    },
    Grant {
        account: CONTROL_PLANE,
        everywhere: true,
        group: byrnie_api::GROUP,
        resources: KINDS,
        names: &[],
        verbs: FOLLOW,
        why: "the mesh's own configuration",
    },
    Grant {
        account: CONTROL_PLANE,
        everywhere: true,
        group: byrnie_api::GROUP,
        resources: STATUSES,
        names: &[],
        verbs: &["patch"],
        why: "says in each object whether it is in force; the objects themselves it can't change",
    },
    Grant {
        account: CONTROL_PLANE,
        everywhere: true,
        group: "authentication.k8s.io",
        resources: &["tokenreviews"],
        names: &[],
        verbs: &["create"],
        why: "asks whose token a proxy shows; a token of another audience tells it nothing",
    },
    Grant {
        account: CONTROL_PLANE,
        everywhere: true,
        group: "",
        resources: &["/.well-known/openid-configuration", "/openid/v1/jwks"],
        names: &[],
        verbs: &["get"],
        why: "the public keys that say whose a token is while the API server is away; Kubernetes grants it to every \
              ServiceAccount, unless somebody has taken that back",
    },
    Grant {
        account: CONTROL_PLANE,
        everywhere: true,
        group: "",
        resources: &["configmaps"],
        names: &[BUNDLE_CONFIG_MAP],
        verbs: &["create", "delete", "list", "patch", "watch"],
        why: "the trust bundle in every enrolled namespace; no ConfigMap of another name",
    },
    Grant {
        account: CONTROL_PLANE,
        everywhere: true,
        group: "",
        resources: &["secrets"],
        names: &[INGRESS_SECRET],
        verbs: &["create", "delete", "get", "list", "patch"],
        why: "the client certificates of ingress controllers, in the namespaces that MeshConfig names; no Secret of \
              another name, and none that Byrnie has not made is written",
    },
    Grant {
        account: CONTROL_PLANE,
        everywhere: true,
        group: "events.k8s.io",
        resources: &["events"],
        names: &[],
        verbs: &["create", "patch"],
        why: "tells in the events of a pod or object what is wrong with it",
    },
    Grant {
        account: CONTROL_PLANE,
        everywhere: true,
        group: "admissionregistration.k8s.io",
        resources: &["mutatingwebhookconfigurations", "validatingwebhookconfigurations"],
        names: &[INJECTOR],
        verbs: &["get", "patch"],
        why: "keeps the caBundle of our own two in step with the injector's certificate",
    },
    Grant {
        account: CONTROL_PLANE,
        everywhere: false,
        group: "",
        resources: &["secrets"],
        names: &[CA_SECRET, INJECTOR_SECRET],
        verbs: &["get"],
        why: "the mesh's root, and the injector's serving certificate; no other Secret",
    },
    Grant {
        account: CONTROL_PLANE,
        everywhere: false,
        group: "",
        resources: &["secrets"],
        names: &[INJECTOR_SECRET],
        verbs: &["update"],
        why: "renews the injector's serving certificate; the root it can't change",
    },
    Grant {
        account: CONTROL_PLANE,
        everywhere: false,
        group: "",
        resources: &["secrets"],
        names: &[],
        verbs: &["create"],
        why: "makes those two; RBAC can't bind the name of what does not exist yet",
    },
    Grant {
        account: CONTROL_PLANE,
        everywhere: false,
        group: "coordination.k8s.io",
        resources: &["leases"],
        names: &[CONTROL_PLANE],
        verbs: &["get", "patch"],
        why: "one replica writes what must be written once",
    },
    Grant {
        account: CONTROL_PLANE,
        everywhere: false,
        group: "coordination.k8s.io",
        resources: &["leases"],
        names: &[],
        verbs: &["create"],
        why: "makes that Lease",
    },
    Grant {
        account: INJECTOR,
        everywhere: true,
        group: "",
        resources: &["namespaces"],
        names: &[],
        verbs: &["get", "list", "watch"],
        why: "whether a pod's namespace is enrolled; asked live before a pod is let pass by",
    },
    Grant {
        account: INJECTOR,
        everywhere: true,
        group: byrnie_api::GROUP,
        resources: &["meshconfigs"],
        names: &[],
        verbs: FOLLOW,
        why: "the trust domain and the defaults of a sidecar",
    },
];

/// ServiceAccounts, Roles and bindings.
pub(super) fn objects(values: &Values) -> Vec<Manifest> {
    let mut objects = Vec::new();
    for account in [CONTROL_PLANE, INJECTOR] {
        let labels = || values.labels(component(account));
        objects.push(Manifest::of(&ServiceAccount {
            metadata: metadata(account, Some(SYSTEM_NAMESPACE), labels()),
            ..ServiceAccount::default()
        }));
        let of = |everywhere: bool| {
            let granted = GRANTS.iter().filter(move |grant| grant.account == account && grant.everywhere == everywhere);
            granted.map(rule).collect::<Vec<_>>()
        };
        let (everywhere, here) = (of(true), of(false));
        if !everywhere.is_empty() {
            objects.push(Manifest::of(&ClusterRole {
                metadata: metadata(account, None, labels()),
                rules: Some(everywhere),
                ..ClusterRole::default()
            }));
            objects.push(Manifest::of(&ClusterRoleBinding {
                metadata: metadata(account, None, labels()),
                role_ref: role_ref("ClusterRole", account),
                subjects: Some(vec![subject(account)]),
            }));
        }
        if !here.is_empty() {
            objects.extend(role(account, account, SYSTEM_NAMESPACE, here, values));
        }
    }
    objects.extend(ingress_secrets(values));
    objects
}

/// The name of the ClusterRole of [`Values::ingress_secrets`].
const INGRESS_ROLE: &str = "byrnie-ingress-secrets";

/// The grant for [`INGRESS_SECRET`] once more, for the other names that the operator has chosen.
pub(super) fn ingress_secrets(values: &Values) -> Vec<Manifest> {
    let usual = GRANTS.iter().find(|grant| grant.names == [INGRESS_SECRET]);
    let Some(usual) = usual.filter(|_| !values.ingress_secrets.is_empty()) else {
        return Vec::new();
    };
    let rule = PolicyRule { resource_names: Some(values.ingress_secrets.clone()), ..rule(usual) };
    let labels = || values.labels(component(CONTROL_PLANE));
    vec![
        Manifest::of(&ClusterRole {
            metadata: metadata(INGRESS_ROLE, None, labels()),
            rules: Some(vec![rule]),
            ..ClusterRole::default()
        }),
        Manifest::of(&ClusterRoleBinding {
            metadata: metadata(INGRESS_ROLE, None, labels()),
            role_ref: role_ref("ClusterRole", INGRESS_ROLE),
            subjects: Some(vec![subject(CONTROL_PLANE)]),
        }),
    ]
}

fn role(name: &str, account: &str, namespace: &str, rules: Vec<PolicyRule>, values: &Values) -> Vec<Manifest> {
    let labels = || values.labels(component(account));
    vec![
        Manifest::of(&Role { metadata: metadata(name, Some(namespace), labels()), rules: Some(rules) }),
        Manifest::of(&RoleBinding {
            metadata: metadata(name, Some(namespace), labels()),
            role_ref: role_ref("Role", name),
            subjects: Some(vec![subject(account)]),
        }),
    ]
}

fn rule(grant: &Grant) -> PolicyRule {
    if grant.resources.iter().all(|path| path.starts_with('/')) {
        let paths = Some(owned(grant.resources));
        return PolicyRule { non_resource_urls: paths, verbs: owned(grant.verbs), ..PolicyRule::default() };
    }
    PolicyRule {
        api_groups: Some(vec![grant.group.to_owned()]),
        resources: Some(owned(grant.resources)),
        resource_names: (!grant.names.is_empty()).then(|| owned(grant.names)),
        verbs: owned(grant.verbs),
        ..PolicyRule::default()
    }
}

fn role_ref(kind: &str, name: &str) -> RoleRef {
    RoleRef { api_group: Some("rbac.authorization.k8s.io".to_owned()), kind: kind.to_owned(), name: name.to_owned() }
}

fn subject(account: &str) -> Subject {
    Subject {
        kind: "ServiceAccount".to_owned(),
        name: account.to_owned(),
        namespace: Some(SYSTEM_NAMESPACE.to_owned()),
        ..Subject::default()
    }
}

fn component(account: &str) -> &str {
    account.strip_prefix("byrnie-").unwrap_or(account)
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// The page with the table.
pub const PAGE: &str = "docs/rbac.md";

const BEGIN: &str = "<!-- begin: written by `cargo run -p byrnie-cli -- generate .` -->\n";
const END: &str = "<!-- end -->\n";

/// Every grant as a Markdown table, between two comments.
pub fn table() -> String {
    let mut text = String::from(BEGIN);
    for account in [CONTROL_PLANE, INJECTOR] {
        text.push_str(&format!("\n### `{account}`\n\n| where | what | verbs | why |\n|---|---|---|---|\n"));
        for grant in GRANTS.iter().filter(|grant| grant.account == account) {
            let place = if grant.everywhere { "everywhere".to_owned() } else { format!("`{SYSTEM_NAMESPACE}`") };
            let group = if grant.group.is_empty() { String::new() } else { format!("`{}` ", grant.group) };
            let names = if grant.names.is_empty() { String::new() } else { format!(" named {}", listed(grant.names)) };
            let what = format!("{group}{}{names}", listed(grant.resources));
            text.push_str(&format!("| {place} | {what} | {} | {} |\n", grant.verbs.join(", "), grant.why));
        }
    }
    text.push('\n');
    text.push_str(END);
    text
}

/// Writes the table into the page of the repository at `root`.
///
/// # Errors
/// The page can't be read or written, or has no place for it.
pub fn write(root: &std::path::Path) -> std::io::Result<()> {
    let path = root.join(PAGE);
    let page = std::fs::read_to_string(&path)?;
    let place = page.split_once(BEGIN).and_then(|(head, rest)| Some((head, rest.split_once(END)?.1)));
    let Some((head, tail)) = place else {
        return Err(std::io::Error::other(format!("{}: expected a line {BEGIN:?} and a line {END:?}", path.display())));
    };
    std::fs::write(&path, format!("{head}{}{tail}", table()))
}

fn listed(texts: &[&str]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| format!("`{text}`")).collect();
    texts.join(", ")
}
