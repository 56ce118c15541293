//! One network namespace, kept by an open file and entered by threads.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace. It lives as long as this handle, a process or a
/// socket in it.
#[derive(Debug)]
pub struct NetNs {
    file: File,
}

impl NetNs {
    /// A new, empty namespace with loopback up.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new() -> io::Result<Self> {
        let file = on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            quiet();
            crate::links::loopback_up().map_err(io::Error::other)?;
            File::open("/proc/thread-self/ns/net")
        })??;
        Ok(Self { file })
    }

    /// Runs `work` on a thread inside the namespace and waits for it. What
    /// `work` opens (sockets) stays in the namespace, wherever it is used.
    ///
    /// # Errors
    /// When the thread cannot be made or may not enter.
    ///
    /// # Panics
    /// With the panic of `work`.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_a_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })?
    }

    /// Like [`NetNs::run`], for async work, on a runtime of its own.
    ///
    /// # Errors
    /// As [`NetNs::run`].
    pub(crate) fn block_on<T, F>(&self, work: impl FnOnce() -> F + Send) -> io::Result<T>
    where
        T: Send,
        F: Future<Output = T>,
    {
        self.run(|| Ok(runtime()?.block_on(work())))?
    }

    /// The number of the open file, for `/proc/PID/fd/`.
    pub(crate) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

pub(crate) fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Runs `work` on a thread that is thrown away, because its namespaces are
/// not the process's any more afterwards.
pub(crate) fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("netlab".into()).spawn_scoped(scope, work)?;
        worker.join().map_or_else(|panic| std::panic::resume_unwind(panic), Ok)
    })
}

/// Makes IPv6 ready at once and silent: without duplicate address detection
/// an address is usable when it is set, and nothing but what the tests send
/// should be on the wire. Where `/proc/sys` is read-only, addresses are set
/// without detection anyway and the noise stays.
fn quiet() {
    for scope in ["all", "default"] {
        for (name, value) in [("accept_dad", "0"), ("accept_ra", "0"), ("router_solicitations", "0")] {
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/{name}"), value);
        }
    }
}
