//! Where a contestant stands: two pods, the same redirect rules in both, nginx and iperf3 in one of them, and a cable
//! straight from one to the other.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use byrnie_netlab::{Host, Lab, RunAs};
use nix::unistd::{Gid, Uid, chown};

use crate::contestants::{Contestant, End, Mesh, Proxies, Running, capture, proxys_directory};
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
    /// For the one load that is spread.
    other_clients: Vec<Host>,
    directory: PathBuf,
    generation: u32,
    nginx: Running,
    iperf: Option<Running>,
    /// The client's, the server's, and then those of the other clients, if they have any.
    proxies: Option<Proxies>,
}

/// The pods of a site. 9,000 idle connections are spread over three clients, because Byrnie lets no identity have more than
/// 4,096 tunnels to a pod.
pub(crate) const PODS: [&str; 4] = ["client", "server", "client-2", "client-3"];

/// Which clients have proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clients {
    /// The one that the other loads come from.
    One,
    /// All of [`PODS`].
    All,
}

impl Site {
    /// Makes it, with everything but proxies. `number` tells its pods from those of other sites.
    pub(crate) fn new(
        contestant: Contestant,
        lab: &Lab,
        directory: &Path,
        number: u8,
        congestion_control: &str,
    ) -> Result<Self> {
        let directory = directory.join(contestant.name());
        let mut hosts = Vec::new();
        let ends = if contestant.has_proxies() { &PODS[..] } else { &PODS[..2] };
        for (end, number) in ends.iter().zip(number..) {
            let host = lab.pod(&workload(contestant, end), &lab.networks().pod(number), &[]).map_err(Failure::new)?;
            hosts.push(host);
        }
        for host in &hosts {
            tune(host, congestion_control)?;
            if contestant.has_proxies() {
                capture(host)?;
            }
        }
        let other_clients = hosts.split_off(2);
        let [client, server] = hosts.try_into().map_err(|_| Failure::new("a site has a client and a server"))?;
        let nginx = start_nginx(&server, &directory.join("nginx"))?;
        let iperf =
            Tool::Iperf3.find().ok().map(|iperf| start_iperf(&server, iperf, &directory.join("iperf"))).transpose()?;
        Ok(Self { contestant, client, server, other_clients, directory, generation: 0, nginx, iperf, proxies: None })
    }

    /// Who stands here.
    pub(crate) fn contestant(&self) -> Contestant {
        self.contestant
    }

    /// Where the load comes from.
    pub(crate) fn client(&self) -> &Host {
        &self.client
    }

    /// All clients, for the load that is spread.
    pub(crate) fn clients(&self) -> Vec<Host> {
        std::iter::once(&self.client).chain(&self.other_clients).cloned().collect()
    }

    /// The client and the server.
    pub(crate) fn both(&self) -> [&Host; 2] {
        [&self.client, &self.server]
    }

    /// The addresses of the client and the server.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.client.addresses().iter().chain(self.server.addresses()).copied()
    }

    /// Where the load goes.
    pub(crate) fn at(&self, port: u16) -> Result<SocketAddr> {
        let address = self.server.ipv4().ok_or_else(|| Failure::new("the server has no address"))?;
        Ok(SocketAddr::new(address.into(), port))
    }

    /// Ends the proxies and starts fresh ones, which have never seen a connection.
    pub(crate) fn restart(&mut self, mesh: Option<&Mesh>, clients: Clients) -> Result<()> {
        self.proxies = None;
        let last = self.directory.join(format!("proxies-{}", self.generation));
        if last.exists() {
            fs::remove_dir_all(&last).map_err(doing(last.display()))?;
        }
        self.generation += 1;
        if !self.contestant.has_proxies() {
            return Ok(());
        }
        let directory = self.directory.join(format!("proxies-{}", self.generation));
        fs::create_dir_all(&directory).map_err(doing(directory.display()))?;
        let end = |host: &Host, name: &str| {
            let end =
                End { host: host.clone(), name: workload(self.contestant, name), directory: directory.join(name) };
            proxys_directory(&end.directory).map(|()| end)
        };
        let others: &[Host] = if clients == Clients::All { &self.other_clients } else { &[] };
        let hosts = [&self.client, &self.server].into_iter().chain(others);
        let ends = hosts.zip(PODS).map(|(host, name)| end(host, name)).collect::<Result<Vec<_>>>()?;
        self.proxies = Some(Proxies::start(self.contestant, mesh, &ends)?);
        Ok(())
    }

    /// The processes of the proxies; none where there are none.
    pub(crate) fn proxies(&self) -> Vec<u32> {
        self.proxies.as_ref().map(Proxies::ids).unwrap_or_default()
    }

    /// The process of the server's proxy.
    pub(crate) fn server_proxy(&self) -> Result<u32> {
        self.proxies().get(1).copied().ok_or_else(|| Failure::new("there is no proxy"))
    }

    /// That everything still runs.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.nginx.check()?;
        if let Some(iperf) = &mut self.iperf {
            iperf.check()?;
        }
        self.proxies.as_mut().map_or(Ok(()), Proxies::check)
    }

    /// Joins the client and the server by a cable of their own, past the lab's bridge.
    pub(crate) fn lay_cable(&self, lab: &Lab) -> Result<()> {
        lab.cable(&self.client, &self.server).map_err(Failure::new)
    }
}

/// The name of an end as a workload of the mesh.
pub(crate) fn workload(contestant: Contestant, end: &str) -> String {
    format!("{}-{end}", contestant.name())
}

/// Room for many short connections: source ports, and connection tracking that forgets what was closed. And the
/// congestion control, because a machine's own may be one that paces: over a cable of no length that is all one measures.
fn tune(host: &Host, congestion_control: &str) -> Result<()> {
    let settings = [
        ("net/ipv4/tcp_congestion_control", congestion_control),
        ("net/ipv4/ip_local_port_range", "20000 65535"),
        ("net/ipv4/tcp_tw_reuse", "1"),
        ("net/core/somaxconn", "4096"),
        ("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "5"),
    ];
    let set = || {
        settings.into_iter().try_for_each(|(name, value)| {
            let path = format!("/proc/sys/{name}");
            fs::write(&path, value).map_err(doing(format_args!("writing {value:?} to {path}")))
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
