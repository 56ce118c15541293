//! A Kubernetes cluster: the way to its API server, and the mesh in it.
//!
//! What the API server says is other people's text: it is bounded and freed of control characters before it is shown.

pub mod enrolment;
mod forward;
mod merge;
pub mod pods;
mod target;
pub mod workload;

use std::future::Future;
use std::time::Duration;

use byrnie_api::with_causes;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::args::MeshArgs;
use crate::failure::{Exit, Failure};

pub use target::Target;

/// Longest wait for an answer of the API server.
const ANSWER: Duration = Duration::from_secs(30);

/// Longest wait for its address to take a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// Longest text of the API server that is shown.
const LONGEST_TEXT: usize = 1_000;

/// Objects that one answer of the API server may hold: it is asked page by page.
const PAGE: u32 = 500;

/// Objects of one kind that are looked at in all, so that a cluster can't take this machine's memory.
const MOST_OBJECTS: usize = 200_000;

/// A cluster whose API server can be asked.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    server: String,
}

impl Cluster {
    /// The cluster that the command line, `KUBECONFIG`, `~/.kube/config` or, in a pod, the pod's own ServiceAccount names.
    ///
    /// # Errors
    /// [`Exit::Unreachable`] where no configuration is found, or it makes no client. Nothing is sent yet.
    pub async fn connect(mesh: &MeshArgs) -> Result<Self, Failure> {
        let failed = |error: &dyn std::error::Error| {
            Failure::new(Exit::Unreachable, "no cluster is configured")
                .expected("a kubeconfig by --kubeconfig, KUBECONFIG or ~/.kube/config, or a ServiceAccount in a pod")
                .found(with_causes(error))
                .next("kubectl config get-contexts   (or --kubeconfig PATH --context NAME)")
        };
        let options = KubeConfigOptions { context: mesh.context.clone(), ..KubeConfigOptions::default() };
        let mut config = match &mesh.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path).map_err(|error| failed(&error))?;
                Config::from_custom_kubeconfig(file, &options).await.map_err(|error| failed(&error))?
            }
            None if mesh.context.is_some() => {
                Config::from_kubeconfig(&options).await.map_err(|error| failed(&error))?
            }
            None => Config::infer().await.map_err(|error| failed(&error))?,
        };
        config.connect_timeout = Some(CONNECT);
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config).map_err(|error| failed(&error))?;
        Ok(Self { client, server })
    }

    /// The client, for calls that [`Self::call`] waits for.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// A call with a deadline; `what` completes "cannot …".
    ///
    /// # Errors
    /// The API server does not answer, or refuses.
    pub async fn call<T>(&self, what: &str, call: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
        match tokio::time::timeout(ANSWER, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.failure(what, &error)),
            Err(_) => Err(self.unreachable(what, "no answer within 30 s")),
        }
    }

    /// Everything of a kind that `params` selects, page by page.
    ///
    /// # Errors
    /// As [`Self::call`]; or there are more than this command looks at.
    pub async fn list<K>(&self, what: &str, api: &Api<K>, params: &ListParams) -> Result<Vec<K>, Failure>
    where
        K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let mut all = Vec::new();
        let mut params = params.clone().limit(PAGE);
        loop {
            let page = self.call(what, api.list(&params)).await?;
            all.extend(page.items);
            if all.len() > MOST_OBJECTS {
                return Err(Failure::new(Exit::Refused, format!("cannot {what}"))
                    .expected(format!("at most {MOST_OBJECTS} objects"))
                    .found("more"));
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(all),
            }
        }
    }

    /// All pods of a namespace, or of all.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub async fn pods(&self, namespace: Option<&str>) -> Result<Vec<Pod>, Failure> {
        let api = match namespace {
            Some(namespace) => Api::namespaced(self.client(), namespace),
            None => Api::all(self.client()),
        };
        self.list("list pods", &api, &ListParams::default()).await
    }

    /// The version of the API server: major and minor.
    ///
    /// # Errors
    /// As [`Self::call`]; or what it says is no version.
    pub async fn version(&self) -> Result<(u32, u32), Failure> {
        let info = self.call("ask the API server for its version", self.client.apiserver_version()).await?;
        // Some providers write `30+`.
        let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().ok();
        number(&info.major).zip(number(&info.minor)).ok_or_else(|| {
            Failure::new(Exit::Refused, "the API server's version can't be read")
                .expected("two numbers")
                .found(printable(&format!("{:?}.{:?}", info.major, info.minor)))
        })
    }

    fn failure(&self, what: &str, error: &kube::Error) -> Failure {
        let kube::Error::Api(status) = error else {
            return self.unreachable(what, &with_causes(error));
        };
        let said = printable(&status.message);
        let failure = Failure::new(Exit::Refused, format!("cannot {what}")).found(format!("{}: {said}", status.code));
        match status.code {
            401 => failure
                .expected("credentials that the API server knows")
                .next("kubectl auth whoami   (the credentials of the context may have expired)"),
            403 => failure
                .expected(
                    "a user who may; installing needs cluster-admin, observing needs pods/portforward in byrnie-system",
                )
                .next("kubectl auth can-i --list   (or another --context)"),
            409 => failure
                .expected("no one else who set the same field")
                .next("--force takes the field over; kubectl get -o yaml --show-managed-fields shows who set it"),
            _ => failure,
        }
    }

    fn unreachable(&self, what: &str, found: &str) -> Failure {
        Failure::new(Exit::Unreachable, format!("cannot {what}"))
            .expected(format!("an API server at {}", self.server))
            .found(printable(found))
            .next("kubectl cluster-info   (or another --context)")
    }
}

/// The status code of a refusal by the API server.
pub fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// Text of somebody else's, for a terminal: without control characters, and of bounded length.
pub fn printable(text: &str) -> String {
    let mut short: String = text.chars().take(LONGEST_TEXT).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(LONGEST_TEXT).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_api_server_says_can_neither_flood_nor_command_a_terminal() {
        let told = printable(&format!("\x1b[2J\r{}", "x".repeat(10_000)));
        assert!(told.chars().count() <= LONGEST_TEXT + 1);
        assert!(!told.chars().any(char::is_control));
    }
}
