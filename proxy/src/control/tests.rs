#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use byrnie_identity::tls::{self, ALPN_H2, ClientAuth};
use byrnie_identity::{KeyPair, SpiffeId, Svid, control_plane_id};
use byrnie_policy::Policies;
use byrnie_proto::mesh::v1 as proto;
use byrnie_proto::mesh::v1::identity_server::{Identity, IdentityServer};
use byrnie_proto::mesh::v1::mesh_server::{Mesh, MeshServer};
use byrnie_proto::mesh::v1::resource::Body;
use byrnie_proto::mesh::v1::watch_request::Message;
use byrnie_redirect::OriginalDestination;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::Service;
use tonic::{Request, Response, Status, Streaming};

use crate::config::CredentialFile;
use crate::shared::Shared;
use crate::test_support::{TestMesh, id, trust_domain};

const WAIT: Duration = Duration::from_secs(10);

/// The streams that proxies opened, as the test sees them.
struct Opened {
    requests: Streaming<proto::WatchRequest>,
    responses: mpsc::Sender<Result<proto::WatchResponse, Status>>,
}

impl Opened {
    async fn next(&mut self) -> Message {
        let request = tokio::time::timeout(WAIT, self.requests.message()).await.unwrap().unwrap().unwrap();
        request.message.unwrap()
    }

    /// The next message that is no report.
    async fn next_word(&mut self) -> Message {
        loop {
            match self.next().await {
                Message::Report(_) => {}
                other => return other,
            }
        }
    }

    async fn begin(&mut self) -> Vec<String> {
        assert!(matches!(self.next_word().await, Message::Hello(_)));
        match self.next_word().await {
            Message::Subscribe(subscribe) => subscribe.names,
            other => panic!("expected Subscribe, found {other:?}"),
        }
    }

    async fn say(&self, name: &str, version: u64, body: Option<Body>) {
        let resource = proto::Resource { name: name.to_owned(), version, body };
        self.responses.send(Ok(proto::WatchResponse { resources: vec![resource] })).await.unwrap();
    }
}

/// A control plane that says what the test says.
#[derive(Clone)]
struct Fake {
    mesh: Arc<TestMesh>,
    opened: mpsc::Sender<Opened>,
    /// The keys that came with the token `lost` or `strange`.
    keys: Arc<Mutex<Vec<Vec<u8>>>>,
    /// The ServiceAccount tokens that came with a Certify.
    tokens: Arc<Mutex<Vec<String>>>,
    /// Breaks this connection.
    broken: Arc<Notify>,
}

#[tonic::async_trait]
impl Mesh for Fake {
    type WatchStream = ReceiverStream<Result<proto::WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<proto::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (responses, queue) = mpsc::channel(16);
        let opened = Opened { requests: request.into_inner(), responses };
        self.opened.send(opened).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(queue)))
    }
}

#[tonic::async_trait]
impl Identity for Fake {
    async fn certify(
        &self,
        request: Request<proto::CertifyRequest>,
    ) -> Result<Response<proto::CertifyResponse>, Status> {
        let request = request.into_inner();
        let spki = byrnie_identity::csr::public_key(&request.csr).unwrap();
        let token = match request.credential {
            Some(proto::certify_request::Credential::JoinToken(token)) => token,
            Some(proto::certify_request::Credential::ServiceAccountToken(token)) => {
                self.tokens.lock().unwrap().push(token);
                return Ok(Response::new(self.issue(&spki)));
            }
            None => return Ok(Response::new(self.issue(&spki))),
        };
        let first = match token.as_str() {
            "good" => return Ok(Response::new(self.issue(&spki))),
            "lost" | "strange" => {
                let mut keys = self.keys.lock().unwrap();
                keys.push(spki.clone());
                keys.len() == 1
            }
            used => return Err(Status::permission_denied(format!("the join token was used before ({})", used.len()))),
        };
        match token.as_str() {
            "lost" if first => {
                self.broken.notify_one();
                std::future::pending().await
            }
            "strange" if first => Ok(Response::new(self.issue(&KeyPair::generate().unwrap().spki_der()))),
            _ => Ok(Response::new(self.issue(&spki))),
        }
    }
}

impl Fake {
    fn issue(&self, spki: &[u8]) -> proto::CertifyResponse {
        let issued = self.mesh.authority.issue(spki, &id("web"), Duration::from_secs(3600)).unwrap();
        proto::CertifyResponse {
            chain: issued.chain.iter().map(|der| der.to_vec()).collect(),
            bundle: Some((&self.mesh.authority.bundle()).into()),
        }
    }

    /// Serves HTTP/2 on one connection.
    async fn serve(mut self, stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>) {
        let broken = Arc::<Notify>::default();
        self.broken = Arc::clone(&broken);
        let (mesh, identity) = (MeshServer::new(self.clone()), IdentityServer::new(self));
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let (mut mesh, mut identity) = (mesh.clone(), identity.clone());
            async move {
                if request.uri().path().starts_with("/byrnie.mesh.v1.Mesh/") {
                    mesh.call(request).await
                } else {
                    identity.call(request).await
                }
            }
        });
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        tokio::select! {
            _ = connection.serve_connection(TokioIo::new(stream), service) => {}
            () = broken.notified() => {}
        }
    }
}

/// A proxy and the control plane that it speaks to.
struct Pair {
    mesh: Arc<TestMesh>,
    shared: Arc<Shared>,
    opened: mpsc::Receiver<Opened>,
    keys: Arc<Mutex<Vec<Vec<u8>>>>,
    tokens: Arc<Mutex<Vec<String>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn svid_of(mesh: &TestMesh, id: &SpiffeId) -> Svid {
    let key = KeyPair::generate().unwrap();
    let issued = mesh.authority.issue(&key.spki_der(), id, Duration::from_secs(3600)).unwrap();
    Svid::new(issued.chain, key).unwrap()
}

/// Starts a control plane that proves itself as `who`, signed by `signer`, and a proxy that is not running yet.
async fn pair(who: SpiffeId, signer: Option<&TestMesh>) -> Pair {
    let mesh = Arc::new(TestMesh::new());
    let mut shared = Arc::try_unwrap(mesh.proxy("web")).ok().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    shared.config.control_plane = listener.local_addr().unwrap().into();
    // The tests run without capture; a mark would need privileges.
    shared.config.exempt = byrnie_redirect::Exempt::Uid(byrnie_redirect::PROXY_UID);
    let svid = svid_of(signer.unwrap_or(&mesh), &who);
    let config = tls::server_config(&svid, shared.certificates.verifier(), ALPN_H2, ClientAuth::Optional).unwrap();
    let (opened, receiver) = mpsc::channel(8);
    let (keys, tokens) = (Arc::default(), Arc::default());
    let fake = Fake {
        mesh: Arc::clone(&mesh),
        opened,
        keys: Arc::clone(&keys),
        tokens: Arc::clone(&tokens),
        broken: Arc::default(),
    };
    let accepting = tokio::spawn(async move {
        let mut serving = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = TlsAcceptor::from(Arc::clone(&config)).accept(stream).await {
                serving.spawn(fake.clone().serve(stream));
            }
        }
    });
    Pair { mesh, shared: Arc::new(shared), opened: receiver, keys, tokens, tasks: vec![accepting] }
}

impl Pair {
    fn watch(&mut self) {
        self.tasks.push(tokio::spawn(super::run(Arc::clone(&self.shared))));
    }

    async fn next(&mut self) -> Opened {
        tokio::time::timeout(WAIT, self.opened.recv()).await.unwrap().unwrap()
    }
}

async fn connected() -> (Pair, Opened) {
    let mut pair = pair(control_plane_id(&trust_domain()), None).await;
    pair.watch();
    let mut opened = pair.next().await;
    assert_eq!(opened.begin().await, ["self", "bundle/cluster.local"]);
    (pair, opened)
}

fn own() -> proto::Self_ {
    proto::Self_ {
        workload: "shop/web".into(),
        spiffe_id: id("web").to_string(),
        pod_uid: "uid-web".into(),
        terminating: true,
        policies: Some(Policies::default().into()),
        ..Default::default()
    }
}

fn service(name: &str) -> Body {
    Body::Destination(proto::Destination {
        kind: proto::DestinationKind::Service.into(),
        service: name.into(),
        ..Default::default()
    })
}

#[tokio::test]
async fn what_is_said_of_this_pod_is_taken_and_acknowledged() {
    let (pair, mut opened) = connected().await;
    let mut changed = pair.shared.control.changed();
    opened.say("self", 3, Some(Body::Self_(own()))).await;
    tokio::time::timeout(WAIT, changed.changed()).await.unwrap().unwrap();
    assert!(pair.shared.control.own().unwrap().terminating);
    // A pod that is being deleted drains.
    tokio::time::timeout(WAIT, pair.shared.drain.draining()).await.unwrap();
    assert!(matches!(opened.next_word().await, Message::Ack(ack) if (ack.name.as_str(), ack.version) == ("self", 3)));
}

#[tokio::test]
async fn a_resource_that_can_not_be_taken_is_refused_and_leaves_everything_as_it_was() {
    let (pair, mut opened) = connected().await;
    for (version, body) in [
        (1, Some(Body::Self_(proto::Self_ { policies: None, ..own() }))),
        (2, Some(Body::Self_(proto::Self_ { spiffe_id: id("other").to_string(), ..own() }))),
        (3, Some(service("shop/orders"))),
        (4, None),
    ] {
        opened.say("self", version, body).await;
        match opened.next_word().await {
            Message::Nack(nack) => assert!(nack.version == version && !nack.reason.is_empty(), "{nack:?}"),
            other => panic!("expected a nack of version {version}, found {other:?}"),
        }
    }
    assert!(!pair.shared.control.own().unwrap().terminating, "the first description stays");
    assert_eq!(pair.shared.control.link().nacks.len(), 1);
    // The others are not touched, and a good version mends it.
    opened.say("self", 5, Some(Body::Self_(own()))).await;
    assert!(matches!(opened.next_word().await, Message::Ack(_)));
    assert!(pair.shared.control.link().nacks.is_empty());
}

#[tokio::test]
async fn a_bundle_of_another_name_or_without_roots_is_refused() {
    let (pair, mut opened) = connected().await;
    let bundle = proto::Bundle { revision: 9, ..(&pair.mesh.authority.bundle()).into() };
    let empty = proto::Bundle { roots: Vec::new(), ..bundle.clone() };
    opened.say("bundle/cluster.local", 1, Some(Body::Bundle(empty))).await;
    assert!(matches!(opened.next_word().await, Message::Nack(_)));
    opened.say("bundle/other.example", 1, Some(Body::Bundle(bundle.clone()))).await;
    assert!(matches!(opened.next_word().await, Message::Nack(_)));
    opened.say("bundle/cluster.local", 2, Some(Body::Bundle(bundle))).await;
    assert!(matches!(opened.next_word().await, Message::Ack(_)));
    assert_eq!(pair.shared.certificates.bundle_revision(), 9);
}

#[tokio::test]
async fn a_dialled_address_is_asked_for_and_asked_for_again_after_a_break() {
    let (mut pair, mut opened) = connected().await;
    let dialled = OriginalDestination("10.96.0.10:80".parse().unwrap());
    let looking = tokio::spawn({
        let shared = Arc::clone(&pair.shared);
        async move { shared.discovery.lookup(dialled).await }
    });
    let names = match opened.next_word().await {
        Message::Subscribe(subscribe) => subscribe.names,
        other => panic!("expected Subscribe, found {other:?}"),
    };
    assert_eq!(names, ["destination/10.96.0.10:80"]);
    opened.say(&names[0], 1, Some(service("shop/orders"))).await;
    assert_eq!(looking.await.unwrap().unwrap().service.as_deref(), Some("shop/orders"));
    let begun = std::time::Instant::now();
    opened.responses.send(Err(Status::unavailable("going away"))).await.unwrap();
    drop(opened);
    let mut again = pair.next().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "the first attempt comes within half a second");
    assert_eq!(again.begin().await, ["self", "bundle/cluster.local"]);
    assert!(
        matches!(again.next_word().await, Message::Subscribe(names) if names.names == ["destination/10.96.0.10:80"])
    );
    // Known before the break, so that nobody waits for the control plane.
    assert!(pair.shared.discovery.lookup(dialled).await.is_ok());
}

#[tokio::test]
async fn a_malformed_answer_refuses_the_connection_and_is_refused_itself() {
    let (pair, mut opened) = connected().await;
    let dialled = OriginalDestination("[fd00::10]:80".parse().unwrap());
    let looking = tokio::spawn({
        let shared = Arc::clone(&pair.shared);
        async move { shared.discovery.lookup(dialled).await }
    });
    assert!(
        matches!(opened.next_word().await, Message::Subscribe(names) if names.names == ["destination/[fd00::10]:80"])
    );
    opened.say("destination/[fd00::10]:80", 1, Some(Body::Destination(proto::Destination::default()))).await;
    assert!(matches!(opened.next_word().await, Message::Nack(_)));
    assert_eq!(looking.await.unwrap().unwrap_err().as_str(), "discovery-failed");
}

#[tokio::test]
async fn a_new_svid_opens_the_stream_anew() {
    let (mut pair, _opened) = connected().await;
    let keeper = tokio::spawn(crate::certificates::maintain(Arc::clone(&pair.shared)));
    pair.tasks.push(keeper);
    let first = pair.shared.certificates.current().unwrap();
    assert_eq!(pair.shared.certificates.renew_and_wait().await, Ok(2));
    let mut again = pair.next().await;
    assert_eq!(again.begin().await, ["self", "bundle/cluster.local"]);
    let second = pair.shared.certificates.current().unwrap();
    assert_ne!(first.svid.serial(), second.svid.serial());
    let key = |svid: &Svid| svid.certified_key().key.public_key().unwrap().to_vec();
    assert_ne!(key(&first.svid), key(&second.svid), "every renewal makes a new key");
    // What was issued is on the disk when the renewal says it is done, or soon after.
    assert_eq!(Svid::load(&pair.shared.config.state).unwrap().serial(), second.svid.serial());
}

#[tokio::test]
async fn a_report_comes_at_once_and_says_why_the_proxy_is_not_ready() {
    let (pair, mut opened) = connected().await;
    let report = loop {
        if let Message::Report(report) = opened.next().await {
            break report;
        }
    };
    let status = report.status.unwrap();
    assert!(!status.ready && status.not_ready_reason.contains("capture is not proved"), "{status:?}");
    assert_eq!(status.svid_serial, pair.shared.certificates.current().unwrap().svid.serial());
    assert!(status.admin_socket.ends_with("admin.sock"));
}

#[tokio::test]
async fn another_member_of_the_mesh_is_not_taken_for_the_control_plane() {
    let mut pair = pair(id("web"), None).await;
    pair.watch();
    let reason = failure(&pair.shared).await;
    assert!(reason.contains("expected the control plane spiffe://cluster.local/ns/byrnie-system"), "{reason}");
}

#[tokio::test]
async fn a_control_plane_of_another_authority_is_refused() {
    let other = TestMesh::new();
    let mut pair = pair(control_plane_id(&trust_domain()), Some(&other)).await;
    pair.watch();
    let reason = failure(&pair.shared).await;
    assert!(reason.contains("could not prove itself") && reason.contains("--trust-bundle"), "{reason}");
}

async fn failure(shared: &Shared) -> String {
    for _ in 0..1000 {
        if let Some(reason) = shared.control.link().last_error {
            return reason;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no failure within {WAIT:?}");
}

/// A proxy that holds no SVID and has this join token.
async fn joining(token: &str) -> Pair {
    without_svid(|state| {
        std::fs::write(state.join("token"), format!("{token}\n")).unwrap();
        CredentialFile::JoinToken(state.join("token"))
    })
    .await
}

/// A proxy that holds no SVID and has what `credential` puts into its state directory.
async fn without_svid(credential: impl Fn(&Path) -> CredentialFile) -> Pair {
    let mut pair = pair(control_plane_id(&trust_domain()), None).await;
    let mut shared = Arc::try_unwrap(std::mem::replace(&mut pair.shared, pair.mesh.proxy("unused"))).ok().unwrap();
    let state = shared.config.state.clone();
    std::fs::remove_file(state.join("svid.pem")).unwrap();
    shared.config.credential = credential(&state);
    shared.certificates = crate::certificates::Certificates::open(&shared.config, pair.mesh.clock.clone()).unwrap();
    pair.shared = Arc::new(shared);
    pair.tasks.push(tokio::spawn(crate::certificates::maintain(Arc::clone(&pair.shared))));
    pair
}

#[tokio::test]
async fn a_join_token_gets_the_first_svid_and_the_bundle() {
    let pair = joining("good").await;
    assert_eq!(first_svid(&pair).await.id(), &id("web"));
}

async fn first_svid(pair: &Pair) -> Svid {
    let certificates = &pair.shared.certificates;
    let mut changed = certificates.changed();
    let held = async {
        loop {
            match certificates.current() {
                Some(generation) => return generation.svid.clone(),
                None => changed.changed().await.unwrap(),
            }
        }
    };
    tokio::time::timeout(WAIT, held).await.unwrap()
}

#[tokio::test]
async fn an_answer_that_got_lost_or_is_for_another_key_is_asked_for_again_with_the_same_key() {
    for token in ["lost", "strange"] {
        let pair = joining(token).await;
        let svid = first_svid(&pair).await;
        let key = |svid: &Svid| svid.certified_key().key.public_key().unwrap().to_vec();
        assert_eq!(*pair.keys.lock().unwrap(), [key(&svid), key(&svid)], "{token}");
        // The first attempt counts as ended only when its SVID is on the disk.
        while pair.shared.certificates.renew_and_wait().await.unwrap() < 2 {}
        assert_ne!(key(&svid), key(&pair.shared.certificates.current().unwrap().svid));
    }
}

#[tokio::test]
async fn a_used_token_is_named_by_the_servers_reason_and_tried_again_when_it_is_replaced() {
    let pair = joining("used").await;
    let reason = failed_attempt(&pair.shared).await;
    assert!(reason.contains("the control plane refused: the join token was used before"), "{reason}");
    assert!(crate::readiness::reasons(&pair.shared).iter().any(|line| line.contains("was used before")));
    std::fs::write(pair.shared.config.credential.path().unwrap(), "good").unwrap();
    assert_eq!(pair.shared.certificates.renew_and_wait().await, Ok(1));
}

#[tokio::test]
async fn a_service_account_token_is_read_anew_for_every_certificate_and_every_stream() {
    let mut pair = without_svid(|state| {
        std::fs::write(state.join("token"), "first\n").unwrap();
        CredentialFile::ServiceAccountToken(state.join("token"))
    })
    .await;
    first_svid(&pair).await;
    let file = pair.shared.config.credential.path().unwrap().to_owned();
    std::fs::write(&file, "second").unwrap();
    while pair.shared.certificates.renew_and_wait().await.unwrap() < 2 {}
    assert_eq!(*pair.tokens.lock().unwrap(), ["first", "second"]);
    std::fs::write(&file, "third").unwrap();
    pair.watch();
    let mut opened = pair.next().await;
    assert!(matches!(opened.next_word().await, Message::Hello(hello) if hello.service_account_token == "third"));
}

#[tokio::test]
async fn a_service_account_token_that_is_not_there_yet_is_waited_for_and_named() {
    let pair = without_svid(|state| CredentialFile::ServiceAccountToken(state.join("late"))).await;
    let reason = failed_attempt(&pair.shared).await;
    assert!(reason.contains("late can't be read: No such file"), "{reason}");
    std::fs::write(pair.shared.config.credential.path().unwrap(), "there").unwrap();
    first_svid(&pair).await;
    std::fs::remove_file(pair.shared.config.credential.path().unwrap()).unwrap();
    let reason = pair.shared.certificates.renew_and_wait().await.unwrap_err();
    assert!(reason.contains("late can't be read"), "{reason}");
    assert!(pair.shared.certificates.current().is_some());
}

/// Why the last attempt to get an SVID failed, once one has.
async fn failed_attempt(shared: &Shared) -> Arc<str> {
    loop {
        match shared.certificates.last_failure() {
            Some(reason) => return reason,
            None => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}
