//! `Mesh.Watch`: one stream per proxy, bound to the pod that the proxy's certificate was issued to. In Kubernetes, where
//! any replica may have issued it, the pod's token in `Hello` says which pod that is.

use std::{sync::Arc, time::Duration};

use byrnie_identity::{CertificateFacts, PeerIdentity};
use byrnie_proto::mesh::v1::{Hello, IssuedIdentity, WatchRequest, watch_request::Message};
use rustls_pki_types::CertificateDer;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use zeroize::Zeroizing;

use crate::{
    certify::{Bound, Refused},
    hub::Session,
    journal::unix,
    kubernetes::{Claims, TokenRefused},
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
        let refused = |refused: Refused| {
            self.refuse(&caller, &refused);
            refused.status()
        };
        let identity = caller.identity.clone().ok_or(Refused::NoCredential).map_err(refused)?;
        // Whoever is refused anyway is told at once.
        let checked = match self.reviewer {
            Some(_) => self.check_presented(&identity),
            None => self.bind(Some(&identity)).map(drop),
        };
        checked.map_err(refused)?;
        let (responses, stream) = mpsc::channel(limits::RESPONSES_QUEUED);
        let plane = self.clone();
        tokio::spawn(async move {
            let status = plane.serve(&caller, &identity, requests, &responses).await;
            // A proxy that no longer reads does not keep this task.
            let _ = tokio::time::timeout(Duration::from_secs(1), responses.send(Err(status))).await;
        });
        Ok(ReceiverStream::new(stream))
    }

    async fn serve(
        self: &Arc<Self>,
        caller: &Caller,
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
        let Hello { version, service_account_token } = hello;
        let token = Zeroizing::new(service_account_token);
        let bound = match self.reviewer {
            // Boxed, as what asks the API server below: a stream is quiet for days after it.
            Some(_) => Box::pin(self.bind_by_token(caller, &token)).await,
            None => self.bind(Some(identity)),
        };
        let bound = match bound {
            Ok(bound) => bound,
            Err(refused) => {
                self.refuse(caller, &refused);
                return refused.status();
            }
        };
        let (uid, pod) = (bound.pod.uid.clone(), bound.pod.place());
        tracing::info!(pod, pod.uid = &*uid, version, serial = identity.serial(), "proxy connected");
        let presented = presented(&bound, identity, &caller.chain);
        let mut connection = self.proxies.connect(&uid, &version, presented);
        let session = self.hub.join(uid.clone());
        let status = tokio::select! {
            status = self.read(&uid, &session, &mut requests) => status,
            status = write(&session, responses) => status,
            status = self.guard(&bound, identity, &mut connection) => status,
        };
        tracing::info!(pod, pod.uid = &*uid, code = %status.code(), reason = status.message(), "proxy disconnected");
        status
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

    /// Whether the pod that a token named is still that pod. One that the source has shown and no longer shows is gone;
    /// one that it has not shown yet is asked for.
    async fn still_stands(&self, claims: &Claims, identity: &PeerIdentity, shown: &mut Shown) -> Result<(), Refused> {
        self.check_presented(identity)?;
        let model = self.model.load_full();
        let Some(pod) = model.pod_by_uid(&claims.uid) else {
            if shown.before {
                return Err(Refused::PodGone(claims.uid.clone()));
            }
            let now = self.clock.monotonic();
            if let Some(reviewer) = self.reviewer.as_ref().filter(|_| now >= shown.ask_at) {
                shown.ask_at = now + limits::LIVE_CHECK;
                match Box::pin(reviewer.pod(&model, claims)).await {
                    // What can't be asked now is asked later.
                    Ok(_) | Err(TokenRefused::Unavailable(_)) => {}
                    Err(refused) => return Err(refused.into()),
                }
            }
            return Ok(());
        };
        shown.before = true;
        if pod.finished {
            return Err(Refused::Finished(pod.place()));
        }
        if pod.spiffe_id != *identity.id() {
            let (expected, found) = (identity.id().to_string(), pod.spiffe_id.to_string());
            return Err(Refused::WrongServiceAccount { pod: pod.place(), expected, found });
        }
        Ok(())
    }

    /// Ends when the stream may no longer be served.
    async fn guard(&self, bound: &Bound, identity: &PeerIdentity, connection: &mut Connection) -> Status {
        let mut ending = self.ending.subscribe();
        // The sender lives as long as `self`.
        let ended = async { drop(ending.wait_for(|ending| *ending).await) };
        tokio::select! {
            () = connection.replaced() => Status::aborted("replaced by a newer stream of the same pod"),
            () = ended => Status::unavailable("the control plane is ending"),
            refused = self.falls(bound, identity) => refused.status(),
        }
    }

    /// Returns when the pod or the certificate of a stream no longer stands.
    async fn falls(&self, bound: &Bound, identity: &PeerIdentity) -> Refused {
        let mut check = tokio::time::interval(CHECK);
        let mut shown = Shown::new(self.clock.monotonic());
        loop {
            check.tick().await;
            let stands = match &bound.claims {
                Some(claims) => self.still_stands(claims, identity, &mut shown).await,
                None => self.bind(Some(identity)).map(drop),
            };
            if let Err(refused) = stands {
                return refused;
            }
        }
    }
}

/// What the source has shown of a pod so far.
struct Shown {
    before: bool,
    /// By the monotonic clock.
    ask_at: Duration,
}

impl Shown {
    fn new(now: Duration) -> Self {
        Self { before: false, ask_at: now + limits::LIVE_CHECK }
    }
}

/// The certificate that a proxy has proved, as `Observe` shows it.
fn presented(bound: &Bound, identity: &PeerIdentity, chain: &[CertificateDer<'static>]) -> Option<IssuedIdentity> {
    let facts = CertificateFacts::read(chain.first()?).ok()?;
    Some(IssuedIdentity {
        workload: bound.pod.workload.to_string(),
        pod_uid: bound.pod.uid.to_string(),
        spiffe_id: identity.id().to_string(),
        serial: facts.serial,
        issuer: facts.issuer,
        not_before: unix(facts.not_before),
        not_after: unix(facts.not_after),
        chain: chain.iter().map(|certificate| certificate.to_vec()).collect(),
    })
}

async fn write(session: &Session, responses: &mpsc::Sender<Result<Fields, Status>>) -> Status {
    loop {
        let fields = session.next().await;
        if responses.send(Ok(fields)).await.is_err() {
            return Status::cancelled("the proxy went away");
        }
    }
}
