//! Every certificate is renewed under load, and no request notices.

use std::collections::BTreeMap;
use std::time::Duration;

use byrnie_proto::mesh::v1::ObserveResponse;

use super::Scene;
use crate::demo::load::Load;
use crate::demo::mesh;
use crate::demo::story::observe_until;
use crate::demo::topology::{self, CLIENT, INGRESS};
use crate::failure::Failure;

/// Requests before, and again after.
const REQUESTS: u64 = 20;

/// Longest for each part.
const PATIENCE: Duration = Duration::from_secs(10);

/// `renewal-no-failure`
pub(in crate::demo) async fn run(scene: &mut Scene<'_>) -> Result<(), Failure> {
    let before = serials(&mesh::observe(scene.world).await?);
    let load = Load::start(scene.world.host(CLIENT.name)?, INGRESS.socket());
    load.wait_for(REQUESTS, PATIENCE).await?;
    mesh::renew_all(scene.dir).await?;
    let changed = observe_until(scene, "the new certificates", PATIENCE, |observed| {
        let now = serials(observed);
        let new = |name: &&str| now.get(*name).is_some_and(|serial| before.get(*name) != Some(serial));
        topology::proxied().map(|pod| pod.name).collect::<Vec<_>>().iter().all(new).then_some(())
    })
    .await;
    load.wait_for(REQUESTS, PATIENCE).await?;
    let outcome = load.stop().await;
    let (sent, failed) = (outcome.requests.sent, outcome.requests.failed);
    let all = topology::proxied().count();
    let mut found = format!("{sent} requests, {failed} failed");
    match &changed {
        Ok(()) => found = format!("{all} new certificates; {found}"),
        Err(error) => found = format!("{found}; {error}"),
    }
    if let Some(error) = outcome.first_error {
        found = format!("{found}; the first: {error}");
    }
    scene.report.requests.during_renewal = Some(outcome.requests);
    let expected = format!("{all} proxies with a new serial, and no failed request");
    scene.check("renewal-no-failure", changed.is_ok() && failed == 0 && sent >= 2 * REQUESTS, &expected, found);
    Ok(())
}

fn serials(observed: &ObserveResponse) -> BTreeMap<String, String> {
    let serial = |proxy: &byrnie_proto::mesh::v1::ObservedProxy| {
        let serial = proxy.status.as_ref()?.svid_serial.clone();
        (!serial.is_empty()).then(|| (proxy.workload.clone(), serial))
    };
    observed.proxies.iter().filter_map(serial).collect()
}
