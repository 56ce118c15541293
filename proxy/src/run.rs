//! Puts the parts together and runs them until a signal ends them.
//!
//! One current-thread runtime per worker, each with listeners of its own on the same ports, so that a connection stays
//! on one core. The first worker also runs what the process needs once.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use byrnie_identity::Clock;
use byrnie_redirect::Exempt;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::Instant;

mod listeners;

use listeners::Listeners;

use crate::admin::{self, Administration, Door};
use crate::certificates::{self, Certificates, StateError};
use crate::config::{AccessLog, Config, ConfigErrors, Options};
use crate::control::{self, Control};
use crate::discovery::{self, Discovery};
use crate::readiness::{self, Readiness};
use crate::room::Room;
use crate::shared::{Drain, Shared};
use crate::streams::{self, Streams};
use crate::telemetry::{Telemetry, logging};
use crate::tunnel::pool::{self, Worker};
use crate::{inbound, moderation, outbound, preemption};

/// What ended the proxy before its time.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The options are wrong.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// What the options name can't be used: all of it.
    #[error("the proxy can't start:{}", .0.iter().map(|problem| format!("\n  {problem}")).collect::<String>())]
    Start(Vec<Problem>),
    /// The system has no thread, timer or signal for us.
    #[error("the proxy can't run: {0}")]
    System(#[from] std::io::Error),
}

/// One thing that keeps the proxy from starting.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// A file that the options name is wrong.
    #[error(transparent)]
    State(#[from] StateError),
    /// The log can't be set up.
    #[error("--log-level: {0}")]
    Log(String),
    /// The access log can't be opened.
    #[error("--access-log: expected a file that can be appended to, found {path}: {source}")]
    AccessLog {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Capture lets another user pass than this one.
    #[error(
        "--exempt: expected to run as UID {expected}, the only user whose connections capture lets pass, found UID \
         {found}: the proxy would be sent its own connections without end; run it as that user (such as with `setpriv \
         --reuid {expected} --clear-groups`), or give `--exempt mark` to it and to `byrnie capture apply`"
    )]
    User {
        /// Whom capture lets pass.
        expected: u32,
        /// Who runs.
        found: u32,
    },
    /// The process may not open enough files.
    #[error("{0}")]
    Files(String),
    /// A listener can't be opened.
    #[error(transparent)]
    Listen(#[from] listeners::ListenError),
}

impl RunError {
    /// 2 for what the command line or a file says, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            Self::Start(problems)
                if problems.iter().any(|problem| !matches!(problem, Problem::Listen(_) | Problem::Files(_))) =>
            {
                2
            }
            Self::Start(_) | Self::System(_) => 1,
        }
    }
}

/// Runs the proxy until SIGTERM or SIGINT.
///
/// # Errors
/// What kept it from running.
pub fn run(options: Options) -> Result<(), RunError> {
    let config = Config::try_from(options)?;
    let clock = Clock::system();
    let room =
        Room::of_process(config.workers.get()).map_err(|problem| RunError::Start(vec![Problem::Files(problem)]))?;
    let (parts, log_level, listeners) = open(&config, &clock)?;
    let (certificates, telemetry) = parts;
    let control = Control::new();
    let discovery = Discovery::new(control.clone(), telemetry.clone(), clock.clone());
    let shared = Arc::new(Shared {
        config,
        clock,
        certificates,
        control,
        discovery,
        telemetry,
        readiness: Readiness::new(),
        room,
        streams: Streams::new(),
        drain: Drain::new(),
    });
    let ended = start(&shared, log_level, listeners);
    shared.telemetry.flush();
    ended
}

type Opened = ((Certificates, Telemetry), logging::LogLevel, Listeners);

/// Opens everything that can fail for what the operator said, and says all that did.
fn open(config: &Config, clock: &Clock) -> Result<Opened, RunError> {
    let mut problems = Vec::new();
    let user = nix::unistd::geteuid().as_raw();
    match config.exempt {
        // Without capture it makes no difference.
        Exempt::Uid(expected) if expected != user && config.require_capture_proof => {
            problems.push(Problem::User { expected, found: user });
        }
        Exempt::Uid(_) | Exempt::Mark(_) => {}
    }
    let log_level = logging::start(&config.log_level).map_err(|reason| problems.push(Problem::Log(reason)));
    let certificates = Certificates::open(config, clock.clone()).map_err(|error| problems.push(Problem::State(error)));
    let telemetry = Telemetry::new(&config.access_log, clock.clone()).map_err(|source| {
        let path = match &config.access_log {
            AccessLog::File(path) => path.display().to_string(),
            AccessLog::StandardOutput | AccessLog::Off => "standard output".to_owned(),
        };
        problems.push(Problem::AccessLog { path, source });
    });
    let listeners = listeners::open(config).map_err(|errors| problems.extend(errors.into_iter().map(Problem::Listen)));
    match (certificates, telemetry, log_level, listeners) {
        (Ok(certificates), Ok(telemetry), Ok(log_level), Ok(listeners)) if problems.is_empty() => {
            Ok(((certificates, telemetry), log_level, listeners))
        }
        _ => Err(RunError::Start(problems)),
    }
}

fn start(shared: &Arc<Shared>, log_level: logging::LogLevel, listeners: Listeners) -> Result<(), RunError> {
    let Listeners { workers, admin, metrics, health, control } = listeners;
    let mut workers = workers.into_iter();
    let first = workers.next();
    for (number, listeners) in workers.enumerate() {
        let shared = Arc::clone(shared);
        std::thread::Builder::new().name(format!("worker-{}", number + 1)).spawn(move || {
            let result = runtime().map(|runtime| {
                runtime.block_on(async {
                    match carry(&shared, listeners) {
                        // Ends with the process.
                        Ok(()) => std::future::pending().await,
                        Err(error) => Err::<(), _>(error),
                    }
                })
            });
            if let Ok(Err(error)) | Err(error) = result {
                // Half of the connections would hang; better none.
                tracing::error!(%error, "a worker can't run");
                std::process::exit(1);
            }
        })?;
    }
    runtime()?.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let administration = Arc::new(Administration::new(Arc::clone(shared), log_level));
        background(shared);
        for (door, listeners) in [(Door::Status, admin), (Door::Metrics, metrics), (Door::Health, health)] {
            for listener in listeners {
                tokio::spawn(admin::serve(Arc::clone(&administration), door, TcpListener::from_std(listener)?));
            }
        }
        let socket = admin::bind_unix(&control).map_err(|source| {
            RunError::Start(vec![listeners::ListenError::Socket { path: control.clone(), source }.into()])
        })?;
        tokio::spawn(admin::serve_unix(administration, socket));
        if let Some(listeners) = first {
            carry(shared, listeners)?;
        }
        tracing::info!(version = env!("CARGO_PKG_VERSION"), "running");
        ended(shared, &mut terminate, &mut interrupt).await;
        let _ = std::fs::remove_file(&control);
        Ok(())
    })
}

/// What the process does once.
fn background(shared: &Arc<Shared>) {
    let tasks: [JoinHandle<()>; 6] = [
        tokio::spawn(certificates::maintain(Arc::clone(shared))),
        tokio::spawn(control::run(Arc::clone(shared))),
        tokio::spawn(discovery::maintain(Arc::clone(shared))),
        tokio::spawn(readiness::prove(Arc::clone(shared))),
        tokio::spawn(streams::supervise(Arc::clone(shared))),
        tokio::spawn(streams::unreachable::supervise(Arc::clone(shared))),
    ];
    // They run until the process ends.
    drop(tasks);
}

/// What each worker does: takes connections and carries them.
fn carry(shared: &Arc<Shared>, listeners: listeners::WorkerListeners) -> std::io::Result<()> {
    let worker = Arc::new(Worker::new());
    tokio::spawn(pool::supervise(Arc::clone(shared), Arc::clone(&worker)));
    for listener in listeners.outbound {
        let listener = TcpListener::from_std(listener)?;
        tokio::spawn(outbound::serve(Arc::clone(shared), Arc::clone(&worker), listener));
    }
    for listener in listeners.inbound {
        let listener = TcpListener::from_std(listener)?;
        tokio::spawn(inbound::serve(Arc::clone(shared), Arc::clone(&worker), listener));
    }
    Ok(())
}

/// Even where no stream is open, peers get this long to take the GOAWAY.
const LINGER: Duration = Duration::from_millis(500);
/// What cut streams get to tell their peers why.
const FAREWELL: Duration = Duration::from_millis(200);
/// What arrived before the listeners closed gets this long to hear that it is not served: a handshake and an answer.
const CLOSING: Duration = Duration::from_secs(1);
/// How often it is looked whether streams are still open.
const LOOK: Duration = Duration::from_millis(50);

/// Waits for a signal, then for the open streams, at most for as long as the operator said. A second signal ends the
/// wait. Being asked to drain over the administration socket begins the drain alone: the orchestrator ends the process.
async fn ended(shared: &Shared, terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let timeout = shared.config.drain_timeout;
    tracing::info!(open_streams = shared.streams.open(), timeout_s = timeout.as_secs(), "draining");
    shared.drain.begin();
    shared.telemetry.touch();
    tokio::select! {
        _ = terminate.recv() => tracing::warn!(open_streams = shared.streams.open(), "ended by a second signal"),
        _ = interrupt.recv() => tracing::warn!(open_streams = shared.streams.open(), "ended by a second signal"),
        () = drained(|| shared.streams.open(), LINGER, timeout) => {
            match shared.streams.open() {
                0 => tracing::info!("drained"),
                open_streams => tracing::warn!(open_streams, "the drain timed out; open streams are cut"),
            }
        }
    }
    shared.drain.close();
    drained(|| shared.streams.arrived(), Duration::ZERO, CLOSING).await;
    if shared.streams.open() > 0 {
        shared.streams.cut_all("the proxy ended before the connection did");
        tokio::time::sleep(FAREWELL).await;
    }
}

/// Ends when nothing was open for `linger`, or after `timeout`.
async fn drained(open: impl Fn() -> u64, linger: Duration, timeout: Duration) {
    let deadline = Instant::now() + timeout;
    let mut quiet_since = Instant::now();
    while Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
        if open() > 0 {
            quiet_since = Instant::now();
        } else if quiet_since.elapsed() >= linger {
            return;
        }
    }
}

/// An event loop, for the thread that asks for it.
pub(crate) fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    moderation::begin();
    preemption::begin();
    let turn_ends = || {
        preemption::turn_ends();
        moderation::turn_ends();
    };
    tokio::runtime::Builder::new_current_thread().enable_all().on_thread_park(turn_ends).build()
}

/// A listener and where it listens, for messages.
type Bound = (SocketAddr, StdListener);

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_when_the_last_stream_has() {
        let open = Arc::new(AtomicU64::new(1));
        let begun = Instant::now();
        let streams = Arc::clone(&open);
        let waiting =
            tokio::spawn(async move { drained(|| streams.load(Relaxed), LINGER, Duration::from_secs(30)).await });
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(!waiting.is_finished());
        open.store(0, Relaxed);
        waiting.await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_after_its_timeout_whatever_is_open() {
        let begun = Instant::now();
        drained(|| 1, LINGER, Duration::from_secs(30)).await;
        assert!((30..31).contains(&begun.elapsed().as_secs()));
    }
}
