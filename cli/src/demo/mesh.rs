//! The mesh itself: a control plane on a directory of objects, and a proxy with capture beside each application of the
//! shop. Started as an operator would start them by hand, with the same binaries and options.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use byrnie_identity::{KeyPair, Svid, TrustBundle};
use byrnie_netlab::{Privileges, RunAs};
use byrnie_proto::mesh::v1::{CreateTokenRequest, ObserveResponse};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::children::{ChildProcess, until};
use super::directory::MeshDir;
use super::narrator::Narrator;
use super::objects;
use super::topology::{self, CONTROL_PLANE, CONTROL_PLANE_PORT, INGRESS, Pod, TRUST_DOMAIN};
use super::world::World;
use crate::client::Client;
use crate::commands::proxy::renew;
use crate::failure::{Exit, Failure};

/// Longest that the control plane or a proxy takes to be ready.
const READY: Duration = Duration::from_secs(15);

/// UID of applications, where there is more than one.
const APPLICATION_UID: u32 = 1000;

/// The mesh's processes.
#[derive(Debug)]
pub(super) struct Mesh {
    control_plane: Option<ChildProcess>,
    proxies: BTreeMap<&'static str, ChildProcess>,
    socket: PathBuf,
}

impl Mesh {
    /// What the control plane knows now.
    pub(super) async fn observe(&self) -> Result<ObserveResponse, Failure> {
        Client::connect(&self.socket).await?.observe().await
    }

    /// That everything still runs.
    pub(super) fn check(&mut self) -> Result<(), Failure> {
        self.control_plane.iter_mut().chain(self.proxies.values_mut()).try_for_each(ChildProcess::check)
    }

    /// Kills the control plane as a crash would (`SIGKILL`), and returns the process ID that it had.
    pub(super) fn kill_control_plane(&mut self) -> Option<u32> {
        let mut killed = self.control_plane.take()?;
        killed.kill();
        Some(killed.id())
    }

    /// The last lines of a proxy's log.
    pub(super) fn proxy_log(&self, pod: Pod) -> String {
        self.proxies.get(pod.name).map_or_else(String::new, ChildProcess::last_lines)
    }
}

/// Starts it all; returns when every proxy is ready.
pub(super) async fn start(world: &mut World, dir: &MeshDir, narrator: &Narrator) -> Result<(), Failure> {
    objects::write(&dir.join("source")).map_err(|error| dir.failed("write", &error))?;
    let mesh = Mesh { control_plane: None, proxies: BTreeMap::new(), socket: dir.control_socket() };
    world.mesh = Some(mesh);
    start_control_plane(world, dir).await?;
    narrator.note("the control plane serves; it made a certificate authority of its own");
    // Capture first, as in a cluster: applying it flushes the connections that it finds.
    for pod in topology::proxied() {
        capture(world, pod)?;
        start_proxy(world, dir, pod).await?;
    }
    for pod in topology::proxied() {
        prove_capture(world, dir, pod).await?;
    }
    let names: Vec<_> = topology::proxied().map(|pod| pod.name).collect();
    narrator.note(&format!("proxies run beside {}; capture is in place", names.join(", ")));
    until("getting the proxies ready", READY, async || {
        world.check()?;
        let observed = observe(world).await?;
        Ok(all_ready(&observed).then_some(()))
    })
    .await
    .map_err(|failure| explain(world, failure))?;
    secure_ingress(world, dir).await?;
    narrator.note("every proxy is ready; the ingress has a client certificate of the mesh");
    Ok(())
}

/// What the control plane knows now.
pub(super) async fn observe(world: &World) -> Result<ObserveResponse, Failure> {
    match &world.mesh {
        Some(mesh) => mesh.observe().await,
        None => Err(Failure::new(Exit::Refused, "there is no mesh yet")),
    }
}

/// Starts the control plane (again), and waits until it answers.
pub(super) async fn start_control_plane(world: &mut World, dir: &MeshDir) -> Result<(), Failure> {
    let [v4, _] = CONTROL_PLANE.addresses();
    let host = world.pod(CONTROL_PLANE)?;
    let command = world
        .command(host, world.binary("byrnie-control-plane")?, RunAs::Operator)
        .arg("--source")
        .arg(dir.join("source"))
        .arg("--state")
        .arg(dir.join("state"))
        .arg("--socket")
        .arg(dir.control_socket())
        .arg("--listen")
        .arg(SocketAddr::new(v4, CONTROL_PLANE_PORT).to_string());
    let child = ChildProcess::start("byrnie-control-plane", command, dir.join("logs/control-plane.log"))?;
    let socket = dir.control_socket();
    if let Some(mesh) = &mut world.mesh {
        mesh.control_plane = Some(child);
    }
    until("starting the control plane", READY, async || {
        world.check()?;
        let answers = match Client::connect(&socket).await {
            Ok(mut client) => client.observe().await.is_ok(),
            Err(_) => false,
        };
        Ok((answers && state_file(dir, "bundle.pem").exists()).then_some(()))
    })
    .await
}

/// The mesh's roots.
pub(super) fn bundle(dir: &MeshDir) -> Result<TrustBundle, Failure> {
    let path = state_file(dir, "bundle.pem");
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Refused, format!("cannot read {}", path.display())).found(error)
    };
    let pem = std::fs::read(&path).map_err(|error| failed(&error))?;
    let trust_domain = TRUST_DOMAIN.parse().map_err(|error| failed(&error))?;
    TrustBundle::from_pem(trust_domain, 0, &pem).map_err(|error| failed(&error))
}

/// Something in the control plane's state directory.
pub(super) fn state_file(dir: &MeshDir, name: &str) -> PathBuf {
    dir.join("state").join(name)
}

/// Has every proxy get a new certificate now.
pub(super) async fn renew_all(dir: &MeshDir) -> Result<(), Failure> {
    for pod in topology::proxied() {
        renew(&pod_dir(dir, pod).join("admin.sock")).await?;
    }
    Ok(())
}

/// A join token for a pod.
pub(super) async fn token(dir: &MeshDir, pod: Pod) -> Result<String, Failure> {
    let (namespace, name) = pod.parts();
    let request = CreateTokenRequest {
        namespace: namespace.into(),
        service_account: name.into(),
        pod: name.into(),
        ttl_seconds: 60,
    };
    Ok(Client::connect(&dir.control_socket()).await?.create_token(request).await?.token)
}

async fn start_proxy(world: &mut World, dir: &MeshDir, pod: Pod) -> Result<(), Failure> {
    let own = pod_dir(dir, pod);
    let files = own.join("files");
    let written = std::fs::create_dir_all(&files)
        .and_then(|()| std::fs::copy(state_file(dir, "bundle.pem"), files.join("bundle.pem")).map(|_| ()));
    written.map_err(|error| dir.failed("write", &error))?;
    let token = token(dir, pod).await?;
    write_private(&files.join("token"), &token).map_err(|error| dir.failed("write", &error))?;
    for each in [&files, &own] {
        world.own(each, byrnie_redirect::PROXY_UID)?;
    }
    let [control_plane, _] = CONTROL_PLANE.addresses();
    let host = world.pod(pod)?;
    let command = world
        .command(host, world.binary("byrnie-proxy")?, RunAs::Proxy)
        .arg("--control-plane")
        .arg(SocketAddr::new(control_plane, CONTROL_PLANE_PORT).to_string())
        .args(["--trust-domain", TRUST_DOMAIN, "--exempt", exempt(world), "--require-application-proof", "true"])
        .arg("--trust-bundle")
        .arg(files.join("bundle.pem"))
        .arg("--join-token-file")
        .arg(files.join("token"))
        .arg("--state")
        .arg(own.join("state"))
        .arg("--admin-socket")
        .arg(own.join("admin.sock"));
    let log = dir.join("logs").join(format!("{}.proxy.log", pod.file_name()));
    let child = ChildProcess::start(&format!("the proxy of {}", pod.name), command, log)?;
    if let Some(mesh) = &mut world.mesh {
        mesh.proxies.insert(pod.name, child);
    }
    Ok(())
}

/// `byrnie capture apply` in the pod.
fn capture(world: &World, pod: Pod) -> Result<(), Failure> {
    let host = world.pod(pod)?;
    let applied = world
        .command(host, world.binary("byrnie")?, RunAs::Operator)
        .args(["capture", "apply", "--exempt", exempt(world)])
        .output()
        .map_err(|error| Failure::new(Exit::Refused, "cannot run byrnie capture").found(error))?;
    if applied.status.success() {
        return Ok(());
    }
    Err(Failure::new(Exit::KernelCannot, format!("capture could not be set up in {}", pod.name))
        .expected("nf_tables in network namespaces")
        .found(String::from_utf8_lossy(&applied.stderr).trim())
        .next("modprobe nf_tables nft_chain_nat nft_redir nf_conntrack_netlink   (on this machine, as root)"))
}

/// Where proxies have a UID of their own, an application must show them that it is captured; with a mark they see to it
/// themselves.
async fn prove_capture(world: &World, dir: &MeshDir, pod: Pod) -> Result<(), Failure> {
    if world.lab.privileges() == Privileges::SingleUid {
        return Ok(());
    }
    let log = dir.join("logs").join(format!("{}.proxy.log", pod.file_name()));
    until("seeing capture work", READY, async || {
        let host = world.pod(pod)?;
        let run_as = RunAs::Application { uid: APPLICATION_UID };
        let proof = world.command(host, world.binary("byrnie-proxy")?, run_as).arg("prove-capture").output();
        let proof = proof.map_err(|error| Failure::new(Exit::Refused, "cannot run byrnie-proxy").found(error))?;
        Ok(proof.status.success().then_some(()))
    })
    .await
    .map_err(|failure| failure.found(format!("look at {}", log.display())))
}

/// Gives the ingress the certificate that the mesh made for it, and tells it to use it.
async fn secure_ingress(world: &World, dir: &MeshDir) -> Result<(), Failure> {
    let issued = ingress_certificate(dir);
    until("the ingress's certificate", READY, async || {
        Ok(INGRESS_FILES.iter().all(|name| issued.join(name).exists()).then_some(()))
    })
    .await?;
    refresh_ingress(dir, world)?;
    world.write_ingress_config(dir, true)
}

/// Brings the ingress the certificate that the mesh has for it now, as a kubelet would bring it a Secret.
pub(super) fn refresh_ingress(dir: &MeshDir, world: &World) -> Result<(), Failure> {
    let (issued, used) = (ingress_certificate(dir), dir.join("ingress"));
    let same = |name: &str| {
        let read = |at: &Path| std::fs::read(at.join(name)).ok();
        read(&issued).is_some_and(|new| read(&used) == Some(new))
    };
    if INGRESS_FILES.iter().all(|name| same(name)) {
        return Ok(());
    }
    for name in INGRESS_FILES {
        std::fs::copy(issued.join(name), used.join(name)).map_err(|error| dir.failed("write", &error))?;
    }
    world.own(&used, APPLICATION_UID)
}

/// The files of an ingress's certificate.
const INGRESS_FILES: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];

/// Where the control plane keeps the ingress's certificate.
pub(super) fn ingress_certificate(dir: &MeshDir) -> PathBuf {
    let (namespace, name) = INGRESS.parts();
    state_file(dir, "ingress").join(namespace).join(name)
}

/// The ingress's identity, as somebody who stole its files would have it.
pub(super) fn ingress_svid(dir: &MeshDir) -> Result<Svid, Failure> {
    let at = ingress_certificate(dir);
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Refused, format!("cannot read the certificate in {}", at.display())).found(error)
    };
    let key = std::fs::read_to_string(at.join("tls.key")).map_err(|error| failed(&error))?;
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(at.join("tls.crt")).map_err(|error| failed(&error))?.collect();
    let key = KeyPair::from_pem(&key).map_err(|error| failed(&error))?;
    Svid::new(chain.map_err(|error| failed(&error))?, key).map_err(|error| failed(&error))
}

/// A copy of the authority's keys, for an attacker who issues with a clock of its own.
pub(super) fn authority_copy(dir: &MeshDir) -> Result<PathBuf, Failure> {
    let copy = dir.join("stolen-authority");
    let copied = std::fs::DirBuilder::new().mode(0o700).create(&copy).and_then(|()| {
        std::fs::read_dir(state_file(dir, "ca"))?.try_for_each(|entry| {
            let entry = entry?;
            std::fs::copy(entry.path(), copy.join(entry.file_name())).map(|_| ())
        })
    });
    copied.map_err(|error| Failure::new(Exit::Refused, "cannot read the authority's keys").found(error))?;
    Ok(copy)
}

fn all_ready(observed: &ObserveResponse) -> bool {
    topology::proxied().all(|pod| {
        let of_pod = observed.proxies.iter().find(|proxy| proxy.workload == pod.name);
        of_pod.is_some_and(|proxy| proxy.connected && proxy.status.as_ref().is_some_and(|status| status.ready))
    })
}

fn explain(world: &World, failure: Failure) -> Failure {
    let logs = topology::proxied().filter_map(|pod| {
        let lines = world.mesh.as_ref()?.proxy_log(pod);
        Some(format!("{}:\n{lines}", pod.name))
    });
    let logs: Vec<_> = logs.collect();
    failure.found(logs.join("\n"))
}

fn exempt(world: &World) -> &'static str {
    match world.lab.privileges() {
        Privileges::Root => "uid",
        Privileges::SingleUid => "mark",
    }
}

fn pod_dir(dir: &MeshDir, pod: Pod) -> PathBuf {
    dir.join("pods").join(pod.file_name())
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    std::io::Write::write_all(&mut file, text.as_bytes())
}
