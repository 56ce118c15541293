//! A control plane on a directory, and proxies that are nothing but their streams: real certificates, real TLS, real gRPC.

use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use byrnie_identity::tls::{ALPN_H2, client_config};
use byrnie_identity::{Clock, KeyPair, Svid, SvidVerifier, TrustBundle, TrustBundles};
use byrnie_proto::mesh::v1::administration_client::AdministrationClient;
use byrnie_proto::mesh::v1::certify_request::Credential;
use byrnie_proto::mesh::v1::identity_client::IdentityClient;
use byrnie_proto::mesh::v1::mesh_client::MeshClient;
use byrnie_proto::mesh::v1::resource::Body;
use byrnie_proto::mesh::v1::watch_request::Message;
use byrnie_proto::mesh::v1::{
    Ack, CertifyRequest, CreateTokenRequest, Hello, ProxyStatus, Report, Resource, Subscribe, WatchRequest,
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::failure::{Failure, Result, doing};

/// Connections without a certificate at a time: fewer than one address may have.
const AT_A_TIME: usize = 32;

/// Longest that the control plane takes to read its source and to be up.
const UP: Duration = Duration::from_secs(30);

/// How often a proxy reports.
const REPORT: Duration = Duration::from_secs(5);

/// What all proxies dial.
const TARGET: &str = "destination/10.1.0.1:80";

/// A mesh in a directory.
pub(super) struct Mesh {
    directory: PathBuf,
    address: SocketAddr,
    count: u32,
}

/// A pod that has a token and a key, and no certificate yet.
pub(super) struct Joining {
    token: String,
    key: KeyPair,
    csr: Vec<u8>,
}

impl Mesh {
    /// Writes it: a namespace with so many pods of a hundred service accounts, and a Service with one more behind it.
    pub(super) fn new(directory: &Path, count: u32) -> Result<Self> {
        let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        let mesh = Self {
            directory: directory.to_owned(),
            address: probe.map_err(doing("a port for the control plane"))?,
            count,
        };
        fs::create_dir(mesh.source()).map_err(doing(mesh.source().display()))?;
        mesh.write("mesh.yaml", MESH)?;
        let pods: String = (0..count).map(|number| pod(&name(number), "proxy", &account(number), number)).collect();
        mesh.write("pods.yaml", &pods)?;
        mesh.endpoints(1)?;
        Ok(mesh)
    }

    /// Starts the control plane, which ends when it is dropped.
    pub(super) fn start(&self, program: &Path) -> Result<Child> {
        let log = self.directory.join("log");
        let log = fs::File::create(&log).map_err(doing(log.display()))?;
        let mut command = Command::new(program);
        command.arg("--source").arg(self.source()).arg("--state").arg(self.directory.join("state"));
        command.arg("--socket").arg(self.socket()).args(["--listen", &self.address.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        command.spawn().map_err(doing("starting the control plane"))
    }

    /// Waits until it answers.
    pub(super) async fn is_up(&self) -> Result<()> {
        let begun = Instant::now();
        while let Err(failure) = self.administration().await {
            if begun.elapsed() > UP {
                return Err(failure);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Gives the Service so many endpoints.
    pub(super) fn endpoints(&self, count: u32) -> Result<()> {
        let pods: String =
            (0..count).map(|number| pod(&format!("target-{number}"), "target", "target", 0xff00 + number)).collect();
        self.write("targets.yaml", &pods)
    }

    /// Gives the namespace's policy so many rules.
    pub(super) fn rules(&self, count: u32) -> Result<()> {
        let rules: Vec<String> = (0..count).map(|rule| format!("{{to: [{{ports: [{}]}}]}}", 8000 + rule)).collect();
        let text = format!(
            "apiVersion: byrnie.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: all, namespace: load}}\n\
             spec: {{action: Deny, rules: [{}]}}\n",
            rules.join(", ")
        );
        self.write("policy.yaml", &text)
    }

    /// Tokens, keys and signing requests, made beforehand: what is measured is the control plane.
    pub(super) async fn joining(&self) -> Result<Vec<Joining>> {
        let mut administration = self.administration().await?;
        let mut all = Vec::new();
        for number in 0..self.count {
            let request = CreateTokenRequest {
                namespace: "load".to_owned(),
                service_account: account(number),
                pod: name(number),
                ttl_seconds: 0,
            };
            let made = administration.create_token(request).await.map_err(doing("a join token"))?;
            let key = KeyPair::generate().map_err(doing("a key"))?;
            let csr = key.csr_der().map_err(doing("a signing request"))?;
            all.push(Joining { token: made.into_inner().token, key, csr });
        }
        Ok(all)
    }

    /// Certificates for all, over connections that stay open; and how long each took.
    pub(super) async fn certify(&self, joining: Vec<Joining>) -> Result<(Vec<Svid>, Vec<Duration>)> {
        let verifier = self.verifier()?;
        let mut shares: Vec<Vec<Joining>> = (0..AT_A_TIME).map(|_| Vec::new()).collect();
        for one in joining {
            shares.rotate_left(1);
            if let Some(share) = shares.first_mut() {
                share.push(one);
            }
        }
        let mut tasks = JoinSet::new();
        for share in shares {
            let channel = channel(self.address, None, &verifier).await?;
            tasks.spawn(async move {
                let mut client = IdentityClient::new(channel);
                let mut done = Vec::new();
                for Joining { token, key, csr } in share {
                    let begun = Instant::now();
                    let request = CertifyRequest { csr, credential: Some(Credential::JoinToken(token)) };
                    let answer = client.certify(request).await.map_err(doing("Certify"))?.into_inner();
                    let took = begun.elapsed();
                    let chain = answer.chain.into_iter().map(CertificateDer::from).collect();
                    done.push((Svid::new(chain, key).map_err(doing("a certificate"))?, took));
                }
                Ok::<_, Failure>(done)
            });
        }
        let mut all = Vec::new();
        while let Some(done) = tasks.join_next().await {
            all.extend(done.map_err(doing("a client"))??);
        }
        Ok(all.into_iter().unzip())
    }

    fn verifier(&self) -> Result<Arc<SvidVerifier>> {
        let path = self.directory.join("state/bundle.pem");
        let pem = fs::read(&path).map_err(doing(path.display()))?;
        let domain = "cluster.local".parse().map_err(doing("a trust domain"))?;
        let mut bundles = TrustBundles::default();
        bundles.insert(TrustBundle::from_pem(domain, 1, &pem).map_err(doing(path.display()))?);
        Ok(SvidVerifier::new(bundles.shared(), Clock::system()))
    }

    async fn administration(&self) -> Result<AdministrationClient<Channel>> {
        let socket = self.socket();
        let connect = move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        };
        let endpoint = Endpoint::from_static("http://control");
        let channel = endpoint.connect_with_connector(service_fn(connect)).await;
        Ok(AdministrationClient::new(channel.map_err(doing("the control plane's socket"))?))
    }

    fn source(&self) -> PathBuf {
        self.directory.join("source")
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    /// Whole, as an editor would.
    fn write(&self, name: &str, text: &str) -> Result<()> {
        let (next, path) = (self.directory.join(name), self.source().join(name));
        fs::write(&next, text).and_then(|()| fs::rename(&next, &path)).map_err(doing(path.display()))
    }
}

/// A connection over TLS.
async fn channel(address: SocketAddr, svid: Option<&Svid>, verifier: &Arc<SvidVerifier>) -> Result<Channel> {
    let config = client_config(svid, verifier, ALPN_H2).map_err(doing("a TLS configuration"))?;
    let connect = move |_: Uri| {
        let config = config.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::IpAddress(address.ip().into());
            let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    };
    let endpoint = Endpoint::from_static("http://control");
    endpoint.connect_with_connector(service_fn(connect)).await.map_err(doing("a connection to the control plane"))
}

/// What a proxy has been told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// So many endpoints of what it dials.
    Endpoints(u32),
    /// So many rules of its own pod.
    Rules(u32),
}

impl Seen {
    fn of(resource: &Resource) -> Option<Self> {
        let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        match resource.body.as_ref()? {
            Body::Destination(destination) => Some(Self::Endpoints(count(destination.endpoints.len()))),
            Body::Self_(own) => {
                Some(Self::Rules(own.policies.as_ref().map_or(0, |own| count(own.authorization.len()))))
            }
            _ => None,
        }
    }
}

/// Which proxy was told what, and when.
type News = (usize, Seen, Instant);

/// Connected proxies.
pub(super) struct Simulated {
    count: usize,
    news: mpsc::UnboundedReceiver<Result<News>>,
    _tasks: JoinSet<()>,
}

impl Simulated {
    /// Connects one for each certificate.
    pub(super) async fn connect(mesh: &Mesh, svids: Vec<Svid>) -> Result<Self> {
        let (verifier, count) = (mesh.verifier()?, svids.len());
        let (tell, news) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        for (proxy, svid) in svids.into_iter().enumerate() {
            let channel = channel(mesh.address, Some(&svid), &verifier).await?;
            let tell = tell.clone();
            tasks.spawn(async move {
                if let Err(failure) = watch(channel, proxy, &svid, &tell).await {
                    let _ = tell.send(Err(failure));
                }
            });
        }
        Ok(Self { count, news, _tasks: tasks })
    }

    /// Waits until all have been told `wanted`, and says how long after `begun` each was.
    pub(super) async fn all_have(
        &mut self,
        wanted: &Seen,
        begun: Instant,
        patience: Duration,
    ) -> Result<Vec<Duration>> {
        let mut took = HashMap::with_capacity(self.count);
        while took.len() < self.count {
            let left = patience.saturating_sub(begun.elapsed());
            let Ok(Some(news)) = tokio::time::timeout(left, self.news.recv()).await else {
                let had = took.len();
                return Err(Failure::new(format!("{wanted:?}: {had} of {} proxies within {patience:?}", self.count)));
            };
            let (proxy, seen, at) = news?;
            if seen == *wanted {
                took.entry(proxy).or_insert_with(|| at.saturating_duration_since(begun));
            }
        }
        Ok(took.into_values().collect())
    }
}

/// One proxy's stream, for ever: it acknowledges what it is told, and reports.
async fn watch(channel: Channel, proxy: usize, svid: &Svid, tell: &mpsc::UnboundedSender<Result<News>>) -> Result<()> {
    let (requests, stream) = mpsc::channel(8);
    let send = async |message| {
        let sent = requests.send(WatchRequest { message: Some(message) }).await;
        sent.map_err(|_| Failure::new("a stream has ended"))
    };
    send(Message::Hello(Hello { version: "benchmark".to_owned(), service_account_token: String::new() })).await?;
    let names = ["self", "bundle/cluster.local", TARGET].map(str::to_owned).to_vec();
    send(Message::Subscribe(Subscribe { names })).await?;
    let answer = MeshClient::new(channel).watch(ReceiverStream::new(stream)).await.map_err(doing("Watch"))?;
    let mut responses = answer.into_inner();
    let status = ProxyStatus {
        version: "benchmark".to_owned(),
        ready: true,
        captured: true,
        svid_serial: svid.serial().to_owned(),
        ..ProxyStatus::default()
    };
    let mut reports = tokio::time::interval(REPORT);
    loop {
        tokio::select! {
            response = responses.message() => {
                let response = response.map_err(doing("a stream"))?.ok_or_else(|| Failure::new("a stream has ended"))?;
                for resource in response.resources {
                    if let Some(seen) = Seen::of(&resource) {
                        let _ = tell.send(Ok((proxy, seen, Instant::now())));
                    }
                    send(Message::Ack(Ack { name: resource.name, version: resource.version })).await?;
                }
            }
            _ = reports.tick() => {
                send(Message::Report(Report { status: Some(status.clone()), ..Report::default() })).await?;
            }
        }
    }
}

fn name(number: u32) -> String {
    format!("proxy-{number}")
}

fn account(number: u32) -> String {
    format!("account-{}", number % 100)
}

fn pod(name: &str, app: &str, account: &str, number: u32) -> String {
    let [_, _, high, low] = number.to_be_bytes();
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: load, uid: uid-{name}, labels: {{app: {app}}}}}\n\
         spec: {{serviceAccountName: {account}, containers: []}}\nstatus: {{podIP: 10.0.{high}.{low}}}\n"
    )
}

const MESH: &str = "\
apiVersion: byrnie.dev/v1alpha1
kind: MeshConfig
metadata: {name: default}
spec: {networks: {podCIDRs: [10.0.0.0/16], serviceCIDRs: [10.1.0.0/16]}}
---
apiVersion: v1
kind: Namespace
metadata: {name: load, labels: {byrnie.dev/mesh: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: target, namespace: load}
spec: {clusterIP: 10.1.0.1, selector: {app: target}, ports: [{port: 80, targetPort: 8080}]}
";
