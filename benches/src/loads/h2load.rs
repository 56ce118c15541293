//! `h2load`: HTTP/2 in cleartext, one connection with 100 streams.

use std::net::SocketAddr;
use std::time::Duration;

use byrnie_netlab::Host;

use super::{Requests, printed};
use crate::failure::{Failure, Result};
use crate::tools::Tool;

/// Runs it.
pub(crate) fn run(host: &Host, to: SocketAddr, length: Duration) -> Result<Requests> {
    let length = length.as_secs().max(1).to_string();
    let arguments = ["-t1", "-c1", "-m100", "-D", &length, &format!("http://{to}/")].map(str::to_owned);
    read(&printed(host, Tool::H2load.find()?, &arguments)?)
}

fn read(text: &str) -> Result<Requests> {
    let line = |begin: &str| text.lines().find_map(|line| line.strip_prefix(begin));
    let finished = line("finished in ").and_then(|rest| rest.split(", ").nth(1)?.strip_suffix(" req/s")?.parse().ok());
    let counts = line("requests: ").unwrap_or_default();
    let number = |of: &str| {
        let field = counts.split(", ").find_map(|field| field.strip_suffix(of)?.strip_suffix(' '));
        field.and_then(|field| field.parse::<f64>().ok())
    };
    match (finished, number("succeeded"), number("failed"), number("errored"), number("timeout")) {
        (Some(per_second), Some(count), Some(0.0), Some(0.0), Some(0.0)) if count > 0.0 => {
            Ok(Requests { count, per_second })
        }
        _ => Err(Failure::new(format!("h2load: requests: {counts}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "starting benchmark...\n\nfinished in 2.00s, 75386.50 req/s, 4.82MB/s\n\
        requests: 150773 total, 150873 started, 150773 done, 150773 succeeded, 0 failed, 0 errored, 0 timeout\n\
        status codes: 150773 2xx, 0 3xx, 0 4xx, 0 5xx\n";

    #[test]
    fn requests_and_their_rate_are_read() {
        assert_eq!(read(GOOD), Ok(Requests { count: 150_773.0, per_second: 75_386.5 }));
    }

    #[test]
    fn a_request_that_failed_is_a_failure() {
        assert!(read(&GOOD.replace("0 errored", "4 errored")).is_err());
        assert!(read(&GOOD.replace("150773 succeeded, 0 failed", "150770 succeeded, 3 failed")).is_err());
        assert!(read("").is_err());
    }
}
