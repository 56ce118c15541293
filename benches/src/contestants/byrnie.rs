//! Byrnie as a user has it: the release binaries, a control plane on a directory of objects, tokens from `byrnie token
//! create`, and proxies with their defaults, which are metrics and an access log (here into a file). Also `byrnie capture
//! apply`, whose rules every contestant gets.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use byrnie_netlab::{Host, Lab, RunAs};

use super::{End, READY, Running, write_for_proxy};
use crate::failure::{Failure, Result, doing};
use crate::http;
use crate::tools::Tool;

/// Where the control plane listens for proxies.
const CONTROL_PLANE_PORT: u16 = 15_128;

/// Where a proxy tells its metrics.
const METRICS_PORT: u16 = 15_010;

/// Where a proxy says whether it is ready.
const HEALTH_PORT: u16 = 15_021;

/// A control plane that knows the workloads of the benchmark.
#[derive(Debug)]
pub(crate) struct Mesh {
    node: Host,
    address: SocketAddr,
    directory: PathBuf,
    process: Running,
}

impl Mesh {
    /// Starts it on the lab's node, with these workloads and addresses.
    pub(crate) fn start(lab: &Lab, directory: &Path, workloads: &[(String, Ipv4Addr)]) -> Result<Self> {
        let source = directory.join("source");
        fs::create_dir_all(&source).map_err(doing(source.display()))?;
        let objects = source.join("mesh.yaml");
        fs::write(&objects, objects_of(lab, workloads)).map_err(doing(objects.display()))?;
        let node = lab.node().clone();
        let address = node.ipv4().ok_or_else(|| Failure::new("the node has no address"))?;
        let address = SocketAddr::new(address.into(), CONTROL_PLANE_PORT);
        let command = node
            .command(Tool::ByrnieControlPlane.find()?)
            .user(RunAs::Operator)
            .arg("--source")
            .arg(&source)
            .arg("--state")
            .arg(directory.join("state"))
            .arg("--socket")
            .arg(directory.join("control.sock"))
            .args(["--listen", &address.to_string()]);
        let process = Running::start("the control plane", command, directory)?;
        let mut mesh = Self { node, address, directory: directory.to_owned(), process };
        let bundle = mesh.bundle();
        mesh.process.until("ready", |_| bundle.exists())?;
        Ok(mesh)
    }

    /// Starts a proxy with a new identity.
    pub(super) fn proxy(&self, end: &End) -> Result<Running> {
        let at = |name: &str| end.directory.join(name);
        let bundle = fs::read_to_string(self.bundle()).map_err(doing("the trust bundle"))?;
        write_for_proxy(&at("bundle.pem"), &bundle)?;
        write_for_proxy(&at("token"), &self.token(&end.name)?)?;
        let command = end
            .host
            .command(Tool::ByrnieProxy.find()?)
            .user(RunAs::Proxy)
            .args(["--control-plane", &self.address.to_string()])
            .arg("--trust-bundle")
            .arg(at("bundle.pem"))
            .arg("--join-token-file")
            .arg(at("token"))
            .arg("--state")
            .arg(at("state"))
            .arg("--access-log")
            .arg(at("access.log"));
        Running::start(&format!("byrnie-proxy of {}", end.name), command, &end.directory)
    }

    fn token(&self, workload: &str) -> Result<String> {
        let deadline = Instant::now() + READY;
        loop {
            let output = self
                .node
                .command(Tool::Byrnie.find()?)
                .user(RunAs::Operator)
                .arg("--socket")
                .arg(self.directory.join("control.sock"))
                .args(["token", "create", &format!("bench/{workload}")])
                .output()
                .map_err(doing("byrnie token create"))?;
            if output.status.success() {
                return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
            }
            // The control plane may not serve, or not have read its source, yet.
            if Instant::now() > deadline {
                let words = String::from_utf8_lossy(&output.stderr).into_owned();
                return Err(Failure::new(format!("byrnie token create bench/{workload}: {words}")));
            }
            sleep(Duration::from_millis(50));
        }
    }

    fn bundle(&self) -> PathBuf {
        self.directory.join("state/bundle.pem")
    }
}

/// Waits until a proxy says that it is ready: certificate, policies, capture seen to work.
pub(super) fn ready(proxy: &mut Running, host: &Host) -> Result<()> {
    let health = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), HEALTH_PORT);
    let question = http::request(health, "/healthz/ready", "close");
    proxy.until("ready", |_| {
        let answered = host.connect(health, Duration::from_secs(1)).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            http::ask(&mut stream, &question)
        });
        answered.is_ok()
    })
}

/// How many requests a proxy has followed, by its metrics.
pub(crate) fn requests_followed(host: &Host) -> Result<f64> {
    let metrics = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), METRICS_PORT);
    let answer = host.connect(metrics, READY).and_then(|mut stream| {
        stream.set_read_timeout(Some(READY))?;
        http::ask(&mut stream, &http::request(metrics, "/metrics", "close"))
    });
    let text = String::from_utf8_lossy(&answer.map_err(doing("the proxy's metrics"))?).into_owned();
    let counted = text.lines().filter(|line| line.starts_with("byrnie_http_requests_total{"));
    Ok(counted.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
}

/// Puts the redirect rules in place in a pod.
pub(crate) fn capture(host: &Host) -> Result<()> {
    let command = host.command(Tool::Byrnie.find()?).user(RunAs::Operator).args(["capture", "apply"]);
    let output = command.output().map_err(doing("byrnie capture apply"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Failure::new(format!("byrnie capture apply: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

/// What an operator would write: the mesh, a namespace in it, and the pods.
fn objects_of(lab: &Lab, workloads: &[(String, Ipv4Addr)]) -> String {
    let pods = lab.networks().pods_v4;
    let mut text = format!(
        "apiVersion: byrnie.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: default}}\n\
         spec:\n  networks: {{podCIDRs: [\"{pods}\"], serviceCIDRs: [\"10.96.0.0/16\"]}}\n---\n\
         apiVersion: v1\nkind: Namespace\nmetadata: {{name: bench, labels: {{byrnie.dev/mesh: enabled}}}}\n"
    );
    let declared = http::DECLARED_PORT;
    for (name, address) in workloads {
        text.push_str(&format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{namespace: bench, name: {name}}}\n\
             spec: {{clusterIP: None, selector: {{app: {name}}}, ports: [{{port: {declared}, appProtocol: http}}]}}\n\
             ---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{namespace: bench, name: {name}}}\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata: {{namespace: bench, name: {name}, labels: {{app: {name}}}}}\n\
             spec:\n  serviceAccountName: {name}\n  containers: [{{name: app, image: none}}]\n\
             status: {{phase: Running, podIPs: [{{ip: {address}}}], conditions: [{{type: Ready, status: \"True\"}}]}}\n"
        ));
    }
    text
}
