//! What the API server asks of each change: the injector's webhooks, and the policies that work without it.

use byrnie_api::labels::{
    BUNDLE_CONFIG_MAP, CAPTURE_CONTAINER, CONTROL_PLANE, IDENTITY_VOLUME, INJECTOR, MESH, MESH_ENABLED, NEVER_ENROLLED,
    OSM_MONITORED_BY, PROXY_CONTAINER, PROXY_UID, STATE_VOLUME, SYSTEM_NAMESPACE,
};
use k8s_openapi::api::admissionregistration::v1::{
    MatchCondition, MatchResources, MutatingWebhook, MutatingWebhookConfiguration, NamedRuleWithOperations,
    RuleWithOperations, ServiceReference, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
    ValidatingAdmissionPolicyBindingSpec, ValidatingAdmissionPolicySpec, ValidatingWebhook,
    ValidatingWebhookConfiguration, Validation, WebhookClientConfig,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use super::manifest::metadata;
use super::{Manifest, Values};

/// The label that the API server itself puts on every namespace.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Seconds that the API server waits for the injector.
const TIMEOUT_SECONDS: i32 = 5;

const COMPONENT: &str = "injector";

/// Name of the policy on what a meshed pod may become.
const PROXY_POLICY: &str = "byrnie-proxy";

/// The policies and their bindings: they need no injector, so they come first and go last.
pub(super) fn policies(values: &Values) -> Vec<Manifest> {
    let mut objects = denying(values, "control-plane", BUNDLE_CONFIG_MAP, trust_bundle());
    objects.extend(denying(values, COMPONENT, PROXY_POLICY, proxy()));
    objects
}

fn denying(values: &Values, component: &str, name: &str, spec: ValidatingAdmissionPolicySpec) -> Vec<Manifest> {
    let policy = ValidatingAdmissionPolicy {
        metadata: metadata(name, None, values.labels(component)),
        spec: Some(spec),
        ..ValidatingAdmissionPolicy::default()
    };
    let binding = ValidatingAdmissionPolicyBinding {
        metadata: metadata(name, None, values.labels(component)),
        spec: ValidatingAdmissionPolicyBindingSpec {
            policy_name: name.into(),
            validation_actions: vec!["Deny".into()],
            ..ValidatingAdmissionPolicyBindingSpec::default()
        },
    };
    vec![Manifest::of(&policy), Manifest::of(&binding)]
}

/// Nobody but the control plane says whom a proxy trusts.
fn trust_bundle() -> ValidatingAdmissionPolicySpec {
    let control_plane = format!("system:serviceaccount:{SYSTEM_NAMESPACE}:{CONTROL_PLANE}");
    let message = format!(
        "ConfigMap {BUNDLE_CONFIG_MAP} holds the roots that every proxy of the namespace trusts; only Byrnie's control \
         plane ({control_plane}) writes it"
    );
    ValidatingAdmissionPolicySpec {
        // On the object's own name: at a create the request may have none.
        match_conditions: Some(vec![MatchCondition {
            name: "trust-bundle".into(),
            expression: format!("object.metadata.name == '{BUNDLE_CONFIG_MAP}'"),
        }]),
        validations: Some(vec![forbidden_unless(format!("request.userInfo.username == '{control_plane}'"), message)]),
        ..matching(&["CREATE", "UPDATE"], &["configmaps"])
    }
}

/// What the injector made stays what it made: its webhook sees pods when they are made, and no more. Otherwise whoever may
/// change pods would have the proxy's key, token and user.
fn proxy() -> ValidatingAdmissionPolicySpec {
    let ours = format!("['{CAPTURE_CONTAINER}', '{PROXY_CONTAINER}']");
    let volumes = format!("['{IDENTITY_VOLUME}', '{STATE_VOLUME}']");
    let none_in_debugging = |bad: &str| {
        format!(
            "request.?subResource.orValue('') != 'ephemeralcontainers' || \
             !object.spec.?ephemeralContainers.orValue([]).exists(c, {bad})"
        )
    };
    ValidatingAdmissionPolicySpec {
        match_conditions: Some(vec![MatchCondition {
            name: "meshed".into(),
            expression: format!("oldObject.spec.?initContainers.orValue([]).exists(c, c.name in {ours})"),
        }]),
        validations: Some(vec![
            forbidden_unless(
                format!(
                    "oldObject.spec.initContainers.all(was, !(was.name in {ours}) || \
                     object.spec.initContainers.exists(is, is.name == was.name && is.image == was.image))"
                ),
                format!(
                    "the images of {CAPTURE_CONTAINER} and {PROXY_CONTAINER} hold for a pod's life: they see its key; \
                     make a new pod for another image (`kubectl rollout restart`)"
                ),
            ),
            forbidden_unless(
                none_in_debugging(&format!("c.?volumeMounts.orValue([]).exists(mount, mount.name in {volumes})")),
                format!(
                    "the volumes {IDENTITY_VOLUME} and {STATE_VOLUME} hold the proxy's token and key; mount neither"
                ),
            ),
            forbidden_unless(
                none_in_debugging(&format!("c.?securityContext.?runAsUser.orValue(0) == {PROXY_UID}")),
                format!("user {PROXY_UID} is the proxy's, which capture lets pass by; take another one"),
            ),
            forbidden_unless(
                none_in_debugging(&format!("c.?targetContainerName.orValue('') in {ours}")),
                format!(
                    "the processes of {CAPTURE_CONTAINER} and {PROXY_CONTAINER} hold the pod's key; aim at another \
                     container, or at none"
                ),
            ),
        ]),
        ..matching(&["UPDATE"], &["pods", "pods/ephemeralcontainers"])
    }
}

/// For these requests, in every namespace.
fn matching(operations: &[&str], resources: &[&str]) -> ValidatingAdmissionPolicySpec {
    let RuleWithOperations { api_groups, api_versions, operations, resources, scope } =
        rule("", "v1", operations, resources, "Namespaced");
    ValidatingAdmissionPolicySpec {
        failure_policy: Some("Fail".into()),
        match_constraints: Some(MatchResources {
            match_policy: Some("Equivalent".into()),
            namespace_selector: Some(LabelSelector::default()),
            object_selector: Some(LabelSelector::default()),
            resource_rules: Some(vec![NamedRuleWithOperations {
                api_groups,
                api_versions,
                operations,
                resources,
                scope,
                ..NamedRuleWithOperations::default()
            }]),
            ..MatchResources::default()
        }),
        ..ValidatingAdmissionPolicySpec::default()
    }
}

fn forbidden_unless(expression: String, message: String) -> Validation {
    Validation { expression, message: Some(message), reason: Some("Forbidden".into()), ..Validation::default() }
}

/// The webhooks. Their `caBundle` is the control plane's to write: until it has, they refuse what they are for.
pub(super) fn webhooks(values: &Values) -> Vec<Manifest> {
    let mutating = MutatingWebhookConfiguration {
        metadata: metadata(INJECTOR, None, values.labels(COMPONENT)),
        webhooks: Some(vec![
            injecting("pods.byrnie.dev", vec![requirement(MESH, "In", &[MESH_ENABLED])]),
            // Our own label goes before OSM's: what it says is the other webhook's, or that the namespace is ignored.
            injecting(
                "osm-pods.byrnie.dev",
                vec![requirement(OSM_MONITORED_BY, "Exists", &[]), requirement(MESH, "DoesNotExist", &[])],
            ),
        ]),
    };
    let validating = ValidatingWebhookConfiguration {
        metadata: metadata(INJECTOR, None, values.labels(COMPONENT)),
        webhooks: Some(vec![objects(), namespaces()]),
    };
    vec![Manifest::of(&mutating), Manifest::of(&validating)]
}

/// Pods of namespaces that carry a label; never of those that bring the mesh up.
fn injecting(name: &str, enrolled: Vec<LabelSelectorRequirement>) -> MutatingWebhook {
    let spared = requirement(NAMESPACE_NAME, "NotIn", &NEVER_ENROLLED);
    MutatingWebhook {
        name: name.into(),
        client_config: client("/mutate"),
        rules: Some(vec![rule("", "v1", &["CREATE"], &["pods"], "Namespaced")]),
        namespace_selector: Some(LabelSelector {
            match_expressions: Some(enrolled.into_iter().chain([spared]).collect()),
            ..LabelSelector::default()
        }),
        object_selector: Some(LabelSelector::default()),
        failure_policy: Some("Fail".into()),
        match_policy: Some("Equivalent".into()),
        reinvocation_policy: Some("IfNeeded".into()),
        side_effects: "None".into(),
        timeout_seconds: Some(TIMEOUT_SECONDS),
        admission_review_versions: vec!["v1".into()],
        match_conditions: None,
    }
}

/// Our own objects: what the schema can't say is checked before it is stored.
fn objects() -> ValidatingWebhook {
    let rules = vec![
        rule(byrnie_api::GROUP, "*", &["CREATE", "UPDATE"], &["*"], "*"),
        // Without it the defaults hold.
        rule(byrnie_api::GROUP, "*", &["DELETE"], &["meshconfigs"], "*"),
    ];
    ValidatingWebhook { rules: Some(rules), ..validating("objects.byrnie.dev") }
}

/// Namespaces that may not be enrolled: only a request that would do so is sent, so that a dead injector is in nobody
/// else's way.
fn namespaces() -> ValidatingWebhook {
    let enrols = |label: &str, value: Option<&str>| {
        let has = format!("'{label}' in object.metadata.labels");
        value.map_or(format!("({has})"), |value| format!("({has} && object.metadata.labels['{label}'] == '{value}')"))
    };
    ValidatingWebhook {
        rules: Some(vec![rule("", "v1", &["CREATE", "UPDATE"], &["namespaces"], "Cluster")]),
        match_conditions: Some(vec![
            MatchCondition {
                name: "may-not-be-enrolled".into(),
                expression: format!("object.metadata.name in ['kube-system', '{SYSTEM_NAMESPACE}']"),
            },
            MatchCondition {
                name: "is-to-be-enrolled".into(),
                expression: format!(
                    "has(object.metadata.labels) && ({} || {})",
                    enrols(MESH, Some(MESH_ENABLED)),
                    enrols(OSM_MONITORED_BY, None)
                ),
            },
        ]),
        ..validating("namespaces.byrnie.dev")
    }
}

fn validating(name: &str) -> ValidatingWebhook {
    ValidatingWebhook {
        name: name.into(),
        client_config: client("/validate"),
        namespace_selector: Some(LabelSelector::default()),
        object_selector: Some(LabelSelector::default()),
        failure_policy: Some("Fail".into()),
        match_policy: Some("Equivalent".into()),
        side_effects: "None".into(),
        timeout_seconds: Some(TIMEOUT_SECONDS),
        admission_review_versions: vec!["v1".into()],
        ..ValidatingWebhook::default()
    }
}

fn client(path: &str) -> WebhookClientConfig {
    WebhookClientConfig {
        service: Some(ServiceReference {
            name: INJECTOR.into(),
            namespace: SYSTEM_NAMESPACE.into(),
            path: Some(path.into()),
            port: Some(443),
        }),
        ..WebhookClientConfig::default()
    }
}

fn rule(group: &str, version: &str, operations: &[&str], resources: &[&str], scope: &str) -> RuleWithOperations {
    let owned = |texts: &[&str]| Some(texts.iter().map(|text| (*text).to_owned()).collect());
    RuleWithOperations {
        api_groups: owned(&[group]),
        api_versions: owned(&[version]),
        operations: owned(operations),
        resources: owned(resources),
        scope: Some(scope.into()),
    }
}

fn requirement(key: &str, operator: &str, values: &[&str]) -> LabelSelectorRequirement {
    let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
    LabelSelectorRequirement {
        key: key.into(),
        operator: operator.into(),
        values: (!values.is_empty()).then_some(values),
    }
}
