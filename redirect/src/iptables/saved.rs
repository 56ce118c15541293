//! What is ours in the text of `iptables-save --counters`.

use std::collections::BTreeMap;

use super::text::{Place, place};
use crate::rules::{Action, Match, Purpose};
use crate::state::{ShownBody, ShownRule};
use crate::{Families, Hook, Rule};

/// Our chains of one family, and who asks them.
#[derive(Debug, Default)]
pub(super) struct Saved {
    chains: BTreeMap<&'static str, Chain>,
}

/// One of our chains.
#[derive(Debug, Default)]
struct Chain {
    exists: bool,
    /// Its rules: counters, and the words after the chain's name.
    rules: Vec<(Counters, String)>,
    /// Rules of other chains that lead here: the chain, the words after its
    /// name, and whether the rule is the first of its chain.
    jumps: Vec<(String, String, bool)>,
}

type Counters = (u64, u64);

impl Saved {
    /// Takes up what is ours in a table.
    pub(super) fn read(&mut self, table: &str, text: &str) {
        let mut last_chain = String::new();
        for line in text.lines() {
            if let Some(declared) = line.strip_prefix(':') {
                let name = declared.split(' ').next().unwrap_or_default();
                if let Some(place) = ours(table, name) {
                    self.chains.entry(place.chain).or_default().exists = true;
                }
                continue;
            }
            let Some((counters, chain, rest)) = split(line) else { continue };
            let is_first = last_chain != chain;
            if is_first {
                chain.clone_into(&mut last_chain);
            }
            if let Some(place) = ours(table, chain) {
                self.chains.entry(place.chain).or_default().rules.push((counters, rest.to_owned()));
            } else if let Some(place) = target(rest).and_then(|target| ours(table, target)) {
                let jump = (chain.to_owned(), rest.to_owned(), is_first);
                self.chains.entry(place.chain).or_default().jumps.push(jump);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    pub(super) fn has(&self, hook: Hook) -> bool {
        self.chains.get(place(hook).chain).is_some_and(|chain| chain.exists)
    }

    /// Chain and words of the rules that lead to this chain of ours.
    pub(super) fn jumps(&self, hook: Hook) -> impl Iterator<Item = (&str, &str)> {
        let jumps = self.chains.get(place(hook).chain).map_or(&[][..], |chain| &chain.jumps);
        jumps.iter().map(|(chain, rest, _)| (chain.as_str(), rest.as_str()))
    }

    /// Our rules as they were saved, after `-A`.
    pub(super) fn text_of(&self, hook: Hook) -> impl Iterator<Item = String> {
        let name = place(hook).chain;
        let rules = self.chains.get(name).map_or(&[][..], |chain| &chain.rules);
        rules.iter().map(move |(_, rest)| format!("{name} {rest}"))
    }

    /// What is wrong with the chains themselves.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for hook in Hook::ALL {
            let Place { table, chain: name, asked_in } = place(hook);
            let Some(chain) = self.chains.get(name).filter(|chain| chain.exists) else {
                problems.push(format!("chain {name} of table {table} is missing"));
                continue;
            };
            let expected = format!("-j {name}");
            let is_right =
                |(chain, rest, first): &(String, String, bool)| chain == asked_in && *rest == expected && *first;
            match chain.jumps.as_slice() {
                [one] if is_right(one) => {}
                [] => problems.push(format!("chain {asked_in} of table {table} does not ask {name}")),
                found => {
                    let found: Vec<_> = found.iter().map(|(chain, rest, _)| format!("{chain} {rest}")).collect();
                    problems.push(format!(
                        "expected chain {asked_in} of table {table} to ask {name} first and once, found {}",
                        found.join(", ")
                    ));
                }
            }
        }
        problems
    }

    /// The rules of our chains.
    pub(super) fn rules(&self, families: Families) -> Vec<ShownRule> {
        let mut shown = Vec::new();
        for hook in Hook::ALL {
            let rules = self.chains.get(place(hook).chain).map_or(&[][..], |chain| &chain.rules);
            for ((connections, bytes), rest) in rules {
                let body = rule(hook, rest).map_or_else(|| ShownBody::Foreign(rest.clone()), ShownBody::Ours);
                let (chain, connections, bytes) = (hook.as_str().to_owned(), *connections, *bytes);
                shown.push(ShownRule { families, chain, body, connections, bytes });
            }
        }
        shown
    }
}

fn ours(table: &str, chain: &str) -> Option<Place> {
    Hook::ALL.into_iter().map(place).find(|place| place.table == table && place.chain == chain)
}

/// `[PACKETS:BYTES] -A CHAIN REST`.
fn split(line: &str) -> Option<(Counters, &str, &str)> {
    let (counters, rule) = line.strip_prefix('[')?.split_once("] -A ")?;
    let (packets, bytes) = counters.split_once(':')?;
    let (chain, rest) = rule.split_once(' ').unwrap_or((rule, ""));
    Some(((packets.parse().ok()?, bytes.parse().ok()?), chain, rest))
}

/// Where a rule leads.
fn target(rest: &str) -> Option<&str> {
    let mut words = rest.split(' ');
    words.find(|word| *word == "-j" || *word == "-g")?;
    words.next()
}

/// The rule of ours that these words are, or `None` when Byrnie writes none
/// like it. Their order is that of no version of iptables in particular.
pub(super) fn rule(hook: Hook, rest: &str) -> Option<Rule> {
    let mut words = rest.split(' ').filter(|word| !word.is_empty());
    let mut found = Words::default();
    let action = loop {
        let word = words.next()?;
        let mut value = || words.next();
        match word {
            "-p" if value()? == "tcp" => found.tcp = true,
            // Says what the next option is of.
            "-m" => found.known_module(value()?)?,
            "!" => found.not = true,
            "--dport" => found.port = Some(value()?.parse().ok()?),
            "-d" => found.destination = Some(value()?.parse().ok()?),
            "-o" => found.interface = Some(Match::OutInterface(value()?.to_owned())),
            "-i" => found.interface = Some(Match::InInterface(value()?.to_owned())),
            "--socket-exists" if !found.not => found.has_socket = true,
            "--uid-owner" => found.uid = Some((value()?.parse().ok()?, std::mem::take(&mut found.not))),
            "--mark" => found.mark = Some((hexadecimal(value()?)?, std::mem::take(&mut found.not))),
            "--comment" => found.purpose = Some(Purpose::from_label(value()?.trim_matches('"'))?),
            "-j" => {
                break match value()? {
                    "RETURN" => Action::Accept,
                    "REDIRECT" if value()? == "--to-ports" => Action::Redirect(value()?.parse().ok()?),
                    "CT" if value()? == "--zone-orig" => Action::Zone(value()?.parse().ok()?),
                    _ => return None,
                };
            }
            _ => return None,
        }
    };
    let purpose = found.purpose?;
    let matches = if words.next().is_none() { found.matches()? } else { return None };
    Some(Rule { hook, matches, action, purpose })
}

#[derive(Default)]
struct Words {
    tcp: bool,
    not: bool,
    has_socket: bool,
    port: Option<u16>,
    destination: Option<ipnet::IpNet>,
    interface: Option<Match>,
    /// With whether it is any other one.
    uid: Option<(u32, bool)>,
    mark: Option<(u32, bool)>,
    purpose: Option<Purpose>,
}

impl Words {
    fn known_module(&self, name: &str) -> Option<()> {
        ["tcp", "owner", "mark", "comment"].contains(&name).then_some(())
    }

    /// In the order in which the rules have them; `None` where there is none
    /// such.
    fn matches(self) -> Option<Vec<Match>> {
        if self.not || (self.has_socket && !matches!(self.uid, Some((_, true)))) {
            return None;
        }
        let owner = match self.uid {
            Some((uid, false)) => Some(Match::SocketUid(uid)),
            Some((uid, true)) if self.has_socket => Some(Match::OtherSocketUid(uid)),
            Some(_) => return None,
            None => None,
        };
        let mark = self.mark.map(|(mark, other)| if other { Match::OtherMark(mark) } else { Match::Mark(mark) });
        let port = self.port.map(Match::DestinationPort);
        // The protocol is part of the match on a port.
        let tcp = (self.tcp && port.is_none()).then_some(Match::Tcp);
        if port.is_some() && !self.tcp {
            return None;
        }
        let all = [tcp, self.destination.map(Match::Destination), self.interface, port, owner, mark];
        let matches: Vec<Match> = all.into_iter().flatten().collect();
        (!matches.is_empty()).then_some(matches)
    }
}

/// `0x62795200`, as a mark is written; with a mask it is none of ours.
fn hexadecimal(text: &str) -> Option<u32> {
    u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}
