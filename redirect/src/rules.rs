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
//! remembered in a zone of their own. What has no UID any more is told apart by
//! the priority of the proxy's sockets: without that, an application that wrote
//! and closed at once lost what was not sent yet (measured).

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

/// Socket priority (`SO_PRIORITY`) of the proxy's own connections. What the
/// kernel still sends for a socket that its program has closed has no UID any
/// more, but this; it needs no privilege and is not seen on the wire. The
/// kernel queues 4 like 0, the default (`prio2band` of tc-prio(8)).
pub const PROXY_PRIORITY: u32 = 4;

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

/// The address families that a set of rules in the kernel is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Families {
    /// IPv4 and IPv6 in one (`inet` of nf_tables).
    Both,
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
}

impl Families {
    /// Whether a rule means anything there: a network of the other family
    /// does not.
    pub(crate) fn take(self, rule: &Rule) -> bool {
        rule.matches.iter().all(|condition| match (self, condition) {
            (Self::V4, Match::Destination(net)) => net.addr().is_ipv4(),
            (Self::V6, Match::Destination(net)) => net.addr().is_ipv6(),
            _ => true,
        })
    }
}

impl fmt::Display for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Both => "IPv4 and IPv6",
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
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
    /// From a socket of another UID. What the kernel sends without a program
    /// behind it (data that was still to be sent when the socket was closed,
    /// the last acknowledgement of a connection) has none.
    OtherSocketUid(u32),
    /// With this socket priority.
    Priority(u32),
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
            Self::Priority(priority) => write!(f, "meta priority {priority}"),
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
    let rule = |purpose, condition: Option<Match>, action| {
        let matches = std::iter::once(Match::Tcp).chain(condition).collect();
        Rule::new(Hook::Tracking, purpose, matches, action)
    };
    let apart = |condition| rule(Purpose::ApplicationsApart, condition, Action::Zone(APPLICATIONS_ZONE));
    let passes = |condition| rule(Purpose::ProxyItself, Some(condition), Action::Accept);
    match config.exempt {
        // The kernel keeps the mark of a socket that is closed.
        Exempt::Mark(mark) => vec![apart(Some(Match::OtherMark(mark)))],
        Exempt::Uid(uid) => vec![
            passes(Match::SocketUid(uid)),
            // Before the priority, which an application can have, too.
            apart(Some(Match::OtherSocketUid(uid))),
            passes(Match::Priority(PROXY_PRIORITY)),
            apart(None),
        ],
    }
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
    let cidrs: BTreeSet<IpNet> = config.exclude_outbound_cidrs.iter().map(canonical).collect();
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

/// Without host bits; and IPv4 inside IPv6 as the IPv4 that such a connection
/// is on the wire, where alone the rules see it.
pub(crate) fn canonical(net: &IpNet) -> IpNet {
    const MAPPED_BITS: u8 = 96;
    let net = net.trunc();
    let mapped = match net {
        IpNet::V6(v6) if v6.prefix_len() >= MAPPED_BITS => v6.addr().to_ipv4_mapped(),
        _ => None,
    };
    let v4 = mapped.and_then(|address| Ipv4Net::new(address, net.prefix_len() - MAPPED_BITS).ok());
    v4.map_or(net, IpNet::from)
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
    fn the_two_ways_to_exempt_the_proxy_differ_in_how_it_is_told_apart_alone() {
        let by_uid = RuleSet::of(&everything(Exempt::Uid(PROXY_UID))).unwrap();
        let by_mark = RuleSet::of(&everything(Exempt::Mark(PROXY_MARK))).unwrap();
        let only_in = |one: &RuleSet, other: &RuleSet| -> Vec<String> {
            one.rules().iter().filter(|rule| !other.rules().contains(rule)).map(ToString::to_string).collect()
        };
        insta::assert_snapshot!(format!(
            "by UID:\n{}\nby mark:\n{}",
            only_in(&by_uid, &by_mark).join("\n"),
            only_in(&by_mark, &by_uid).join("\n")
        ));
    }

    #[test]
    fn a_network_of_ipv4_inside_ipv6_is_that_of_ipv4() {
        let canonical = |text: &str| super::canonical(&text.parse().unwrap()).to_string();
        assert_eq!(canonical("::ffff:10.1.2.3/104"), "10.0.0.0/8");
        assert_eq!(canonical("::ffff:10.1.2.3/128"), "10.1.2.3/32");
        assert_eq!(canonical("::ffff:0:0/96"), "0.0.0.0/0");
        assert_eq!(canonical("fd00::7/16"), "fd00::/16");
        assert_eq!(canonical("::/64"), "::/64");
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
