//! One stream to the control plane after the other.

use std::sync::Arc;
use std::time::Duration;

use byrnie_identity::control_plane_id;
use byrnie_identity::tls::{self, ALPN_H2};
use byrnie_proto::mesh::v1 as proto;
use byrnie_proto::mesh::v1::mesh_client::MeshClient;
use byrnie_proto::mesh::v1::watch_request::Message;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_stream::wrappers::ReceiverStream;

use super::channel::{self, ConnectError};
use super::report::report;
use super::resources;
use crate::certificates::token::{self, TokenError};
use crate::certificates::{Backoff, Generation};
use crate::shared::Shared;

/// The first attempt to come back is made within this time, so that a replica's end is noticed by nobody, and all who lost
/// it do not come back in one moment.
const FIRST_RETRY: Duration = Duration::from_millis(400);
/// The same for a proxy that has not been described yet: its application waits for it.
const FIRST_RETRY_AT_START: Duration = Duration::from_millis(40);
/// No later than this: a control plane that is back is found by all within it.
const LAST_RETRY: Duration = Duration::from_secs(10);
/// A stream that lived this long was a good one: the backoff begins anew.
const GOOD: Duration = Duration::from_secs(10);
/// A report is sent at least this often,
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// and at most this often when something changes.
const REPORT_COALESCE: Duration = Duration::from_secs(1);
/// For the control plane to answer the opening of the stream.
const OPEN: Duration = Duration::from_secs(10);
/// Messages waiting to be sent. The largest number comes at once at the opening, and those are few and large; acks
/// follow what the control plane sends. A queue that is full means that it does not read.
const QUEUE: usize = 1024;
/// Names in one Subscribe message: 64 bytes each, far below gRPC's 4 MiB.
const NAMES_PER_MESSAGE: usize = 1000;
/// A response of the control plane: 64 resources of 64 endpoints of 300 bytes.
const MAX_RESPONSE: usize = 8 * 1024 * 1024;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the control plane did not open the stream within {} s", OPEN.as_secs())]
    OpenTimedOut,
    #[error("the control plane ended the stream: {} ({:?})", .0.message(), .0.code())]
    Status(Box<tonic::Status>),
    #[error("the control plane closed the stream")]
    Closed,
    #[error("the control plane does not read what it is sent")]
    NotReading,
    /// A new SVID: the stream is opened anew with it. No failure.
    #[error("the SVID was renewed")]
    Renewed,
}

/// Keeps a stream to the control plane open, for as long as the process runs.
pub async fn run(shared: Arc<Shared>) {
    let mut certificates = shared.certificates.changed();
    let mut backoff = Backoff::new(FIRST_RETRY_AT_START, LAST_RETRY);
    loop {
        certificates.mark_unchanged();
        let Some(generation) = shared.certificates.current() else {
            shared.control.disconnected(shared.clock.boot(), "no valid SVID is held".to_owned());
            if certificates.changed().await.is_err() {
                return;
            }
            continue;
        };
        let began = Instant::now();
        let end = watch(&shared, &generation).await;
        let was_connected = shared.control.is_connected();
        shared.discovery.detach(shared.clock.boot());
        shared.control.disconnected(shared.clock.boot(), end.to_string());
        if matches!(end, End::Renewed) {
            continue;
        }
        if was_connected && began.elapsed() >= GOOD {
            backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        }
        let wait = backoff.next();
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(reason = %end, wait_ms, "no stream to the control plane; what it said before stays in force");
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // A new SVID or bundle may be what was missing.
            _ = certificates.changed() => {}
        }
    }
}

async fn watch(shared: &Arc<Shared>, generation: &Generation) -> End {
    match open(shared, generation).await {
        Ok((requests, responses)) => {
            let names = shared.discovery.attach();
            tracing::info!(control_plane = %shared.config.control_plane, destinations = names.len(), "connected");
            shared.control.connected(shared.clock.boot());
            let mut session = Session { shared, requests, report_at: Instant::now(), dirty: true };
            match session.begin(names) {
                Ok(()) => session.serve(generation.number, responses).await,
                Err(end) => end,
            }
        }
        Err(end) => end,
    }
}

type Requests = mpsc::Sender<proto::WatchRequest>;
type Responses = tonic::Streaming<proto::WatchResponse>;

async fn open(shared: &Shared, generation: &Generation) -> Result<(Requests, Responses), End> {
    let verifier = shared.certificates.verifier();
    let tls = tls::client_config(Some(&generation.svid), verifier, ALPN_H2)?;
    let expected = control_plane_id(&shared.config.trust_domain);
    let channel =
        channel::connect(&shared.config.control_plane, shared.config.exempt, tls, verifier, &expected).await?;
    let (requests, queue) = mpsc::channel(QUEUE);
    let service_account_token = token::service_account(&shared.config.credential)?.unwrap_or_default();
    let hello = proto::Hello { version: env!("CARGO_PKG_VERSION").to_owned(), service_account_token };
    send(&requests, Message::Hello(hello))?;
    let mut client = MeshClient::new(channel).max_decoding_message_size(MAX_RESPONSE);
    match tokio::time::timeout(OPEN, client.watch(ReceiverStream::new(queue))).await {
        Err(_) => Err(End::OpenTimedOut),
        Ok(Err(status)) => Err(End::Status(Box::new(status))),
        Ok(Ok(response)) => Ok((requests, response.into_inner())),
    }
}

fn send(requests: &Requests, message: Message) -> Result<(), End> {
    let request = proto::WatchRequest { message: Some(message) };
    requests.try_send(request).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => End::NotReading,
        mpsc::error::TrySendError::Closed(_) => End::Closed,
    })
}

struct Session<'a> {
    shared: &'a Arc<Shared>,
    requests: Requests,
    report_at: Instant,
    dirty: bool,
}

impl Session<'_> {
    fn begin(&mut self, destinations: Vec<std::net::SocketAddr>) -> Result<(), End> {
        let bundle = format!("{}{}", resources::BUNDLE, self.shared.config.trust_domain);
        self.subscribe([resources::SELF.to_owned(), bundle])?;
        self.subscribe(destinations.into_iter().map(resources::destination_name))
    }

    async fn serve(&mut self, generation: u64, mut responses: Responses) -> End {
        let shared = Arc::clone(self.shared);
        let mut certificates = shared.certificates.changed();
        // It may have been renewed while the stream was opened.
        certificates.mark_changed();
        let mut regular = interval(REPORT_EVERY);
        regular.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let step = tokio::select! {
                response = responses.message() => match response {
                    Ok(Some(response)) => self.take(response),
                    Ok(None) => Err(End::Closed),
                    Err(status) => Err(End::Status(Box::new(status))),
                },
                () = shared.discovery.asked() => self.ask(),
                () = shared.telemetry.changed() => { self.dirty = true; Ok(()) }
                () = sleep_until(self.report_at), if self.dirty => self.report(),
                _ = regular.tick() => self.report(),
                changed = certificates.changed() => {
                    let renewed = shared.certificates.held().is_some_and(|held| held.number != generation);
                    if renewed || changed.is_err() { Err(End::Renewed) } else { self.dirty = true; Ok(()) }
                }
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    fn take(&mut self, response: proto::WatchResponse) -> Result<(), End> {
        for resource in response.resources {
            let (name, version) = (resource.name.clone(), resource.version);
            let answer = match resources::take(self.shared, resource) {
                Ok(()) => {
                    self.shared.control.taken(&name);
                    Message::Ack(proto::Ack { name, version })
                }
                Err(reason) => {
                    tracing::warn!(name, version, reason, "a resource of the control plane was refused");
                    self.shared.control.refused(&name, &reason);
                    self.shared.telemetry.metrics().nacks.inc();
                    Message::Nack(proto::Nack { name, version, reason })
                }
            };
            self.send(answer)?;
        }
        self.dirty = true;
        Ok(())
    }

    fn ask(&mut self) -> Result<(), End> {
        let questions = self.shared.discovery.questions();
        let names: Vec<_> = questions.unsubscribe.into_iter().map(resources::destination_name).collect();
        if !names.is_empty() {
            self.send(Message::Unsubscribe(proto::Unsubscribe { names }))?;
        }
        self.subscribe(questions.subscribe.into_iter().map(resources::destination_name))
    }

    fn subscribe(&self, names: impl IntoIterator<Item = String>) -> Result<(), End> {
        let mut names = names.into_iter().peekable();
        while names.peek().is_some() {
            let names = names.by_ref().take(NAMES_PER_MESSAGE).collect();
            self.send(Message::Subscribe(proto::Subscribe { names }))?;
        }
        Ok(())
    }

    fn report(&mut self) -> Result<(), End> {
        self.dirty = false;
        self.report_at = Instant::now() + REPORT_COALESCE;
        // Reports are large; where the control plane reads slowly the next one says the same.
        if self.requests.capacity() < QUEUE / 2 {
            return Ok(());
        }
        self.send(Message::Report(report(self.shared)))
    }

    fn send(&self, message: Message) -> Result<(), End> {
        send(&self.requests, message)
    }
}
