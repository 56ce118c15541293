//! A handshake is paid per pair of pods, not per connection. The count is shop/web's proxy's own, from its metrics.

use super::Scene;
use crate::demo::load;
use crate::demo::topology::{CLIENT, ORDERS, WEB};
use crate::failure::{Exit, Failure};

/// Connections, one after another.
const CONNECTIONS: u64 = 200;

/// The most handshakes that they may cost: one, and a few for tunnels that were just being retired.
const MOST_HANDSHAKES: u64 = 4;

/// Where proxies serve their metrics, not captured.
const METRICS_PORT: u16 = 15010;

/// `handshake-reuse`
pub(in crate::demo) async fn run(scene: &mut Scene<'_>) -> Result<(), Failure> {
    let before = counts(scene).await?;
    let mut failed = 0;
    for _ in 0..CONNECTIONS {
        let answer = load::get(scene.world.pod(WEB)?, ORDERS.socket(), "/allowed").await;
        failed += u64::from(!answer.is_ok_and(|answer| answer.status.is_success()));
    }
    let after = counts(scene).await?;
    let handshakes = after.handshakes.saturating_sub(before.handshakes);
    let connections = after.connections.saturating_sub(before.connections);
    let expected =
        format!("{CONNECTIONS} connections one after another, at most {MOST_HANDSHAKES} handshakes, no failure");
    let found = format!("{connections} connections, {handshakes} handshakes, {failed} failed");
    let passed = failed == 0 && connections >= CONNECTIONS && handshakes <= MOST_HANDSHAKES;
    scene.check("handshake-reuse", passed, &expected, found);
    Ok(())
}

/// What shop/web's proxy has counted so far.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    handshakes: u64,
    connections: u64,
}

async fn counts(scene: &Scene<'_>) -> Result<Counts, Failure> {
    let [v4, _] = WEB.addresses();
    let failed = |found: String| Failure::new(Exit::Negative, "shop/web's proxy gives no metrics").found(found);
    let client = scene.world.host(CLIENT.name)?;
    let answer = load::get(client, (v4, METRICS_PORT).into(), "/metrics").await.map_err(failed)?;
    parse(&String::from_utf8_lossy(&answer.body)).ok_or_else(|| failed("metrics without the counts".into()))
}

fn parse(metrics: &str) -> Option<Counts> {
    let to_orders = format!("destination_workload=\"{}\"", ORDERS.name);
    let handshakes = sum(metrics, "byrnie_tls_handshakes_total{", &["direction=\"outbound\"", "result=\"ok\""])?;
    let labels = ["reporter=\"source\"", to_orders.as_str(), "connection_security_policy=\"mutual_tls\""];
    let connections = sum(metrics, "byrnie_tcp_connections_opened_total{", &labels)?;
    Some(Counts { handshakes, connections })
}

/// The sum of the samples of a metric that have all these labels; none where there is no such sample.
fn sum(metrics: &str, name: &str, labels: &[&str]) -> Option<u64> {
    let fits = |line: &&str| line.starts_with(name) && labels.iter().all(|label| line.contains(label));
    metrics
        .lines()
        .filter(fits)
        .map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .reduce(|sum, value| Some(sum? + value?))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_are_those_of_good_handshakes_and_of_connections_to_the_orders() {
        let metrics = "\
byrnie_tls_handshakes_total{direction=\"outbound\",result=\"ok\"} 5
byrnie_tls_handshakes_total{direction=\"outbound\",result=\"error\"} 7
byrnie_tls_handshakes_total{direction=\"inbound\",result=\"ok\"} 195
byrnie_tcp_connections_opened_total{reporter=\"source\",destination_workload=\"shop/orders\",connection_security_policy=\"mutual_tls\"} 20
byrnie_tcp_connections_opened_total{reporter=\"source\",destination_workload=\"shop/stock\",connection_security_policy=\"mutual_tls\"} 3
";
        assert_eq!(parse(metrics), Some(Counts { handshakes: 5, connections: 20 }));
        assert_eq!(parse(""), None);
    }
}
