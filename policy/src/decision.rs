//! What an evaluation answers, in words that a log, a metric and a person can use.

use std::fmt;
use std::sync::Arc;

/// What was decided, by which rule, and why.
///
/// A decision is information. It opens nothing: what forwards traffic demands [`crate::Authorized`].
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether the connection may go on.
    pub allowed: bool,
    /// The rule that decided, such as `AuthorizationPolicy shop/orders-allow[0]`; `None` where a default did.
    pub rule: Option<Arc<str>>,
    /// Why, from a closed set.
    pub reason: Reason,
    /// The rules in audit that would have turned the answer over if they were enforced; empty where it would stand.
    pub audited: Vec<Arc<str>>,
}

/// Why a decision fell as it did. Closed, so that it can be a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Reason {
    /// An Allow rule matches the mesh peer.
    AllowRule,
    /// No Allow rule is enforced, and the mesh's default lets its members in.
    DefaultAllow,
    /// An ingress rule names the TLS client's identity.
    IngressRule,
    /// Plaintext, under a `Permissive` that has not ended.
    Permissive,
    /// An egress rule names the destination.
    EgressRule,
    /// No egress rule names the destination, and the default lets it out.
    EgressDefaultAllow,
    /// A Deny rule matches.
    DenyRule,
    /// Allow rules are enforced, and none matches.
    NoAllowRule,
    /// No Allow rule is enforced, and the mesh's default lets nobody in.
    DefaultDeny,
    /// A TLS client outside of the mesh that no ingress rule names.
    NoIngressRule,
    /// Plaintext where it is not permitted.
    PlaintextRefused,
    /// The peer's certificate has ended.
    PeerExpired,
    /// No egress rule names the destination, and the default lets nothing out.
    EgressDefaultDeny,
}

impl Reason {
    /// Every reason there is, in the order of declaration.
    pub const ALL: [Self; 13] = [
        Self::AllowRule,
        Self::DefaultAllow,
        Self::IngressRule,
        Self::Permissive,
        Self::EgressRule,
        Self::EgressDefaultAllow,
        Self::DenyRule,
        Self::NoAllowRule,
        Self::DefaultDeny,
        Self::NoIngressRule,
        Self::PlaintextRefused,
        Self::PeerExpired,
        Self::EgressDefaultDeny,
    ];

    /// The label in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AllowRule => "allow-rule",
            Self::DefaultAllow => "default-allow",
            Self::IngressRule => "ingress-rule",
            Self::Permissive => "permissive",
            Self::EgressRule => "egress-rule",
            Self::EgressDefaultAllow => "egress-default-allow",
            Self::DenyRule => "deny-rule",
            Self::NoAllowRule => "no-allow-rule",
            Self::DefaultDeny => "default-deny",
            Self::NoIngressRule => "no-ingress-rule",
            Self::PlaintextRefused => "plaintext-refused",
            Self::PeerExpired => "peer-expired",
            Self::EgressDefaultDeny => "egress-default-deny",
        }
    }

    /// Whether a decision for this reason allows.
    pub const fn allows(self) -> bool {
        matches!(
            self,
            Self::AllowRule
                | Self::DefaultAllow
                | Self::IngressRule
                | Self::Permissive
                | Self::EgressRule
                | Self::EgressDefaultAllow
        )
    }

    const fn words(self) -> &'static str {
        match self {
            Self::AllowRule => "an Allow rule matches this peer and port",
            Self::DefaultAllow => "no Allow rule is enforced on this workload, and the mesh lets its members in",
            Self::IngressRule => "an IngressPolicy names this client's identity for this port",
            Self::Permissive => "plaintext is permitted here",
            Self::EgressRule => "an EgressPolicy names this destination",
            Self::EgressDefaultAllow => "no EgressPolicy names this destination, and MeshConfig lets such traffic out",
            Self::DenyRule => "a Deny rule matches this peer and port",
            Self::NoAllowRule => "Allow rules are enforced on this workload, and none matches this peer and port",
            Self::DefaultDeny => "no Allow rule is enforced on this workload, and MeshConfig lets nobody in by default",
            Self::NoIngressRule => "no IngressPolicy names this client, which is outside of the mesh, for this port",
            Self::PlaintextRefused => "plaintext needs a Permissive MtlsPolicy that has not ended",
            Self::PeerExpired => "the peer's certificate has ended",
            Self::EgressDefaultDeny => "no EgressPolicy names this destination, and MeshConfig lets nothing else out",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Decision {
    pub(crate) const fn new(reason: Reason, rule: Option<Arc<str>>) -> Self {
        Self { allowed: reason.allows(), rule, reason, audited: Vec::new() }
    }

    pub(crate) fn by(reason: Reason, rule: &Arc<str>) -> Self {
        Self::new(reason, Some(Arc::clone(rule)))
    }
}

/// One sentence for a person.
impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.allowed { "allowed: " } else { "refused: " })?;
        f.write_str(self.reason.words())?;
        if let Some(rule) = &self.rule {
            write!(f, " ({rule})")?;
        }
        if let Some((last, others)) = self.audited.split_last() {
            f.write_str("; in audit, ")?;
            for other in others {
                write!(f, "{other}, ")?;
            }
            write!(f, "{last} would have {} it", if self.allowed { "refused" } else { "allowed" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_kebab_case_label_of_its_own() {
        let labels: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(labels.len(), Reason::ALL.len());
        assert!(labels.iter().all(|label| { label.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-') }));
    }

    #[test]
    fn a_decision_reads_as_a_sentence_that_names_its_rule() {
        let mut decision = Decision::by(Reason::DenyRule, &"AuthorizationPolicy shop/no-web[0]".into());
        assert_eq!(
            decision.to_string(),
            "refused: a Deny rule matches this peer and port (AuthorizationPolicy shop/no-web[0])"
        );
        decision = Decision::new(Reason::DefaultAllow, None);
        decision.audited = vec!["AuthorizationPolicy shop/a[0]".into(), "AuthorizationPolicy shop/b[0]".into()];
        assert_eq!(
            decision.to_string(),
            "allowed: no Allow rule is enforced on this workload, and the mesh lets its members in; in audit, \
             AuthorizationPolicy shop/a[0], AuthorizationPolicy shop/b[0] would have refused it"
        );
    }
}
