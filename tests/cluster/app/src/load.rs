//! Requests at a constant rate, each on a connection of its own: what a client without retries would see.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

/// A client that waits longer has given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// An answer is small.
const LONGEST_ANSWER: u64 = 64 * 1024;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// HOST:PORT of an HTTP server.
    to: String,
    /// Requests per second.
    #[arg(long, default_value_t = 50)]
    rate: u32,
    /// How long.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Until this file exists, and `--seconds` at the most.
    #[arg(long)]
    until: Option<std::path::PathBuf>,
}

#[derive(Debug, Default)]
struct Tally {
    good: u64,
    bad: BTreeMap<String, u64>,
    answers: BTreeMap<String, u64>,
}

/// Prints each failure with the Unix time in ms at which its request began, then `N good, M failed`, each kind of failure, then who answered how often; succeeds when all were good.
pub(crate) async fn run(options: &Options) -> ExitCode {
    let tally = Rc::new(RefCell::new(Tally::default()));
    let local = LocalSet::new();
    local.spawn_local(send(
        options.to.clone(),
        options.rate,
        options.seconds,
        options.until.clone(),
        Rc::clone(&tally),
    ));
    local.await;
    let tally = tally.borrow();
    let failed: u64 = tally.bad.values().sum();
    println!("{} good, {failed} failed", tally.good);
    for (what, count) in &tally.bad {
        println!("failed {count}: {what}");
    }
    for (who, count) in &tally.answers {
        println!("answered {count}: {who}");
    }
    ExitCode::from(u8::from(failed > 0 || tally.good == 0))
}

async fn send(to: String, rate: u32, seconds: u64, until: Option<std::path::PathBuf>, tally: Rc<RefCell<Tally>>) {
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut ticks = interval(Duration::from_secs(1) / rate.max(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while Instant::now() < end && !until.as_ref().is_some_and(|file| file.exists()) {
        ticks.tick().await;
        let (to, tally) = (to.clone(), Rc::clone(&tally));
        tokio::task::spawn_local(async move {
            let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
            let answer = match timeout(PATIENCE, ask(&to)).await {
                Ok(answer) => answer,
                Err(_) => Err(format!("no answer within {PATIENCE:?}")),
            };
            let mut tally = tally.borrow_mut();
            match answer {
                Ok(who) => {
                    tally.good += 1;
                    *tally.answers.entry(who).or_default() += 1;
                }
                Err(why) => {
                    println!("at {at} ms: {why}");
                    *tally.bad.entry(why).or_default() += 1;
                }
            }
        });
    }
}

/// The body of a whole answer with status 200.
async fn ask(to: &str) -> Result<String, String> {
    let step = |name: &'static str| move |error: std::io::Error| format!("{name}: {error}");
    let mut stream = TcpStream::connect(to).await.map_err(step("connect"))?;
    let request = format!("GET / HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(step("send"))?;
    let mut answer = String::new();
    (&mut stream).take(LONGEST_ANSWER).read_to_string(&mut answer).await.map_err(step("receive"))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("cut off after {} bytes", answer.len()))?;
    if !head.starts_with("HTTP/1.1 200") {
        return Err(head.lines().next().unwrap_or_default().to_owned());
    }
    let declared = head.lines().filter_map(|line| line.split_once(": "));
    let declared = declared
        .filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .find_map(|(_, value)| value.parse().ok());
    if declared == Some(body.len()) { Ok(body.trim().to_owned()) } else { Err("a body that was cut off".to_owned()) }
}
