//! Attacks from inside the network. Each must get nothing, and the proxy that stopped it must say why: an attack that
//! failed for another reason (nobody listened, a name did not resolve) would prove nothing.

use std::time::Duration;

use byrnie_identity::{Svid, TrustBundle};

use super::Scene;
use crate::demo::attack::{self, Impostor, Verdict};
use crate::demo::children::until;
use crate::demo::story::observe_until;
use crate::demo::topology::{
    CLIENT, CONTROL_PLANE, CONTROL_PLANE_PORT, INGRESS, ORDERS, PAYMENTS, Pod, STOCK, TOOL, TRUST_DOMAIN, WEB,
};
use crate::demo::{enroll, load, mesh};
use crate::failure::Failure;
use crate::view::Refusal;

/// Longest that a proxy takes to report what it refused.
const PATIENCE: Duration = Duration::from_secs(8);

/// An attack that was made.
struct Attack {
    check: &'static str,
    /// What it was, for people.
    what: String,
    verdict: Verdict,
    /// Whose proxy should have stopped it.
    destination: Pod,
    /// How that proxy may name the reason.
    causes: &'static [&'static str],
    /// The path that was asked for: the application's log must not have it.
    path: &'static str,
}

/// `unmeshed-client-refused`, `foreign-trust-domain-refused`, `expired-certificate-refused`, `wrong-identity-refused`,
/// `policy-allowed`, `policy-denied`, `ingress-mtls`
pub(in crate::demo) async fn run(scene: &mut Scene<'_>) -> Result<(), Failure> {
    let bundle = mesh::bundle(scene.dir)?;
    let payments = enroll_payments(scene, &bundle).await?;
    let mut attacks = vec![unmeshed(scene).await?];
    attacks.extend(tunnels(scene, &bundle).await?);
    let impostor = hijack(scene, &bundle).await?;
    attacks.push(impostor.0);
    policy_allowed(scene).await?;
    attacks.push(policy_denied(scene).await?);
    attacks.extend(ingress(scene, &bundle, &payments).await?);
    let refusals = wait_for_refusals(scene, &attacks).await;
    let mut names: Vec<_> = attacks.iter().map(|attack| attack.check).collect();
    names.dedup();
    for name in names {
        let of_name: Vec<_> = attacks.iter().filter(|attack| attack.check == name).collect();
        judge(scene, name, &of_name, &refusals, &impostor.1).await?;
    }
    Ok(())
}

/// Plaintext from a pod that is not in the mesh.
async fn unmeshed(scene: &Scene<'_>) -> Result<Attack, Failure> {
    let path = "/attack-plaintext";
    let answer = load::get(scene.world.pod(TOOL)?, ORDERS.socket(), path).await;
    Ok(Attack {
        check: "unmeshed-client-refused",
        what: "legacy/tool, in plaintext".into(),
        verdict: attack::verdict(answer.map_err(std::io::Error::other)),
        destination: ORDERS,
        causes: &["plaintext-refused", "no-ingress-rule"],
        path,
    })
}

/// Correct tunnels, with certificates that should not do.
async fn tunnels(scene: &Scene<'_>, bundle: &TrustBundle) -> Result<Vec<Attack>, Failure> {
    let stolen = mesh::authority_copy(scene.dir)?;
    let outlaw = attack::foreign("outlaw.example", "spiffe://outlaw.example/ns/shop/sa/web")?;
    let forged = attack::foreign(TRUST_DOMAIN, &WEB.spiffe_id())?;
    let old = attack::expired(&stolen, &WEB.spiffe_id());
    std::fs::remove_dir_all(&stolen).map_err(|error| scene.dir.failed("clean up", &error))?;
    let old = old?;
    let plans: [(_, _, Svid, &'static [&'static str], _); 3] = [
        (
            "foreign-trust-domain-refused",
            "another trust domain's shop/web",
            outlaw,
            &["unknown-trust-domain"],
            "/attack-foreign",
        ),
        ("foreign-trust-domain-refused", "a forged root's shop/web", forged, &["unknown-authority"], "/attack-forged"),
        ("expired-certificate-refused", "shop/web's own, four minutes too late", old, &["expired"], "/attack-expired"),
    ];
    let mut attacks = Vec::new();
    for (check, what, svid, causes, path) in plans {
        let verdict = attack::tunnel(scene.world.pod(TOOL)?, ORDERS.socket(), &svid, bundle, path).await;
        attacks.push(Attack { check, what: what.into(), verdict, destination: ORDERS, causes, path });
    }
    Ok(attacks)
}

/// An identity for the pod whose address is then somebody else's.
async fn enroll_payments(scene: &Scene<'_>, bundle: &TrustBundle) -> Result<Svid, Failure> {
    let [control_plane, _] = CONTROL_PLANE.addresses();
    let token = mesh::token(scene.dir, PAYMENTS).await?;
    let target = (control_plane, CONTROL_PLANE_PORT).into();
    enroll::enroll(scene.world.pod(PAYMENTS)?, target, bundle, token).await
}

/// The address of shop/payments is answered by somebody with a good certificate of the mesh: the ingress's.
async fn hijack(scene: &Scene<'_>, bundle: &TrustBundle) -> Result<(Attack, Impostor), Failure> {
    let stolen = mesh::ingress_svid(scene.dir)?;
    let path = "/attack-hijack";
    let impostor = Impostor::start(scene.world.pod(PAYMENTS)?, PAYMENTS.socket(), &stolen, bundle)?;
    // Until shop/web's proxy has heard that shop/payments has an identity now, it refuses without dialling.
    let dialled = until("reaching the impostor", PATIENCE, async || {
        let answer = load::get(scene.world.pod(WEB)?, PAYMENTS.socket(), path).await;
        Ok((answer.is_ok() || impostor.handshakes() > 0).then_some(answer))
    })
    .await;
    let answer = dialled.unwrap_or_else(|failure| Err(failure.to_string()));
    let attack = Attack {
        check: "wrong-identity-refused",
        what: "shop/payments' address, answered with ingress/ingress's certificate".into(),
        verdict: attack::verdict(answer.map_err(std::io::Error::other)),
        destination: PAYMENTS,
        causes: &["wrong-identity"],
        path,
    };
    Ok((attack, impostor))
}

async fn policy_allowed(scene: &mut Scene<'_>) -> Result<(), Failure> {
    let mut found = Vec::new();
    for (from, to) in [(WEB, ORDERS), (ORDERS, STOCK)] {
        let answer = load::get(scene.world.pod(from)?, to.socket(), "/allowed").await;
        let text = answer.map_or_else(|error| error, |answer| answer.status.as_u16().to_string());
        found.push((text == "200", format!("{} -> {}: {text}", from.name, to.name)));
    }
    let passed = found.iter().all(|(good, _)| *good);
    let found: Vec<_> = found.into_iter().map(|(_, text)| text).collect();
    scene.check(
        "policy-allowed",
        passed,
        "200 from shop/orders for shop/web, and from shop/stock for shop/orders",
        found.join("; "),
    );
    Ok(())
}

async fn policy_denied(scene: &Scene<'_>) -> Result<Attack, Failure> {
    let path = "/attack-policy";
    let answer = load::get(scene.world.pod(WEB)?, STOCK.socket(), path).await;
    Ok(Attack {
        check: "policy-denied",
        what: "shop/web straight to shop/stock".into(),
        verdict: attack::verdict(answer.map_err(std::io::Error::other)),
        destination: STOCK,
        causes: &["policy-denied", "no-allow-rule", "default-deny"],
        path,
    })
}

/// The right ingress gets through (by the story itself, and once more here); nobody else does.
async fn ingress(scene: &mut Scene<'_>, bundle: &TrustBundle, payments: &Svid) -> Result<Vec<Attack>, Failure> {
    let path = "/attack-ingress";
    let mut attacks = Vec::new();
    let (name, target) = (WEB.certificate_name(), WEB.socket());
    let plans: [(_, _, Option<&Svid>, &'static [&'static str]); 2] = [
        ("shop/payments' certificate at the ingress's door", TOOL, Some(payments), &["no-ingress-rule"]),
        ("no certificate at the ingress's door", INGRESS, None, &["no-certificate"]),
    ];
    for (what, from, svid, causes) in plans {
        let verdict = attack::ingress(scene.world.pod(from)?, target, &name, svid, bundle).await;
        let destination = WEB;
        attacks.push(Attack { check: "ingress-mtls", what: what.into(), verdict, destination, causes, path });
    }
    Ok(attacks)
}

/// Collects until every attack has its refusal, or the time is over.
async fn wait_for_refusals(scene: &mut Scene<'_>, attacks: &[Attack]) -> Vec<Refusal> {
    let collected = observe_until(scene, "the proxies' reports", PATIENCE, |observed| {
        let refusals: Vec<Refusal> = observed.refusals.iter().map(Refusal::from).collect();
        attacks.iter().all(|attack| attack.refusal(&refusals).is_some()).then_some(refusals)
    })
    .await;
    collected.unwrap_or_else(|_| scene.report.refusals.clone())
}

async fn judge(
    scene: &mut Scene<'_>,
    name: &'static str,
    attacks: &[&Attack],
    refusals: &[Refusal],
    impostor: &Impostor,
) -> Result<(), Failure> {
    let mut passed = true;
    let mut found = Vec::new();
    for attack in attacks {
        let (good, text) = attack.outcome(refusals);
        let reached = scene.world.application_log(attack.destination, scene.dir).contains(attack.path);
        passed &= good && !reached;
        found.push(if reached { format!("{text}; THE APPLICATION WAS REACHED") } else { text });
    }
    let mut expected = "each attempt refused with its reason, and no byte to the application".to_owned();
    if name == "wrong-identity-refused" {
        let (handshakes, bytes) = (impostor.handshakes(), impostor.bytes());
        passed &= handshakes > 0 && bytes == 0;
        found.push(format!("the impostor saw {handshakes} handshakes and {bytes} bytes"));
    }
    if name == "ingress-mtls" {
        let answer = load::get(scene.world.host(CLIENT.name)?, INGRESS.socket(), "/allowed").await;
        let text = answer.map_or_else(|error| error, |answer| answer.status.as_u16().to_string());
        passed &= text == "200";
        found.insert(0, format!("the ingress itself: {text}"));
        expected = format!("200 through the ingress; {expected}");
    }
    scene.check(name, passed, &expected, found.join("; "));
    Ok(())
}

impl Attack {
    fn refusal<'a>(&self, refusals: &'a [Refusal]) -> Option<&'a Refusal> {
        let fits = |refusal: &&Refusal| {
            let [v4, v6] = self.destination.addresses();
            let at = |address: std::net::IpAddr| refusal.destination.contains(&address.to_string());
            self.causes.contains(&refusal.cause.as_str())
                && (refusal.destination == self.destination.name || at(v4) || at(v6))
        };
        refusals.iter().find(fits)
    }

    fn outcome(&self, refusals: &[Refusal]) -> (bool, String) {
        match (&self.verdict, self.refusal(refusals)) {
            (Verdict::Refused(_), Some(refusal)) => (true, format!("{}: {}", self.what, refusal.cause)),
            (Verdict::Refused(how), None) => {
                (false, format!("{}: refused ({how}), but no proxy said {}", self.what, self.causes.join(" or ")))
            }
            (Verdict::Accepted(how), _) => (false, format!("{}: LET IN ({how})", self.what)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attack(verdict: Verdict) -> Attack {
        Attack { check: "x", what: "x".into(), verdict, destination: ORDERS, causes: &["expired"], path: "/x" }
    }

    fn refusal(destination: &str, cause: &str) -> Refusal {
        Refusal {
            source: "legacy/tool".into(),
            destination: destination.into(),
            cause: cause.into(),
            reason: String::new(),
        }
    }

    #[test]
    fn an_attack_counts_as_stopped_only_with_the_right_reason_at_the_right_place() {
        let stopped = attack(Verdict::Refused("reset".into()));
        assert!(stopped.outcome(&[refusal("shop/orders", "expired")]).0);
        assert!(stopped.outcome(&[refusal("10.77.0.13:8080", "expired")]).0);
        assert!(!stopped.outcome(&[refusal("shop/orders", "connect-refused")]).0);
        assert!(!stopped.outcome(&[refusal("shop/stock", "expired")]).0);
        assert!(!stopped.outcome(&[]).0);
    }

    #[test]
    fn an_attack_that_got_through_is_not_excused_by_a_refusal() {
        let through = attack(Verdict::Accepted("HTTP 200".into()));
        assert!(!through.outcome(&[refusal("shop/orders", "expired")]).0);
    }
}
