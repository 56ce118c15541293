//! `wrk`: HTTP/1.1 on 32 connections that stay, as fast as it goes.

use std::net::SocketAddr;
use std::time::Duration;

use byrnie_netlab::Host;

use super::{Requests, printed};
use crate::failure::{Failure, Result};
use crate::tools::Tool;

/// Runs it.
pub(crate) fn run(host: &Host, to: SocketAddr, length: Duration) -> Result<Requests> {
    let length = format!("{}s", length.as_secs().max(1));
    let arguments = ["-t1", "-c32", "-d", &length, &format!("http://{to}/")].map(str::to_owned);
    read(&printed(host, Tool::Wrk.find()?, &arguments)?)
}

fn read(text: &str) -> Result<Requests> {
    let line = |begin: &str| text.lines().map(str::trim).find_map(|line| line.strip_prefix(begin));
    for error in ["Socket errors:", "Non-2xx or 3xx responses:"] {
        if let Some(found) = line(error) {
            return Err(Failure::new(format!("wrk: {error}{found}")));
        }
    }
    let count = text.lines().find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok());
    let per_second = line("Requests/sec:").and_then(|rest| rest.trim().parse().ok());
    match (count, per_second) {
        (Some(count), Some(per_second)) if count > 0.0 => Ok(Requests { count, per_second }),
        _ => Err(Failure::new(format!("wrk: no requests in its output: {text:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "Running 2s test @ http://10.77.0.12:8080/\n  1 threads and 32 connections\n  \
        Thread Stats   Avg      Stdev     Max   +/- Stdev\n    Latency   262.70us  141.58us   7.66ms   97.10%\n  \
        241437 requests in 2.10s, 40.99MB read\nRequests/sec: 114964.95\nTransfer/sec:     19.52MB\n";

    #[test]
    fn requests_and_their_rate_are_read() {
        assert_eq!(read(GOOD), Ok(Requests { count: 241_437.0, per_second: 114_964.95 }));
    }

    #[test]
    fn any_error_that_it_counts_is_a_failure() {
        let socket =
            GOOD.replace("Requests/sec", "  Socket errors: connect 0, read 3, write 0, timeout 0\nRequests/sec");
        assert!(read(&socket).is_err_and(|failure| failure.to_string().contains("read 3")));
        let status = GOOD.replace("Requests/sec", "  Non-2xx or 3xx responses: 7\nRequests/sec");
        assert!(read(&status).is_err_and(|failure| failure.to_string().ends_with("responses: 7")));
        assert!(read("unable to connect to 10.77.0.12:8080").is_err());
    }
}
