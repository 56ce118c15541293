//! A handshake is paid per pair of pods, not per connection.

use std::time::Duration;

use byrnie_proto::mesh::v1::{Edge, ObserveResponse};

use super::Scene;
use crate::demo::load;
use crate::demo::story::observe_until;
use crate::demo::topology::{ORDERS, WEB};
use crate::failure::Failure;

/// Connections, one after another.
const CONNECTIONS: u64 = 200;

/// The most handshakes that they may cost: one, and a few for tunnels that were just being retired.
const MOST_HANDSHAKES: u64 = 4;

/// Longest that proxies take to report.
const PATIENCE: Duration = Duration::from_secs(8);

/// `handshake-reuse`
pub(in crate::demo) async fn run(scene: &mut Scene<'_>) -> Result<(), Failure> {
    // What was before must have been reported first, or it would be counted here.
    let before = settled(scene).await?;
    let mut failed = 0;
    for _ in 0..CONNECTIONS {
        let answer = load::get(scene.world.pod(WEB)?, ORDERS.socket(), "/allowed").await;
        failed += u64::from(!answer.is_ok_and(|answer| answer.status.is_success()));
    }
    let after = observe_until(scene, "the proxies' reports", PATIENCE, |observed| {
        edge(observed).filter(|edge| edge.connections >= before.connections + CONNECTIONS)
    })
    .await;
    let expected = format!("{CONNECTIONS} connections one after another, at most {MOST_HANDSHAKES} handshakes, no failure");
    let (passed, found) = match after {
        Ok(after) => {
            let (connections, handshakes) = (after.connections - before.connections, after.handshakes - before.handshakes);
            let passed = failed == 0 && handshakes <= MOST_HANDSHAKES;
            (passed, format!("{connections} connections, {handshakes} handshakes, {failed} failed"))
        }
        Err(error) => (false, format!("{failed} failed; {error}")),
    };
    scene.check("handshake-reuse", passed, &expected, found);
    Ok(())
}

/// The edge's counts, once two looks a report apart agree.
async fn settled(scene: &mut Scene<'_>) -> Result<Edge, Failure> {
    let mut last: Option<(u64, std::time::Instant)> = None;
    observe_until(scene, "counting connections", PATIENCE, |observed| {
        let edge = edge(observed)?;
        match last {
            Some((connections, since)) if connections == edge.connections => {
                (since.elapsed() > REPORTED_WITHIN).then_some(edge)
            }
            _ => {
                last = Some((edge.connections, std::time::Instant::now()));
                None
            }
        }
    })
    .await
}

/// Proxies report a change within a second.
const REPORTED_WITHIN: Duration = Duration::from_millis(1200);

fn edge(observed: &ObserveResponse) -> Option<Edge> {
    observed.edges.iter().find(|edge| edge.source == WEB.name && edge.destination == ORDERS.name).cloned()
}
