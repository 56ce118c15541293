//! A pod, a router, an external host: anything with a network namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::namespace::NetNs;
use crate::{Entered, Entrance, HostCommand, Privileges};

/// A host of a lab. Clones are the same host.
#[derive(Debug, Clone)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    addresses: Vec<IpAddr>,
    namespace: Arc<NetNs>,
    entered: Entered,
}

impl Host {
    pub(crate) fn new(name: &str, addresses: &[IpAddr], entered: &Entered) -> io::Result<Self> {
        Ok(Self(Arc::new(Inner {
            name: name.to_owned(),
            addresses: addresses.to_owned(),
            namespace: Arc::new(NetNs::new()?),
            entered: *entered,
        })))
    }

    /// Its name in the lab.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its addresses, as given.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.0.addresses
    }

    /// Its first IPv4 address.
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        self.addresses().iter().find_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        })
    }

    /// Its first IPv6 address.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.addresses().iter().find_map(|address| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => Some(*v6),
        })
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &NetNs {
        &self.0.namespace
    }

    pub(crate) fn shared_namespace(&self) -> &Arc<NetNs> {
        &self.0.namespace
    }

    pub(crate) fn privileges(&self) -> Privileges {
        self.0.entered.privileges()
    }

    /// Runs `work` on a thread inside the host's network namespace and waits
    /// for it. Sockets that `work` opens stay there, wherever they are used.
    ///
    /// # Errors
    /// When the thread cannot be made or may not enter.
    ///
    /// # Panics
    /// With the panic of `work`.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        self.namespace().run(work)
    }

    /// Connects from this host.
    ///
    /// # Errors
    /// As [`TcpStream::connect_timeout`].
    pub fn connect(&self, to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        self.run(|| TcpStream::connect_timeout(&to, timeout))?
    }

    /// Connects from this host without blocking the caller.
    ///
    /// # Errors
    /// As [`tokio::net::TcpSocket::connect`].
    pub async fn connect_async(&self, to: SocketAddr) -> io::Result<tokio::net::TcpStream> {
        connect(self.socket(to)?, to).await
    }

    /// Connects `count` times, one after the other; the namespace is entered
    /// once, which is what takes longest.
    ///
    /// # Errors
    /// As [`Host::connect_async`], of the first that fails.
    pub async fn connect_many(&self, to: SocketAddr, count: usize) -> io::Result<Vec<tokio::net::TcpStream>> {
        let sockets = self.run(|| (0..count).map(|_| tcp_socket(to)).collect::<io::Result<Vec<_>>>())??;
        let mut streams = Vec::with_capacity(count);
        for socket in sockets {
            streams.push(connect(socket, to).await?);
        }
        Ok(streams)
    }

    /// Listens on this host.
    ///
    /// # Errors
    /// As [`TcpListener::bind`].
    pub fn listen(&self, at: SocketAddr) -> io::Result<TcpListener> {
        self.run(|| TcpListener::bind(at))?
    }

    /// A TCP socket of this host, not yet connected or bound, of the address
    /// family of `like`. For options such as a mark that go before `connect`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn socket(&self, like: SocketAddr) -> io::Result<Socket> {
        self.run(|| tcp_socket(like))?
    }

    /// A program to be run on this host.
    pub fn command(&self, program: impl Into<std::ffi::OsString>) -> HostCommand {
        HostCommand::new(self.clone(), program.into())
    }

    /// The way into this host from outside the lab, for as long as the lab
    /// lives; `None` when `/proc` did not tell this process's outer ID.
    pub fn entrance(&self) -> Option<Entrance> {
        Some(Entrance {
            pid: self.0.entered.host_pid()?,
            network: self.namespace().raw_fd(),
            user: self.privileges() == Privileges::SingleUid,
        })
    }

    /// The command line that enters this host's network namespace from
    /// outside, as long as the lab lives: to be printed when a test fails.
    pub fn enter_hint(&self) -> String {
        let (pid, fd) = (self.0.entered.host_pid(), self.namespace().raw_fd());
        let pid = pid.unwrap_or_else(std::process::id);
        match self.privileges() {
            Privileges::Root => format!("nsenter --net=/proc/{pid}/fd/{fd}"),
            Privileges::SingleUid => format!(
                "nsenter --user=/proc/{pid}/ns/user --preserve-credentials \
                 --net=/proc/{pid}/fd/{fd}"
            ),
        }
    }
}

fn tcp_socket(like: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(like), Type::STREAM, Some(Protocol::TCP))
}

async fn connect(socket: Socket, to: SocketAddr) -> io::Result<tokio::net::TcpStream> {
    socket.set_nonblocking(true)?;
    tokio::net::TcpSocket::from_std_stream(socket.into()).connect(to).await
}
