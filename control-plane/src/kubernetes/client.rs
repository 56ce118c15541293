//! The way to the API server: one configuration, a deadline for every call, and errors in words.

use std::{future::Future, time::Duration};

use aws_lc_rs::rand;
use byrnie_api::with_causes;
use kube::{Client, Config};

use crate::{limits, proxies::cut, source};

/// The cluster that this replica belongs to.
#[derive(Clone)]
pub(crate) struct Cluster {
    /// For all calls but those of the Lease.
    pub(crate) client: Client,
    /// For the Lease: a call that hangs must not outlast the Lease itself.
    pub(crate) lease: Client,
    /// This replica's name, another one after each start: the pod, the version, and what tells starts apart.
    pub(crate) replica: String,
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("no answer from the API server within {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("{}", words(.0))]
    Kube(#[from] kube::Error),
}

impl ApiError {
    /// The HTTP status of the answer, where there was one.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Kube(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }

    /// Whether it is about a namespace that is being deleted, or gone.
    pub(crate) fn is_of_ending_namespace(&self) -> bool {
        let Self::Kube(kube::Error::Api(status)) = self else {
            return false;
        };
        let causes = status.details.iter().flat_map(|details| &details.causes);
        status.code == 404 || causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
    }

    /// Whether trying again can help without anybody doing anything to *our* objects: the API server is away, busy, or
    /// does not let us yet (an installation that is still going on).
    pub(crate) fn may_pass(&self) -> bool {
        !matches!(self.code(), Some(400 | 404 | 405 | 409 | 413 | 415 | 422))
    }
}

/// Finds the cluster: by `KUBECONFIG` (or ~/.kube/config) where there is one, else as a pod of it.
///
/// # Errors
/// Neither is there, or what is there makes no client.
pub(crate) async fn connect() -> Result<Cluster, String> {
    let failed = |error: &dyn std::error::Error| {
        let reason = with_causes(error);
        format!("--source kubernetes: {reason}; run inside of a cluster, or name a kubeconfig by KUBECONFIG")
    };
    let config = Config::infer().await.map_err(|error| failed(&error))?;
    let mut lease = config.clone();
    lease.connect_timeout = Some(limits::API_SERVER_CONNECT);
    lease.read_timeout = Some(limits::LEASE_CALL);
    lease.reset_reader_on_write = true;
    lease.default_retry = false;
    let client = source::kubernetes::client(config).map_err(|error| failed(&error))?;
    let lease = Client::try_from(lease).map_err(|error| failed(&error))?;
    Ok(Cluster { client, lease, replica: replica_name()? })
}

/// A call with a deadline.
///
/// # Errors
/// [`ApiError`].
pub(crate) async fn call<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, ApiError> {
    let within = limits::API_CALL;
    tokio::time::timeout(within, call).await.map_err(|_| ApiError::Timeout(within))?.map_err(ApiError::from)
}

/// Tries until it succeeds, or fails in a way that does not pass by itself; says what it waits for.
///
/// # Errors
/// The failure that does not pass.
pub(crate) async fn patiently<T, E, F>(
    what: &str,
    may_pass: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> F,
) -> Result<T, E>
where
    E: std::fmt::Display,
    F: Future<Output = Result<T, E>>,
{
    let mut wait = limits::API_RETRY;
    loop {
        match attempt().await {
            Err(error) if may_pass(&error) => {
                let seconds = wait.as_secs_f32();
                tracing::warn!(reason = %error, "{what}: trying again in {seconds:.1} s");
            }
            result => return result,
        }
        tokio::time::sleep(wait).await;
        wait = longer(wait);
    }
}

/// The next wait of a backoff.
pub(crate) fn longer(wait: Duration) -> Duration {
    wait.saturating_mul(2).min(limits::API_RETRY_MAX)
}

/// The pod's name, the version, and something that tells this start from the one before.
fn replica_name() -> Result<String, String> {
    let host = std::env::var("HOSTNAME").unwrap_or_default();
    let named = !host.is_empty() && host.len() <= 253 && host.bytes().all(|byte| byte.is_ascii_graphic());
    let host = if named { host } else { byrnie_api::labels::CONTROL_PLANE.to_owned() };
    let mut bytes = [0_u8; 4];
    rand::fill(&mut bytes).map_err(|_| "the system's random source failed".to_owned())?;
    Ok(format!("{host}_{}_{:08x}", env!("CARGO_PKG_VERSION"), u32::from_be_bytes(bytes)))
}

/// The version in a replica's name; empty where it has none.
pub(super) fn version_of(replica: &str) -> &str {
    replica.rsplit('_').nth(1).unwrap_or_default()
}

/// What the API server said is bounded here: it ends in logs and in answers.
fn words(error: &kube::Error) -> String {
    let kube::Error::Api(status) = error else {
        return cut(format!("the API server can't be asked: {}", with_causes(error)));
    };
    let said = cut(status.message.clone());
    match status.code {
        401 => format!("the API server does not know this control plane (401): {said}"),
        403 => {
            format!("the API server does not permit it (403): {said}; docs/rbac.md lists what the control plane needs")
        }
        code => format!("{said} ({code})"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn what_the_api_server_said_is_told_in_bounded_words() {
        let mut status = Status::failure(&"x".repeat(100_000), "Forbidden");
        status.code = 403;
        let error = ApiError::Kube(kube::Error::Api(status.boxed()));
        let told = error.to_string();
        assert!(told.len() < 2000 && told.contains("docs/rbac.md"), "{told}");
        assert!(error.may_pass());
        let mut status = Status::failure("no such thing", "NotFound");
        status.code = 404;
        assert!(!ApiError::Kube(kube::Error::Api(status.boxed())).may_pass());
        assert!(ApiError::Timeout(limits::API_CALL).may_pass());
    }

    #[test]
    fn a_replicas_name_says_its_version() {
        assert_eq!(version_of(&replica_name().unwrap()), env!("CARGO_PKG_VERSION"));
        for odd in ["", "pod", "pod_1a2b3c4d", "_", "a_b_c"] {
            assert!(!byrnie_api::is_newer(version_of(odd), "0.0.0"), "{odd}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_without_an_answer_ends() {
        let ended = call(std::future::pending::<kube::Result<()>>()).await;
        assert!(matches!(ended, Err(ApiError::Timeout(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_pass_is_tried_again_and_what_does_not_is_told() {
        let mut left = 3;
        let attempt = || {
            left -= 1;
            let now = left;
            async move {
                match now {
                    2 => Err("away"),
                    1 => Err("damaged"),
                    _ => Ok(()),
                }
            }
        };
        assert_eq!(patiently("a thing", |error| *error == "away", attempt).await, Err("damaged"));
    }
}
