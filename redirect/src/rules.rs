//! The rules, without any back end: what matches, and what happens then.
//!
//! Their order is the meaning. In the output chain: the canary that proves the
//! rules even to the proxy; then the proxy passes; then the canary of the
//! applications, before anything a user can exclude; then loopback and the
//! exclusions; then all that is left goes to the proxy.
//!
//! The tracking chain is about the connections that were there before. Nat
//! rules decide a connection's first packet only, and the kernel remembers a
//! connection that the other end has reset for ten seconds: a new one from
//! the same port to the same address is taken for it and goes its way. So the
//! proxy's connections would be redirected to the proxy, and an application's
//! would pass by it (both measured). Applications' connections are therefore
//! remembered in a zone of their own.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{CaptureConfig, Exempt, InvalidConfig};

/// The canary over IPv4: in TEST-NET-1 (RFC 5737), which no network routes,
/// so that only capture can answer a connection to it.
pub const CANARY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);

/// The canary over IPv6: in the discard-only prefix `100::/64` (RFC 6666).
/// The pod needs a route that covers it (any default route), or connecting
/// fails before the rules are asked.
pub const CANARY_V6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0xb, 1);

/// The canary's port that goes the way of application traffic: redirected for
/// everyone but the exempt proxy.
pub const CANARY_APPLICATION_PORT: u16 = 1;

/// The canary's port that is redirected for the proxy too, so that it can see
/// its rules still work.
pub const CANARY_PROXY_PORT: u16 = 2;

/// Begins the line with which a proxy answers the canary.
pub const CANARY_GREETING: &str = "byrnie-canary ";

/// Inbound port of the proxy that is never captured: metrics.
pub const METRICS_PORT: u16 = 15010;

/// Inbound port of the proxy that is never captured: health and probes.
pub const HEALTH_PORT: u16 = 15021;

/// The conntrack zone of the applications' connections: `by` in ASCII, so that
/// it is recognised in `conntrack -L`.
pub const APPLICATIONS_ZONE: u16 = 0x6279;

/// The rules of one configuration, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSet {
    rules: Vec<Rule>,
}

impl RuleSet {
    /// The rules that a configuration asks for. Equal configurations give
    /// equal rules, whatever the order of their lists.
    ///
    /// # Errors
    /// [`InvalidConfig`] with every problem of the configuration.
    pub fn of(config: &CaptureConfig) -> Result<Self, InvalidConfig> {
        config.validate()?;
        let mut rules = tracking_rules(config);
        rules.extend(output_rules(config));
        rules.extend(prerouting_rules(config));
        Ok(Self { rules })
    }

    /// All rules, chain after chain as in [`Hook::ALL`].
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}

impl fmt::Display for RuleSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for hook in Hook::ALL {
            writeln!(f, "chain {hook}")?;
            for rule in self.rules.iter().filter(|rule| rule.hook == hook) {
                writeln!(f, "  {rule}")?;
            }
        }
        Ok(())
    }
}

/// Where in the kernel's path a rule sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Packets that this namespace sends, before connection tracking sees
    /// them.
    Tracking,
    /// Connections that this namespace opens.
    Output,
    /// Connections that reach this namespace.
    Prerouting,
}

impl Hook {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tracking, Self::Output, Self::Prerouting];

    /// The chain's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tracking => "tracking",
            Self::Output => "output",
            Self::Prerouting => "prerouting",
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One rule: when all matches hold, the action is taken and no later rule of
/// the chain is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The chain.
    pub hook: Hook,
    /// What must hold.
    pub matches: Vec<Match>,
    /// What happens.
    pub action: Action,
    /// Why the rule exists; the kernel keeps it as the rule's comment.
    pub purpose: Purpose,
}

impl Rule {
    fn new(hook: Hook, purpose: Purpose, matches: Vec<Match>, action: Action) -> Self {
        Self { hook, matches, action, purpose }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.matches {
            write!(f, "{condition} ")?;
        }
        write!(f, "{} comment \"{}\"", self.action, self.purpose)
    }
}

/// One condition on the first packet of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Match {
    /// Any TCP.
    Tcp,
    /// TCP to this port.
    DestinationPort(u16),
    /// To this network.
    Destination(IpNet),
    /// From a socket of this UID.
    SocketUid(u32),
    /// With this mark.
    Mark(u32),
    /// From a socket of another UID. What the kernel sends without a socket
    /// (the last acknowledgement of a connection) has none.
    OtherSocketUid(u32),
    /// With another mark, or none.
    OtherMark(u32),
    /// Leaving by this interface.
    OutInterface(String),
    /// Arriving by this interface.
    InInterface(String),
}

impl fmt::Display for Match {
    /// As nft writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("meta l4proto tcp"),
            Self::DestinationPort(port) => write!(f, "tcp dport {port}"),
            Self::Destination(net) => {
                let family = if net.addr().is_ipv4() { "ip" } else { "ip6" };
                if net.prefix_len() == net.max_prefix_len() {
                    write!(f, "{family} daddr {}", net.addr())
                } else {
                    write!(f, "{family} daddr {net}")
                }
            }
            Self::SocketUid(uid) => write!(f, "meta skuid {uid}"),
            Self::Mark(mark) => write!(f, "meta mark {mark:#010x}"),
            Self::OtherSocketUid(uid) => write!(f, "meta skuid != {uid}"),
            Self::OtherMark(mark) => write!(f, "meta mark != {mark:#010x}"),
            Self::OutInterface(name) => write!(f, "oifname \"{name}\""),
            Self::InInterface(name) => write!(f, "iifname \"{name}\""),
        }
    }
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Leave the connection alone.
    Accept,
    /// Send it to this port of this namespace.
    Redirect(u16),
    /// Remember it in this conntrack zone. Of the original direction only:
    /// what comes back knows nothing of zones.
    Zone(u16),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Redirect(port) => write!(f, "redirect to :{port}"),
            Self::Zone(zone) => write!(f, "ct original zone set {zone}"),
        }
    }
}

/// Why a rule exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Applications' connections are not taken for the proxy's, nor the other
    /// way round.
    ApplicationsApart,
    /// The canary that answers the proxy too.
    CanaryForProxy,
    /// The proxy's own connections.
    ProxyItself,
    /// The canary that answers applications.
    CanaryForApplications,
    /// What stays inside the pod.
    Loopback,
    /// Ports of the proxy that are reached directly.
    ProxyPort,
    /// What the user excluded.
    Excluded,
    /// Everything else.
    Capture,
}

impl Purpose {
    const ALL: [Self; 8] = [
        Self::ApplicationsApart,
        Self::CanaryForProxy,
        Self::ProxyItself,
        Self::CanaryForApplications,
        Self::Loopback,
        Self::ProxyPort,
        Self::Excluded,
        Self::Capture,
    ];

    /// The label, as it stands in the rule's comment.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ApplicationsApart => "applications-apart",
            Self::CanaryForProxy => "canary-for-proxy",
            Self::ProxyItself => "proxy-itself",
            Self::CanaryForApplications => "canary-for-applications",
            Self::Loopback => "loopback",
            Self::ProxyPort => "proxy-port",
            Self::Excluded => "excluded",
            Self::Capture => "capture",
        }
    }

    pub(crate) fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.as_str() == label)
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn tracking_rules(config: &CaptureConfig) -> Vec<Rule> {
    let application = match config.exempt {
        Exempt::Uid(uid) => Match::OtherSocketUid(uid),
        Exempt::Mark(mark) => Match::OtherMark(mark),
    };
    let matches = vec![Match::Tcp, application];
    vec![Rule::new(Hook::Tracking, Purpose::ApplicationsApart, matches, Action::Zone(APPLICATIONS_ZONE))]
}

fn output_rules(config: &CaptureConfig) -> Vec<Rule> {
    let rule = |purpose, matches, action| Rule::new(Hook::Output, purpose, matches, action);
    let excluded = |condition| rule(Purpose::Excluded, vec![condition], Action::Accept);
    let to_proxy = Action::Redirect(config.outbound_port);
    let canary = |purpose, port| {
        canary_addresses().map(move |address| {
            let matches = vec![Match::Destination(address), Match::DestinationPort(port)];
            rule(purpose, matches, to_proxy)
        })
    };
    let proxy_itself = match config.exempt {
        Exempt::Uid(uid) => Match::SocketUid(uid),
        Exempt::Mark(mark) => Match::Mark(mark),
    };
    let loopback = Match::OutInterface("lo".into());

    let mut rules = Vec::new();
    rules.extend(canary(Purpose::CanaryForProxy, CANARY_PROXY_PORT));
    rules.push(rule(Purpose::ProxyItself, vec![proxy_itself], Action::Accept));
    rules.extend(canary(Purpose::CanaryForApplications, CANARY_APPLICATION_PORT));
    rules.push(rule(Purpose::Loopback, vec![loopback], Action::Accept));
    rules.extend(sorted(&config.exclude_interfaces).map(|name| excluded(Match::OutInterface(name))));
    rules.extend(sorted(&config.exclude_uids).map(|uid| excluded(Match::SocketUid(uid))));
    let cidrs: BTreeSet<IpNet> = config.exclude_outbound_cidrs.iter().map(IpNet::trunc).collect();
    rules.extend(cidrs.into_iter().map(|cidr| excluded(Match::Destination(cidr))));
    rules.extend(sorted(&config.exclude_outbound_ports).map(|port| excluded(Match::DestinationPort(port))));
    rules.push(rule(Purpose::Capture, vec![Match::Tcp], to_proxy));
    rules
}

fn prerouting_rules(config: &CaptureConfig) -> Vec<Rule> {
    let rule = |purpose, condition, action| Rule::new(Hook::Prerouting, purpose, vec![condition], action);
    let loopback = Match::InInterface("lo".into());

    let mut rules = vec![rule(Purpose::Loopback, loopback, Action::Accept)];
    rules.extend(
        [METRICS_PORT, HEALTH_PORT].map(|port| rule(Purpose::ProxyPort, Match::DestinationPort(port), Action::Accept)),
    );
    rules.extend(
        sorted(&config.exclude_interfaces)
            .map(|name| rule(Purpose::Excluded, Match::InInterface(name), Action::Accept)),
    );
    rules.extend(
        sorted(&config.exclude_inbound_ports)
            .map(|port| rule(Purpose::Excluded, Match::DestinationPort(port), Action::Accept)),
    );
    let to_proxy = Action::Redirect(config.inbound_port);
    rules.push(rule(Purpose::Capture, Match::Tcp, to_proxy));
    rules
}

fn canary_addresses() -> [IpNet; 2] {
    [CANARY_V4.into(), CANARY_V6.into()].map(|address: IpAddr| match address {
        IpAddr::V4(v4) => Ipv4Net::from(v4).into(),
        IpAddr::V6(v6) => Ipv6Net::from(v6).into(),
    })
}

fn sorted<T: Ord + Clone>(values: &[T]) -> impl Iterator<Item = T> + use<T> {
    values.iter().cloned().collect::<BTreeSet<T>>().into_iter()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::{PROXY_MARK, PROXY_UID};

    fn everything(exempt: Exempt) -> CaptureConfig {
        CaptureConfig {
            exclude_inbound_ports: vec![9090, 22, 22],
            exclude_outbound_ports: vec![443],
            exclude_outbound_cidrs: vec![
                "fd00:1::7/48".parse().unwrap(),
                "10.1.2.3/8".parse().unwrap(),
                "192.168.7.7/32".parse().unwrap(),
            ],
            exclude_uids: vec![33],
            exclude_interfaces: vec!["net1".into()],
            ..CaptureConfig::new(exempt)
        }
    }

    #[test]
    fn the_rules_of_the_defaults() {
        let config = CaptureConfig::new(Exempt::Uid(PROXY_UID));
        insta::assert_snapshot!(RuleSet::of(&config).unwrap());
    }

    #[test]
    fn the_rules_with_every_exclusion() {
        let config = everything(Exempt::Mark(PROXY_MARK));
        insta::assert_snapshot!(RuleSet::of(&config).unwrap());
    }

    #[test]
    fn the_two_ways_to_exempt_the_proxy_differ_in_that_match_alone() {
        let by_uid = RuleSet::of(&everything(Exempt::Uid(PROXY_UID))).unwrap();
        let by_mark = RuleSet::of(&everything(Exempt::Mark(PROXY_MARK))).unwrap();
        let different: Vec<_> = (by_uid.rules().iter()).zip(by_mark.rules()).filter(|(a, b)| a != b).collect();
        assert_eq!(by_uid.rules().len(), by_mark.rules().len());
        let [apart, passes] = different[..] else { panic!("{different:?}") };
        assert_eq!(apart.0.matches, [Match::Tcp, Match::OtherSocketUid(PROXY_UID)]);
        assert_eq!(apart.1.matches, [Match::Tcp, Match::OtherMark(PROXY_MARK)]);
        assert_eq!(passes.0.matches, [Match::SocketUid(PROXY_UID)]);
        assert_eq!(passes.1.matches, [Match::Mark(PROXY_MARK)]);
    }

    #[test]
    fn order_and_repetition_in_the_lists_do_not_matter() {
        let config = everything(Exempt::Uid(PROXY_UID));
        let mut shuffled = config.clone();
        shuffled.exclude_inbound_ports = vec![22, 9090];
        shuffled.exclude_outbound_cidrs.reverse();
        assert_eq!(RuleSet::of(&config).unwrap(), RuleSet::of(&shuffled).unwrap());
    }
}
