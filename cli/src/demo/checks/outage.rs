//! The control plane is killed, and traffic goes on.

use std::time::Duration;

use super::Scene;
use crate::client::Client;
use crate::demo::load::Load;
use crate::demo::mesh;
use crate::demo::story::observe_until;
use crate::demo::topology::{self, CLIENT, INGRESS};
use crate::failure::Failure;

/// Requests while nobody is in control.
const REQUESTS: u64 = 50;

/// Longest for each part.
const PATIENCE: Duration = Duration::from_secs(15);

/// `control-plane-down`
pub(in crate::demo) async fn run(scene: &mut Scene<'_>) -> Result<(), Failure> {
    let load = Load::start(scene.world.host(CLIENT.name)?, INGRESS.socket());
    load.wait_for(5, PATIENCE).await?;
    let killed = scene.world.mesh.as_mut().and_then(mesh::Mesh::kill_control_plane);
    let gone = killed.is_some() && Client::connect(&scene.dir.control_socket()).await.is_err();
    load.wait_for(REQUESTS, PATIENCE).await?;
    mesh::start_control_plane(scene.world, scene.dir).await?;
    let back = observe_until(scene, "the proxies' return to the control plane", PATIENCE, |observed| {
        let connected = |name: &str| observed.proxies.iter().any(|proxy| proxy.workload == name && proxy.connected);
        topology::proxied().all(|pod| connected(pod.name)).then_some(())
    })
    .await;
    load.wait_for(5, PATIENCE).await?;
    let outcome = load.stop().await;
    let (sent, failed) = (outcome.requests.sent, outcome.requests.failed);
    let mut found = format!(
        "process {} killed; {sent} requests, {failed} failed; {}",
        killed.map_or_else(|| "none".into(), |pid| pid.to_string()),
        if back.is_ok() { "every proxy came back to the new one" } else { "NOT EVERY PROXY CAME BACK" },
    );
    if let Some(error) = outcome.first_error {
        found = format!("{found}; the first: {error}");
    }
    scene.report.requests.during_outage = Some(outcome.requests);
    let expected = "the control plane killed, no failed request, and every proxy connected to it once it is back";
    scene.check("control-plane-down", gone && failed == 0 && sent >= REQUESTS && back.is_ok(), expected, found);
    Ok(())
}
