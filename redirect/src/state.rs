//! The rules as a kernel has them, and how they compare with what they
//! should be.

use std::fmt;

use crate::rules::{Action, Match, Purpose};
use crate::{BackEnd, CaptureConfig, Exempt, Families, Hook, Rule, RuleSet};

/// What [`crate::Capture::show`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureState {
    pub(crate) back_end: BackEnd,
    pub(crate) present: bool,
    pub(crate) chain_problems: Vec<String>,
    pub(crate) rules: Vec<ShownRule>,
}

/// One rule of ours, or of our chains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownRule {
    /// Of which address families it decides connections.
    pub families: Families,
    /// Name of the chain.
    pub chain: String,
    /// The rule.
    pub body: ShownBody,
    /// Connections (their first packets) that the rule decided.
    pub connections: u64,
    /// Bytes of those packets.
    pub bytes: u64,
}

/// A rule of ours, or something else that sits in our table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShownBody {
    /// One that Byrnie writes.
    Ours(Rule),
    /// Anything else, as nft would print it.
    Foreign(String),
}

impl CaptureState {
    pub(crate) fn absent(back_end: BackEnd) -> Self {
        Self { back_end, present: false, chain_problems: Vec::new(), rules: Vec::new() }
    }

    /// Who has them.
    pub fn back_end(&self) -> BackEnd {
        self.back_end
    }

    /// Whether there is anything of ours at all.
    pub fn is_present(&self) -> bool {
        self.present
    }

    /// Whether the rules are a whole rule set of *some* configuration, which
    /// [`CaptureState::config`] returns. Whether it is the one you want says
    /// [`crate::Capture::verify`].
    pub fn is_complete(&self) -> bool {
        self.config().is_some()
    }

    /// The rules, in the kernel's order, by chain.
    pub fn rules(&self) -> &[ShownRule] {
        &self.rules
    }

    /// The configuration whose rules these are, if they are complete.
    pub fn config(&self) -> Option<CaptureConfig> {
        let config = self.guess()?;
        let expected = RuleSet::of(&config).ok()?;
        self.differences(&expected).is_empty().then_some(config)
    }

    /// Every difference from the rules that should be there; empty when there
    /// is none.
    pub fn differences(&self, expected: &RuleSet) -> Vec<String> {
        if !self.present {
            return vec!["there are no capture rules in this network namespace".into()];
        }
        let mut differences = self.chain_problems.clone();
        for families in self.back_end.families() {
            self.differences_of(*families, expected, &mut differences);
        }
        differences
    }

    fn differences_of(&self, families: Families, expected: &RuleSet, differences: &mut Vec<String>) {
        let there = || self.rules.iter().filter(|rule| rule.families == families);
        let ours: Vec<&Rule> = there().filter_map(ShownRule::ours).collect();
        let wanted: Vec<&Rule> = expected.rules().iter().filter(|rule| self.back_end.takes(families, rule)).collect();
        let place = if families == Families::Both { String::new() } else { format!(" ({families})") };
        let known = differences.len();
        for rule in there() {
            let unexpected = match &rule.body {
                ShownBody::Ours(rule) if wanted.contains(&rule) => continue,
                ShownBody::Ours(rule) => rule.to_string(),
                ShownBody::Foreign(text) => text.clone(),
            };
            differences.push(format!("unexpected in chain {}{place}: {unexpected}", rule.chain));
        }
        for rule in &wanted {
            if !ours.contains(rule) {
                differences.push(format!("missing in chain {}{place}: {rule}", rule.hook));
            }
        }
        if differences.len() == known && ours != wanted {
            differences.push(format!("the rules are not in their order{place}"));
        }
    }

    /// The configuration that the rules seem to be made from.
    fn guess(&self) -> Option<CaptureConfig> {
        let mut rules: Vec<&Rule> = Vec::new();
        // Two families say most things twice.
        for rule in self.rules.iter().filter_map(ShownRule::ours) {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
        let find = |hook, purpose| {
            let wanted = |rule: &&&Rule| rule.hook == hook && rule.purpose == purpose;
            rules.iter().find(wanted).copied()
        };
        let exempt = match find(Hook::Output, Purpose::ProxyItself)?.matches.first()? {
            Match::SocketUid(uid) => Exempt::Uid(*uid),
            Match::Mark(mark) => Exempt::Mark(*mark),
            _ => return None,
        };
        let port = |hook| match find(hook, Purpose::Capture)?.action {
            Action::Redirect(port) => Some(port),
            Action::Accept | Action::Zone(_) => None,
        };
        let mut config = CaptureConfig::new(exempt);
        config.outbound_port = port(Hook::Output)?;
        config.inbound_port = port(Hook::Prerouting)?;
        for rule in rules.iter().filter(|r| r.purpose == Purpose::Excluded) {
            match (rule.hook, rule.matches.first()?) {
                (Hook::Output, Match::DestinationPort(port)) => {
                    config.exclude_outbound_ports.push(*port);
                }
                (Hook::Prerouting, Match::DestinationPort(port)) => {
                    config.exclude_inbound_ports.push(*port);
                }
                (_, Match::Destination(net)) => config.exclude_outbound_cidrs.push(*net),
                (_, Match::SocketUid(uid)) => config.exclude_uids.push(*uid),
                (Hook::Output, Match::OutInterface(name)) => {
                    config.exclude_interfaces.push(name.clone());
                }
                // The other half of an excluded interface.
                (Hook::Prerouting, Match::InInterface(_)) => {}
                _ => return None,
            }
        }
        Some(config)
    }
}

impl ShownRule {
    fn ours(&self) -> Option<&Rule> {
        match &self.body {
            ShownBody::Ours(rule) => Some(rule),
            ShownBody::Foreign(_) => None,
        }
    }
}

impl fmt::Display for CaptureState {
    /// Like `nft list table inet byrnie`, whoever has them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.present {
            return writeln!(f, "no capture rules in this network namespace");
        }
        for families in self.back_end.families() {
            match families {
                Families::Both => writeln!(f, "table inet byrnie {{")?,
                one => writeln!(f, "{}, {one} {{", self.back_end)?,
            }
            let mut chain = None;
            for rule in self.rules.iter().filter(|rule| rule.families == *families) {
                if chain != Some(&rule.chain) {
                    if chain.is_some() {
                        writeln!(f, "  }}\n")?;
                    }
                    writeln!(f, "  chain {} {{", rule.chain)?;
                    chain = Some(&rule.chain);
                }
                writeln!(f, "    {rule}")?;
            }
            if chain.is_some() {
                writeln!(f, "  }}")?;
            }
            writeln!(f, "}}")?;
        }
        for problem in &self.chain_problems {
            writeln!(f, "# {problem}")?;
        }
        let complete = if self.is_complete() { "complete" } else { "NOT COMPLETE: run `byrnie capture apply`" };
        writeln!(f, "# {complete}")
    }
}

impl fmt::Display for ShownRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.body {
            ShownBody::Foreign(text) => f.write_str(text),
            ShownBody::Ours(rule) => {
                for condition in &rule.matches {
                    write!(f, "{condition} ")?;
                }
                let (packets, bytes) = (self.connections, self.bytes);
                write!(f, "counter packets {packets} bytes {bytes} ")?;
                write!(f, "{} comment \"{}\"", rule.action, rule.purpose)
            }
        }
    }
}
