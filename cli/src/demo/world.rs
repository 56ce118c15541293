//! The demo's machine: namespaces, hosts and applications. They are made once; the mesh comes and the applications do
//! not notice.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use byrnie_netlab::{Entered, Host, HostCommand, Lab, LabError, RunAs};

use super::children::{ChildProcess, until};
use super::directory::MeshDir;
use super::load;
use super::mesh::Mesh;
use super::topology::{self, CLIENT, FORBIDDEN, INGRESS, ORDERS, Outside, PARTNER, PODS, PORT, Pod, STOCK, WEB};
use crate::apps::{IngressConfig, IngressTls};
use crate::failure::{Exit, Failure};

/// UID of the applications, where there is more than one.
const APPLICATION_UID: u32 = 1000;

/// Longest that an application takes to listen.
const START: Duration = Duration::from_secs(10);

/// Everything that runs. Dropping it ends it.
#[derive(Debug)]
pub(super) struct World {
    /// Processes before namespaces: fields are dropped in order.
    pub(super) mesh: Option<Mesh>,
    applications: Vec<ChildProcess>,
    hosts: BTreeMap<&'static str, Host>,
    pub(super) lab: Lab,
    binaries: PathBuf,
    hosts_file: String,
    /// The random string that applications put into what they say to each other.
    pub(super) marker: String,
}

impl World {
    /// The machine, without any process on it.
    pub(super) fn build(entered: &Entered) -> Result<Self, Failure> {
        let cannot = |error: LabError| {
            Failure::new(Exit::KernelCannot, "this kernel can't make the demo's network")
                .expected("network namespaces, veth pairs, a bridge, IPv4 and IPv6")
                .found(load::sources(&error))
                .next("look for missing kernel modules (bridge, veth, ipv6), or run with root")
        };
        let lab = Lab::new(entered, "demo").map_err(cannot)?;
        let mut hosts = BTreeMap::new();
        for pod in PODS {
            hosts.insert(pod.name, lab.pod(pod.name, &pod.addresses(), &[]).map_err(cannot)?);
        }
        for outside in [CLIENT, PARTNER, FORBIDDEN] {
            hosts.insert(outside.name, lab.external(outside.name, &outside.addresses()).map_err(cannot)?);
        }
        let broken = |error: std::io::Error| Failure::new(Exit::Refused, "cannot find this program").found(error);
        let exe = std::env::current_exe().map_err(broken)?;
        let world = Self {
            mesh: None,
            applications: Vec::new(),
            hosts,
            lab,
            binaries: exe.parent().map(PathBuf::from).unwrap_or_default(),
            hosts_file: topology::hosts_file(),
            marker: random_marker()?,
        };
        // Now, and not in the middle of the story.
        for name in ["byrnie", "byrnie-proxy", "byrnie-control-plane"] {
            world.binary(name)?;
        }
        Ok(world)
    }

    /// A host by its name.
    pub(super) fn host(&self, name: &str) -> Result<&Host, Failure> {
        self.hosts.get(name).ok_or_else(|| Failure::new(Exit::Refused, format!("the demo has no host {name}")))
    }

    /// A pod's host.
    pub(super) fn pod(&self, pod: Pod) -> Result<&Host, Failure> {
        self.host(pod.name)
    }

    /// All hosts, by name.
    pub(super) fn hosts(&self) -> impl Iterator<Item = (&'static str, &Host)> {
        self.hosts.iter().map(|(name, host)| (*name, host))
    }

    /// One of the mesh's binaries, from the directory that this one is in.
    pub(super) fn binary(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.binaries.join(name);
        if path.exists() {
            return Ok(path);
        }
        Err(Failure::new(Exit::Refused, format!("{name} is missing"))
            .expected(format!("it beside this program: {}", path.display()))
            .found("no such file")
            .next("cargo build --release   (which makes all three)"))
    }

    /// A command in a pod, with the names that the cluster's DNS would give it.
    pub(super) fn command(&self, host: &Host, program: PathBuf, run_as: RunAs) -> HostCommand {
        host.command(program).user(run_as).hosts(self.hosts_file.clone())
    }

    /// Starts the applications; returns when all of them listen.
    pub(super) async fn start_applications(&mut self, dir: &MeshDir) -> Result<(), Failure> {
        std::fs::write(dir.join("hosts"), &self.hosts_file).map_err(|error| dir.failed("write", &error))?;
        self.write_ingress_config(dir, false)?;
        let program = self.binary("byrnie")?;
        let config = dir.join("ingress/config.json").into_os_string();
        let mut plan = vec![
            (INGRESS.name, vec!["ingress".into(), "--config".into(), config]),
            (PARTNER.name, self.outside_args(PARTNER)),
            (FORBIDDEN.name, self.outside_args(FORBIDDEN)),
        ];
        let calls = [(WEB, Some(ORDERS)), (ORDERS, Some(STOCK)), (STOCK, None)];
        plan.extend(calls.map(|(pod, upstream)| (pod.name, self.service_args(pod, upstream))));
        for (name, args) in plan {
            let run_as = RunAs::Application { uid: APPLICATION_UID };
            let command = self.command(self.host(name)?, program.clone(), run_as).arg("app").args(args);
            let log = dir.join("logs").join(format!("{}.log", name.replace('/', "-")));
            self.applications.push(ChildProcess::start(name, command, log)?);
        }
        until("starting the applications", START, async || {
            self.check()?;
            let listening =
                |child: &ChildProcess| std::fs::read_to_string(child.log()).is_ok_and(|log| log.contains("listening"));
            Ok(self.applications.iter().all(listening).then_some(()))
        })
        .await
    }

    /// That everything still runs.
    pub(super) fn check(&mut self) -> Result<(), Failure> {
        self.applications.iter_mut().try_for_each(ChildProcess::check)?;
        self.mesh.as_mut().map_or(Ok(()), Mesh::check)
    }

    /// What an application logged.
    pub(super) fn application_log(&self, pod: Pod, dir: &MeshDir) -> String {
        let path = dir.join("logs").join(format!("{}.log", pod.file_name()));
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// Tells the ingress how to call the web: in plaintext, or with the certificate in its directory.
    pub(super) fn write_ingress_config(&self, dir: &MeshDir, with_tls: bool) -> Result<(), Failure> {
        let at = dir.join("ingress");
        let tls = with_tls.then(|| IngressTls {
            certificate: at.join("tls.crt"),
            key: at.join("tls.key"),
            ca: at.join("ca.crt"),
            server_name: WEB.certificate_name(),
        });
        let listen = INGRESS.addresses().map(|address| (address, PORT).into()).into();
        let config = IngressConfig { listen, upstream: format!("http://{}:{PORT}", WEB.dns()), tls };
        let text = serde_json::to_vec_pretty(&config).map_err(|error| dir.failed("write", &error))?;
        std::fs::create_dir_all(&at)
            .and_then(|()| std::fs::write(at.join("config.new"), text))
            .and_then(|()| std::fs::rename(at.join("config.new"), at.join("config.json")))
            .map_err(|error| dir.failed("write", &error))?;
        self.own(&at, APPLICATION_UID)
    }

    /// Gives a directory and the files in it to a UID, where there is more than one.
    pub(super) fn own(&self, dir: &std::path::Path, uid: u32) -> Result<(), Failure> {
        if self.lab.privileges() == byrnie_netlab::Privileges::SingleUid {
            return Ok(());
        }
        let give = |path: &std::path::Path| {
            nix::unistd::chown(path, Some(uid.into()), Some(uid.into())).map_err(std::io::Error::from)
        };
        let all = || {
            give(dir)?;
            std::fs::read_dir(dir)?.try_for_each(|entry| give(&entry?.path()))
        };
        all().map_err(|error| Failure::new(Exit::Refused, format!("cannot give away {}", dir.display())).found(error))
    }

    fn service_args(&self, pod: Pod, upstream: Option<Pod>) -> Vec<std::ffi::OsString> {
        let mut args = vec!["http".to_owned(), "--name".into(), pod.name.into()];
        args.extend(["--header".into(), format!("x-demo-marker: {}", self.marker)]);
        for address in pod.addresses() {
            args.extend(["--listen".into(), std::net::SocketAddr::new(address, PORT).to_string()]);
        }
        match upstream {
            Some(upstream) => args.extend(["--upstream".into(), format!("http://{}:{PORT}/", upstream.dns())]),
            None => args.extend(["--partner".into(), format!("http://{}:{PORT}/", PARTNER.name)]),
        }
        args.into_iter().map(Into::into).collect()
    }

    fn outside_args(&self, outside: Outside) -> Vec<std::ffi::OsString> {
        let mut args = vec!["external".to_owned()];
        for address in outside.addresses() {
            args.extend(["--listen".into(), std::net::SocketAddr::new(address, PORT).to_string()]);
        }
        args.into_iter().map(Into::into).collect()
    }
}

/// 128 random bits that no packet holds by chance.
fn random_marker() -> Result<String, Failure> {
    let failed = |error: std::io::Error| Failure::new(Exit::Refused, "cannot read random bytes").found(error);
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes))
        .map_err(failed)?;
    Ok(format!("byrnie-{:032x}", u128::from_be_bytes(bytes)))
}
