//! Follows HTTP/1.1 (RFC 9112) through a connection, for its metrics: which requests there were, how they were answered
//! and how long that took. It looks at bytes that pass, and changes, holds and refuses none of them. What can't be followed
//! without a guess ends the following, never the connection.

mod messages;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use httparse::{EMPTY_HEADER, Header, Request, Response, Status};
use messages::{Body, Messages, Side, Stop};

use crate::limits::{HTTP_FIELDS, HTTP_PIPELINED};
use crate::telemetry::{Direction, Edge};

/// The requests of one connection, and their answers.
pub struct Exchanges {
    edge: Arc<Edge>,
    /// Whose side of the connection this proxy is on: the client's application asks, the server's answers.
    direction: Direction,
    requests: Messages,
    responses: Messages,
    waiting: VecDeque<Asked>,
    stopped: bool,
}

/// A request that has begun, and whose answer has not ended.
struct Asked {
    at: Instant,
    method: Method,
    /// Of the answer, once its head has come.
    status: Option<u16>,
}

/// Where the method decides what the answer is followed by (RFC 9112, 6.3).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Head,
    Connect,
    Other,
}

impl Exchanges {
    /// Follows a connection that counts at `edge`.
    pub(crate) fn new(edge: Arc<Edge>, direction: Direction) -> Box<Exchanges> {
        let (requests, responses, waiting) = (Messages::default(), Messages::default(), VecDeque::new());
        Box::new(Exchanges { edge, direction, requests, responses, waiting, stopped: false })
    }

    /// Sees what this pod's application sent, and when that was read.
    pub fn application_said(&mut self, bytes: &[u8], now: Instant) {
        match self.direction {
            Direction::Outbound => self.request(bytes, now),
            Direction::Inbound => self.response(bytes, now),
        }
    }

    /// Sees what is sent to this pod's application.
    pub fn application_hears(&mut self, bytes: &[u8], now: Instant) {
        match self.direction {
            Direction::Outbound => self.response(bytes, now),
            Direction::Inbound => self.request(bytes, now),
        }
    }

    fn request(&mut self, bytes: &[u8], now: Instant) {
        if !self.stopped {
            let mut side = Requests { waiting: &mut self.waiting };
            let followed = self.requests.follow(bytes, now, &mut side);
            self.unless_followed(followed);
        }
    }

    fn response(&mut self, bytes: &[u8], now: Instant) {
        if !self.stopped {
            let mut side = Responses { waiting: &mut self.waiting, edge: &self.edge, now };
            let followed = self.responses.follow(bytes, now, &mut side);
            self.unless_followed(followed);
        }
    }

    fn unless_followed(&mut self, followed: Result<(), Stop>) {
        if let Err(stop) = followed {
            self.stopped = true;
            if stop == Stop::Unclear {
                self.edge.http().not_followed();
            }
            self.waiting.clear();
            (self.requests, self.responses) = Default::default();
        }
    }
}

impl Drop for Exchanges {
    /// An answer without a length ends with its connection; what has no answer by now gets none.
    fn drop(&mut self) {
        for asked in self.waiting.drain(..) {
            self.edge.http().request(asked.status, asked.at.elapsed());
        }
    }
}

struct Requests<'a> {
    waiting: &'a mut VecDeque<Asked>,
}

impl Side for Requests<'_> {
    fn begins(&self, bytes: &[u8]) -> bool {
        Request::new(&mut [EMPTY_HEADER; HTTP_FIELDS]).parse(bytes).is_ok()
    }

    fn head(&mut self, head: &[u8], at: Instant) -> Result<Body, Stop> {
        let mut headers = [EMPTY_HEADER; HTTP_FIELDS];
        let mut request = Request::new(&mut headers);
        if request.parse(head) != Ok(Status::Complete(head.len())) {
            return Err(Stop::Unclear);
        }
        if self.waiting.len() >= HTTP_PIPELINED {
            return Err(Stop::Unclear);
        }
        let method = match request.method {
            Some("HEAD") => Method::Head,
            Some("CONNECT") => Method::Connect,
            _ => Method::Other,
        };
        self.waiting.push_back(Asked { at, method, status: None });
        Ok(body(request.version, request.headers)?.unwrap_or(Body::Length(0)))
    }

    fn ended(&mut self) -> Result<(), Stop> {
        Ok(())
    }
}

struct Responses<'a> {
    waiting: &'a mut VecDeque<Asked>,
    edge: &'a Edge,
    now: Instant,
}

impl Side for Responses<'_> {
    fn begins(&self, bytes: &[u8]) -> bool {
        Response::new(&mut [EMPTY_HEADER; HTTP_FIELDS]).parse(bytes).is_ok()
    }

    fn head(&mut self, head: &[u8], _at: Instant) -> Result<Body, Stop> {
        let mut headers = [EMPTY_HEADER; HTTP_FIELDS];
        let mut response = Response::new(&mut headers);
        if response.parse(head) != Ok(Status::Complete(head.len())) {
            return Err(Stop::Unclear);
        }
        let status = response.code.filter(|code| (100..=599).contains(code)).ok_or(Stop::Unclear)?;
        // A server may say that it has waited for too long, and go.
        let asked = self.waiting.front_mut().ok_or(Stop::Over)?;
        asked.status = Some(status);
        match (status, asked.method) {
            (100..=199, _) | (204 | 304, _) | (_, Method::Head) => Ok(Body::Length(0)),
            (200..=299, Method::Connect) => Ok(Body::Length(0)),
            _ => Ok(body(response.version, response.headers)?.unwrap_or(Body::UntilEnd)),
        }
    }

    fn ended(&mut self) -> Result<(), Stop> {
        let asked = self.waiting.front_mut().ok_or(Stop::Unclear)?;
        let status = asked.status.ok_or(Stop::Unclear)?;
        if (100..=199).contains(&status) && status != 101 {
            // The final answer is still to come.
            asked.status = None;
            return Ok(());
        }
        self.edge.http().request(Some(status), self.now.saturating_duration_since(asked.at));
        let becomes_another = status == 101 || (asked.method == Method::Connect && status < 300);
        self.waiting.pop_front();
        if becomes_another { Err(Stop::Over) } else { Ok(()) }
    }
}

/// What the head says of its body; `None` where it says nothing. Two lengths, or a length beside chunks, are what request
/// smuggling is made of: who of the two ends believes which is not known. Nor is it with chunks in HTTP/1.0 (6.1).
fn body(version: Option<u8>, headers: &[Header<'_>]) -> Result<Option<Body>, Stop> {
    let mut found = None;
    for header in headers {
        let declared = if header.name.eq_ignore_ascii_case("content-length") {
            Body::Length(length(header.value).ok_or(Stop::Unclear)?)
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            if version == Some(0) || !header.value.eq_ignore_ascii_case(b"chunked") {
                return Err(Stop::Unclear);
            }
            Body::Chunked
        } else {
            continue;
        };
        if found.replace(declared).is_some() {
            return Err(Stop::Unclear);
        }
    }
    Ok(found)
}

/// Digits and nothing else (RFC 9110, 8.6).
fn length(value: &[u8]) -> Option<u64> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(value).ok().filter(|_| digits)?.parse().ok()
}

#[cfg(test)]
mod tests;
