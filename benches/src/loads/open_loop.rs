//! A load that does not wait: requests at a constant rate over connections that stay, each timed from the moment at which
//! it was due. Who times from the moment of sending forgives a slow answer all the requests that it held up.

use std::collections::VecDeque;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use byrnie_netlab::Host;
use nix::sys::prctl;
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;

use super::runtime;
use crate::failure::{Failure, Result, doing};
use crate::http;
use crate::statistics::{percentile, spread};

/// Connections, used one after the other.
const CONNECTIONS: usize = 64;

/// How many requests are due in a second.
const PER_SECOND: u16 = 1000;

/// Between two of them.
const INTERVAL: Duration = Duration::from_micros(1_000_000 / PER_SECOND as u64);

/// How long the last answers may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How far the kernel may move a wake-up of the sender. By default it is 50 µs, a third of what is to be measured.
const SLACK: Duration = Duration::from_micros(1);

/// What came out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Latencies {
    /// Answers.
    pub(crate) count: f64,
    /// Half of them took no longer, in ms.
    pub(crate) p50: f64,
    /// Of 100, 99 took no longer, in ms.
    pub(crate) p99: f64,
    /// The same of the requests that were due within one second: the median of the seconds.
    pub(crate) p99_of_seconds: f64,
}

/// When the requests under way on one connection were due, the oldest first.
type UnderWay = Arc<Mutex<VecDeque<Instant>>>;

/// Runs it.
pub(crate) fn run(host: &Host, to: SocketAddr, length: Duration) -> Result<Latencies> {
    host.run(|| load(to, length)).map_err(doing("entering the client's namespace"))?
}

fn load(to: SocketAddr, length: Duration) -> Result<Latencies> {
    let question = http::request(to, "/", "keep-alive");
    let mut writers = Vec::new();
    let mut readers = Vec::new();
    for _ in 0..CONNECTIONS {
        let stream = connected(to, &question).map_err(doing("a connection of the load"))?;
        let reader = stream.try_clone().map_err(doing("a connection of the load"))?;
        let under_way = UnderWay::default();
        writers.push((stream, Arc::clone(&under_way)));
        readers.push((reader, under_way));
    }
    let requests = length.as_millis() / INTERVAL.as_millis();
    thread::scope(|scope| {
        let sender = scope.spawn(|| send(writers, &question, requests));
        let received = runtime()?.block_on(receive(readers, requests, length + PATIENCE));
        sender.join().map_err(|_| Failure::new("the sender panicked"))??;
        summary(received?)
    })
}

/// A connection that has been used once: what is measured is requests and not connections.
fn connected(to: SocketAddr, question: &[u8]) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    http::ask(&mut stream, question)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

fn send(mut writers: Vec<(TcpStream, UnderWay)>, question: &[u8], requests: u128) -> Result<()> {
    prctl::set_timerslack(u64::try_from(SLACK.as_nanos()).unwrap_or(1)).map_err(doing("the sender's timer"))?;
    let mut due = Instant::now() + INTERVAL;
    let turns = (0..writers.len()).cycle();
    for (_, turn) in (0..requests).zip(turns) {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let Some((stream, under_way)) = writers.get_mut(turn) else { continue };
        // Before it is sent, so that no answer is faster than its question.
        under_way.lock().unwrap_or_else(PoisonError::into_inner).push_back(due);
        // A question is far smaller than any socket's buffer; one that does not fit is an error.
        stream.write_all(question).map_err(doing("sending a request"))?;
        due += INTERVAL;
    }
    Ok(())
}

async fn receive(
    readers: Vec<(TcpStream, UnderWay)>,
    requests: u128,
    limit: Duration,
) -> Result<Vec<(Instant, Duration)>> {
    let (answers, mut times) = tokio::sync::mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    for (stream, under_way) in readers {
        let stream = tokio::net::TcpStream::from_std(stream).map_err(doing("a connection of the load"))?;
        tasks.spawn(listen(stream, under_way, answers.clone()));
    }
    drop(answers);
    let mut found = Vec::new();
    let all = async {
        while (found.len() as u128) < requests {
            tokio::select! {
                Some(answer) = times.recv() => found.push(answer),
                Some(ended) = tasks.join_next() => return Err(ended.unwrap_or_else(Failure::new)),
            }
        }
        Ok(())
    };
    match tokio::time::timeout(limit, all).await {
        Ok(done) => done?,
        Err(_) => return Err(Failure::new(format!("{} of {requests} requests were answered", found.len()))),
    }
    Ok(found)
}

/// Times the answers of one connection until it ends; returns why it did.
async fn listen(
    mut stream: tokio::net::TcpStream,
    under_way: UnderWay,
    answers: tokio::sync::mpsc::UnboundedSender<(Instant, Duration)>,
) -> Failure {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = match stream.read(&mut buffer).await {
            Ok(0) => return Failure::new("a connection of the load was closed"),
            Ok(count) => count,
            Err(error) => return Failure::new(format!("a connection of the load: {error}")),
        };
        let now = Instant::now();
        bytes.extend_from_slice(buffer.get(..count).unwrap_or_default());
        loop {
            match http::answer(&bytes) {
                Ok(Some(http::Answer { status: 200, length })) => {
                    bytes.drain(..length.min(bytes.len()));
                    let due = under_way.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(due) = due else { return Failure::new("an answer without a question") };
                    let _ = answers.send((due, now.saturating_duration_since(due)));
                }
                Ok(Some(http::Answer { status, .. })) => return Failure::new(format!("status {status}")),
                Ok(None) => break,
                Err(error) => return Failure::new(error),
            }
        }
    }
}

/// Of moments at which requests were due, and what each took.
fn summary(mut answers: Vec<(Instant, Duration)>) -> Result<Latencies> {
    answers.sort_unstable();
    let mut latencies: Vec<Duration> = answers.into_iter().map(|(_, latency)| latency).collect();
    let seconds = latencies.chunks_mut(PER_SECOND.into());
    let mut of_seconds: Vec<f64> = seconds.filter_map(|second| percentile(second, 99)).collect();
    let count = f64::from(u32::try_from(latencies.len()).unwrap_or(u32::MAX));
    match (percentile(&mut latencies, 50), percentile(&mut latencies, 99), spread(&mut of_seconds)) {
        (Some(p50), Some(p99), Some((p99_of_seconds, ..))) => Ok(Latencies { count, p50, p99, p99_of_seconds }),
        _ => Err(Failure::new("no request was answered")),
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use std::io::Read;

    use super::*;

    /// One request after the other, as many in a second as are due, from seconds with so many slow ones.
    fn load_with(slow: &[usize]) -> Latencies {
        let begun = Instant::now();
        let took = |at: usize| if at % 1000 < slow[at / 1000] { 50 } else { 1 };
        let answers = (0..1000 * slow.len())
            .rev()
            .map(|at| (begun + INTERVAL * u32::try_from(at).expect("a small number"), Duration::from_millis(took(at))));
        summary(answers.collect()).expect("latencies")
    }

    #[test]
    fn a_stall_in_one_second_of_three_is_not_in_the_p99_of_seconds_and_one_in_each_is() {
        let one = load_with(&[0, 60, 0]);
        assert_eq!((one.count, one.p50, one.p99, one.p99_of_seconds), (3000.0, 1.0, 50.0, 1.0));
        assert_eq!(load_with(&[11, 11, 0]).p99_of_seconds, 50.0);
        assert!(summary(Vec::new()).is_err());
    }

    #[test]
    fn a_server_that_answers_late_is_measured_from_the_moment_each_request_was_due() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let to = server.local_addr().expect("its address");
        thread::spawn(move || {
            while let Ok((mut stream, _)) = server.accept() {
                thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    let mut asked = 0;
                    while let Ok(count) = stream.read(&mut buffer)
                        && count > 0
                    {
                        // The first question of a connection is not measured.
                        if asked > 0 {
                            thread::sleep(Duration::from_millis(20));
                        }
                        let questions = buffer[..count].windows(4).filter(|four| four == b"\r\n\r\n").count();
                        asked += questions;
                        let answers = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".repeat(questions);
                        if stream.write_all(answers.as_bytes()).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        let found = load(to, Duration::from_millis(200)).expect("latencies");
        assert_eq!(found.count, 200.0);
        assert!(found.p50 >= 20.0, "{found:?}");
    }
}
