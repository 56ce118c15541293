//! The text that `iptables-restore --noflush` is given. Every value in it is a
//! number, an address or a name that [`crate::CaptureConfig::validate`] has
//! looked at.

use std::fmt::Write;

use super::saved::Saved;
use crate::{Action, BackEnd, Families, Hook, Match, Rule, RuleSet};

/// Where connection tracking is told of zones, and where connections are
/// redirected; in the order in which they are to change.
pub(super) const TABLES: [&str; 2] = ["raw", "nat"];

/// How the names of our chains begin.
pub(super) const PREFIX: &str = "BYRNIE-";

/// A chain of ours, and where it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) table: &'static str,
    pub(super) chain: &'static str,
    pub(super) asked_in: &'static str,
}

pub(super) fn place(hook: Hook) -> Place {
    let (table, chain, asked_in) = match hook {
        Hook::Tracking => ("raw", "BYRNIE-TRACKING", "OUTPUT"),
        Hook::Output => ("nat", "BYRNIE-OUTPUT", "OUTPUT"),
        Hook::Prerouting => ("nat", "BYRNIE-PREROUTING", "PREROUTING"),
    };
    Place { table, chain, asked_in }
}

/// Puts the rules in place of what `saved` holds of ours.
pub(super) fn of(wanted: &RuleSet, back_end: BackEnd, families: Families, saved: &Saved) -> String {
    by_table(|table, text| {
        for hook in Hook::ALL.into_iter().filter(|hook| place(*hook).table == table) {
            let Place { chain, asked_in, .. } = place(hook);
            // Empties a chain that is there.
            line(text, &format!(":{chain} - [0:0]"));
            take_jumps(text, saved, hook);
            line(text, &format!("-I {asked_in} 1 -j {chain}"));
            for rule in wanted.rules().iter().filter(|rule| rule.hook == hook && back_end.takes(families, rule)) {
                line(text, &format!("-A {chain} {}", words(rule)));
            }
        }
    })
}

/// Takes what `saved` holds of ours away.
pub(super) fn without(saved: &Saved) -> String {
    by_table(|table, text| {
        for hook in Hook::ALL.into_iter().filter(|hook| place(*hook).table == table) {
            take_jumps(text, saved, hook);
        }
        for hook in Hook::ALL.into_iter().filter(|hook| place(*hook).table == table && saved.has(*hook)) {
            let chain = place(hook).chain;
            line(text, &format!("-F {chain}"));
            line(text, &format!("-X {chain}"));
        }
    })
}

/// From what there is now to what there was before.
pub(super) fn back_to(before: &Saved, now: &Saved) -> String {
    let mut text = without(now);
    text.push_str(&by_table(|table, text| {
        for hook in Hook::ALL.into_iter().filter(|hook| place(*hook).table == table && before.has(*hook)) {
            line(text, &format!(":{} - [0:0]", place(hook).chain));
        }
        for hook in Hook::ALL.into_iter().filter(|hook| place(*hook).table == table) {
            for rule in before.text_of(hook) {
                line(text, &format!("-A {rule}"));
            }
            for (asked_in, rest) in before.jumps(hook) {
                line(text, &format!("-I {asked_in} 1 {rest}"));
            }
        }
    }));
    text
}

fn by_table(write: impl Fn(&str, &mut String)) -> String {
    let mut all = String::new();
    for table in TABLES {
        let mut text = String::new();
        write(table, &mut text);
        if !text.is_empty() {
            let _ = write!(all, "*{table}\n{text}COMMIT\n");
        }
    }
    all
}

fn take_jumps(text: &mut String, saved: &Saved, hook: Hook) {
    for (asked_in, rest) in saved.jumps(hook) {
        line(text, &format!("-D {asked_in} {rest}"));
    }
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// The rule as `iptables-save` writes it.
pub(super) fn words(rule: &Rule) -> String {
    let mut first = String::new();
    let mut then = String::new();
    let mut tcp = false;
    for condition in &rule.matches {
        let _ = match condition {
            Match::Tcp => {
                tcp = true;
                Ok(())
            }
            Match::DestinationPort(port) => {
                tcp = true;
                write!(then, "-m tcp --dport {port} ")
            }
            Match::Destination(net) => write!(first, "-d {net} "),
            Match::SocketUid(uid) => write!(then, "-m owner --uid-owner {uid} "),
            Match::OtherSocketUid(uid) => write!(then, "-m owner --socket-exists ! --uid-owner {uid} "),
            Match::Mark(mark) => write!(then, "-m mark --mark {mark:#x} "),
            Match::OtherMark(mark) => write!(then, "-m mark ! --mark {mark:#x} "),
            Match::OutInterface(name) => write!(first, "-o {name} "),
            Match::InInterface(name) => write!(first, "-i {name} "),
            // BackEnd::takes leaves such a rule out.
            Match::Priority(_) => Ok(()),
        };
    }
    let protocol = if tcp { "-p tcp " } else { "" };
    let action = match rule.action {
        // As `accept` in a chain of nf_tables: other chains are still asked.
        Action::Accept => "RETURN".to_owned(),
        Action::Redirect(port) => format!("REDIRECT --to-ports {port}"),
        Action::Zone(zone) => format!("CT --zone-orig {zone}"),
    };
    format!("{first}{protocol}{then}-m comment --comment {} -j {action}", rule.purpose)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::{CaptureConfig, Exempt, PROXY_MARK, PROXY_UID};

    fn everything(exempt: Exempt) -> CaptureConfig {
        CaptureConfig {
            exclude_inbound_ports: vec![9090],
            exclude_outbound_ports: vec![443],
            exclude_outbound_cidrs: ["fd00:1::/48", "10.0.0.0/8", "::ffff:192.168.7.7/128"]
                .map(|net| net.parse().unwrap())
                .into(),
            exclude_uids: vec![33],
            exclude_interfaces: vec!["net1".into()],
            ..CaptureConfig::new(exempt)
        }
    }

    #[test]
    fn the_text_for_ipv4_by_uid() {
        let rules = RuleSet::of(&everything(Exempt::Uid(PROXY_UID))).unwrap();
        insta::assert_snapshot!(of(&rules, BackEnd::IptablesLegacy, Families::V4, &Saved::default()));
    }

    #[test]
    fn the_text_for_ipv6_by_mark() {
        let rules = RuleSet::of(&everything(Exempt::Mark(PROXY_MARK))).unwrap();
        insta::assert_snapshot!(of(&rules, BackEnd::IptablesNft, Families::V6, &Saved::default()));
    }

    /// As the programs save it, and a jump of somebody's besides.
    fn saved() -> Saved {
        let rules = RuleSet::of(&everything(Exempt::Uid(PROXY_UID))).unwrap();
        let mut saved = Saved::default();
        for table in TABLES {
            let mut text = format!("# by iptables-save\n*{table}\n:OUTPUT ACCEPT [0:0]\n");
            for hook in Hook::ALL.into_iter().filter(|hook| place(*hook).table == table) {
                let Place { chain, asked_in, .. } = place(hook);
                let _ = write!(text, ":{chain} - [0:0]\n[3:180] -A {asked_in} -j {chain}\n");
                for rule in rules.rules().iter().filter(|rule| rule.hook == hook) {
                    if BackEnd::IptablesNft.takes(Families::V4, rule) {
                        let _ = writeln!(text, "[2:120] -A {chain} {}", words(rule));
                    }
                }
            }
            text.push_str("[0:0] -A OUTPUT -d 10.0.0.1/32 -j BYRNIE-OUTPUT\nCOMMIT\n");
            saved.read(table, &text);
        }
        saved
    }

    #[test]
    fn what_is_there_is_replaced_and_removed_by_name() {
        let rules = RuleSet::of(&CaptureConfig::new(Exempt::Uid(PROXY_UID))).unwrap();
        let replaced = of(&rules, BackEnd::IptablesNft, Families::V4, &saved());
        insta::assert_snapshot!(format!("replaced:\n{replaced}\nremoved:\n{}", without(&saved())));
    }

    #[test]
    fn going_back_makes_what_was_there() {
        let nothing = Saved::default();
        assert_eq!(back_to(&nothing, &nothing), "");
        assert_eq!(back_to(&nothing, &saved()), without(&saved()));
        insta::assert_snapshot!(back_to(&saved(), &nothing));
    }

    #[test]
    fn what_is_written_is_read_as_the_same_rules() {
        for exempt in [Exempt::Uid(PROXY_UID), Exempt::Mark(PROXY_MARK)] {
            for rule in RuleSet::of(&everything(exempt)).unwrap().rules() {
                if BackEnd::IptablesNft.takes(Families::Both, rule) {
                    assert_eq!(super::super::saved::rule(rule.hook, &words(rule)).as_ref(), Some(rule));
                }
            }
        }
    }
}
