//! Whether the proxy may be called ready, and the proof that capture works.
//!
//! A proxy without capabilities can't read the kernel's rules, so it looks at what they do: it dials an address that no
//! network routes (the canary) and that only the capture rules bring to a proxy. The proxy that answers says a number
//! that it made at its start; so the dialler knows that it was this one.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use byrnie_redirect::{
    CANARY_APPLICATION_PORT, CANARY_GREETING, CANARY_PROXY_PORT, CANARY_V4, CANARY_V6, Exempt, OriginalDestination,
    set_mark,
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::shared::Shared;

/// What is known of capture. Cheap to clone; clones see the same.
#[derive(Clone)]
pub struct Readiness(Arc<Inner>);

struct Inner {
    greeting: String,
    capture: Mutex<Capture>,
}

#[derive(Default)]
struct Capture {
    /// The last canary of the proxy's own came back to it.
    proxy: bool,
    /// A connection as an application makes it was seen to be captured.
    application: bool,
    /// Why the last canary did not come back.
    failure: Option<String>,
}

/// Longer than any greeting.
const MAX_GREETING: u64 = 64;
/// How often the canary is dialled while it comes back.
const EVERY: Duration = Duration::from_secs(10);
/// How often it is dialled until it first does, and after it was lost.
const EAGERLY: Duration = Duration::from_millis(500);
/// For one canary: it never leaves the machine.
const WAIT: Duration = Duration::from_secs(2);
/// Canaries that must fail one after the other before capture counts as lost: a loaded machine may lose one.
const LOST_AFTER: u32 = 3;

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Readiness {
    /// Nothing is proved yet.
    pub fn new() -> Self {
        // Without a random source the greeting is still this program's, only not this process's.
        let nonce = crate::random::hex::<16>();
        Self(Arc::new(Inner { greeting: format!("{CANARY_GREETING}{nonce}\n"), capture: Mutex::default() }))
    }

    /// Whether a captured connection was meant for the canary. It is answered by [`Self::answer_canary`] and never
    /// forwarded.
    pub fn is_canary(original: OriginalDestination) -> bool {
        let address = original.0.ip().to_canonical();
        let port = original.0.port();
        (address == IpAddr::from(CANARY_V4) || address == IpAddr::from(CANARY_V6))
            && (port == CANARY_PROXY_PORT || port == CANARY_APPLICATION_PORT)
    }

    /// Answers a connection that was meant for the canary. One to the applications' port proves that applications are
    /// captured, because the proxy's own connections to it are exempt.
    pub async fn answer_canary(&self, mut stream: TcpStream, original: OriginalDestination) {
        if original.0.port() == CANARY_APPLICATION_PORT {
            self.lock().application = true;
        }
        // The data path makes every early close a reset, and a reset may overtake the answer.
        let _ = SockRef::from(&stream).set_linger(None);
        let answer = async {
            stream.write_all(self.0.greeting.as_bytes()).await?;
            stream.shutdown().await
        };
        // Whoever dialled and went away gets no answer.
        let _ = timeout(WAIT, answer).await;
    }

    /// Whether capture works, as far as was seen.
    pub fn is_captured(&self) -> bool {
        self.lock().proxy
    }

    /// Whether a connection as an application makes it was seen to be captured.
    pub fn is_application_captured(&self) -> bool {
        self.lock().application
    }

    fn capture_failure(&self) -> String {
        self.lock().failure.clone().unwrap_or_else(|| "it was not tried yet".to_owned())
    }

    fn lock(&self) -> MutexGuard<'_, Capture> {
        self.0.capture.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything that keeps the proxy from being ready; empty: it is ready.
pub fn reasons(shared: &Shared) -> Vec<String> {
    let mut reasons = Vec::new();
    if shared.drain.is_draining() {
        reasons.push("the proxy is draining".to_owned());
    }
    if shared.config.require_capture_proof && !shared.readiness.is_captured() {
        let failure = shared.readiness.capture_failure();
        reasons.push(format!("capture is not proved: {failure} (see `byrnie capture show`)"));
    }
    if needs_application_proof(shared) && !shared.readiness.is_application_captured() {
        let how = "run `byrnie-proxy prove-capture` in the pod as another user";
        reasons.push(format!("no connection of an application was seen to be captured; {how}"));
    }
    match shared.certificates.held() {
        None => {
            let why = shared.certificates.last_failure().unwrap_or_else(|| "none was issued yet".into());
            reasons.push(format!("no SVID is held: {why}"));
        }
        Some(held) if !held.is_valid(shared.clock.wall()) => {
            let not_after = crate::telemetry::rfc3339(held.svid.not_after());
            reasons.push(format!("the SVID {} is not valid now (it ends {not_after})", held.svid.serial()));
        }
        Some(_) => {}
    }
    if shared.control.own().is_none() {
        let why = shared.control.link().last_error.unwrap_or_else(|| "it was not asked yet".to_owned());
        reasons.push(format!("the control plane has not described this pod: {why}"));
    }
    reasons
}

fn needs_application_proof(shared: &Shared) -> bool {
    // In mark mode the proxy can dial as an application does; so it always looks.
    let by_mark = matches!(shared.config.exempt, Exempt::Mark(_)) && shared.config.require_capture_proof;
    by_mark || shared.config.require_application_proof
}

/// Dials the canary again and again, for as long as the process runs.
pub async fn prove(shared: Arc<Shared>) {
    let mut failures = 0;
    loop {
        let result = prove_once(&shared).await;
        let was = shared.readiness.is_captured();
        failures = if result.is_ok() { 0 } else { failures + 1 };
        let lost = failures >= LOST_AFTER || !was;
        note(&shared, result, lost);
        let is = shared.readiness.is_captured();
        shared.telemetry.metrics().captured.set(i64::from(is));
        if was != is {
            shared.telemetry.touch();
        }
        tokio::time::sleep(if is && failures == 0 { EVERY } else { EAGERLY }).await;
    }
}

fn note(shared: &Shared, result: Result<(), String>, lost: bool) {
    let mut capture = shared.readiness.lock();
    match result {
        Ok(()) => {
            if !capture.proxy {
                tracing::info!("capture works: the canary came back");
            }
            capture.proxy = true;
            capture.failure = None;
        }
        Err(reason) => {
            if lost && capture.proxy {
                tracing::error!(
                    reason,
                    "capture is lost: connections of the application may pass the mesh by; the proxy is not ready"
                );
            }
            capture.proxy &= !lost;
            capture.failure = Some(reason);
        }
    }
}

async fn prove_once(shared: &Shared) -> Result<(), String> {
    let expected = shared.readiness.0.greeting.as_str();
    let mark = match shared.config.exempt {
        Exempt::Mark(mark) => Some(mark),
        Exempt::Uid(_) => None,
    };
    check(expected, &dial(CANARY_PROXY_PORT, mark).await?)?;
    if mark.is_some() {
        check(expected, &dial(CANARY_APPLICATION_PORT, None).await?)?;
    }
    Ok(())
}

fn check(expected: &str, found: &str) -> Result<(), String> {
    match found {
        _ if found == expected => Ok(()),
        _ if found.starts_with(CANARY_GREETING) => Err("another proxy answered the canary".to_owned()),
        _ => Err("something that is no proxy answered the canary".to_owned()),
    }
}

/// Dials the canary as an application does: what `byrnie-proxy prove-capture` does.
///
/// # Errors
/// Why it is not captured.
pub async fn prove_as_application() -> Result<(), String> {
    let found = dial(CANARY_APPLICATION_PORT, None).await?;
    if found.starts_with(CANARY_GREETING) {
        Ok(())
    } else {
        Err("something that is no proxy answered the canary".to_owned())
    }
}

/// Dials the canary over IPv4, and over IPv6 where this network namespace has no way out over IPv4.
async fn dial(port: u16, mark: Option<u32>) -> Result<String, String> {
    let mut reasons = Vec::new();
    for address in [IpAddr::from(CANARY_V4), IpAddr::from(CANARY_V6)] {
        let address = SocketAddr::new(address, port);
        match timeout(WAIT, greeting(address, mark)).await {
            Ok(Ok(greeting)) => return Ok(greeting),
            Ok(Err(error)) => {
                let unroutable = matches!(
                    error.kind(),
                    std::io::ErrorKind::NetworkUnreachable
                        | std::io::ErrorKind::HostUnreachable
                        | std::io::ErrorKind::AddrNotAvailable
                );
                reasons.push(format!("{address}: {error}"));
                if !unroutable {
                    break;
                }
            }
            Err(_) => {
                reasons.push(format!("{address}: no answer within {} s", WAIT.as_secs()));
                break;
            }
        }
    }
    Err(format!("the canary was not redirected to a proxy ({})", reasons.join(", ")))
}

async fn greeting(address: SocketAddr, mark: Option<u32>) -> std::io::Result<String> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    if let Some(mark) = mark {
        set_mark(&socket, mark)?;
    }
    let stream = TcpSocket::from_std_stream(socket.into()).connect(address).await?;
    let mut text = Vec::new();
    stream.take(MAX_GREETING).read_to_end(&mut text).await?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn answered_by(readiness: &Readiness, port: u16) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answering = async {
            let (stream, _) = listener.accept().await.unwrap();
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            readiness.answer_canary(stream, OriginalDestination(SocketAddr::new(CANARY_V4.into(), port))).await;
        };
        let (greeting, ()) = tokio::join!(greeting(address, None), answering);
        greeting.unwrap()
    }

    #[tokio::test]
    async fn the_dialler_knows_which_proxy_answered() {
        let (this, other) = (Readiness::new(), Readiness::new());
        let found = answered_by(&this, CANARY_PROXY_PORT).await;
        assert_eq!(check(&this.0.greeting, &found), Ok(()));
        assert!(check(&other.0.greeting, &found).unwrap_err().contains("another proxy"));
        assert!(check(&other.0.greeting, "SSH-2.0").unwrap_err().contains("no proxy"));
    }

    #[tokio::test]
    async fn the_answer_is_never_overtaken_by_a_reset() {
        let readiness = Readiness::new();
        for _ in 0..200 {
            assert_eq!(answered_by(&readiness, CANARY_PROXY_PORT).await, readiness.0.greeting);
        }
    }

    #[tokio::test]
    async fn only_the_applications_port_proves_the_applications_way() {
        let readiness = Readiness::new();
        answered_by(&readiness, CANARY_PROXY_PORT).await;
        assert!(!readiness.is_application_captured());
        answered_by(&readiness, CANARY_APPLICATION_PORT).await;
        assert!(readiness.is_application_captured());
    }

    #[test]
    fn the_canary_is_known_by_address_and_port() {
        let is = |text: &str| Readiness::is_canary(OriginalDestination(text.parse().unwrap()));
        assert!(is("192.0.2.100:1") && is("192.0.2.100:2") && is("[::ffff:192.0.2.100]:2") && is("[100::b:1]:1"));
        assert!(!is("192.0.2.100:80") && !is("192.0.2.101:1") && !is("[::1]:1"));
    }
}
