//! An injector on loopback with a certificate of its own, and a client that trusts nothing but that certificate.
#![allow(missing_docs, unreachable_pub)]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use byrnie_injector::certificate::{Files, Serving};
use byrnie_injector::inject::{NamespaceFacts, ProxyImage};
use byrnie_injector::mesh::Mesh;
use byrnie_injector::{Listeners, Server};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsConnector;

const NAME: &str = "byrnie-injector.byrnie-system.svc";

pub struct Injector {
    pub mesh: Arc<Mesh>,
    directory: TempDir,
    webhooks: SocketAddr,
    health: SocketAddr,
    roots: Mutex<RootCertStore>,
    end: Mutex<Option<oneshot::Sender<()>>>,
    server: Mutex<Option<JoinHandle<()>>>,
    _files: JoinSet<()>,
}

pub struct Answer {
    pub status: u16,
    body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A connection of HTTP/2, as the API server's.
pub struct Connection(http2::SendRequest<Full<Bytes>>);

impl Connection {
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.raw(path, serde_json::to_vec(body).unwrap(), "application/json").await
    }

    pub async fn raw(&self, path: &str, body: Vec<u8>, content_type: &str) -> Answer {
        let request = hyper::Request::post(format!("https://{NAME}{path}"))
            .header("content-type", content_type)
            .header("content-length", body.len())
            .body(Full::from(body))
            .unwrap();
        answer(self.0.clone().send_request(request).await.unwrap()).await
    }
}

async fn answer(response: hyper::Response<hyper::body::Incoming>) -> Answer {
    let status = response.status().as_u16();
    Answer { status, body: response.into_body().collect().await.unwrap().to_bytes() }
}

impl Injector {
    pub async fn start() -> Self {
        let injector = Self::start_knowing_nothing().await;
        injector.learn();
        injector
    }

    pub async fn start_without_certificate() -> Self {
        let injector = Self::bare().await;
        injector.learn();
        injector
    }

    pub async fn start_knowing_nothing() -> Self {
        let injector = Self::bare().await;
        injector.write_certificate("first");
        injector.wait_for_another_certificate(&[]).await;
        injector
    }

    async fn bare() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listeners = Listeners::bind(any, any).await.unwrap();
        let address = |listener: &tokio::net::TcpListener| listener.local_addr().unwrap();
        let (webhooks, health) = (address(&listeners.webhooks), address(&listeners.health));
        let (mesh, serving) = (Arc::new(Mesh::new(ProxyImage::default(), None)), Arc::new(Serving::default()));
        let server = Server::new(Arc::clone(&mesh), Arc::clone(&serving));
        let (end, ended) = oneshot::channel();
        let server = tokio::spawn(async move {
            server.run(listeners, async { drop(ended.await) }).await.unwrap();
        });
        let mut files = JoinSet::new();
        files.spawn(Files::new(directory.path(), serving).follow());
        Self {
            mesh,
            directory,
            webhooks,
            health,
            roots: Mutex::new(RootCertStore::empty()),
            end: Mutex::new(Some(end)),
            server: Mutex::new(Some(server)),
            _files: files,
        }
    }

    pub fn learn(&self) {
        self.mesh.set_mesh_config(None);
        let other = NamespaceFacts { name: "other".to_owned(), ..NamespaceFacts::default() };
        self.mesh.set_namespaces([NamespaceFacts::enrolled("shop"), other]);
    }

    /// A new key with a certificate for itself, as the control plane makes it; the client trusts it from now on.
    pub fn write_certificate(&self, serial: &str) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        params.is_ca = rcgen::IsCa::ExplicitNoCa;
        params.distinguished_name.push(rcgen::DnType::CommonName, serial);
        let certificate = params.self_signed(&key).unwrap();
        self.roots.lock().unwrap().add(certificate.der().clone()).unwrap();
        self.write_file("tls.crt", &certificate.pem());
        self.write_file("tls.key", &key.serialize_pem());
    }

    pub fn write_file(&self, name: &str, content: &str) {
        let path: &Path = self.directory.path();
        std::fs::write(path.join(name), content).unwrap();
    }

    pub async fn handshake(&self, alpn: &[u8]) -> Option<tokio_rustls::client::TlsStream<TcpStream>> {
        let roots = self.roots.lock().unwrap().clone();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        // The client of a test, which checks the server as the API server does.
        #[allow(clippy::disallowed_methods)]
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let stream = TcpStream::connect(self.webhooks).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let name = ServerName::try_from(NAME).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()
    }

    pub async fn connect(&self) -> Option<Connection> {
        let stream = self.handshake(b"h2").await?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Some(Connection(sender))
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.connect().await.unwrap().post(path, body).await
    }

    pub async fn raw(&self, path: &str, body: Vec<u8>, content_type: &str) -> Answer {
        self.connect().await.unwrap().raw(path, body, content_type).await
    }

    pub async fn health(&self, path: &str) -> Answer {
        let stream = TcpStream::connect(self.health).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = hyper::Request::get(path).header("host", "x").body(Full::<Bytes>::default()).unwrap();
        answer(sender.send_request(request).await.unwrap()).await
    }

    /// `None`: no handshake.
    pub async fn served_certificate(&self) -> Option<Vec<u8>> {
        let stream = self.handshake(b"h2").await?;
        Some(stream.get_ref().1.peer_certificates().unwrap()[0].to_vec())
    }

    pub async fn wait_for_another_certificate(&self, known: &[u8]) {
        let wait = async {
            while self.served_certificate().await.is_none_or(|served| served == known) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap();
        let written = std::fs::read(self.directory.path().join("tls.crt")).unwrap();
        assert_eq!(
            self.served_certificate().await.unwrap(),
            CertificateDer::from_pem_slice(&written).unwrap().to_vec()
        );
    }

    pub fn ask_to_end(&self) {
        self.end.lock().unwrap().take().unwrap().send(()).unwrap();
    }

    pub async fn ended(&self) {
        let server = self.server.lock().unwrap().take().unwrap();
        server.await.unwrap();
    }

    pub async fn end(&self) {
        self.ask_to_end();
        self.ended().await;
    }
}

pub fn pod(container: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-0", "namespace": "shop"}, "spec": {"containers": [container]}})
}

pub fn review(kind: &str, namespace: &str, object: &Value) -> Value {
    let (group, version) = match kind {
        "Pod" | "Namespace" => ("", "v1"),
        _ => ("byrnie.dev", "v1alpha1"),
    };
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "1", "kind": {"group": group, "version": version, "kind": kind}, "operation": "CREATE",
        "namespace": namespace, "object": object, "dryRun": true,
    }})
}
