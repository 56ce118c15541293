//! New connections: workers that connect, ask once, read to the end, and begin again.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use byrnie_netlab::Host;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{Requests, runtime};
use crate::failure::{Failure, Result, doing};
use crate::http::{self, Answer};

/// Workers at a time.
const WORKERS: usize = 32;

/// Longest that one connection may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs it.
pub(crate) fn run(host: &Host, to: SocketAddr, length: Duration) -> Result<Requests> {
    let question = http::request(to, "/", "close");
    host.run(|| runtime()?.block_on(load(to, &question, length))).map_err(doing("entering the client's namespace"))?
}

async fn load(to: SocketAddr, question: &[u8], length: Duration) -> Result<Requests> {
    let begun = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        let question = question.to_owned();
        workers.spawn(async move {
            let mut count = 0.0;
            while begun.elapsed() < length {
                once(to, &question).await?;
                count += 1.0;
            }
            Ok::<f64, Failure>(count)
        });
    }
    let mut count = 0.0;
    while let Some(worker) = workers.join_next().await {
        count += worker.map_err(doing("a worker"))??;
    }
    Ok(Requests { count, per_second: count / begun.elapsed().as_secs_f64() })
}

async fn once(to: SocketAddr, question: &[u8]) -> Result<()> {
    let talk = async {
        let mut stream = TcpStream::connect(to).await?;
        stream.write_all(question).await?;
        let mut bytes = Vec::with_capacity(512);
        stream.read_to_end(&mut bytes).await?;
        http::answer(&bytes)
    };
    let answer = tokio::time::timeout(PATIENCE, talk).await;
    match answer.map_err(doing("a new connection"))?.map_err(doing("a new connection"))? {
        Some(Answer { status: 200, .. }) => Ok(()),
        other => Err(Failure::new(format!("a new connection: expected a whole answer, found {other:?}"))),
    }
}
