//! The only place that decides.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use byrnie_identity::{PeerIdentity, SpiffeId};

use crate::model::canonical;
use crate::{
    Action, AuthorizationRule, Decision, DefaultAction, EgressRule, Enforcement, MtlsMode, PeerMatch, Policies, Reason,
};

/// A connection that has arrived at the workload.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Who called, and how that is known.
    pub peer: Peer<'a>,
    /// The port of the workload that was dialled.
    pub port: u16,
    /// Wall-clock time of the decision.
    pub now: SystemTime,
}

/// Who called, and how that is known.
#[derive(Clone, Copy, Debug)]
pub enum Peer<'a> {
    /// A proxy of the mesh, by a tunnel.
    Mesh(&'a PeerIdentity),
    /// A TLS client that is no proxy but proved an identity that the mesh issued.
    Ingress(&'a PeerIdentity),
    /// Someone who proved nothing, from this address.
    Plaintext(IpAddr),
}

/// A connection that is about to leave the cluster.
#[derive(Clone, Copy, Debug)]
pub struct EgressRequest<'a> {
    /// The workload's own identity.
    pub source: &'a SpiffeId,
    /// The address that the application dialled.
    pub destination: IpAddr,
    /// The port that it dialled.
    pub port: u16,
}

/// A question about a connection that need not exist.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Who would call.
    pub caller: Caller<'a>,
    /// The port of the workload.
    pub port: u16,
    /// Wall-clock time of the decision.
    pub now: SystemTime,
}

/// A supposed [`Peer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller<'a> {
    /// A proxy of the mesh with this identity.
    Mesh(&'a SpiffeId),
    /// A TLS client outside of the mesh with this identity.
    Ingress(&'a SpiffeId),
    /// Someone without an identity.
    Plaintext,
}

/// Decides on an inbound connection.
///
/// To forward it, call [`crate::authorize`], which asks this and gives the proof.
pub fn evaluate(policies: &Policies, request: &Request<'_>) -> Decision {
    let (caller, identity) = match request.peer {
        // What it speaks makes no member of the mesh of it: its certificate opens what an IngressPolicy opens.
        Peer::Mesh(identity) if identity.is_outside_mesh() => (Caller::Ingress(identity.id()), Some(identity)),
        Peer::Mesh(identity) => (Caller::Mesh(identity.id()), Some(identity)),
        Peer::Ingress(identity) => (Caller::Ingress(identity.id()), Some(identity)),
        Peer::Plaintext(_) => (Caller::Plaintext, None),
    };
    // Whoever verified the peer checks this too; a stream is judged again long after its handshake. The last second is
    // part of the certificate's life (RFC 5280 section 4.1.2.5), for the verifier as for us.
    if identity.is_some_and(|identity| identity.not_after() + Duration::from_secs(1) <= request.now) {
        return Decision::new(Reason::PeerExpired, None);
    }
    what_if(policies, &Question { caller, port: request.port, now: request.now })
}

/// What [`evaluate`] would decide about a caller that proves what is supposed here.
///
/// For explanations (`byrnie policy why`) and tests: no [`crate::Authorized`] comes of it.
pub fn what_if(policies: &Policies, question: &Question<'_>) -> Decision {
    let mut decision = decide(policies, question, |rule| rule.enforcement == Enforcement::Enforce);
    if policies.authorization.iter().any(|rule| rule.enforcement == Enforcement::Audit) {
        let audit = decide(policies, question, |_| true);
        if audit.allowed != decision.allowed {
            decision.audited = turned_by(policies, question, &audit);
        }
    }
    decision
}

/// Decides on a connection to an address outside of the cluster.
///
/// To forward it, call [`crate::authorize_egress`], which asks this and gives the proof.
pub fn evaluate_egress(policies: &Policies, request: &EgressRequest<'_>) -> Decision {
    if let Some(rule) = policies.egress.iter().filter(|rule| lets_out(rule, request)).min_by_key(|rule| &rule.name) {
        return Decision::by(Reason::EgressRule, &rule.name);
    }
    let reason = match policies.egress_default {
        DefaultAction::Allow => Reason::EgressDefaultAllow,
        DefaultAction::Deny => Reason::EgressDefaultDeny,
    };
    Decision::new(reason, None)
}

fn lets_out(rule: &EgressRule, request: &EgressRequest<'_>) -> bool {
    let destination = canonical(request.destination);
    let of_account = rule.service_accounts.is_empty()
        || request
            .source
            .service_account()
            .is_some_and(|account| rule.service_accounts.iter().any(|one| **one == *account));
    of_account && rule.ports.contains(request.port) && rule.cidrs.iter().any(|cidr| cidr.contains(&destination))
}

/// One evaluation, in which the rules that `counts` selects are enforced and the others do not exist.
fn decide(policies: &Policies, question: &Question<'_>, counts: impl Fn(&AuthorizationRule) -> bool) -> Decision {
    let mtls = policies.mtls_at(question.port, question.now);
    if question.caller == Caller::Plaintext && mtls.mode == MtlsMode::Strict {
        return Decision::new(Reason::PlaintextRefused, mtls.rule);
    }
    let rules = || policies.authorization.iter().filter(|rule| counts(rule));
    if let Some(rule) = first(rules().filter(|rule| denies(rule, question))) {
        return Decision::by(Reason::DenyRule, &rule.name);
    }
    if let Caller::Ingress(id) = question.caller {
        let named = policies.ingress.iter().filter(|r| r.ports.contains(question.port) && r.principals.contains(id));
        return named.min_by_key(|rule| &rule.name).map_or_else(
            || Decision::new(Reason::NoIngressRule, None),
            |rule| Decision::by(Reason::IngressRule, &rule.name),
        );
    }
    if let Some(rule) = first(rules().filter(|rule| allows(rule, question))) {
        return Decision::by(Reason::AllowRule, &rule.name);
    }
    if rules().any(|rule| rule.action == Action::Allow) {
        return Decision::new(Reason::NoAllowRule, None);
    }
    match (policies.authorization_default, question.caller) {
        (DefaultAction::Deny, _) => Decision::new(Reason::DefaultDeny, None),
        (DefaultAction::Allow, Caller::Plaintext) => Decision::new(Reason::Permissive, mtls.rule),
        (DefaultAction::Allow, Caller::Mesh(_) | Caller::Ingress(_)) => Decision::new(Reason::DefaultAllow, None),
    }
}

/// Of several rules that say the same, always the same one is named, whatever their order.
fn first<'a>(rules: impl Iterator<Item = &'a AuthorizationRule>) -> Option<&'a AuthorizationRule> {
    rules.min_by_key(|rule| &rule.name)
}

/// The rules in audit that make `audit` differ from what is enforced.
fn turned_by(policies: &Policies, question: &Question<'_>, audit: &Decision) -> Vec<Arc<str>> {
    let audited = policies.authorization.iter().filter(|rule| rule.enforcement == Enforcement::Audit);
    let mut names: Vec<Arc<str>> = audited
        .filter(|rule| match audit.reason {
            Reason::DenyRule => denies(rule, question),
            Reason::AllowRule => allows(rule, question),
            _ => rule.action == Action::Allow,
        })
        .map(|rule| Arc::clone(&rule.name))
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn denies(rule: &AuthorizationRule, question: &Question<'_>) -> bool {
    rule.action == Action::Deny
        && rule.ports.contains(question.port)
        && (rule.from.is_empty() || rule.from.iter().any(|from| from_matches(from, question.caller) != Fact::Differs))
}

fn allows(rule: &AuthorizationRule, question: &Question<'_>) -> bool {
    matches!(question.caller, Caller::Mesh(_))
        && rule.action == Action::Allow
        && rule.ports.contains(question.port)
        && (rule.from.is_empty() || rule.from.iter().any(|from| from_matches(from, question.caller) == Fact::Matches))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fact {
    Matches,
    Differs,
    /// The caller does not have what is asked about.
    Absent,
}

impl Fact {
    fn of(holds: Option<bool>) -> Self {
        match holds {
            Some(true) => Self::Matches,
            Some(false) => Self::Differs,
            None => Self::Absent,
        }
    }
}

fn from_matches(from: &PeerMatch, caller: Caller<'_>) -> Fact {
    let id = match caller {
        Caller::Mesh(id) | Caller::Ingress(id) => Some(id),
        Caller::Plaintext => None,
    };
    let facts = [
        from.namespace.as_ref().map(|asked| Fact::of(id.and_then(SpiffeId::namespace).map(|found| **asked == *found))),
        from.service_account
            .as_ref()
            .map(|asked| Fact::of(id.and_then(SpiffeId::service_account).map(|found| **asked == *found))),
        from.spiffe_id.as_ref().map(|asked| Fact::of(id.map(|found| asked.matches(found)))),
        from.trust_domain.as_ref().map(|asked| Fact::of(id.map(|found| *asked == *found.trust_domain()))),
    ];
    let asked = || facts.iter().flatten();
    if asked().any(|fact| *fact == Fact::Differs) {
        Fact::Differs
    } else if asked().next().is_none() || asked().any(|fact| *fact == Fact::Absent) {
        Fact::Absent
    } else {
        Fact::Matches
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
