//! The small texts inside objects: names, labels, ports, networks, durations, times.
//!
//! Each function takes the place and the text, and gives the value; or it notes a [`Problem`] and gives nothing.

use std::num::NonZeroU16;
use std::time::{Duration, SystemTime};

use byrnie_identity::{SpiffeId, TrustDomain};
use byrnie_policy::{Ports, SpiffeIdPattern, parse_cidr};
use ipnet::IpNet;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::Problem;
use crate::problem::quote;

const LONGEST_LABEL: usize = 63;
const LONGEST_SUBDOMAIN: usize = 253;

/// A namespace's name: an RFC 1123 label.
pub(crate) fn namespace(path: &str, text: &str, problems: &mut Vec<Problem>) -> bool {
    let expected = "a namespace: up to 63 of a-z, 0-9 and `-`, with a letter or digit at both ends";
    note(is_dns_label(text), path, expected, text, problems)
}

/// An object's or service account's name: an RFC 1123 subdomain.
pub(crate) fn object_name(path: &str, text: &str, problems: &mut Vec<Problem>) -> bool {
    let expected = "a name: up to 253 of a-z, 0-9, `-` and `.`, with a letter or digit at both ends";
    note(is_dns_subdomain(text), path, expected, text, problems)
}

/// A label's key: a qualified name, as Kubernetes defines it.
pub(crate) fn label_key(path: &str, text: &str, problems: &mut Vec<Problem>) -> bool {
    let good = match text.split_once('/') {
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_label_text(name) && !name.is_empty(),
        None => is_label_text(text) && !text.is_empty(),
    };
    note(good, path, "the key of a label, such as `app` or `example.com/app`", text, problems)
}

/// A label's value.
pub(crate) fn label_value(path: &str, text: &str, problems: &mut Vec<Problem>) -> bool {
    let expected = "the value of a label: up to 63 of a-z, A-Z, 0-9, `-`, `_` and `.`";
    note(is_label_text(text), path, expected, text, problems)
}

/// A trust domain.
pub(crate) fn trust_domain(path: &str, text: &str, problems: &mut Vec<Problem>) -> Option<TrustDomain> {
    text.parse()
        .map_err(|error| {
            let expected = "a trust domain: a-z, 0-9, `-`, `_` and `.`";
            problems.push(Problem::new(path, expected, format!("{} ({error})", quote(text))));
        })
        .ok()
}

/// A SPIFFE ID, exact.
pub(crate) fn spiffe_id(path: &str, text: &str, problems: &mut Vec<Problem>) -> Option<SpiffeId> {
    let expected = "a SPIFFE ID such as `spiffe://cluster.local/ns/shop/sa/web`";
    let id = text.parse::<SpiffeId>().map_err(|error| {
        problems.push(Problem::new(path, expected, format!("{} ({error})", quote(text))));
    });
    let id = id.ok()?;
    // An ID without a path is the trust domain's own; no workload has it.
    note(!id.path().is_empty(), path, expected, text, problems).then_some(id)
}

/// A SPIFFE ID, exact or a prefix that ends in `/*`.
pub(crate) fn spiffe_id_pattern(path: &str, text: &str, problems: &mut Vec<Problem>) -> Option<SpiffeIdPattern> {
    let pattern = text.parse();
    pattern
        .map_err(|error: byrnie_policy::PolicyError| problems.push(Problem::new(path, error.expected, error.found)))
        .ok()
}

/// A list of networks in CIDR notation.
pub(crate) fn cidrs(path: &str, texts: &[String], problems: &mut Vec<Problem>) -> Vec<IpNet> {
    let mut networks = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match parse_cidr(text) {
            Ok(network) => networks.push(network),
            Err(error) => problems.push(Problem::new(format!("{path}[{index}]"), error.expected, error.found)),
        }
    }
    networks
}

/// A list of ports; empty: every port.
pub(crate) fn ports(path: &str, numbers: &[u16], problems: &mut Vec<Problem>) -> Ports {
    let numbered = numbers.iter().enumerate();
    numbered.filter_map(|(index, number)| port(&format!("{path}[{index}]"), *number, problems)).collect()
}

/// A port.
pub(crate) fn port(path: &str, number: u16, problems: &mut Vec<Problem>) -> Option<NonZeroU16> {
    let port = NonZeroU16::new(number);
    if port.is_none() {
        problems.push(Problem::new(path, "a port from 1 to 65535", "`0`"));
    }
    port
}

/// An RFC 3339 time.
pub(crate) fn timestamp(path: &str, text: &str, problems: &mut Vec<Problem>) -> Option<SystemTime> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok().filter(|time| *time > OffsetDateTime::UNIX_EPOCH);
    if time.is_none() {
        let expected = "a time such as `2030-01-31T18:00:00Z` (RFC 3339)";
        problems.push(Problem::new(path, expected, quote(text)));
    }
    time.map(SystemTime::from)
}

/// A duration: whole numbers with the units d, h, m and s, from the greatest to the least, such as `24h` or `1h30m`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    const UNITS: [(char, u64); 4] = [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];
    let (mut rest, mut seconds, mut units) = (text, 0_u64, UNITS.iter());
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at_checked(end)?;
        let unit = tail.chars().next()?;
        // The iterator goes on where it stood, so that no unit comes twice or after a lesser one.
        let (_, size) = units.find(|(name, _)| *name == unit)?;
        seconds = seconds.checked_add(number.parse::<u64>().ok()?.checked_mul(*size)?)?;
        rest = tail.get(unit.len_utf8()..)?;
    }
    (!text.is_empty()).then(|| Duration::from_secs(seconds))
}

fn note(good: bool, path: &str, expected: &str, text: &str, problems: &mut Vec<Problem>) -> bool {
    if !good {
        problems.push(Problem::new(path, expected, quote(text)));
    }
    good
}

fn is_dns_label(text: &str) -> bool {
    text.len() <= LONGEST_LABEL && is_dns_part(text)
}

/// Kubernetes bounds the whole name, not its parts.
fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= LONGEST_SUBDOMAIN && text.split('.').all(is_dns_part)
}

fn is_dns_part(text: &str) -> bool {
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    edge(text.bytes().next()) && edge(text.bytes().last()) && text.bytes().all(|byte| edge(Some(byte)) || byte == b'-')
}

fn is_label_text(text: &str) -> bool {
    let edge = |byte: Option<u8>| byte.is_none_or(|byte| byte.is_ascii_alphanumeric());
    text.len() <= LONGEST_LABEL
        && edge(text.bytes().next())
        && edge(text.bytes().last())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_numbers_with_units_from_the_greatest_to_the_least() {
        let hours = |number: u64| Duration::from_secs(number * 3_600);
        assert_eq!(duration("24h"), Some(hours(24)));
        assert_eq!(duration("7d"), Some(hours(168)));
        assert_eq!(duration("1h30m"), Some(Duration::from_secs(5_400)));
        assert_eq!(duration("1d2h3m4s"), Some(Duration::from_secs(93_784)));
        for bad in [
            "",
            "24",
            "h",
            "24x",
            "30m1h",
            "1h1h",
            "-1h",
            "1.5h",
            "1h ",
            "99999999999999999999h",
            "9999999999999999d",
            "1ü",
        ] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_are_those_that_kubernetes_takes() {
        let problems = &mut Vec::new();
        assert!(namespace("", "shop", problems) && namespace("", "a-1", problems));
        assert!(object_name("", "web.v1", problems) && object_name("", &"a".repeat(253), problems));
        assert!(label_key("", "app", problems) && label_key("", "example.com/App_1", problems));
        assert!(label_value("", "", problems) && label_value("", "v1.2", problems));
        assert!(problems.is_empty());
        for bad in ["", "Shop", "a.b", "-a", "a-", "a/b", "*", &"a".repeat(64)] {
            assert!(!namespace("", bad, problems), "{bad}");
        }
        for bad in ["", "a..b", ".a", "A", "a_b", &"a".repeat(254)] {
            assert!(!object_name("", bad, problems), "{bad}");
        }
        for bad in ["", "a/", "/a", "a/b/c", "UPPER.com/a", "a b", "-a"] {
            assert!(!label_key("", bad, problems), "{bad}");
        }
        for bad in ["a b", "-a", "a/b", &"a".repeat(64)] {
            assert!(!label_value("", bad, problems), "{bad}");
        }
    }

    #[test]
    fn a_time_is_rfc_3339_and_after_1970() {
        let problems = &mut Vec::new();
        assert!(timestamp("", "2030-01-31T18:00:00Z", problems).is_some());
        assert!(timestamp("", "2030-01-31T18:00:00.5+01:00", problems).is_some());
        assert!(problems.is_empty());
        for bad in ["", "tomorrow", "2030-01-31", "2030-01-31 18:00", "1969-12-31T00:00:00Z", "2030-13-01T00:00:00Z"] {
            assert_eq!(timestamp("spec.until", bad, problems), None, "{bad}");
        }
        assert_eq!(problems.len(), 6);
    }

    #[test]
    fn an_id_of_a_trust_domain_alone_is_no_workloads() {
        let problems = &mut Vec::new();
        assert!(spiffe_id("", "spiffe://cluster.local/ns/shop/sa/web", problems).is_some());
        assert!(spiffe_id("", "spiffe://cluster.local", problems).is_none());
        assert!(spiffe_id("", "spiffe://cluster.local/*", problems).is_none());
    }
}
