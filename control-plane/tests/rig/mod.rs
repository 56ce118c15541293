//! A control plane on a directory of its own, and a client that speaks to it as proxies and the command line do:
//! real TLS, real gRPC, no shortcut.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, unreachable_pub, dead_code)]

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use byrnie_control_plane::{ControlPlane, Options, SourceKind};
use byrnie_identity::{
    Clock, KeyPair, ManualClock, Svid, SvidVerifier, TrustBundle, TrustBundles, TrustDomain, control_plane_id, tls,
};
use byrnie_proto::mesh::v1::{
    CertifyRequest, CreateTokenRequest, Hello, ObserveRequest, ObserveResponse, Resource, Subscribe, WatchRequest,
    WatchResponse, administration_client::AdministrationClient, certify_request::Credential,
    identity_client::IdentityClient, mesh_client::MeshClient, resource::Body, watch_request::Message,
};
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{
    net::{TcpStream, UnixStream},
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;

/// Nothing here takes longer unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub const MESH: &str = "\
apiVersion: byrnie.dev/v1alpha1
kind: MeshConfig
metadata: {name: default}
spec:
  networks: {podCIDRs: [10.0.0.0/16, 'fd00::/64'], serviceCIDRs: [10.1.0.0/16]}
  ingressCertificates: [{namespace: ingress, serviceAccount: nginx}]
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {byrnie.dev/mesh: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: legacy}
---
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {clusterIP: 10.1.0.1, selector: {app: orders}, ports: [{port: 80, targetPort: 8080, appProtocol: http}]}
";

pub fn pod(name: &str, service_account: &str, ip: &str) -> String {
    let app = name.split('-').next().unwrap();
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: uid-{name}, labels: {{app: {app}}}}}\n\
         spec: {{serviceAccountName: {service_account}, containers: []}}\nstatus: {{podIP: {ip}}}\n"
    )
}

pub struct Rig {
    pub home: tempfile::TempDir,
    pub address: SocketAddr,
    pub clock: Clock,
    pub time: ManualClock,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Rig {
    /// Two pods, `web-0` and `orders-0`, and the Service of the latter.
    pub async fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("source")).unwrap();
        let (clock, time) = Clock::manual(SystemTime::now());
        let mut rig = Self { home, address: "127.0.0.1:0".parse().unwrap(), clock, time, running: None };
        rig.write("mesh.yaml", MESH);
        rig.write("pods.yaml", &(pod("web-0", "web", "10.0.0.1") + &pod("orders-0", "orders", "10.0.0.2")));
        rig.up().await;
        rig
    }

    pub fn options(&self) -> Options {
        Options {
            source: SourceKind::Directory(self.home.path().join("source")),
            state: self.home.path().join("state"),
            listen: vec![self.address],
            socket: None,
            admin_listen: None,
            health_listen: None,
            svid_ttl: None,
            clock: self.clock.clone(),
        }
    }

    pub async fn up(&mut self) {
        let plane = loop {
            match ControlPlane::start(self.options()).await {
                Ok(plane) => break plane,
                // The journal's file is released by a thread that outlives its control plane for a moment.
                Err(problems) if problems.to_string().contains("journal") => {
                    tokio::time::sleep(Duration::from_millis(10)).await
                }
                Err(problems) => panic!("{problems}"),
            }
        };
        self.address = plane.addresses()[0];
        let (end, ended) = oneshot::channel();
        let task = tokio::spawn(async move {
            plane.run(async { drop(ended.await) }).await.unwrap();
        });
        self.running = Some((end, task));
    }

    pub async fn down(&mut self) {
        let (end, task) = self.running.take().unwrap();
        end.send(()).unwrap();
        task.await.unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Replaces a file of the source whole.
    pub fn write(&self, name: &str, content: &str) {
        std::fs::write(self.path("source").join(name), content).unwrap();
    }

    pub async fn administration(&self) -> AdministrationClient<Channel> {
        let socket = self.path("state/control.sock");
        let connect = move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        };
        let channel =
            Endpoint::from_static("http://control").connect_with_connector(service_fn(connect)).await.unwrap();
        AdministrationClient::new(channel)
    }

    pub async fn observe(&self) -> ObserveResponse {
        self.administration().await.observe(ObserveRequest {}).await.unwrap().into_inner()
    }

    pub async fn token(&self, service_account: &str, pod: &str, ttl_seconds: u32) -> String {
        let request = CreateTokenRequest {
            namespace: "shop".to_owned(),
            service_account: service_account.to_owned(),
            pod: pod.to_owned(),
            ttl_seconds,
        };
        self.administration().await.create_token(request).await.unwrap().into_inner().token
    }

    pub fn verifier(&self) -> Arc<SvidVerifier> {
        let domain: TrustDomain = "cluster.local".parse().unwrap();
        let pem = std::fs::read(self.path("state/bundle.pem")).unwrap();
        let mut bundles = TrustBundles::default();
        bundles.insert(TrustBundle::from_pem(domain, 1, &pem).unwrap());
        SvidVerifier::new(bundles.shared(), self.clock.clone())
    }

    /// A connection over TLS with the server's identity checked, as proxies do it.
    pub async fn channel(&self, svid: Option<&Svid>) -> Result<Channel, tonic::transport::Error> {
        let config = tls::client_config(svid, &self.verifier(), tls::ALPN_H2).unwrap();
        let (address, verifier) = (self.address, self.verifier());
        let connect = move |_: Uri| {
            let (config, verifier) = (config.clone(), verifier.clone());
            async move {
                let stream = TcpStream::connect(address).await?;
                let name = ServerName::IpAddress(address.ip().into());
                let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await?;
                let peer = verifier.verify(stream.get_ref().1.peer_certificates().unwrap()).unwrap();
                assert_eq!(*peer.id(), control_plane_id(peer.id().trust_domain()));
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        };
        Endpoint::from_static("http://control").connect_with_connector(service_fn(connect)).await
    }

    pub async fn certify(&self, token: Option<String>, svid: Option<&Svid>) -> Result<Svid, Status> {
        let key = KeyPair::generate().unwrap();
        let chain = self.certify_key(&key, token, svid).await?;
        Ok(Svid::new(chain, key).unwrap())
    }

    /// A chain for this key.
    pub async fn certify_key(
        &self,
        key: &KeyPair,
        token: Option<String>,
        svid: Option<&Svid>,
    ) -> Result<Vec<CertificateDer<'static>>, Status> {
        let channel = self.channel(svid).await.map_err(|error| Status::unavailable(format!("{error:?}")))?;
        let request = CertifyRequest { csr: key.csr_der().unwrap(), credential: token.map(Credential::JoinToken) };
        let response = IdentityClient::new(channel).certify(request).await?.into_inner();
        Ok(response.chain.into_iter().map(CertificateDer::from).collect())
    }

    /// The SVID of a pod, by way of a join token.
    pub async fn join(&self, service_account: &str, pod: &str) -> Svid {
        let token = self.token(service_account, pod, 0).await;
        self.certify(Some(token), None).await.unwrap()
    }

    pub async fn watch(&self, svid: Option<&Svid>) -> Result<Watch, Status> {
        let watch = self.open(svid).await?;
        watch.send(Message::Hello(Hello { version: "test".to_owned(), service_account_token: String::new() })).await;
        Ok(watch)
    }

    /// A stream without its Hello.
    pub async fn open(&self, svid: Option<&Svid>) -> Result<Watch, Status> {
        let channel = self.channel(svid).await.map_err(|error| Status::unavailable(format!("{error:?}")))?;
        let (requests, stream) = mpsc::channel(16);
        let responses = MeshClient::new(channel).watch(ReceiverStream::new(stream)).await?.into_inner();
        Ok(Watch { requests, responses, pending: Vec::new() })
    }
}

/// A Watch stream.
pub struct Watch {
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
    pending: Vec<Resource>,
}

impl Watch {
    pub async fn send(&self, message: Message) {
        // The server may have ended the stream already; what it says then is what the test looks at.
        let _ = self.requests.send(WatchRequest { message: Some(message) }).await;
    }

    pub async fn subscribe(&self, names: &[&str]) {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        self.send(Message::Subscribe(Subscribe { names })).await;
    }

    /// The next resource, or how the stream ended.
    pub async fn next(&mut self) -> Result<Resource, Status> {
        while self.pending.is_empty() {
            let response =
                tokio::time::timeout(PATIENCE, self.responses.message()).await.expect("an answer in time")?;
            let Some(response) = response else {
                return Err(Status::ok("ended"));
            };
            self.pending = response.resources;
        }
        Ok(self.pending.remove(0))
    }

    /// The next version of this resource that `wanted` accepts.
    pub async fn until(&mut self, name: &str, wanted: impl Fn(&Body) -> bool) -> Resource {
        loop {
            let resource = self.next().await.unwrap();
            if resource.name == name && resource.body.as_ref().is_some_and(&wanted) {
                return resource;
            }
        }
    }

    /// How the stream ends.
    pub async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }
}

/// Waits for what happens at its own time.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
