#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::AccessLog;
use crate::limits::{HTTP_HEAD, HTTP_LINE};
use crate::telemetry::{HttpCounts, Telemetry};

/// A connection that is followed, and the edge that it counts at.
struct Followed {
    telemetry: Telemetry,
    edge: Arc<Edge>,
    exchanges: Box<Exchanges>,
    now: Instant,
}

/// What was counted: requests by the first digit of the answer's status (0: no answer), and connections not followed.
#[derive(Debug, PartialEq, Default)]
struct Counted {
    classes: [u64; 6],
    not_followed: u64,
}

impl Followed {
    fn new() -> Followed {
        let telemetry = Telemetry::new(&AccessLog::Off, byrnie_identity::Clock::system()).unwrap();
        let [source, destination] = ["10.1.0.5:40000", "10.1.0.6:80"].map(|address| address.parse().unwrap());
        let exchanges = telemetry.connection(Direction::Outbound, source, destination).follow_http();
        Followed { telemetry, edge: exchanges.edge.clone(), exchanges, now: Instant::now() }
    }

    fn asks(&mut self, bytes: impl AsRef<[u8]>) -> &mut Followed {
        self.exchanges.application_said(bytes.as_ref(), self.now);
        self
    }

    fn hears(&mut self, bytes: impl AsRef<[u8]>) -> &mut Followed {
        self.exchanges.application_hears(bytes.as_ref(), self.now);
        self
    }

    fn after(&mut self, milliseconds: u64) -> &mut Followed {
        self.now += Duration::from_millis(milliseconds);
        self
    }

    fn counted(&self) -> Counted {
        counted(self.edge.http_so_far())
    }

    fn counted_at_the_end(self) -> Counted {
        let Followed { edge, exchanges, .. } = self;
        drop(exchanges);
        counted(edge.http_so_far())
    }
}

fn counted(http: Option<&HttpCounts>) -> Counted {
    let Some(http) = http else { return Counted::default() };
    let classes: Vec<u64> = http.classes().map(|(_, count)| count).collect();
    Counted { classes: classes.try_into().unwrap(), not_followed: http.connections_not_followed() }
}

/// So many answers of one class.
fn answered(class: usize, count: u64) -> Counted {
    let mut counted = Counted::default();
    counted.classes[class] = count;
    counted
}

const NOT_FOLLOWED: Counted = Counted { classes: [0; 6], not_followed: 1 };

#[test]
fn a_request_is_counted_when_its_answer_has_ended_with_the_time_that_it_took() {
    let mut followed = Followed::new();
    followed.asks("POST / HT").after(5).asks("TP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc").after(1);
    followed.hears("HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\n\r\nabcd");
    assert_eq!(followed.counted(), Counted::default());
    followed.after(3).hears("e");
    assert_eq!(followed.counted(), answered(4, 1));
    let (seconds, buckets) = followed.edge.http_so_far().unwrap().durations();
    assert!((seconds - 0.009).abs() < 1e-9, "{seconds}");
    let counted: Vec<(f64, u64)> = buckets.into_iter().filter(|(_, count)| *count > 0).collect();
    assert_eq!(counted, [(0.01, 1)]);
}

#[test]
fn an_answer_without_a_length_ends_with_the_connection_and_a_request_without_an_answer_has_none() {
    let mut followed = Followed::new();
    followed.asks("GET /1 HTTP/1.0\r\n\r\nGET /2 HTTP/1.0\r\n\r\n").hears("HTTP/1.0 200 OK\r\n\r\nas long as it goes");
    followed.hears("HTTP/1.1 500 this is the body of the first\r\n\r\n");
    assert_eq!(followed.counted(), Counted::default());
    let mut expected = answered(2, 1);
    expected.classes[0] = 1;
    assert_eq!(followed.counted_at_the_end(), expected);
}

#[test]
fn answers_to_head_and_those_that_have_no_body_by_their_status_end_with_their_head() {
    let mut followed = Followed::new();
    followed.asks("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").hears("HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n");
    followed.asks("GET / HTTP/1.1\r\nHost: a\r\n\r\n").hears("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n");
    followed.asks("DELETE / HTTP/1.1\r\nHost: a\r\n\r\n").hears("HTTP/1.1 204 No Content\r\n\r\n");
    let mut expected = answered(2, 2);
    expected.classes[3] = 1;
    assert_eq!(followed.counted(), expected);
}

#[test]
fn an_interim_answer_is_none() {
    let mut followed = Followed::new();
    followed.asks("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    followed.hears("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
    assert_eq!(followed.counted(), Counted::default());
    followed.asks("ok").hears("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(followed.counted(), answered(2, 1));
}

#[test]
fn what_becomes_another_protocol_is_counted_and_then_left_alone() {
    let mut upgraded = Followed::new();
    upgraded.asks("GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    upgraded.asks("GET /what-nobody-answers HTTP/1.1\r\nHost: a\r\n\r\n");
    upgraded.hears(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x05hello").asks(b"\x81\x85");
    assert_eq!(upgraded.counted_at_the_end(), answered(1, 1));
    let mut tunnel = Followed::new();
    tunnel.asks("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n").hears("HTTP/1.1 200 OK\r\n\r\n").asks([0x16, 3, 1]);
    assert_eq!(tunnel.counted_at_the_end(), answered(2, 1));
    // A server that has waited for too long says so to nobody's request.
    let mut late = Followed::new();
    late.hears("HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(late.counted_at_the_end(), Counted::default());
}

#[test]
fn what_is_not_clearly_http_1_is_counted_as_such_and_followed_no_further() {
    let many = |name: &str| (0..HTTP_FIELDS + 1).map(|n| format!("{name}{n}: 1\r\n")).collect::<String>();
    let requests = [
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        "\x16\x03\x01\x02\x00\x01\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n".to_owned(),
        "\x16\x03\x01\x02\x00\x01".to_owned(),
        "EHLO shop\r\n".to_owned(),
        "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n".to_owned(),
        "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n;x\r\n".to_owned(),
        "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n".to_owned(),
        "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello".to_owned(),
        "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\nGET /x HTTP/1.1\r\n".to_owned(),
        "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nGET /x HTTP/1.1\r\n".to_owned(),
        "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n".to_owned(),
        "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1ffffffffffffffff\r\n".to_owned(),
        format!("GET / HTTP/1.1\r\n{}\r\n", many("h")),
        format!("GET /{} HTTP/1.1\r\n", "a".repeat(HTTP_HEAD)),
        format!("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;{}", "a".repeat(HTTP_LINE)),
        format!("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{}", "a: b\r\n".repeat(HTTP_HEAD / 6 + 1)),
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(HTTP_PIPELINED + 1),
    ];
    for request in &requests {
        let mut followed = Followed::new();
        for piece in request.as_bytes().chunks(1024) {
            followed.asks(piece);
        }
        assert_eq!(followed.counted(), NOT_FOLLOWED, "{request:.80?}");
        followed.asks("GET / HTTP/1.1\r\n\r\n").hears("HTTP/1.1 200 OK\r\n\r\n");
        assert_eq!(followed.counted_at_the_end(), NOT_FOLLOWED, "{request:.80?}");
    }
    for answer in ["SSH-2.0-OpenSSH\r\n", "220 ready\r\n", "HTTP/1.1 600 ?\r\n\r\n", "HTTP/1.1 099 ?\r\n\r\n"] {
        let mut followed = Followed::new();
        followed.asks("GET / HTTP/1.1\r\n\r\n").hears(answer);
        assert_eq!(followed.counted_at_the_end(), NOT_FOLLOWED, "{answer:?}");
    }
}

#[test]
fn the_histogram_has_a_bucket_for_all_that_is_slower_than_its_bounds() {
    let mut followed = Followed::new();
    followed.asks("GET / HTTP/1.1\r\nHost: a\r\n\r\n").after(60_000).hears("HTTP/1.1 204 No Content\r\n\r\n");
    let text = followed.telemetry.metrics().encode();
    let buckets: Vec<&str> =
        text.lines().filter(|line| line.contains("http_request_duration_seconds_bucket")).collect();
    assert!(buckets.iter().any(|line| line.contains("le=\"10.0\"") && line.ends_with(" 0")), "{buckets:#?}");
    assert!(buckets.iter().any(|line| line.contains("le=\"+Inf\"") && line.ends_with(" 1")), "{buckets:#?}");
}

/// Four requests at once, and their answers, each with its length in another way.
const CONVERSATION: (&str, &str) = (
    "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n\
     3;name=value\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\nTrailer: 1\r\nAnother: 2\r\n\r\n\
     PUT /3 HTTP/1.1\r\nContent-Length: 4\r\nHost: a\r\n\r\nGET HEAD /4 HTTP/1.1\r\nHost: a\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n\
     HTTP/1.1 302 Found\r\nContent-Length: 9\r\n\r\nHTTP/1.1 \
     HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n",
);

proptest! {
    #[test]
    fn pieces_of_any_size_are_counted_alike(asked in 1_usize..90, heard in 1_usize..90) {
        let mut followed = Followed::new();
        CONVERSATION.0.as_bytes().chunks(asked).for_each(|piece| { followed.asks(piece); });
        CONVERSATION.1.as_bytes().chunks(heard).for_each(|piece| { followed.hears(piece); });
        prop_assert_eq!(followed.counted_at_the_end(), Counted { classes: [0, 0, 2, 1, 0, 1], not_followed: 0 });
    }

    #[test]
    fn no_bytes_make_it_fail_or_keep_more_than_a_head(
        pieces in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..300)), 0..20),
        prefix in "(GET / HTTP/1.1\r\n(Transfer-Encoding: chunked|Content-Length: [0-9]{1,20})\r\n\r\n)?",
    ) {
        let mut followed = Followed::new();
        followed.asks(prefix);
        for (asks, bytes) in pieces {
            if asks { followed.asks(bytes) } else { followed.hears(bytes) };
            prop_assert!(followed.exchanges.requests.kept() <= HTTP_HEAD);
            prop_assert!(followed.exchanges.responses.kept() <= HTTP_HEAD);
        }
        prop_assert!(followed.counted_at_the_end().not_followed <= 1);
    }
}
