//! Frames and their rules.

use byrnie_proto::tunnel::{Decoder, Event, MAX_PAYLOAD, Role, Session, v1};

/// The decoder alone: what comes out does not depend on how the bytes are cut, and nothing is larger than a frame.
pub fn tunnel_frames(bytes: &[u8]) {
    let whole = decode(bytes, usize::MAX);
    for piece in [1, 3, 1000] {
        assert_eq!(decode(bytes, piece), whole, "in pieces of {piece}");
    }
}

/// Both ends of a tunnel: the first byte says which, and in what state it is when the rest comes.
pub fn tunnel_session(bytes: &[u8]) {
    let Some((state, rest)) = bytes.split_first() else { return };
    let role = if state & 1 == 0 { Role::Client } else { Role::Server };
    let mut session = Session::new(role);
    begin(&mut session, state >> 1);
    let mut rest = rest;
    while !rest.is_empty() {
        match session.receive(rest) {
            Ok((taken, received)) => {
                assert!(taken <= rest.len() && (taken > 0 || received.is_some()));
                rest = &rest[taken..];
            }
            Err(_) => {
                assert!(!session.reusable(), "a tunnel whose peer broke the rules is used again");
                assert!(!session.open(&v1::Open::default(), &mut Vec::new()));
                return;
            }
        }
    }
}

/// Brings an end into one of its states, through what the other end of an orderly tunnel says.
fn begin(session: &mut Session, state: u8) {
    let mut other = Session::new(session.role().peer());
    let mut written = Vec::new();
    let client = session.role() == Role::Client;
    for step in 0..state % 5 {
        written.clear();
        match (step, client) {
            (0, true) => assert!(session.open(&v1::Open::default(), &mut written)),
            (0, false) => assert!(other.open(&v1::Open::default(), &mut written)),
            (1, true) => other.accept(&v1::Accept::default(), &mut written),
            (1, false) => session.accept(&v1::Accept::default(), &mut written),
            (2, _) => other.fin(&mut written),
            _ => session.fin(&mut written),
        }
        let ours = matches!((step, client), (0, true) | (1, false)) || step == 3;
        hand(if ours { &mut other } else { &mut *session }, &written);
    }
}

fn hand(to: &mut Session, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let (taken, _) = to.receive(bytes).expect("an orderly tunnel");
        bytes = &bytes[taken..];
    }
}

/// The events of `bytes` in pieces of `size`, `DATA` as its length, and the error at the end.
fn decode(bytes: &[u8], size: usize) -> (Vec<String>, Option<String>) {
    let (mut decoder, mut seen, mut data) = (Decoder::default(), Vec::new(), 0_usize);
    for piece in bytes.chunks(size.min(bytes.len().max(1))) {
        let mut rest = piece;
        while !rest.is_empty() {
            let (taken, event) = match decoder.decode(rest) {
                Ok(decoded) => decoded,
                Err(error) => return (seen, Some(error.to_string())),
            };
            assert!(taken <= rest.len() && (taken > 0 || event.is_some()), "no progress");
            rest = &rest[taken..];
            match event {
                Some((_, Event::Data(bytes))) => {
                    assert!(bytes.len() <= MAX_PAYLOAD);
                    data += bytes.len();
                }
                Some((stream, event)) => seen.push(format!("{stream} {event:?} after {data} bytes of DATA")),
                None => {}
            }
        }
    }
    seen.push(format!("{data} bytes of DATA, at a boundary: {}", decoder.at_boundary()));
    (seen, None)
}
