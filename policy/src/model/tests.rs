#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use rstest::rstest;

use crate::testing::{at, permissive, ports, strict};
use crate::*;

fn port_scope(number: u16) -> MtlsScope {
    MtlsScope::Port(number.try_into().unwrap())
}

fn mode(mtls: Vec<MtlsRule>, port: u16, now: u64) -> MtlsMode {
    Policies { mtls, ..Policies::default() }.mtls_mode(port, at(now))
}

#[test]
fn strict_is_the_default() {
    assert_eq!(mode(vec![], 80, 1), MtlsMode::Strict);
}

#[test]
fn a_port_goes_before_the_workload_and_the_workload_before_the_namespace() {
    let wide = || permissive("n", MtlsScope::Namespace, None);
    assert_eq!(mode(vec![wide()], 80, 1), MtlsMode::Permissive);
    assert_eq!(mode(vec![wide(), strict("w", MtlsScope::Workload)], 80, 1), MtlsMode::Strict);
    let with_port = vec![strict("w", MtlsScope::Workload), permissive("p", port_scope(80), None), wide()];
    assert_eq!(mode(with_port.clone(), 80, 1), MtlsMode::Permissive);
    assert_eq!(mode(with_port, 81, 1), MtlsMode::Strict);
}

#[test]
fn of_equal_rank_the_stricter_holds() {
    let rules = vec![permissive("a", port_scope(80), None), strict("b", port_scope(80))];
    assert_eq!(mode(rules, 80, 1), MtlsMode::Strict);
}

#[test]
fn permissive_ends_at_its_time_and_not_before() {
    let rules = || vec![permissive("a", MtlsScope::Workload, Some(100))];
    assert_eq!(mode(rules(), 80, 99), MtlsMode::Permissive);
    assert_eq!(mode(rules(), 80, 100), MtlsMode::Strict);
}

#[test]
fn a_permissive_that_has_ended_does_not_give_way_to_a_wider_one() {
    let rules = vec![permissive("n", MtlsScope::Namespace, None), permissive("p", port_scope(80), Some(100))];
    assert_eq!(mode(rules.clone(), 80, 100), MtlsMode::Strict);
    assert_eq!(mode(rules, 81, 100), MtlsMode::Permissive);
}

#[test]
fn of_two_permissives_the_sooner_end_is_told() {
    let mtls = vec![
        permissive("endless", MtlsScope::Workload, None),
        permissive("late", MtlsScope::Workload, Some(200)),
        permissive("soon", MtlsScope::Workload, Some(100)),
    ];
    let policies = Policies { mtls, ..Policies::default() };
    let held = policies.mtls_at(80, at(1));
    assert_eq!((held.rule.as_deref(), held.until), (Some("soon"), Some(at(100))));
    assert_eq!(policies.next_change(at(1)), Some(at(100)));
    assert_eq!(policies.next_change(at(100)), Some(at(200)));
    assert_eq!(policies.next_change(at(200)), None);
}

#[test]
fn no_ports_named_means_every_port() {
    assert!(Ports::ANY.contains(1));
    assert!(ports(&[80]).contains(80));
    assert!(!ports(&[80]).contains(81));
}

#[rstest]
#[case("203.0.113.0/24", Some("203.0.113.0/24"))]
#[case("0.0.0.0/0", Some("0.0.0.0/0"))]
#[case("2001:db8::/32", Some("2001:db8::/32"))]
#[case("::/0", Some("::/0"))]
#[case("::ffff:10.0.0.0/104", Some("10.0.0.0/8"))]
#[case("203.0.113.9", None)]
#[case("203.0.113.9/24", None)]
#[case("203.0.113.0/33", None)]
#[case("203.0.113.0/-1", None)]
#[case("example.com", None)]
#[case("", None)]
fn a_network_is_cidr_notation_without_host_bits(#[case] text: &str, #[case] network: Option<&str>) {
    assert_eq!(parse_cidr(text).ok().map(|network| network.to_string()).as_deref(), network);
}

#[test]
fn a_network_with_host_bits_is_refused_with_what_may_be_meant() {
    let error = parse_cidr("10.0.0.5/8").unwrap_err();
    assert_eq!(error.expected, "a network without host bits: 10.0.0.0/8 or 10.0.0.5/32");
    assert_eq!(error.found, "`10.0.0.5/8`");
}

#[rstest]
#[case("spiffe://cluster.local/ns/shop/sa/web")]
#[case("spiffe://cluster.local/ns/*")]
#[case("spiffe://cluster.local/*")]
fn a_pattern_reads_as_it_is_written(#[case] text: &str) {
    assert_eq!(text.parse::<SpiffeIdPattern>().unwrap().to_string(), text);
}

#[rstest]
#[case("*")]
#[case("/*")]
#[case("spiffe://*")]
#[case("spiffe://cluster.local/ns/*/sa/web")]
#[case("spiffe://cluster.local/ns/shop*")]
#[case("https://cluster.local/ns/shop/*")]
fn any_other_pattern_is_refused(#[case] text: &str) {
    assert!(text.parse::<SpiffeIdPattern>().is_err());
}
