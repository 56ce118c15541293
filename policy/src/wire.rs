//! To and from the messages of `byrnie/mesh/v1/policy.proto`. What is not understood refuses the whole.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use byrnie_identity::SpiffeId;
use byrnie_proto::mesh::v1 as proto;

use crate::model::excerpt;
use crate::{
    Action, AuthorizationRule, DefaultAction, EgressRule, Enforcement, IngressRule, MtlsRule, MtlsScope, MtlsTerms,
    PeerMatch, Policies, PolicyError, Ports, parse_cidr,
};

impl TryFrom<proto::Policies> for Policies {
    type Error = PolicyError;

    /// # Errors
    /// Anything unspecified, unknown or malformed, in any rule: nothing of the set is taken.
    fn try_from(message: proto::Policies) -> Result<Self, PolicyError> {
        Ok(Self {
            mtls: each("mtls", message.mtls, |rule| &rule.name, mtls_rule)?,
            authorization: each("authorization", message.authorization, |rule| &rule.name, authorization_rule)?,
            ingress: each("ingress", message.ingress, |rule| &rule.name, ingress_rule)?,
            egress: each("egress", message.egress, |rule| &rule.name, egress_rule)?,
            authorization_default: default_action(message.authorization_default)
                .map_err(|error| error.within("authorization_default"))?,
            egress_default: default_action(message.egress_default).map_err(|error| error.within("egress_default"))?,
        })
    }
}

impl From<&Policies> for proto::Policies {
    fn from(policies: &Policies) -> Self {
        Self {
            mtls: policies.mtls.iter().map(mtls_message).collect(),
            authorization: policies.authorization.iter().map(authorization_message).collect(),
            ingress: policies.ingress.iter().map(ingress_message).collect(),
            egress: policies.egress.iter().map(egress_message).collect(),
            authorization_default: default_message(policies.authorization_default).into(),
            egress_default: default_message(policies.egress_default).into(),
        }
    }
}

impl From<Policies> for proto::Policies {
    fn from(policies: Policies) -> Self {
        Self::from(&policies)
    }
}

fn each<M, R>(
    list: &str,
    messages: Vec<M>,
    name: impl Fn(&M) -> &str,
    convert: impl Fn(M) -> Result<R, PolicyError>,
) -> Result<Vec<R>, PolicyError> {
    let numbered = messages.into_iter().enumerate();
    numbered
        .map(|(index, message)| {
            let place = match name(&message) {
                "" => {
                    return Err(PolicyError::new(format!("{list}[{index}].name"), "the rule's name", "nothing"));
                }
                name => format!("{list}[{index}] ({})", excerpt(name)),
            };
            convert(message).map_err(|error| error.within(&place))
        })
        .collect()
}

fn mtls_rule(message: proto::MtlsRule) -> Result<MtlsRule, PolicyError> {
    let scope = match (message.rank(), message.port) {
        (proto::MtlsRank::Unspecified, _) => return Err(unspecified("rank", message.rank)),
        (proto::MtlsRank::Port, number) => MtlsScope::Port(port(number).map_err(|error| error.within("port"))?),
        (proto::MtlsRank::Namespace, 0) => MtlsScope::Namespace,
        (proto::MtlsRank::Workload, 0) => MtlsScope::Workload,
        (_, number) => {
            return Err(PolicyError::new("port", "0, for the rule does not select a port", number.to_string()));
        }
    };
    let terms = match (message.mode(), message.until) {
        (proto::MtlsMode::Unspecified, _) => return Err(unspecified("mode", message.mode)),
        (proto::MtlsMode::Strict, 0) => MtlsTerms::Strict,
        (proto::MtlsMode::Strict, until) => {
            return Err(PolicyError::new("until", "0, for strict has no end", until.to_string()));
        }
        (proto::MtlsMode::Permissive, 0) => MtlsTerms::Permissive { until: None },
        (proto::MtlsMode::Permissive, until) => MtlsTerms::Permissive { until: Some(time(until)?) },
    };
    Ok(MtlsRule { name: message.name.into(), scope, terms })
}

fn time(seconds: i64) -> Result<SystemTime, PolicyError> {
    u64::try_from(seconds)
        .ok()
        .and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
        .ok_or_else(|| PolicyError::new("until", "seconds since 1970, or 0 for no end", seconds.to_string()))
}

fn authorization_rule(message: proto::AuthorizationRule) -> Result<AuthorizationRule, PolicyError> {
    let action = match message.action() {
        proto::Action::Allow => Action::Allow,
        proto::Action::Deny => Action::Deny,
        proto::Action::Unspecified => return Err(unspecified("action", message.action)),
    };
    let enforcement = match message.enforcement() {
        proto::Enforcement::Enforce => Enforcement::Enforce,
        proto::Enforcement::Audit => Enforcement::Audit,
        proto::Enforcement::Unspecified => {
            return Err(unspecified("enforcement", message.enforcement));
        }
    };
    let from = message.from.into_iter().enumerate();
    let from = from.map(|(index, from)| peer_match(from).map_err(|error| error.within(&format!("from[{index}]"))));
    Ok(AuthorizationRule {
        name: message.name.into(),
        action,
        enforcement,
        from: from.collect::<Result<_, _>>()?,
        ports: ports(&message.ports)?,
    })
}

fn peer_match(message: proto::PeerMatch) -> Result<PeerMatch, PolicyError> {
    let set = |text: String| (!text.is_empty()).then_some(text);
    let from = PeerMatch {
        namespace: set(message.namespace).map(Arc::from),
        service_account: set(message.service_account).map(Arc::from),
        spiffe_id: set(message.spiffe_id)
            .map(|text| text.parse().map_err(|error: PolicyError| error.within("spiffe_id")))
            .transpose()?,
        trust_domain: set(message.trust_domain)
            .map(|text| {
                text.parse().map_err(|error| {
                    PolicyError::new("trust_domain", "a trust domain", format!("`{}` ({error})", excerpt(&text)))
                })
            })
            .transpose()?,
    };
    if from == PeerMatch::default() {
        return Err(PolicyError::new("", "something to ask of the peer", "nothing"));
    }
    Ok(from)
}

fn ingress_rule(message: proto::IngressRule) -> Result<IngressRule, PolicyError> {
    if message.principals.is_empty() {
        return Err(PolicyError::new("principals", "at least one SPIFFE ID", "nothing"));
    }
    let principals = message.principals.iter().enumerate().map(|(index, text)| {
        text.parse::<SpiffeId>().map_err(|error| {
            let found = format!("`{}` ({error})", excerpt(text));
            PolicyError::new(format!("principals[{index}]"), "a SPIFFE ID", found)
        })
    });
    Ok(IngressRule {
        principals: principals.collect::<Result<_, _>>()?,
        ports: ports(&message.ports)?,
        name: message.name.into(),
    })
}

fn egress_rule(message: proto::EgressRule) -> Result<EgressRule, PolicyError> {
    if message.cidrs.is_empty() {
        return Err(PolicyError::new("cidrs", "at least one network", "nothing"));
    }
    if let Some(index) = message.service_accounts.iter().position(String::is_empty) {
        return Err(PolicyError::new(format!("service_accounts[{index}]"), "a service account's name", "nothing"));
    }
    let cidrs = message.cidrs.iter().enumerate();
    let cidrs = cidrs.map(|(index, text)| parse_cidr(text).map_err(|error| error.within(&format!("cidrs[{index}]"))));
    Ok(EgressRule {
        cidrs: cidrs.collect::<Result<_, _>>()?,
        ports: ports(&message.ports)?,
        service_accounts: message.service_accounts.into_iter().map(Arc::from).collect(),
        name: message.name.into(),
    })
}

fn ports(numbers: &[u32]) -> Result<Ports, PolicyError> {
    let numbered = numbers.iter().enumerate();
    numbered.map(|(index, number)| port(*number).map_err(|error| error.within(&format!("ports[{index}]")))).collect()
}

fn port(number: u32) -> Result<NonZeroU16, PolicyError> {
    u16::try_from(number)
        .ok()
        .and_then(NonZeroU16::new)
        .ok_or_else(|| PolicyError::new("", "a port from 1 to 65535", number.to_string()))
}

fn default_action(number: i32) -> Result<DefaultAction, PolicyError> {
    match proto::DefaultAction::try_from(number) {
        Ok(proto::DefaultAction::Allow) => Ok(DefaultAction::Allow),
        Ok(proto::DefaultAction::Deny) => Ok(DefaultAction::Deny),
        Ok(proto::DefaultAction::Unspecified) | Err(_) => Err(unspecified("", number)),
    }
}

fn unspecified(place: &str, number: i32) -> PolicyError {
    PolicyError::new(place, "one of the values that this version knows", format!("value {number}"))
}

fn mtls_message(rule: &MtlsRule) -> proto::MtlsRule {
    let (rank, port) = match rule.scope {
        MtlsScope::Namespace => (proto::MtlsRank::Namespace, 0),
        MtlsScope::Workload => (proto::MtlsRank::Workload, 0),
        MtlsScope::Port(port) => (proto::MtlsRank::Port, u32::from(port.get())),
    };
    let (mode, until) = match rule.terms {
        MtlsTerms::Strict => (proto::MtlsMode::Strict, 0),
        MtlsTerms::Permissive { until } => (proto::MtlsMode::Permissive, until.map_or(0, unix_seconds)),
    };
    proto::MtlsRule { name: rule.name.to_string(), rank: rank.into(), port, mode: mode.into(), until }
}

/// Rounded down, so that a permission never grows; never 0, which means that it has no end.
fn unix_seconds(time: SystemTime) -> i64 {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs());
    i64::try_from(seconds).unwrap_or(i64::MAX).max(1)
}

fn authorization_message(rule: &AuthorizationRule) -> proto::AuthorizationRule {
    let action = match rule.action {
        Action::Allow => proto::Action::Allow,
        Action::Deny => proto::Action::Deny,
    };
    let enforcement = match rule.enforcement {
        Enforcement::Enforce => proto::Enforcement::Enforce,
        Enforcement::Audit => proto::Enforcement::Audit,
    };
    proto::AuthorizationRule {
        name: rule.name.to_string(),
        action: action.into(),
        enforcement: enforcement.into(),
        from: rule.from.iter().map(peer_match_message).collect(),
        ports: port_numbers(&rule.ports),
    }
}

fn peer_match_message(from: &PeerMatch) -> proto::PeerMatch {
    let text = |field: &Option<Arc<str>>| field.as_deref().unwrap_or_default().to_owned();
    proto::PeerMatch {
        namespace: text(&from.namespace),
        service_account: text(&from.service_account),
        spiffe_id: from.spiffe_id.as_ref().map(ToString::to_string).unwrap_or_default(),
        trust_domain: from.trust_domain.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

fn ingress_message(rule: &IngressRule) -> proto::IngressRule {
    proto::IngressRule {
        name: rule.name.to_string(),
        principals: rule.principals.iter().map(ToString::to_string).collect(),
        ports: port_numbers(&rule.ports),
    }
}

fn egress_message(rule: &EgressRule) -> proto::EgressRule {
    proto::EgressRule {
        name: rule.name.to_string(),
        service_accounts: rule.service_accounts.iter().map(ToString::to_string).collect(),
        cidrs: rule.cidrs.iter().map(ToString::to_string).collect(),
        ports: port_numbers(&rule.ports),
    }
}

fn port_numbers(ports: &Ports) -> Vec<u32> {
    ports.named().iter().map(|port| u32::from(port.get())).collect()
}

const fn default_message(action: DefaultAction) -> proto::DefaultAction {
    match action {
        DefaultAction::Allow => proto::DefaultAction::Allow,
        DefaultAction::Deny => proto::DefaultAction::Deny,
    }
}

#[cfg(test)]
mod tests;
