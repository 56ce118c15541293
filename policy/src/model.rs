//! The policies of one workload, in types that hold nothing malformed.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

use byrnie_identity::{SpiffeId, TrustDomain};
use ipnet::{IpNet, Ipv4Net};

use crate::PolicyError;

/// All policies that concern one workload. The default is strict mTLS, any mesh identity let in, nothing let out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policies {
    /// Where plaintext is permitted; where no rule says so, it is not.
    pub mtls: Vec<MtlsRule>,
    /// Who of the mesh may call.
    pub authorization: Vec<AuthorizationRule>,
    /// Which TLS clients outside of the mesh may call.
    pub ingress: Vec<IngressRule>,
    /// What may be called outside of the cluster.
    pub egress: Vec<EgressRule>,
    /// What holds for a mesh peer where no Allow rule is enforced.
    pub authorization_default: DefaultAction,
    /// What holds for an external destination that no egress rule names.
    pub egress_default: DefaultAction,
}

impl Default for Policies {
    fn default() -> Self {
        Self {
            mtls: Vec::new(),
            authorization: Vec::new(),
            ingress: Vec::new(),
            egress: Vec::new(),
            authorization_default: DefaultAction::Allow,
            egress_default: DefaultAction::Deny,
        }
    }
}

impl Policies {
    /// Whether plaintext to `port` is permitted at `now`.
    pub fn mtls_mode(&self, port: u16, now: SystemTime) -> MtlsMode {
        self.mtls_at(port, now).mode
    }

    /// The mode of `port` at `now`, with the rule that sets it and the time at which it ends.
    ///
    /// The most specific scope decides: a port before a workload before a namespace. Of rules of the same scope the
    /// stricter holds, and a `Permissive` that has ended is strict: it does not give way to a wider one.
    pub fn mtls_at(&self, port: u16, now: SystemTime) -> MtlsHolding {
        let rank = |rule: &&MtlsRule| rule.scope.rank();
        let applying = || self.mtls.iter().filter(|rule| rule.scope.covers(port));
        let Some(highest) = applying().max_by_key(rank).map(|rule| rule.scope.rank()) else {
            return MtlsHolding { mode: MtlsMode::Strict, rule: None, until: None };
        };
        let mut holding: Option<MtlsHolding> = None;
        for rule in applying().filter(|rule| rule.scope.rank() == highest) {
            let candidate = rule.holding(now);
            if holding.as_ref().is_none_or(|held| candidate.is_stricter_than(held)) {
                holding = Some(candidate);
            }
        }
        holding.unwrap_or(MtlsHolding { mode: MtlsMode::Strict, rule: None, until: None })
    }

    /// The next moment after `now` at which the passing of time alone changes an answer; `None`: never.
    pub fn next_change(&self, now: SystemTime) -> Option<SystemTime> {
        self.mtls.iter().filter_map(MtlsRule::until).filter(|until| *until > now).min()
    }
}

/// What holds where no rule speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DefaultAction {
    /// It may go on.
    Allow,
    /// It is refused.
    Deny,
}

/// Whether plaintext is permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MtlsMode {
    /// Only mutually authenticated TLS.
    Strict,
    /// Plaintext besides.
    Permissive,
}

/// What [`Policies::mtls_at`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MtlsHolding {
    /// The mode.
    pub mode: MtlsMode,
    /// The rule that set it; `None`: the strict default.
    pub rule: Option<Arc<str>>,
    /// When a `Permissive` ends; `None` where it has no end, and for `Strict`.
    pub until: Option<SystemTime>,
}

impl MtlsHolding {
    /// Strict before permissive, the sooner end before the later; by name where nothing else tells them apart, so
    /// that the answer does not hang on the order of the rules.
    fn is_stricter_than(&self, other: &Self) -> bool {
        let rank = |holding: &Self| {
            let open_ended = holding.until.is_none();
            (holding.mode == MtlsMode::Permissive, open_ended, holding.until, holding.rule.clone())
        };
        rank(self) < rank(other)
    }
}

/// The mode of a namespace, a workload or a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MtlsRule {
    /// `MtlsPolicy shop/name`.
    pub name: Arc<str>,
    /// What it selects.
    pub scope: MtlsScope,
    /// What it says.
    pub terms: MtlsTerms,
}

impl MtlsRule {
    fn holding(&self, now: SystemTime) -> MtlsHolding {
        let (mode, until) = match self.terms {
            MtlsTerms::Permissive { until } if until.is_none_or(|until| now < until) => (MtlsMode::Permissive, until),
            MtlsTerms::Permissive { .. } | MtlsTerms::Strict => (MtlsMode::Strict, None),
        };
        MtlsHolding { mode, rule: Some(Arc::clone(&self.name)), until }
    }

    const fn until(&self) -> Option<SystemTime> {
        match self.terms {
            MtlsTerms::Permissive { until } => until,
            MtlsTerms::Strict => None,
        }
    }
}

/// What an [`MtlsRule`] selects, from the widest to the most specific.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MtlsScope {
    /// Every port of every workload of the namespace.
    Namespace,
    /// Every port of this workload.
    Workload,
    /// One port of this workload.
    Port(NonZeroU16),
}

impl MtlsScope {
    const fn rank(self) -> u8 {
        match self {
            Self::Namespace => 0,
            Self::Workload => 1,
            Self::Port(_) => 2,
        }
    }

    fn covers(self, port: u16) -> bool {
        match self {
            Self::Namespace | Self::Workload => true,
            Self::Port(only) => only.get() == port,
        }
    }
}

/// What an [`MtlsRule`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MtlsTerms {
    /// Only mutually authenticated TLS.
    Strict,
    /// Plaintext besides, before `until`; `None`: without an end.
    Permissive {
        /// The first moment at which plaintext is refused again.
        until: Option<SystemTime>,
    },
}

/// What an [`AuthorizationRule`] does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Lets it in, and makes the workload default deny.
    Allow,
    /// Refuses it, whatever else allows it.
    Deny,
}

/// Whether an [`AuthorizationRule`] decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Enforcement {
    /// It does.
    Enforce,
    /// It is only reported what it would have decided.
    Audit,
}

/// Who of the mesh may, or may not, call which ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationRule {
    /// `AuthorizationPolicy shop/name[index]`.
    pub name: Arc<str>,
    /// Allow or deny.
    pub action: Action,
    /// Enforced or in audit.
    pub enforcement: Enforcement,
    /// Any of. Empty: an Allow matches any mesh peer, a Deny matches anyone.
    pub from: Vec<PeerMatch>,
    /// The ports of the workload.
    pub ports: Ports,
}

/// What is asked of a peer's identity; every field that is set must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerMatch {
    /// The namespace in `spiffe://td/ns/<namespace>/sa/<service account>`.
    pub namespace: Option<Arc<str>>,
    /// The service account in it.
    pub service_account: Option<Arc<str>>,
    /// The whole ID.
    pub spiffe_id: Option<SpiffeIdPattern>,
    /// The ID's trust domain.
    pub trust_domain: Option<TrustDomain>,
}

/// One SPIFFE ID, or all below a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpiffeIdPattern {
    /// This one.
    Exact(SpiffeId),
    /// Every ID whose path goes on below this one: `spiffe://td/ns/shop/*`.
    Below(SpiffeId),
}

impl SpiffeIdPattern {
    /// Whether `id` is one of them.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Exact(exact) => exact == id,
            // The slash is asked for, so that `ns/shop/*` does not take in `ns/shopping/...`.
            Self::Below(parent) => id.as_str().strip_prefix(parent.as_str()).is_some_and(|rest| rest.starts_with('/')),
        }
    }
}

impl FromStr for SpiffeIdPattern {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let parse = |id: &str| {
            id.parse::<SpiffeId>().map_err(|error| {
                let expected = "a SPIFFE ID, exact or ending in `/*`";
                PolicyError::new("", expected, format!("`{}` ({error})", excerpt(text)))
            })
        };
        text.strip_suffix("/*").map_or_else(|| parse(text).map(Self::Exact), |parent| parse(parent).map(Self::Below))
    }
}

impl fmt::Display for SpiffeIdPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(id) => write!(f, "{id}"),
            Self::Below(parent) => write!(f, "{parent}/*"),
        }
    }
}

/// Which TLS clients outside of the mesh may call which ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngressRule {
    /// `IngressPolicy shop/name`.
    pub name: Arc<str>,
    /// Any of, exact; none: nobody.
    pub principals: Vec<SpiffeId>,
    /// The ports of the workload.
    pub ports: Ports,
}

/// What may be called outside of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressRule {
    /// `EgressPolicy shop/name[index]`.
    pub name: Arc<str>,
    /// Any of; empty: every service account of the namespace.
    pub service_accounts: Vec<Arc<str>>,
    /// Any of; none: nothing. From [`parse_cidr`].
    pub cidrs: Vec<IpNet>,
    /// The ports of the destination.
    pub ports: Ports,
}

/// Any of these ports; empty: every port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports(Vec<NonZeroU16>);

impl Ports {
    /// Every port.
    pub const ANY: Self = Self(Vec::new());

    /// Whether `port` is one of them.
    pub fn contains(&self, port: u16) -> bool {
        self.0.is_empty() || self.0.iter().any(|one| one.get() == port)
    }

    /// The ports named; none: every port.
    pub fn named(&self) -> &[NonZeroU16] {
        &self.0
    }
}

impl FromIterator<NonZeroU16> for Ports {
    fn from_iter<I: IntoIterator<Item = NonZeroU16>>(ports: I) -> Self {
        Self(ports.into_iter().collect())
    }
}

/// Reads a network in CIDR notation (RFC 4632, RFC 4291 section 2.3).
///
/// Refused: a bare address, and host bits (`10.0.0.5/8` names a network of 16 million addresses to one reader and a
/// host to another). A network of IPv4-mapped IPv6 addresses (`::ffff:10.0.0.0/104`) becomes the IPv4 network.
pub fn parse_cidr(text: &str) -> Result<IpNet, PolicyError> {
    let refused = |expected: String| PolicyError::new("", expected, format!("`{}`", excerpt(text)));
    let network: IpNet =
        text.parse().map_err(|_| refused("a network such as 203.0.113.0/24 or 2001:db8::/32".into()))?;
    if network.trunc() != network {
        let host = IpNet::from(network.addr());
        return Err(refused(format!("a network without host bits: {} or {host}", network.trunc())));
    }
    Ok(canonical_network(network))
}

/// The same address in the family in which it is routed.
pub(crate) const fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

fn canonical_network(network: IpNet) -> IpNet {
    const MAPPED_PREFIX: u8 = 96;
    match (network, canonical(network.addr())) {
        (IpNet::V6(_), IpAddr::V4(address)) => network
            .prefix_len()
            .checked_sub(MAPPED_PREFIX)
            .and_then(|length| Ipv4Net::new(address, length).ok())
            .map_or(network, IpNet::V4),
        _ => network,
    }
}

/// The start of a text that someone else wrote, short enough for an error message.
pub(crate) fn excerpt(text: &str) -> String {
    const MOST: usize = 80;
    let mut start: String = text.chars().take(MOST).flat_map(char::escape_default).collect();
    if text.chars().nth(MOST).is_some() {
        start.push('…');
    }
    start
}

#[cfg(test)]
mod tests;
