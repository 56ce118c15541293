//! Leaving the mesh: the allowed host is reached, and sees the pod and the address that was dialled; the forbidden one
//! is not reached at all.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use super::Scene;
use crate::demo::load;
use crate::demo::report::Egress;
use crate::demo::story::observe_until;
use crate::demo::topology::{FORBIDDEN, PARTNER, Pod, STOCK, WEB};
use crate::failure::Failure;
use crate::view::Refusal;

/// Longest that a proxy takes to report what it refused.
const PATIENCE: Duration = Duration::from_secs(8);

/// How a proxy may name the reason.
const CAUSES: [&str; 3] = ["egress-denied", "egress-default-deny", "policy-denied"];

/// What happened to each attempt: the allowed one, and those that are not.
pub(in crate::demo) struct Attempts {
    allowed: (Egress, String),
    denied: Vec<Egress>,
}

/// Tries to leave the mesh, rightly and wrongly.
pub(in crate::demo) async fn attempt_all(scene: &Scene<'_>) -> Result<Attempts, Failure> {
    let allowed = attempt(scene, STOCK, PARTNER.socket()).await?;
    let mut denied = Vec::new();
    // The forbidden host for the one who may go out, and the allowed one for the one who may not.
    for (pod, target) in [(STOCK, FORBIDDEN.socket()), (WEB, PARTNER.socket())] {
        denied.push(attempt(scene, pod, target).await?.0);
    }
    Ok(Attempts { allowed, denied })
}

/// `egress-allowed`, `egress-denied`
pub(in crate::demo) async fn judge(scene: &mut Scene<'_>, attempts: Attempts) -> Result<(), Failure> {
    judge_allowed(scene, attempts.allowed);
    judge_denied(scene, attempts.denied).await
}

fn judge_allowed(scene: &mut Scene<'_>, (record, how): (Egress, String)) {
    let [pod, _] = STOCK.addresses();
    let source = record.seen_source.as_deref().and_then(|text| text.parse::<SocketAddr>().ok());
    let kept_source = source.is_some_and(|source| source.ip() == pod);
    let kept_destination = record.seen_destination.as_deref() == Some(&record.dialled);
    let found = match (&record.seen_source, &record.seen_destination) {
        (Some(source), Some(destination)) => format!("the partner saw {source} at {destination}"),
        _ => how,
    };
    let expected = format!("shop/stock reaches {}, which sees {pod} at the address that was dialled", PARTNER.name);
    scene.check("egress-allowed", record.allowed && kept_source && kept_destination, &expected, found);
    scene.report.egress.push(record);
}

async fn judge_denied(scene: &mut Scene<'_>, records: Vec<Egress>) -> Result<(), Failure> {
    let reached = records.iter().filter(|record| record.allowed);
    let through: Vec<_> = reached.map(|record| format!("{} reached {}", record.source, record.dialled)).collect();
    scene.report.egress.extend(records);
    // From outside, nobody stands between: what it answers now is its first request, if it is right that nobody came.
    let client = scene.world.host(crate::demo::topology::CLIENT.name)?;
    let seen = load::get_json(client, FORBIDDEN.socket(), "/").await?;
    let before = seen.get("requests").and_then(Value::as_u64).map(|count| count.saturating_sub(1));
    let reported = observe_until(scene, "the proxies' reports", PATIENCE, |observed| {
        let refused = |pod: Pod| {
            observed
                .refusals
                .iter()
                .map(Refusal::from)
                .find(|refusal| refusal.source == pod.name && CAUSES.contains(&refusal.cause.as_str()))
        };
        refused(STOCK).zip(refused(WEB))
    })
    .await;
    let reason = reported.as_ref().map_or_else(|_| "no proxy gave a reason".into(), |(stock, _)| stock.cause.clone());
    let passed = through.is_empty() && before == Some(0) && reported.is_ok();
    let found = format!(
        "{}; the forbidden host had seen {} requests; {reason}",
        if through.is_empty() { "both refused".into() } else { through.join(", ") },
        before.map_or_else(|| "an unknown number of".into(), |count| count.to_string()),
    );
    let expected =
        "shop/stock to a forbidden host, and shop/web to the partner, refused; the forbidden host sees nothing";
    scene.check("egress-denied", passed, expected, found);
    Ok(())
}

async fn attempt(scene: &Scene<'_>, pod: Pod, target: SocketAddr) -> Result<(Egress, String), Failure> {
    let answer = load::get(scene.world.pod(pod)?, target, "/").await;
    let (facts, how) = match answer {
        Ok(answer) => (serde_json::from_slice::<Value>(&answer.body).ok(), answer.status.to_string()),
        Err(error) => (None, error),
    };
    let text = |field: &str| facts.as_ref()?.get(field)?.as_str().map(str::to_owned);
    let record = Egress {
        source: pod.name.into(),
        dialled: target.to_string(),
        seen_source: text("seen_source"),
        seen_destination: text("seen_destination"),
        allowed: facts.is_some(),
    };
    Ok((record, how))
}
