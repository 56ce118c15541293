#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::*;
use proptest::prelude::*;

fn pair() -> (Session, Session) {
    (Session::new(Role::Client), Session::new(Role::Server))
}

/// Hands `bytes` to `to` and returns what it made of them, with `DATA` copied out.
fn hand(to: &mut Session, bytes: &[u8]) -> Result<Vec<String>, ProtocolError> {
    let mut rest = bytes;
    let mut seen = vec![];
    while !rest.is_empty() {
        let (taken, received) = to.receive(rest)?;
        if let Some(received) = received {
            seen.push(match received {
                Received::Data(data) => format!("DATA {}", data.len()),
                Received::Fin => "FIN".into(),
                Received::Open(_) => "OPEN".into(),
                Received::Accept(_) => "ACCEPT".into(),
                Received::Refuse(refuse) => format!("REFUSE retryable={}", refuse.retryable),
                Received::Reset(_) => "RESET".into(),
                Received::GoAway(last) => format!("GOAWAY {last}"),
                Received::Reauth(reauth) => format!("REAUTH {}", reauth.sequence),
            });
        }
        rest = &rest[taken..];
    }
    Ok(seen)
}

fn open(client: &mut Session, server: &mut Session) {
    let mut out = vec![];
    assert!(client.open(&v1::Open::default(), &mut out));
    assert_eq!(hand(server, &out).unwrap(), ["OPEN"]);
}

fn accept(client: &mut Session, server: &mut Session) {
    let mut out = vec![];
    server.accept(&v1::Accept::default(), &mut out);
    assert_eq!(hand(client, &out).unwrap(), ["ACCEPT"]);
}

fn finish(client: &mut Session, server: &mut Session) {
    let (mut up, mut down) = (vec![], vec![]);
    client.fin(&mut up);
    server.fin(&mut down);
    assert_eq!(hand(server, &up).unwrap(), ["FIN"]);
    assert_eq!(hand(client, &down).unwrap(), ["FIN"]);
}

#[test]
fn a_tunnel_is_reusable_only_after_fin_both_ways() {
    let (mut client, mut server) = pair();
    open(&mut client, &mut server);
    accept(&mut client, &mut server);
    let mut out = vec![];
    client.fin(&mut out);
    hand(&mut server, &out).unwrap();
    assert!(!client.reusable() && !server.reusable());
    out.clear();
    server.fin(&mut out);
    hand(&mut client, &out).unwrap();
    assert!(client.reusable() && server.reusable());
    open(&mut client, &mut server);
    assert_eq!((client.stream(), server.stream()), (2, 2));
}

#[test]
fn a_reset_ends_the_tunnel_on_both_sides() {
    let (mut client, mut server) = pair();
    open(&mut client, &mut server);
    accept(&mut client, &mut server);
    let mut out = vec![];
    client.reset(v1::ResetCode::Application, &mut out);
    assert_eq!(hand(&mut server, &out).unwrap(), ["RESET"]);
    assert!(!client.reusable() && !server.reusable());
    assert!(!client.open(&v1::Open::default(), &mut vec![]));
}

#[test]
fn a_reset_of_the_last_stream_that_crosses_an_open_says_that_the_open_was_not_served() {
    let (mut client, mut server) = pair();
    open(&mut client, &mut server);
    accept(&mut client, &mut server);
    let (mut fin, mut down) = (vec![], vec![]);
    client.fin(&mut fin);
    server.fin(&mut down);
    assert_eq!(hand(&mut client, &down).unwrap(), ["FIN"]);
    // The client is through; the server's application breaks before it has taken the last bytes.
    assert!(client.open(&v1::Open::default(), &mut vec![]));
    let mut reset = vec![];
    server.reset(v1::ResetCode::Application, &mut reset);
    assert_eq!(hand(&mut client, &reset).unwrap(), ["GOAWAY 1"]);
    assert!(!client.reusable());
}

#[test]
fn a_stream_number_that_does_not_rise_by_one_is_refused() {
    for wrong in [0u32, 2, 7, u32::MAX] {
        let mut server = Session::new(Role::Server);
        let bytes = Header { frame: FrameType::Open, length: 0, stream: wrong }.encode();
        assert!(matches!(hand(&mut server, &bytes), Err(ProtocolError::Unexpected { .. })), "{wrong}");
        assert!(!server.reusable());
    }
}

#[test]
fn refused_after_early_data_a_tunnel_is_not_reused() {
    let (mut client, mut server) = pair();
    open(&mut client, &mut server);
    accept(&mut client, &mut server);
    finish(&mut client, &mut server);
    open(&mut client, &mut server);
    let mut up = client.data(3).to_vec();
    up.extend(b"abc");
    let mut down = vec![];
    server.refuse(&v1::Refuse { retryable: true, ..Default::default() }, &mut down);
    assert_eq!(hand(&mut client, &down).unwrap(), ["REFUSE retryable=true"]);
    assert!(!client.reusable());
    assert!(hand(&mut server, &up).is_err());
}

#[test]
fn refused_before_any_data_a_bound_tunnel_is_reused() {
    let (mut client, mut server) = pair();
    open(&mut client, &mut server);
    accept(&mut client, &mut server);
    finish(&mut client, &mut server);
    open(&mut client, &mut server);
    let mut down = vec![];
    server.refuse(&v1::Refuse::default(), &mut down);
    hand(&mut client, &down).unwrap();
    assert!(client.reusable() && server.reusable());
    open(&mut client, &mut server);
}

#[test]
fn an_open_that_crosses_goaway_is_served_and_the_next_is_not() {
    let (mut client, mut server) = pair();
    open(&mut client, &mut server);
    accept(&mut client, &mut server);
    finish(&mut client, &mut server);
    let (mut goaway, mut crossing) = (vec![], vec![]);
    server.go_away(&mut goaway);
    assert!(client.open(&v1::Open::default(), &mut crossing));
    assert_eq!(hand(&mut client, &goaway).unwrap(), ["GOAWAY 2"]);
    assert_eq!(hand(&mut server, &crossing).unwrap(), ["OPEN"]);
    accept(&mut client, &mut server);
    finish(&mut client, &mut server);
    assert!(!client.reusable() && !server.reusable());
    let third = Header { frame: FrameType::Open, length: 0, stream: 3 }.encode();
    assert!(hand(&mut server, &third).is_err());
}

#[test]
fn a_goaway_during_a_stream_lets_it_end() {
    let (mut client, mut server) = pair();
    open(&mut client, &mut server);
    accept(&mut client, &mut server);
    let mut goaway = vec![];
    server.go_away(&mut goaway);
    assert_eq!(hand(&mut client, &goaway).unwrap(), ["GOAWAY 1"]);
    finish(&mut client, &mut server);
    assert!(!client.reusable());
}

#[test]
fn early_data_is_bounded_at_64_kib() {
    let (mut client, mut server) = pair();
    open(&mut client, &mut server);
    let mut up = client.data(MAX_PAYLOAD).to_vec();
    up.resize(HEADER_LEN + MAX_PAYLOAD, 7);
    hand(&mut server, &up).unwrap();
    let mut more = client.data(1).to_vec();
    more.push(7);
    assert_eq!(hand(&mut server, &more), Err(ProtocolError::TooMuchEarlyData));
}

#[test]
fn reauth_needs_the_nonces_and_a_rising_sequence() {
    let (mut client, mut server) = pair();
    let mut early = vec![];
    client.reauth(v1::Reauth::default(), &mut early);
    assert!(hand(&mut server, &early).is_err());

    let (mut client, mut server) = pair();
    open(&mut client, &mut server);
    accept(&mut client, &mut server);
    let mut first = vec![];
    client.reauth(v1::Reauth::default(), &mut first);
    assert_eq!(hand(&mut server, &first).unwrap(), ["REAUTH 1"]);
    assert!(hand(&mut server, &first).is_err(), "replayed");
}

#[test]
fn the_next_frame_of_data_says_how_much_it_brings() {
    let (mut client, mut server) = pair();
    open(&mut client, &mut server);
    accept(&mut client, &mut server);
    let wire = [&client.data(2)[..], b"ab", &client.data(0x81_82)[..]].concat();
    let (taken, _) = server.receive(&wire).unwrap();
    let (first, rest) = wire.split_at(taken);
    assert_eq!(first.len(), HEADER_LEN + 2);
    assert_eq!(server.next_data(rest), Some(0x81_82));
    assert_eq!(server.next_data(&rest[..3]), None);
    // Within a frame nothing begins.
    server.receive(rest).unwrap();
    assert_eq!(server.next_data(rest), None);
    let mut end = vec![];
    client.fin(&mut end);
    assert_eq!(pair().1.next_data(&end), None);
}

#[test]
fn an_end_that_lies_behind_data_is_known_when_all_of_it_is_there() {
    let (mut client, mut server) = pair();
    open(&mut client, &mut server);
    accept(&mut client, &mut server);
    let mut wire = [&client.data(2)[..], b"ab"].concat();
    client.fin(&mut wire);
    let (taken, _) = server.receive(&wire).unwrap();
    let rest = &wire[taken..];
    assert!(server.next_is_fin(rest));
    assert!(!server.next_is_fin(&rest[..HEADER_LEN - 1]));
    assert!(!server.next_is_fin(&client.data(0)));
    // Within a frame nothing begins.
    server.receive(&rest[..3]).unwrap();
    assert!(!server.next_is_fin(rest));
}

#[test]
fn data_after_fin_ends_the_tunnel() {
    let (mut client, mut server) = pair();
    open(&mut client, &mut server);
    accept(&mut client, &mut server);
    let mut out = vec![];
    client.fin(&mut out);
    out.extend(client.data(1));
    out.push(1);
    assert!(hand(&mut server, &out).is_err());
}

#[test]
fn a_client_takes_no_data_before_accept() {
    let (mut client, mut server) = pair();
    open(&mut client, &mut server);
    let mut out = server.data(1).to_vec();
    out.push(1);
    assert!(hand(&mut client, &out).is_err());
}

proptest! {
    #[test]
    fn whatever_comes_a_session_ends_in_an_error_or_goes_on_and_never_panics(
        server: bool,
        frames in prop::collection::vec((1u8..=9, 0u32..4, prop::collection::vec(any::<u8>(), 0..20)), 0..30),
    ) {
        let mut session = Session::new(if server { Role::Server } else { Role::Client });
        if !server {
            session.open(&v1::Open::default(), &mut vec![]);
        }
        for (kind, stream, payload) in frames {
            let mut bytes = vec![kind, 0, 0, payload.len() as u8];
            bytes.extend(stream.to_be_bytes());
            bytes.extend(payload);
            if hand(&mut session, &bytes).is_err() {
                prop_assert!(!session.reusable());
                break;
            }
        }
    }
}
