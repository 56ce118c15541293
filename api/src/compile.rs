//! From the objects that select a workload to the policies of that workload.

use std::collections::BTreeMap;
use std::sync::Arc;

use byrnie_policy::{Action, AuthorizationRule, Enforcement, MtlsRule, MtlsScope, MtlsTerms, Policies, Ports};

use crate::authorization_policy::Place;
use crate::{Kind, MeshSettings, MtlsPolicySpec, Object, RefusedPolicy, Selector};

/// What of a pod decides which objects select it.
#[derive(Clone, Copy, Debug)]
pub struct Workload<'a> {
    /// The pod's namespace.
    pub namespace: &'a str,
    /// The pod's labels.
    pub labels: &'a BTreeMap<String, String>,
    /// The pod's service account.
    pub service_account: &'a str,
}

/// The policies of one workload, from all objects of the mesh; an object binds only within its own namespace.
///
/// The answer does not depend on the order of the objects but for the order of the rules in it. It fails closed: a
/// policy that was refused ([`Object::Refused`]), or that is malformed although it came around [`crate::parse`],
/// keeps out everyone (AuthorizationPolicy) or all plaintext (MtlsPolicy) where it would have selected the workload.
pub fn compile<'a>(
    mesh: &MeshSettings,
    objects: impl IntoIterator<Item = &'a Object>,
    workload: &Workload<'_>,
) -> Policies {
    let mut policies = Policies {
        authorization_default: mesh.authorization_default,
        egress_default: mesh.egress_default,
        ..Policies::default()
    };
    let mut strict_by = Vec::new();
    for object in objects {
        if object.namespace() == Some(workload.namespace) && selects(object, workload) {
            add(mesh, object, &mut policies, &mut strict_by);
        }
    }
    if let Some(name) = strict_by.into_iter().min() {
        policies.mtls = vec![MtlsRule { name, scope: MtlsScope::Namespace, terms: MtlsTerms::Strict }];
    }
    policies
}

fn selects(object: &Object, workload: &Workload<'_>) -> bool {
    let matches = |selector: &Option<Selector>| selector.as_ref().is_none_or(|s| s.matches(workload.labels));
    match object {
        Object::MeshConfig(_) => false,
        Object::MtlsPolicy(policy) => matches(&policy.spec.selector),
        Object::AuthorizationPolicy(policy) => matches(&policy.spec.selector),
        Object::IngressPolicy(policy) => matches(&policy.spec.selector),
        Object::EgressPolicy(policy) => policy.spec.concerns(workload.service_account),
        Object::Refused(policy) => matches(&policy.selector),
    }
}

fn add(mesh: &MeshSettings, object: &Object, policies: &mut Policies, strict_by: &mut Vec<Arc<str>>) {
    let name = object.to_string();
    match object {
        Object::MeshConfig(_) => {}
        Object::MtlsPolicy(policy) => match mtls_rule(mesh, &policy.spec, &name) {
            Ok(rule) => policies.mtls.extend(rule),
            Err(Malformed) => strict_by.push(refused_name(&name)),
        },
        Object::AuthorizationPolicy(policy) => {
            let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
            let place = Place { object: &name, namespace, trust_domain: &mesh.trust_domain };
            match policy.spec.policy_rules(place) {
                Ok(rules) => policies.authorization.extend(rules),
                Err(_) => policies.authorization.push(deny_everyone(&name)),
            }
        }
        // These two only ever let something through: left out, they let nothing through.
        Object::IngressPolicy(policy) => policies.ingress.extend(policy.spec.rule(&name)),
        Object::EgressPolicy(policy) => policies.egress.extend(policy.spec.rules(&name).unwrap_or_default()),
        Object::Refused(RefusedPolicy { kind: Kind::MtlsPolicy, .. }) => strict_by.push(refused_name(&name)),
        Object::Refused(RefusedPolicy { kind: Kind::AuthorizationPolicy, .. }) => {
            policies.authorization.push(deny_everyone(&name));
        }
        Object::Refused(_) => {}
    }
}

struct Malformed;

/// `None` where the mesh's floor does not permit it: then it does nothing.
fn mtls_rule(mesh: &MeshSettings, spec: &MtlsPolicySpec, name: &str) -> Result<Option<MtlsRule>, Malformed> {
    let rule = spec.rule(name).map_err(|_| Malformed)?;
    Ok(spec.against(mesh).is_empty().then_some(rule))
}

fn deny_everyone(name: &str) -> AuthorizationRule {
    AuthorizationRule {
        name: refused_name(name),
        action: Action::Deny,
        enforcement: Enforcement::Enforce,
        from: Vec::new(),
        ports: Ports::ANY,
    }
}

/// Whoever is turned away by it is to know where to look.
fn refused_name(name: &str) -> Arc<str> {
    format!("{name} (refused: see its status)").into()
}

#[cfg(test)]
mod tests;
