//! Where a contestant stands: two pods, the same redirect rules in both, nginx and iperf3 in one of them, and a cable
//! straight from one to the other.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use byrnie_netlab::{Host, Lab, RunAs};
use nix::unistd::{Gid, Uid, chown};

use crate::contestants::{Contestant, End, Mesh, Pair, Running, capture, proxys_directory};
use crate::failure::{Failure, Result, doing};
use crate::http;
use crate::process::listens;
use crate::tools::Tool;

const NGINX: &str = include_str!("../configs/nginx.conf");

/// Where iperf3 answers.
pub(crate) const IPERF_PORT: u16 = 5201;

/// UID of applications.
const APPLICATION_UID: u32 = 1000;

/// The place of one contestant.
#[derive(Debug)]
pub(crate) struct Site {
    contestant: Contestant,
    client: Host,
    server: Host,
    directory: PathBuf,
    generation: u32,
    nginx: Running,
    iperf: Option<Running>,
    pair: Option<Pair>,
}

impl Site {
    /// Makes it, with everything but proxies. `number` tells its pods from those of other sites.
    pub(crate) fn new(contestant: Contestant, lab: &Lab, directory: &Path, number: u8) -> Result<Self> {
        let directory = directory.join(contestant.name());
        let pod = |end: &str, number: u8| {
            let host = lab.pod(&workload(contestant, end), &lab.networks().pod(number), &[]);
            host.map_err(Failure::new)
        };
        let (client, server) = (pod("client", number)?, pod("server", number + 1)?);
        for host in [&client, &server] {
            tune(host)?;
            if contestant.has_proxies() {
                capture(host)?;
            }
        }
        let nginx = start_nginx(&server, &directory.join("nginx"))?;
        let iperf =
            Tool::Iperf3.find().ok().map(|iperf| start_iperf(&server, iperf, &directory.join("iperf"))).transpose()?;
        Ok(Self { contestant, client, server, directory, generation: 0, nginx, iperf, pair: None })
    }

    /// Who stands here.
    pub(crate) fn contestant(&self) -> Contestant {
        self.contestant
    }

    /// Where the load comes from.
    pub(crate) fn client(&self) -> &Host {
        &self.client
    }

    /// The addresses of both pods.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.client.addresses().iter().chain(self.server.addresses()).copied()
    }

    /// Where the load goes.
    pub(crate) fn at(&self, port: u16) -> Result<SocketAddr> {
        let address = self.server.ipv4().ok_or_else(|| Failure::new("the server has no address"))?;
        Ok(SocketAddr::new(address.into(), port))
    }

    /// Ends the proxies and starts fresh ones, which have never seen a connection.
    pub(crate) fn restart(&mut self, mesh: Option<&Mesh>) -> Result<()> {
        self.pair = None;
        let last = self.directory.join(format!("pair-{}", self.generation));
        if last.exists() {
            fs::remove_dir_all(&last).map_err(doing(last.display()))?;
        }
        self.generation += 1;
        let directory = self.directory.join(format!("pair-{}", self.generation));
        fs::create_dir_all(&directory).map_err(doing(directory.display()))?;
        let end = |host: &Host, name: &str| {
            let end =
                End { host: host.clone(), name: workload(self.contestant, name), directory: directory.join(name) };
            proxys_directory(&end.directory).map(|()| end)
        };
        let ends = [end(&self.client, "client")?, end(&self.server, "server")?];
        self.pair = Pair::start(self.contestant, mesh, &ends)?;
        Ok(())
    }

    /// The processes of the proxies; none where there are none.
    pub(crate) fn proxies(&self) -> Vec<u32> {
        self.pair.as_ref().map(|pair| pair.ids().to_vec()).unwrap_or_default()
    }

    /// That everything still runs.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.nginx.check()?;
        if let Some(iperf) = &mut self.iperf {
            iperf.check()?;
        }
        self.pair.as_mut().map_or(Ok(()), Pair::check)
    }

    /// Joins the pods by a cable of their own, past the lab's bridge.
    pub(crate) fn lay_cable(&self, lab: &Lab) -> Result<()> {
        lab.cable(&self.client, &self.server).map_err(Failure::new)
    }
}

/// The name of an end as a workload of the mesh.
pub(crate) fn workload(contestant: Contestant, end: &str) -> String {
    format!("{}-{end}", contestant.name())
}

/// Room for many short connections: source ports, and connection tracking that forgets what was closed.
fn tune(host: &Host) -> Result<()> {
    let settings = [
        ("net/ipv4/ip_local_port_range", "20000 65535"),
        ("net/ipv4/tcp_tw_reuse", "1"),
        ("net/core/somaxconn", "4096"),
        ("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "5"),
    ];
    let set = || {
        settings.into_iter().try_for_each(|(name, value)| {
            let path = format!("/proc/sys/{name}");
            fs::write(&path, value).map_err(doing(path))
        })
    };
    host.run(set).map_err(doing("entering a pod"))?
}

fn start_nginx(host: &Host, directory: &Path) -> Result<Running> {
    application_directory(directory)?;
    let configuration = directory.join("nginx.conf");
    fs::write(&configuration, NGINX).map_err(doing(configuration.display()))?;
    let command = host
        .command(Tool::Nginx.find()?)
        .user(RunAs::Application { uid: APPLICATION_UID })
        .arg("-p")
        .arg(directory)
        .args(["-c", "nginx.conf", "-e", "stderr"]);
    let mut nginx = Running::start("nginx", command, directory)?;
    nginx.until("listening", |id| listens(id, http::PORT) && listens(id, http::H2C_PORT))?;
    Ok(nginx)
}

fn start_iperf(host: &Host, iperf: PathBuf, directory: &Path) -> Result<Running> {
    application_directory(directory)?;
    let command = host.command(iperf).user(RunAs::Application { uid: APPLICATION_UID }).args([
        "--server",
        "--port",
        &IPERF_PORT.to_string(),
    ]);
    let mut iperf = Running::start("iperf3", command, directory)?;
    iperf.until("listening", |id| listens(id, IPERF_PORT))?;
    Ok(iperf)
}

fn application_directory(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).map_err(doing(directory.display()))?;
    let (user, group) = (Uid::from_raw(APPLICATION_UID), Gid::from_raw(APPLICATION_UID));
    chown(directory, Some(user), Some(group)).map_err(doing(directory.display()))
}
