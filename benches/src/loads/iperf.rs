//! `iperf3`: bulk over TCP.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use byrnie_netlab::Host;
use serde_json::Value;

use super::printed;
use crate::failure::{Failure, Result};
use crate::tools::Tool;

/// What arrived.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Bulk {
    /// Bytes in all.
    pub(crate) bytes: f64,
    /// In a second, over all streams.
    pub(crate) gigabits: f64,
}

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the client to the server.
    To,
    /// From the server to the client.
    From,
}

/// Longest that the test before this one may keep the server: it is over for the server once a proxy has told it so.
const BUSY: Duration = Duration::from_secs(5);

/// Runs it.
pub(crate) fn run(host: &Host, to: SocketAddr, streams: u32, way: Way, length: Duration) -> Result<Bulk> {
    let (address, port) = (to.ip().to_string(), to.port().to_string());
    let (streams, length) = (streams.to_string(), length.as_secs().max(1).to_string());
    let mut arguments = vec!["-J", "-c", &address, "-p", &port, "-P", &streams, "-t", &length];
    if way == Way::From {
        arguments.push("-R");
    }
    let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
    let (iperf, deadline) = (Tool::Iperf3.find()?, Instant::now() + BUSY);
    loop {
        let found = printed(host, iperf.clone(), &arguments).and_then(|text| read(&text));
        if !found.as_ref().is_err_and(is_busy) || Instant::now() > deadline {
            return found;
        }
        sleep(Duration::from_millis(50));
    }
}

/// Whether the server has another test, and has not begun this one. Before iperf3 3.14 that was no error to the shell.
fn is_busy(failure: &Failure) -> bool {
    failure.to_string().contains("the server is busy running a test")
}

fn read(text: &str) -> Result<Bulk> {
    let report: Value = serde_json::from_str(text).map_err(|error| Failure::new(format!("iperf3: {error}")))?;
    if let Some(error) = report.get("error") {
        return Err(Failure::new(format!("iperf3: {error}")));
    }
    let received = |field: &str| report.pointer(&format!("/end/sum_received/{field}")).and_then(Value::as_f64);
    match (received("bytes"), received("bits_per_second")) {
        (Some(bytes), Some(bits)) if bytes > 0.0 => Ok(Bulk { bytes, gigabits: bits / 1e9 }),
        _ => Err(Failure::new("iperf3: nothing was received")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_received_counts() {
        let text = r#"{"end":{"sum_sent":{"bytes":9,"bits_per_second":9e9},
            "sum_received":{"bytes":2500000000,"bits_per_second":1.0e10}}}"#;
        assert_eq!(read(text), Ok(Bulk { bytes: 2.5e9, gigabits: 10.0 }));
    }

    #[test]
    fn a_busy_server_is_told_from_other_errors() {
        assert!(read(r#"{"error":"the server is busy running a test. try again later"}"#).is_err_and(|f| is_busy(&f)));
        assert!(read(r#"{"error":"unable to connect to server: Connection refused"}"#).is_err_and(|f| !is_busy(&f)));
    }

    #[test]
    fn its_own_errors_are_failures() {
        assert!(read(r#"{"error":"unable to connect"}"#).is_err_and(|f| f.to_string().contains("unable to connect")));
        assert!(read(r#"{"end":{"sum_received":{"bytes":0,"bits_per_second":0}}}"#).is_err());
        assert!(read("iperf3: error").is_err());
    }
}
