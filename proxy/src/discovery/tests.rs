#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use byrnie_identity::ManualClock;
use byrnie_policy::Policies;

use super::cache::MAX_ADDRESSES;
use super::*;
use crate::config::AccessLog;
use crate::model::{AppProtocol, DestinationKind, Networks};
use crate::test_support::own_pod;

const INSIDE: &str = "10.96.0.10:80";
const OUTSIDE: &str = "198.51.100.7:443";

fn discovery() -> (Discovery, ManualClock) {
    let (clock, hand) = Clock::manual(std::time::SystemTime::now());
    let control = Control::new();
    let mut own = own_pod("web", Policies::default());
    own.networks = Networks::new(vec!["10.0.0.0/8".parse().unwrap()]);
    control.take_own(own);
    let telemetry = Telemetry::new(&AccessLog::Off, clock.clone()).unwrap();
    (Discovery::new(control, telemetry, clock), hand)
}

fn at(text: &str) -> OriginalDestination {
    OriginalDestination(text.parse().unwrap())
}

fn service(name: &str) -> Destination {
    Destination {
        kind: DestinationKind::Service,
        service: Some(name.into()),
        protocol: AppProtocol::Unknown,
        endpoints: Vec::new(),
    }
}

/// Lets every task run that can.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn all_who_wait_share_one_question() {
    let (discovery, _) = discovery();
    discovery.attach();
    let waiting: Vec<_> = (0..10)
        .map(|_| {
            let discovery = discovery.clone();
            tokio::spawn(async move { discovery.lookup(at(INSIDE)).await })
        })
        .collect();
    discovery.asked().await;
    settle().await;
    let expected = Questions { subscribe: vec![INSIDE.parse().unwrap()], unsubscribe: Vec::new() };
    assert_eq!(discovery.questions(), expected);
    discovery.answered(INSIDE.parse().unwrap(), service("shop/orders"));
    for answer in waiting {
        assert_eq!(answer.await.unwrap().unwrap().service.as_deref(), Some("shop/orders"));
    }
    assert_eq!(discovery.questions(), Questions::default());
}

#[tokio::test(start_paused = true)]
async fn a_first_connection_waits_two_seconds_and_is_then_refused() {
    let (discovery, _) = discovery();
    discovery.attach();
    let begun = Instant::now();
    let refused = discovery.lookup(at(INSIDE)).await.unwrap_err();
    assert_eq!(begun.elapsed(), FIRST_WAIT);
    assert_eq!(refused, DiscoveryError::NoAnswer(INSIDE.parse().unwrap()));
    // The question stands: a late answer serves the next connection.
    discovery.answered(INSIDE.parse().unwrap(), service("shop/orders"));
    assert!(discovery.lookup(at(INSIDE)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_comes_back_within_the_wait_is_asked() {
    let (discovery, _) = discovery();
    let waiting = tokio::spawn({
        let discovery = discovery.clone();
        async move { discovery.lookup(at(INSIDE)).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(discovery.attach(), ["10.96.0.10:80".parse::<SocketAddr>().unwrap()]);
    discovery.answered(INSIDE.parse().unwrap(), service("shop/orders"));
    assert!(waiting.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_is_unknown_inside_is_refused_and_outside_left_to_egress_policy_while_the_control_plane_is_away() {
    let (discovery, hand) = discovery();
    hand.advance(Duration::from_secs(60));
    let refused = discovery.lookup(at(INSIDE)).await.unwrap_err();
    assert_eq!(refused.as_str(), "control-plane-away");
    let begun = Instant::now();
    let external = discovery.lookup(at(OUTSIDE)).await.unwrap();
    assert_eq!(external.kind, DestinationKind::External);
    assert_eq!(begun.elapsed(), Duration::ZERO, "an outage does not slow down what needs no answer");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_outside_before_the_clusters_networks_are_known() {
    let (clock, hand) = Clock::manual(std::time::SystemTime::now());
    let telemetry = Telemetry::new(&AccessLog::Off, clock.clone()).unwrap();
    let discovery = Discovery::new(Control::new(), telemetry, clock);
    hand.advance(Duration::from_secs(60));
    assert_eq!(discovery.lookup(at(OUTSIDE)).await.unwrap_err().as_str(), "control-plane-away");
}

#[tokio::test(start_paused = true)]
async fn a_guess_that_was_wrong_is_announced_as_a_change() {
    let (discovery, hand) = discovery();
    hand.advance(Duration::from_secs(60));
    discovery.lookup(at(OUTSIDE)).await.unwrap();
    let changed = discovery.changed();
    discovery.attach();
    discovery.answered(OUTSIDE.parse().unwrap(), service("shop/public"));
    assert!(changed.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn known_answers_are_used_for_an_hour_without_the_control_plane_and_then_refused() {
    let (discovery, hand) = discovery();
    discovery.attach();
    let waiting = tokio::spawn({
        let discovery = discovery.clone();
        async move { discovery.lookup(at(INSIDE)).await }
    });
    settle().await;
    discovery.answered(INSIDE.parse().unwrap(), service("shop/orders"));
    waiting.await.unwrap().unwrap();
    // However old the answer is: while the stream is open, the control plane vouches for it.
    hand.advance(Duration::from_secs(100_000));
    assert!(discovery.lookup(at(INSIDE)).await.is_ok());
    discovery.detach(hand_now(&discovery));
    hand.suspend(Duration::from_secs(3600));
    assert!(discovery.lookup(at(INSIDE)).await.is_ok());
    hand.advance(Duration::from_secs(1));
    assert_eq!(discovery.lookup(at(INSIDE)).await.unwrap_err().as_str(), "discovery-stale");
    assert!(discovery.peek(INSIDE.parse().unwrap()).is_some(), "open streams go on");
    discovery.attach();
    discovery.answered(INSIDE.parse().unwrap(), service("shop/orders"));
    assert!(discovery.lookup(at(INSIDE)).await.is_ok());
}

fn hand_now(discovery: &Discovery) -> Duration {
    discovery.0.clock.boot()
}

fn put(discovery: &Discovery, address: SocketAddr) {
    let now = hand_now(discovery);
    discovery.lock().consult(address, now, false).ok();
    discovery.answered(address, service("shop/orders"));
}

#[tokio::test(start_paused = true)]
async fn unused_addresses_are_let_go_of_but_never_while_the_control_plane_is_away() {
    let (discovery, hand) = discovery();
    discovery.attach();
    put(&discovery, INSIDE.parse().unwrap());
    put(&discovery, OUTSIDE.parse().unwrap());
    discovery.questions();
    discovery.detach(hand_now(&discovery));
    hand.advance(Duration::from_secs(700));
    discovery.sweep();
    assert_eq!(discovery.len(), 2);
    discovery.attach();
    discovery.peek(OUTSIDE.parse().unwrap());
    discovery.sweep();
    assert_eq!(discovery.len(), 1);
    assert_eq!(discovery.questions().unsubscribe, ["10.96.0.10:80".parse::<SocketAddr>().unwrap()]);
}

#[tokio::test(start_paused = true)]
async fn a_scan_of_the_network_does_not_grow_the_cache_without_bound() {
    let (discovery, hand) = discovery();
    discovery.attach();
    let address = |number: usize| SocketAddr::new([10, 0, (number / 256) as u8, (number % 256) as u8].into(), 80);
    for number in 0..MAX_ADDRESSES + 100 {
        hand.advance(Duration::from_millis(1));
        put(&discovery, address(number));
        assert!(discovery.len() <= MAX_ADDRESSES);
    }
    assert!(discovery.peek(address(0)).is_none(), "the oldest went");
    assert!(discovery.peek(address(MAX_ADDRESSES)).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_failure_reaches_those_who_wait_and_the_question_is_asked_again_later() {
    let (discovery, hand) = discovery();
    discovery.attach();
    let waiting = tokio::spawn({
        let discovery = discovery.clone();
        async move { discovery.lookup(at(INSIDE)).await }
    });
    settle().await;
    discovery.questions();
    discovery.failed(INSIDE.parse().unwrap(), "too many questions");
    assert!(waiting.await.unwrap().unwrap_err().to_string().contains("too many questions"));
    assert_eq!(discovery.lookup(at(INSIDE)).await.unwrap_err().as_str(), "discovery-failed");
    assert_eq!(discovery.questions(), Questions::default());
    hand.advance(Duration::from_secs(1));
    tokio::spawn({
        let discovery = discovery.clone();
        async move { discovery.lookup(at(INSIDE)).await }
    });
    settle().await;
    assert_eq!(discovery.questions().subscribe.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_stays_in_force_when_its_update_fails() {
    let (discovery, _) = discovery();
    discovery.attach();
    put(&discovery, INSIDE.parse().unwrap());
    discovery.failed(INSIDE.parse().unwrap(), "a field that this proxy does not know");
    assert!(discovery.lookup(at(INSIDE)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn only_another_answer_is_a_change() {
    let (discovery, _) = discovery();
    discovery.attach();
    let mut changed = discovery.changed();
    put(&discovery, INSIDE.parse().unwrap());
    put(&discovery, INSIDE.parse().unwrap());
    assert!(!changed.has_changed().unwrap());
    discovery.answered(INSIDE.parse().unwrap(), service("shop/stock"));
    assert!(changed.has_changed().unwrap());
    changed.mark_unchanged();
    // Nobody subscribed to this one any more.
    discovery.answered("10.9.9.9:1".parse().unwrap(), service("shop/stock"));
    assert!(!changed.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn an_ipv4_address_in_ipv6_notation_is_the_ipv4_address() {
    let (discovery, _) = discovery();
    discovery.attach();
    put(&discovery, INSIDE.parse().unwrap());
    assert!(discovery.lookup(at("[::ffff:10.96.0.10]:80")).await.is_ok());
    assert_eq!(discovery.len(), 1);
}
