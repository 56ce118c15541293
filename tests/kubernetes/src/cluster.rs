//! A cluster with Byrnie installed: the objects of `byrnie install`, and its two programs as its ServiceAccounts.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use byrnie_api::labels::{CONTROL_PLANE, INJECTOR, INJECTOR_SECRET, SYSTEM_NAMESPACE};
use byrnie_scenarios::{DEADLINE, binary, eventually};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::mounted::keep_mounted;
use crate::{Api, ApiServer, ApiServerOptions, Child, Pod, World, programs};

/// Where a control plane listens for proxies; the next one takes the next port.
const PORT: u16 = 15128;

/// Where the injector listens.
const INJECTOR_PORT: u16 = 15443;

/// Where the injector says whether it is ready.
const INJECTOR_HEALTH: u16 = 15444;

/// A cluster with Byrnie's objects, and programs that a test starts and ends.
#[derive(Debug)]
pub struct Cluster {
    /// The API server.
    pub server: ApiServer,
    /// The administrator.
    pub api: Api,
    address: Ipv4Addr,
    mounts: std::sync::Mutex<Vec<JoinHandle<()>>>,
}

impl Cluster {
    /// Byrnie's objects, one control plane and one injector, ready.
    pub async fn running(world: &World) -> (Self, ControlPlane, Injector) {
        let cluster = Self::installed(world).await;
        let control_plane = cluster.control_plane(0).await;
        control_plane.is_ready().await;
        let injector = cluster.injector().await;
        injector.is_ready().await;
        (cluster, control_plane, injector)
    }

    /// Byrnie's objects, and none of its programs.
    pub async fn installed(world: &World) -> Self {
        let cluster = Self::empty(world).await;
        let objects = cluster.byrnie(&["install", "--dry-run", "-o", "yaml"]).expect("the objects of the installation");
        cluster.apply(&objects);
        cluster.point_service_at(INJECTOR, "https", INJECTOR_PORT).await;
        cluster
    }

    /// Nothing but the API server.
    pub async fn empty(world: &World) -> Self {
        let options = ApiServerOptions { address: world.address, ..ApiServerOptions::default() };
        let server = ApiServer::start(&programs().expect("the programs"), options).await;
        let api = server.api();
        Self { server, api, address: world.address, mounts: std::sync::Mutex::default() }
    }

    /// Applies objects, YAML, as kubectl does; the namespaces and definitions among them first.
    ///
    /// # Panics
    /// With what kubectl says.
    pub fn apply(&self, objects: &str) {
        self.try_apply(objects).unwrap_or_else(|refused| panic!("kubectl apply: {refused}"));
    }

    /// Applies objects, YAML.
    ///
    /// # Errors
    /// What kubectl says.
    pub fn try_apply(&self, objects: &str) -> Result<String, String> {
        self.server.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", "-"], objects)
    }

    /// `byrnie`, as the administrator.
    ///
    /// # Errors
    /// What it says on standard error, and then on standard output.
    pub fn byrnie(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(binary("byrnie"));
        command.args(arguments).env("KUBECONFIG", self.server.administrator()).env("HOME", self.server.directory());
        let output = command.output().expect("byrnie");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(format!("{}{}", text(&output.stderr), text(&output.stdout)))
        }
    }

    /// Starts a control plane, with the permissions of its ServiceAccount; `number` tells replicas apart.
    pub async fn control_plane(&self, number: u16) -> ControlPlane {
        self.control_plane_with(number, &[]).await
    }

    /// As [`Cluster::control_plane`], with more arguments.
    pub async fn control_plane_with(&self, number: u16, extra: &[&str]) -> ControlPlane {
        let name = format!("control-plane-{number}");
        let directory = self.server.directory().join(&name);
        std::fs::create_dir_all(&directory).expect("a directory");
        let token = self.service_account_token(SYSTEM_NAMESPACE, CONTROL_PLANE).await;
        let at = |port: u16| SocketAddr::from((self.address, port + 10 * number));
        let (proxies, health) = (at(PORT), at(15121));
        let mut command = Command::new(binary("byrnie-control-plane"));
        command
            .args(["--source", "kubernetes", "--state"])
            .arg(directory.join("state"))
            .args(["--listen", &proxies.to_string(), "--health-listen", &health.to_string()])
            .args(["--log", "info,byrnie_control_plane=debug"])
            .args(extra)
            .env("HOSTNAME", &name)
            .env("KUBECONFIG", self.server.kubeconfig(&name, &token));
        let child = Child::start(&name, &mut command, self.server.directory());
        ControlPlane { child, address: proxies, health, socket: directory.join("state/control.sock") }
    }

    /// Starts an injector, with the permissions of its ServiceAccount and its Secret mounted.
    pub async fn injector(&self) -> Injector {
        let tls = self.server.directory().join("injector-tls");
        std::fs::create_dir_all(&tls).expect("a directory");
        let secret = format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/secrets/{INJECTOR_SECRET}");
        self.mounts.lock().expect("a lock").push(tokio::spawn(keep_mounted(self.api.clone(), secret, tls.clone())));
        let token = self.service_account_token(SYSTEM_NAMESPACE, INJECTOR).await;
        let mut command = Command::new(binary("byrnie-injector"));
        let health = SocketAddr::from((self.address, INJECTOR_HEALTH));
        self.injector_arguments(&mut command, &tls, health);
        command.env("KUBECONFIG", self.server.kubeconfig(INJECTOR, &token));
        let child = Child::start("injector", &mut command, self.server.directory());
        Injector { child, health }
    }

    fn injector_arguments(&self, command: &mut Command, tls: &Path, health: SocketAddr) {
        let listen = SocketAddr::from((self.address, INJECTOR_PORT));
        command
            .args(["--listen", &listen.to_string(), "--health-listen", &health.to_string(), "--certificate-dir"])
            .arg(tls)
            .args(["--proxy-image", "byrnie/proxy:test", "--log", "info,byrnie_injector=debug"]);
    }

    /// A namespace in the mesh, with the trust bundle that its pods need.
    pub async fn enrolled(&self, name: &str) {
        self.namespace(name, &json!({ "byrnie.dev/mesh": "enabled" })).await;
        self.trust_bundle(name).await;
    }

    /// A namespace with these labels.
    pub async fn namespace(&self, name: &str, labels: &Value) {
        let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } });
        self.api.apply(&format!("/api/v1/namespaces/{name}"), &object).await.expect("a namespace");
    }

    /// The trust bundle of a namespace, as soon as it is there.
    pub async fn trust_bundle(&self, namespace: &str) -> String {
        let path = format!("/api/v1/namespaces/{namespace}/configmaps/byrnie-trust-bundle");
        eventually("the trust bundle", DEADLINE / 5, async || {
            Some(self.api.get(&path).await.ok()?["data"]["bundle.pem"].as_str()?.to_owned())
        })
        .await
    }

    /// A pod of an enrolled namespace, injected and running as far as the API server knows.
    pub async fn pod(&self, namespace: &str, name: &str) -> Pod {
        Pod::create(&self.api, namespace, name, name).await.expect("a pod")
    }

    /// A token as the control plane or the injector would have it.
    pub async fn service_account_token(&self, namespace: &str, account: &str) -> String {
        let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": { "audiences": ["https://kubernetes.default.svc"], "expirationSeconds": 3600 } });
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let answer = self.api.create(&path, &request).await.expect("a token");
        answer["status"]["token"].as_str().expect("a token").to_owned()
    }

    /// What kube-controller-manager would do for a Service with one endpoint.
    async fn point_service_at(&self, service: &str, port_name: &str, port: u16) {
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": { "name": service, "labels": { "kubernetes.io/service-name": service } },
            "endpoints": [{ "addresses": [self.address.to_string()], "conditions": { "ready": true } }],
            "ports": [{ "name": port_name, "port": port, "protocol": "TCP" }],
        });
        let path = format!("/apis/discovery.k8s.io/v1/namespaces/{SYSTEM_NAMESPACE}/endpointslices/{service}");
        self.api.apply(&path, &slice).await.expect("an EndpointSlice");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.mounts.lock().expect("a lock").iter().for_each(JoinHandle::abort);
    }
}

/// A running control plane.
#[derive(Debug)]
pub struct ControlPlane {
    /// Its process.
    pub child: Child,
    /// Where proxies connect.
    pub address: SocketAddr,
    /// Where `byrnie --socket` connects.
    pub socket: PathBuf,
    health: SocketAddr,
}

impl ControlPlane {
    /// Waits until it says that it is ready.
    pub async fn is_ready(&self) {
        is_ready("the control plane", &self.child, self.health).await;
    }
}

/// A running injector.
#[derive(Debug)]
pub struct Injector {
    /// Its process.
    pub child: Child,
    health: SocketAddr,
}

impl Injector {
    /// Waits until it says that it is ready.
    pub async fn is_ready(&self) {
        is_ready("the injector", &self.child, self.health).await;
    }
}

async fn is_ready(what: &str, child: &Child, health: SocketAddr) {
    eventually(&format!("{what} is ready"), Duration::from_secs(6), async || {
        assert!(child.ended().is_none(), "{what} has ended:\n{}", child.log());
        let answer = crate::http::get(health, "/healthz/ready").await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await;
}
