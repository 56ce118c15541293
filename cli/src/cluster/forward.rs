//! What the control plane knows, by way of the API server's port-forward into each of its pods: nothing of it is
//! reachable from the network, and whoever may forward ports there may ask.

use byrnie_api::labels::{CONTROL_PLANE, SYSTEM_NAMESPACE};
use byrnie_proto::mesh::v1::ObserveResponse;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams};

use super::{Cluster, merge, pods};
use crate::client::Client;
use crate::failure::{Exit, Failure};

/// The control plane's administration port: on its pods' loopback.
const ADMINISTRATION: u16 = 15_129;

/// Pods of the control plane that are asked; nobody runs more.
const MOST_REPLICAS: usize = 16;

/// The labels of the control plane's pods.
pub(super) const CONTROL_PLANE_PODS: &str = "app.kubernetes.io/name=byrnie,app.kubernetes.io/component=control-plane";

impl Cluster {
    /// What the mesh is now: every ready replica of the control plane is asked, and the answers are merged.
    ///
    /// # Errors
    /// No replica is ready, or one of them can't be asked.
    pub async fn observe(&self) -> Result<ObserveResponse, Failure> {
        let api: Api<Pod> = Api::namespaced(self.client(), SYSTEM_NAMESPACE);
        let params = ListParams::default().labels(CONTROL_PLANE_PODS);
        let all = self.list("list the pods of the control plane", &api, &params).await?;
        let ready: Vec<&Pod> = all.iter().filter(|pod| pods::is_ready(pod)).take(MOST_REPLICAS).collect();
        if ready.is_empty() {
            return Err(Failure::new(Exit::Unreachable, "no control plane answers")
                .expected(format!("a ready pod of Deployment {SYSTEM_NAMESPACE}/{CONTROL_PLANE}"))
                .found(match all.as_slice() {
                    [] => "none: Byrnie is not installed in this cluster".to_owned(),
                    all => all.iter().map(pods::describe).collect::<Vec<_>>().join("\n"),
                })
                .next(if all.is_empty() {
                    "byrnie install   (or byrnie demo, on this machine)"
                } else {
                    "byrnie check"
                }));
        }
        let mut answers = Vec::new();
        for pod in ready {
            answers.push(self.observe_replica(&api, &pod.name_any()).await?);
        }
        Ok(merge::merge(answers))
    }

    async fn observe_replica(&self, api: &Api<Pod>, name: &str) -> Result<ObserveResponse, Failure> {
        let what = format!("forward a port to pod {SYSTEM_NAMESPACE}/{name}");
        let mut forwarder = self.call(&what, api.portforward(name, &[ADMINISTRATION])).await?;
        let place = format!("pod {SYSTEM_NAMESPACE}/{name}, port {ADMINISTRATION}");
        let Some(stream) = forwarder.take_stream(ADMINISTRATION) else {
            return Err(Failure::new(Exit::Refused, format!("cannot {what}")).found("the API server gave no stream"));
        };
        let error = forwarder.take_error(ADMINISTRATION);
        let answer = match Client::over(stream, &place).await {
            Ok(mut client) => client.observe().await,
            Err(failure) => Err(failure),
        };
        forwarder.abort();
        match answer {
            Ok(answer) => Ok(answer),
            Err(failure) => {
                let said = match error {
                    Some(error) => error.await,
                    None => None,
                };
                let found =
                    said.map_or_else(|| failure.found.clone().unwrap_or_default(), |said| super::printable(&said));
                Err(Failure::new(failure.exit, failure.summary)
                    .expected(format!("the administration service of {place}"))
                    .found(found)
                    .next("byrnie check"))
            }
        }
    }
}
