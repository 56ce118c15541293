//! A pod: its namespace, its applications, and its proxy where it has one.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use byrnie_netlab::Host;
use byrnie_redirect::{Capture, CaptureConfig, NfTables};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::logs::{AccessLine, Log};
use crate::mesh::Mesh;
use crate::proxy::{Proxy, ProxyOptions};
use crate::{DEADLINE, Ending, ending, eventually, http, marker, talk, within};

/// How a pod is made.
#[derive(Debug)]
pub struct PodBuilder<'a> {
    pub(crate) mesh: &'a Mesh,
    pub(crate) place: String,
    pub(crate) app: String,
    pub(crate) service_account: String,
    pub(crate) annotations: Vec<(String, String)>,
    pub(crate) meshed: bool,
    pub(crate) captured: bool,
    pub(crate) proxy: ProxyOptions,
}

impl PodBuilder<'_> {
    /// Its service account; its name, unless told.
    #[must_use]
    pub fn service_account(mut self, name: &str) -> Self {
        name.clone_into(&mut self.service_account);
        self
    }

    /// Its `app` label; its name, unless told.
    #[must_use]
    pub fn app(mut self, app: &str) -> Self {
        app.clone_into(&mut self.app);
        self
    }

    /// An annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Without a proxy and without capture.
    #[must_use]
    pub fn unmeshed(mut self) -> Self {
        (self.meshed, self.captured) = (false, false);
        self
    }

    /// Without capture.
    #[must_use]
    pub fn uncaptured(mut self) -> Self {
        self.captured = false;
        self
    }

    /// How its proxy is started.
    #[must_use]
    pub fn proxy(mut self, options: ProxyOptions) -> Self {
        self.proxy = options;
        self
    }

    /// The limit of open files of its proxy.
    #[must_use]
    pub fn files(mut self, files: u32) -> Self {
        self.proxy.files = Some(files);
        self
    }

    /// Threads of its proxy.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.proxy.workers = workers;
        self
    }

    /// Makes the pod and starts its proxy.
    pub async fn launch(self) -> Pod {
        self.mesh.launch(self).await
    }

    /// Makes the pod, starts its proxy and waits until it is ready.
    pub async fn start(self) -> Pod {
        let pod = self.launch().await;
        if pod.0.proxy.is_some() {
            pod.ready().await;
        }
        pod
    }
}

/// A pod. Clones are the same pod.
#[derive(Debug, Clone)]
pub struct Pod(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) place: String,
    pub(crate) uid: String,
    pub(crate) service_account: String,
    pub(crate) app: String,
    pub(crate) host: Host,
    pub(crate) proxy: Option<Proxy>,
}

impl Pod {
    /// `namespace/name`.
    pub fn name(&self) -> &str {
        &self.0.place
    }

    /// Its UID in the source.
    pub fn uid(&self) -> &str {
        &self.0.uid
    }

    /// The host it is.
    pub fn host(&self) -> &Host {
        &self.0.host
    }

    /// Its IPv4 address with a port.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.0.host.ipv4().expect("an IPv4 address").into(), port)
    }

    /// Its IPv6 address with a port.
    pub fn at6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.0.host.ipv6().expect("an IPv6 address").into(), port)
    }

    /// Whether an address is this pod's.
    pub fn owns(&self, address: IpAddr) -> bool {
        self.0.host.addresses().contains(&address)
    }

    /// The SPIFFE ID that it should have.
    pub fn spiffe_id(&self) -> String {
        let (namespace, _) = crate::namespace_of(&self.0.place);
        format!("spiffe://cluster.local/ns/{namespace}/sa/{}", self.0.service_account)
    }

    // ---- As an application

    /// Listens on a port, both families, and gives every connection to `handler`.
    ///
    /// # Panics
    /// When the port is taken.
    pub fn serve<H, F>(&self, port: u16, handler: H) -> App
    where
        H: Fn(TcpStream) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = self.0.host.listen(SocketAddr::new([0_u16; 8].into(), port)).expect("a free port");
        listener.set_nonblocking(true).expect("a listener without blocking");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener in the runtime");
        let accepted = Arc::new(AtomicUsize::new(0));
        let (counter, retiring) = (Arc::clone(&accepted), Arc::new(Notify::new()));
        let retired = Arc::clone(&retiring);
        let task = tokio::spawn(async move {
            let mut served = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    () = retired.notified() => break,
                    connection = listener.accept() => {
                        let Ok((stream, _)) = connection else { continue };
                        counter.fetch_add(1, Ordering::Relaxed);
                        let _ = stream.set_nodelay(true);
                        served.spawn(handler(stream));
                    }
                    Some(_) = served.join_next() => {}
                }
            }
            drain_queue(listener, &counter, &handler, &mut served);
            while served.join_next().await.is_some() {}
        });
        App { task, accepted, retiring }
    }

    /// Connects as an application of the pod does.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let stream = within("connect", DEADLINE / 5, self.0.host.connect_async(to)).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Connects `count` times as an application of the pod does; quicker than one by one.
    ///
    /// # Errors
    /// The kernel's, of the first that fails.
    pub async fn connect_many(&self, to: SocketAddr, count: usize) -> io::Result<Vec<TcpStream>> {
        within("connect", DEADLINE, self.0.host.connect_many(to, count)).await
    }

    /// Connects to an echo, says a random text, hears it back, and both end.
    ///
    /// # Errors
    /// Whatever kept it from that.
    pub async fn call(&self, to: SocketAddr) -> io::Result<()> {
        let mut stream = self.connect(to).await?;
        let words = marker();
        let heard = talk::exchange(&mut stream, words.as_bytes()).await?;
        let rest = talk::finish(&mut stream).await?;
        if heard != words.as_bytes() || !rest.is_empty() {
            return Err(io::Error::other(format!("said {words:?}, heard {heard:?} and then {rest:?}")));
        }
        Ok(())
    }

    /// Connects, says something, and expects to be reset without hearing a byte.
    ///
    /// # Panics
    /// When it is not.
    pub async fn is_refused(&self, to: SocketAddr) {
        let mut stream = match self.connect(to).await {
            Ok(stream) => stream,
            // The kernel's own, where there is no proxy, and a proxy's that was quicker than this line.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset) => {
                return;
            }
            Err(error) => panic!("{} to {to}: expected a reset, found {error}", self.name()),
        };
        // The kernel tells of a reset once: where it comes before these words, here.
        if tokio::io::AsyncWriteExt::write_all(&mut stream, b"hello?").await.is_err() {
            return;
        }
        let end = within("the refusal", DEADLINE / 5, ending(&mut stream)).await;
        assert_eq!(end, Ending::Reset, "{} to {to}", self.name());
    }

    // ---- As its proxy

    /// Waits until the proxy says that it is ready.
    pub async fn ready(&self) {
        let what = format!("the proxy of {} is ready", self.name());
        eventually(&what, DEADLINE / 5, async || {
            assert!(self.proxy().is_running(), "the proxy of {} has ended:\n{}", self.name(), self.proxy().log.text());
            matches!(self.health().await, Ok((200, _))).then_some(())
        })
        .await;
    }

    /// Status code and text of the readiness check.
    ///
    /// # Errors
    /// When the proxy does not answer.
    pub async fn health(&self) -> io::Result<(u16, String)> {
        self.get(15021, "/healthz/ready").await
    }

    /// What the proxy says at `path` of one of its own ports.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn get(&self, port: u16, path: &str) -> io::Result<(u16, String)> {
        let stream = self.0.host.connect_async(SocketAddr::new([127, 0, 0, 1].into(), port)).await?;
        http::request(stream, "GET", path).await
    }

    /// The proxy's `/status`.
    pub async fn status(&self) -> Value {
        let (_, text) = self.get(15000, "/status").await.expect("the proxy's status");
        serde_json::from_str(&text).expect("JSON")
    }

    /// The sum of the proxy's metric `name` over all lines that have all of `labels`.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let (_, text) = self.get(15010, "/metrics").await.expect("the proxy's metrics");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let ours = lines.filter(|line| line.split(['{', ' ']).next() == Some(name));
        let chosen = ours.filter(|line| labels.iter().all(|label| line.contains(label)));
        chosen.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// How often each of `needles` is in the proxy's memory that is no file's: its heap, its stacks, all of its buffers.
    ///
    /// # Panics
    /// When it does not run, or its memory can't be read.
    pub fn found_in_memory<const N: usize>(&self, needles: [&[u8]; N]) -> [usize; N] {
        let id = self.proxy_id();
        let maps = std::fs::read_to_string(format!("/proc/{id}/maps")).expect("the maps of a process");
        let memory = std::fs::File::open(format!("/proc/{id}/mem")).expect("the memory of a process");
        let mut found = [0; N];
        for line in maps.lines() {
            // "5581a000-5581b000 rw-p 00000000 00:00 0    [heap]"
            let mut words = line.split_whitespace();
            let (range, rights, inode) = (words.next(), words.next(), words.nth(2));
            if rights != Some("rw-p") || inode != Some("0") {
                continue;
            }
            let (begin, end) = range.and_then(|range| range.split_once('-')).expect("a range of addresses");
            let [begin, end] = [begin, end].map(|at| u64::from_str_radix(at, 16).expect("an address"));
            let mut region = vec![0; usize::try_from(end - begin).expect("a length")];
            // It may be given back meanwhile.
            if memory.read_exact_at(&mut region, begin).is_ok() {
                for (found, needle) in found.iter_mut().zip(needles) {
                    *found += memchr::memmem::find_iter(&region, needle).count();
                }
            }
        }
        found
    }

    /// The process of the proxy.
    ///
    /// # Panics
    /// When it does not run.
    pub fn proxy_id(&self) -> u32 {
        self.proxy().id().expect("a running proxy")
    }

    /// Memory that the proxy holds now (`VmRSS`), in KiB.
    ///
    /// # Panics
    /// When it does not run.
    pub fn memory(&self) -> u64 {
        let id = self.proxy_id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("the status of a process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
    }

    /// Asks the proxy for a new certificate and waits until it has one.
    pub async fn renew(&self) {
        let (code, text) = self.admin("/renew").await;
        assert_eq!(code, 200, "renewing {}: {text}", self.name());
    }

    /// Posts to the proxy's administration socket.
    pub async fn admin(&self, path: &str) -> (u16, String) {
        let stream = UnixStream::connect(self.proxy().admin_socket()).await.expect("the administration socket");
        http::request(stream, "POST", path).await.expect("an answer")
    }

    /// The proxy's access log.
    pub fn access_log(&self) -> &Log {
        &self.proxy().access_log
    }

    /// The proxy's own log.
    pub fn log(&self) -> &Log {
        &self.proxy().log
    }

    /// Waits for a line of the access log.
    pub async fn logged(&self, what: &str, wanted: impl Fn(&AccessLine) -> bool) -> AccessLine {
        let what = format!("a line about {what} in the access log of {}", self.name());
        let bound = Duration::from_secs(1);
        eventually(&what, bound, async || self.access_log().lines().into_iter().find(&wanted)).await
    }

    /// Waits for a refusal with this cause in the access log.
    pub async fn refused(&self, cause: &str) -> AccessLine {
        self.logged(&format!("a refusal because of {cause}"), |line| line.text("refusal.cause") == cause).await
    }

    /// Waits for a line of the proxy's own log that contains `text`.
    pub async fn says(&self, text: &str) {
        let what = format!("{text:?} in the log of the proxy of {}", self.name());
        eventually(&what, DEADLINE / 5, async || self.log().text().contains(text).then_some(())).await;
    }

    /// Kills the proxy (`kill -9`).
    pub fn kill_proxy(&self) {
        self.proxy().kill();
    }

    /// Sends the proxy a signal.
    pub fn signal_proxy(&self, signal: Signal) {
        self.proxy().signal(signal).expect("a running proxy");
    }

    /// Waits for the proxy's end: its exit code, or 128 + signal.
    pub async fn proxy_ended(&self) -> i32 {
        within("the proxy's end", DEADLINE, self.proxy().ended()).await
    }

    /// Starts the proxy, again or for the first time, with what it has on disk.
    pub fn start_proxy(&self) {
        self.proxy().start(&self.0.host);
    }

    /// Puts another text into the proxy's token file.
    pub fn give_token(&self, token: &str) {
        self.proxy().write_token(token);
    }

    /// Puts capture in place.
    pub fn capture(&self) {
        let exempt = self.proxy().exempt().parse().expect("a way to tell proxies");
        let applied = self.0.host.run(|| NfTables.apply(&CaptureConfig::new(exempt)));
        applied.expect("a thread in the pod").expect("capture");
    }

    /// Takes capture away, as somebody with too much power might.
    pub fn flush_capture(&self) {
        self.0.host.run(|| NfTables.remove()).expect("a thread in the pod").expect("no capture");
    }

    pub(crate) fn proxy(&self) -> &Proxy {
        self.0.proxy.as_ref().unwrap_or_else(|| panic!("{} has no proxy", self.name()))
    }
}

/// Takes what the kernel has accepted already: to close the port first would reset it.
fn drain_queue<H, F>(
    listener: tokio::net::TcpListener,
    accepted: &AtomicUsize,
    handler: &H,
    served: &mut tokio::task::JoinSet<()>,
) where
    H: Fn(TcpStream) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    while let std::task::Poll::Ready(Ok((stream, _))) = listener.poll_accept(&mut context) {
        accepted.fetch_add(1, Ordering::Relaxed);
        served.spawn(handler(stream));
    }
}

/// An application that listens. Dropping it closes its port and its connections.
#[derive(Debug)]
pub struct App {
    task: JoinHandle<()>,
    accepted: Arc<AtomicUsize>,
    retiring: Arc<Notify>,
}

impl App {
    /// How many connections it was given.
    pub fn connections(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Listens no more, and ends when its open connections have: what a well-behaved application does at SIGTERM.
    pub async fn retire(mut self) {
        self.retiring.notify_one();
        let _ = within("the end of the application's connections", DEADLINE, &mut self.task).await;
    }

    /// Ends it, and waits until its port is free.
    pub async fn close(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}
