//! A client that asks again and again, one connection after another, and counts what goes wrong.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use byrnie_netlab::Host;
use hyper::Uri;
use tokio::task::JoinHandle;

use super::children::until;
use super::report::Requests;
use crate::apps::fetch::{self, Answer};
use crate::failure::{Exit, Failure};

/// Pause between two requests: constant load, without taking the whole machine.
const PAUSE: Duration = Duration::from_millis(2);

/// A running load.
#[derive(Debug)]
pub(super) struct Load {
    shared: Rc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    sent: Cell<u64>,
    failed: Cell<u64>,
    first_error: RefCell<Option<String>>,
    stop: Cell<bool>,
}

/// How a load went.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) requests: Requests,
    pub(super) first_error: Option<String>,
}

impl Load {
    /// Asks `at` from `host` for `/` until it is stopped.
    pub(super) fn start(host: &Host, at: SocketAddr) -> Self {
        let shared = Rc::new(Shared::default());
        let (host, counts) = (host.clone(), Rc::clone(&shared));
        let task = tokio::task::spawn_local(async move {
            while !counts.stop.get() {
                counts.count(get(&host, at, "/").await);
                tokio::time::sleep(PAUSE).await;
            }
        });
        Self { shared, task }
    }

    /// Waits until `more` requests have been answered, well or badly, after now.
    pub(super) async fn wait_for(&self, more: u64, patience: Duration) -> Result<(), Failure> {
        let target = self.shared.sent.get() + more;
        until("the client's load", patience, async || Ok((self.shared.sent.get() >= target).then_some(()))).await
    }

    /// Lets the request that is under way end, and says how it all went.
    pub(super) async fn stop(self) -> Outcome {
        self.shared.stop.set(true);
        // The task never panics; were it cut off, the counts still stand.
        let _ = self.task.await;
        Outcome {
            requests: Requests { sent: self.shared.sent.get(), failed: self.shared.failed.get() },
            first_error: self.shared.first_error.borrow_mut().take(),
        }
    }
}

impl Shared {
    fn count(&self, answer: Result<Answer, String>) {
        let error = match answer {
            Ok(answer) if answer.status.is_success() => None,
            Ok(answer) => Some(format!("{}: {}", answer.status, String::from_utf8_lossy(&answer.body))),
            Err(error) => Some(error),
        };
        if let Some(error) = error {
            self.failed.set(self.failed.get() + 1);
            self.first_error.borrow_mut().get_or_insert(error);
        }
        self.sent.set(self.sent.get() + 1);
    }
}

/// One request from `host`, on a connection of its own.
pub(super) async fn get(host: &Host, at: SocketAddr, path: &str) -> Result<Answer, String> {
    let url: Uri = format!("http://{at}{path}").parse().map_err(|error| format!("{error}"))?;
    let connecting = tokio::time::timeout(Duration::from_secs(5), host.connect_async(at)).await;
    let stream = connecting
        .map_err(|_| "connecting took more than 5 s".to_owned())?
        .map_err(|error| format!("connecting: {error}"))?;
    fetch::get_on(stream, &url, None).await.map_err(|error| sources(&error))
}

/// One good answer, as JSON.
pub(super) async fn get_json(host: &Host, at: SocketAddr, path: &str) -> Result<serde_json::Value, Failure> {
    let failed = |found: String| {
        Failure::new(Exit::Negative, format!("{} got no good answer from {at}{path}", host.name())).found(found)
    };
    let answer = get(host, at, path).await.map_err(failed)?;
    if !answer.status.is_success() {
        return Err(failed(format!("{}: {}", answer.status, String::from_utf8_lossy(&answer.body))));
    }
    serde_json::from_slice(&answer.body).map_err(|error| failed(error.to_string()))
}

/// An error with everything behind it.
pub(super) fn sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = source.source();
    }
    text
}
