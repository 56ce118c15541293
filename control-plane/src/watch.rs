//! `Mesh.Watch`: one stream per proxy, bound to the pod that the proxy's certificate was issued to.

use std::{sync::Arc, time::Duration};

use byrnie_identity::PeerIdentity;
use byrnie_proto::mesh::v1::{WatchRequest, watch_request::Message};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::{
    certify::{Bound, Refused},
    hub::Session,
    limits,
    plane::Plane,
    proxies::{Connection, cut},
    server::{Caller, Fields},
};

/// What the proxy reads.
pub(crate) type Responses = ReceiverStream<Result<Fields, Status>>;

/// How often a stream looks whether its pod and its certificate still stand.
const CHECK: Duration = Duration::from_secs(1);

impl Plane {
    /// Serves one stream, in a task of its own.
    pub(crate) fn watch(
        self: &Arc<Self>,
        caller: Caller,
        requests: Streaming<WatchRequest>,
    ) -> Result<Responses, Status> {
        let bound = self.bind(caller.identity.as_ref()).map_err(|refused| {
            self.refuse(&caller, &refused);
            refused.status()
        })?;
        let Some(identity) = caller.identity else {
            return Err(Refused::NoCredential.status());
        };
        let (responses, stream) = mpsc::channel(limits::RESPONSES_QUEUED);
        let plane = self.clone();
        tokio::spawn(async move {
            let status = plane.serve(&bound, &identity, requests, &responses).await;
            let pod = bound.pod.place();
            tracing::info!(pod, pod.uid = &*bound.pod.uid, code = %status.code(), reason = status.message(), "proxy disconnected");
            // A proxy that no longer reads does not keep this task.
            let _ = tokio::time::timeout(Duration::from_secs(1), responses.send(Err(status))).await;
        });
        Ok(ReceiverStream::new(stream))
    }

    async fn serve(
        self: &Arc<Self>,
        bound: &Bound,
        identity: &PeerIdentity,
        mut requests: Streaming<WatchRequest>,
        responses: &mpsc::Sender<Result<Fields, Status>>,
    ) -> Status {
        let hello = match tokio::time::timeout(limits::HELLO, requests.message()).await {
            Ok(Ok(Some(WatchRequest { message: Some(Message::Hello(hello)) }))) => hello,
            Ok(Ok(Some(_))) => return Status::failed_precondition("the first message must be Hello"),
            Ok(Ok(None)) => return Status::ok("the proxy ended the stream"),
            Ok(Err(status)) => return status,
            Err(_) => return Status::deadline_exceeded(format!("no Hello within {} s", limits::HELLO.as_secs())),
        };
        let uid = bound.pod.uid.clone();
        let (pod, version) = (bound.pod.place(), hello.version.as_str());
        tracing::info!(pod, pod.uid = &*uid, version, serial = bound.issuance.serial, "proxy connected");
        let mut connection = self.proxies.connect(&uid, &hello.version);
        let session = self.hub.join(uid.clone());
        tokio::select! {
            status = self.read(&uid, &session, &mut requests) => status,
            status = write(&session, responses) => status,
            status = self.guard(identity, &mut connection) => status,
        }
    }

    async fn read(&self, uid: &Arc<str>, session: &Session, requests: &mut Streaming<WatchRequest>) -> Status {
        loop {
            let message = match requests.message().await {
                Ok(Some(WatchRequest { message: Some(message) })) => message,
                // A message of a later version: there is nothing in it that we could get wrong by passing on.
                Ok(Some(WatchRequest { message: None })) => continue,
                Ok(None) => return Status::ok("the proxy ended the stream"),
                Err(status) => return status,
            };
            match message {
                Message::Hello(_) => return Status::failed_precondition("Hello came a second time"),
                Message::Subscribe(subscribe) => self.subscribe(uid, session, subscribe.names).await,
                Message::Unsubscribe(unsubscribe) => {
                    for name in &unsubscribe.names {
                        session.unsubscribe(name);
                        self.proxies.acknowledged(uid, name);
                    }
                }
                Message::Ack(ack) => self.proxies.acknowledged(uid, &ack.name),
                Message::Nack(mut nack) => {
                    nack.name = cut(nack.name);
                    nack.reason = cut(nack.reason);
                    tracing::warn!(
                        pod.uid = &**uid,
                        resource = nack.name,
                        version = nack.version,
                        reason = nack.reason,
                        "a proxy refused a resource"
                    );
                    self.proxies.not_acknowledged(uid, nack);
                }
                Message::Report(report) => self.proxies.report(uid, report),
            }
        }
    }

    /// Whoever asks too fast is not refused but slowed down: this stream alone is not read meanwhile.
    async fn subscribe(&self, uid: &Arc<str>, session: &Session, names: Vec<String>) {
        for chunk in names.chunks(limits::QUESTIONS_PER_SECOND as usize) {
            while let Err(wait) = self.allowances.questions(uid, chunk.len()) {
                tokio::time::sleep(wait).await;
            }
            for name in chunk {
                if name.len() > limits::RESOURCE_NAME_BYTES {
                    let start: String = name.chars().take(64).collect();
                    session.refuse(
                        &start,
                        format!("a name of {} bytes; expected at most {}", name.len(), limits::RESOURCE_NAME_BYTES),
                    );
                } else if let Err(error) = session.subscribe(name) {
                    session.refuse(name, error.to_string());
                }
            }
        }
    }

    /// Ends when the stream may no longer be served.
    async fn guard(&self, identity: &PeerIdentity, connection: &mut Connection) -> Status {
        let mut ending = self.ending.subscribe();
        let mut check = tokio::time::interval(CHECK);
        loop {
            tokio::select! {
                () = connection.replaced() => return Status::aborted("replaced by a newer stream of the same pod"),
                // The sender lives as long as `self`.
                _ = ending.wait_for(|ending| *ending) => return Status::unavailable("the control plane is ending"),
                _ = check.tick() => {
                    if let Err(refused) = self.bind(Some(identity)) {
                        return refused.status();
                    }
                }
            }
        }
    }
}

async fn write(session: &Session, responses: &mpsc::Sender<Result<Fields, Status>>) -> Status {
    loop {
        let fields = session.next().await;
        if responses.send(Ok(fields)).await.is_err() {
            return Status::cancelled("the proxy went away");
        }
    }
}
