//! Who speaks for which pod, in Kubernetes.

use std::{sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use byrnie_identity::{KeyPair, PeerIdentity};
use serde_json::{Value, json};

use super::*;
use crate::kubernetes::{
    Reviewer,
    testing::{Answer, ISSUER, Signer, fake, plane},
};

fn pod(name: &str, account: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}")},
        "spec": {"serviceAccountName": account, "containers": [], "initContainers": [
            {"name": "byrnie-capture", "image": "x"}, {"name": "byrnie-proxy", "image": "x", "restartPolicy": "Always"}]}})
}

fn token() -> String {
    let part = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.c2ln", part(json!({"alg": "RS256"})), part(json!({"aud": ["byrnie.dev/ca"]})))
}

/// A control plane whose API server says that the token is that of `web-0`, or `None`: that can't be asked.
fn control_plane(home: &std::path::Path, says: Option<&'static str>) -> Arc<Plane> {
    in_namespace(home, says, "enabled")
}

/// The same, with another value of the label that enrols the pods' namespace.
fn in_namespace(home: &std::path::Path, says: Option<&'static str>, mesh: &str) -> Arc<Plane> {
    let (client, _) = fake(move |_| match says {
        None => Answer::status(503, "ServiceUnavailable"),
        Some(account) => Answer::json(
            201,
            &json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1",
            "metadata": {}, "spec": {"token": ""}, "status": {"authenticated": true, "audiences": ["byrnie.dev/ca"],
                "user": {"username": format!("system:serviceaccount:shop:{account}"), "extra": {
                    "authentication.kubernetes.io/pod-name": ["web-0"],
                    "authentication.kubernetes.io/pod-uid": ["uid-web-0"]}}}}),
        ),
    });
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "shop", "labels": {"byrnie.dev/mesh": mesh}}});
    let mut plane = plane(home, &[namespace, pod("web-0", "web"), pod("db-0", "db")]);
    let clock = plane.clock.clone();
    Arc::get_mut(&mut plane).unwrap().reviewer = Some(Reviewer::new(client, clock));
    plane
}

fn caller(identity: Option<PeerIdentity>) -> Caller {
    Caller { address: "10.0.0.1:40000".parse().unwrap(), identity, chain: Arc::default() }
}

/// The SVID of a pod, recorded as issued here or not.
async fn svid(plane: &Plane, pod: &str, recorded: bool) -> PeerIdentity {
    let spki = KeyPair::generate().unwrap().spki_der();
    let model = plane.model.load();
    let pod = model.pod("shop", pod).unwrap();
    let chain = if recorded {
        plane.issue(&spki, &pod.spiffe_id, Holder::Pod(pod.uid.clone()), &pod.workload).await.unwrap().chain
    } else {
        plane.authority.issue(&spki, &pod.spiffe_id, plane.ttl()).unwrap().chain
    };
    plane.verifier.verify(&chain).unwrap()
}

async fn cause(plane: &Plane, identity: Option<PeerIdentity>) -> &'static str {
    plane.bind_by_token(&caller(identity), &token()).await.err().unwrap().cause()
}

#[tokio::test]
async fn a_token_says_which_pod_asks_and_a_certificate_besides_must_be_that_pods() {
    let home = tempfile::tempdir().unwrap();
    let plane = control_plane(home.path(), Some("web"));
    let bound = plane.bind_by_token(&caller(None), &token()).await.unwrap();
    assert_eq!((bound.pod.place().as_str(), bound.claims.is_some()), ("shop/web-0", true));
    // Another replica may have issued it.
    let own = svid(&plane, "web-0", false).await;
    plane.bind_by_token(&caller(Some(own)), &token()).await.unwrap();
    let others = svid(&plane, "db-0", true).await;
    assert_eq!(cause(&plane, Some(others)).await, "wrong-service-account");
}

#[tokio::test]
async fn containers_of_our_names_open_nothing_in_a_namespace_that_no_webhook_sees() {
    let home = tempfile::tempdir().unwrap();
    let plane = in_namespace(home.path(), Some("web"), "disabled");
    assert_eq!(cause(&plane, None).await, "not-enrolled");
    // A namespace that was taken out: its pods live on until they are made anew.
    let own = svid(&plane, "web-0", false).await;
    plane.bind_by_token(&caller(Some(own)), &token()).await.unwrap();
}

#[tokio::test]
async fn a_certificate_of_an_ingress_opens_nothing_whatever_token_comes_with_it() {
    let home = tempfile::tempdir().unwrap();
    let plane = control_plane(home.path(), Some("web"));
    let spki = KeyPair::generate().unwrap().spki_der();
    let id = plane.model.load().pod("shop", "web-0").unwrap().spiffe_id.clone();
    let chain = plane.authority.issue_outside(&spki, &id, plane.ttl()).unwrap().chain;
    let outside = plane.verifier.verify(&chain).unwrap();
    assert_eq!(cause(&plane, Some(outside)).await, "not-a-proxy");
}

#[tokio::test]
async fn while_the_api_server_is_away_only_a_certificate_that_this_replica_remembers_counts() {
    let home = tempfile::tempdir().unwrap();
    let plane = control_plane(home.path(), None);
    assert_eq!(cause(&plane, None).await, "api-server-unavailable");
    let unknown = svid(&plane, "web-0", false).await;
    assert_eq!(cause(&plane, Some(unknown)).await, "api-server-unavailable");
    let known = svid(&plane, "web-0", true).await;
    let bound = plane.bind_by_token(&caller(Some(known)), &token()).await.unwrap();
    assert_eq!((bound.pod.place().as_str(), bound.claims.is_none()), ("shop/web-0", true));
}

#[tokio::test]
async fn each_kind_of_credential_is_refused_under_the_other_source() {
    let home = tempfile::tempdir().unwrap();
    let cluster = control_plane(home.path(), Some("web"));
    let csr = KeyPair::generate().unwrap().csr_der().unwrap();
    let ask = |credential| CertifyRequest { csr: csr.clone(), credential };
    for credential in [Some(Credential::JoinToken("byrnie-join.a.b".to_owned())), None] {
        let own = svid(&cluster, "web-0", true).await;
        let refused = cluster.try_certify(&caller(Some(own)), ask(credential)).await.unwrap_err();
        assert_eq!(refused.cause(), "no-credential");
    }
    let other = tempfile::tempdir().unwrap();
    let directory = plane(other.path(), &[]);
    let refused = directory.try_certify(&caller(None), ask(Some(Credential::ServiceAccountToken(token())))).await;
    assert_eq!(refused.unwrap_err().cause(), "no-credential");
}

#[tokio::test]
async fn while_the_api_server_is_away_its_keys_say_whose_a_token_is_to_who_has_a_certificate() {
    let home = tempfile::tempdir().unwrap();
    let plane = control_plane(home.path(), None);
    let (signer, evil) = (Signer::new("one"), Signer::new("one"));
    plane.reviewer.as_ref().unwrap().keys().know(ISSUER, &[signer.jwk()]);
    let ask = async |identity: Option<PeerIdentity>, token: String| {
        let bound = plane.bind_by_token(&caller(identity), &token).await;
        bound.map(|bound| bound.pod.place()).map_err(|refused| refused.cause())
    };
    // Issued by another replica.
    let (web, db) = (svid(&plane, "web-0", false).await, svid(&plane, "db-0", false).await);
    let (of_web, of_db) = (signer.token("web-0", "web"), signer.token("db-0", "db"));
    assert_eq!(ask(Some(web.clone()), of_web.clone()).await.unwrap(), "shop/web-0");
    assert_eq!(ask(None, of_web.clone()).await, Err("api-server-unavailable"), "a first certificate");
    assert_eq!(ask(Some(web.clone()), of_db.clone()).await, Err("wrong-service-account"));
    assert_eq!(ask(Some(db), of_web).await, Err("wrong-service-account"));
    assert_eq!(ask(Some(web.clone()), evil.token("web-0", "web")).await, Err("api-server-unavailable"));
    assert_eq!(
        ask(Some(web.clone()), signer.token("web-9", "web")).await,
        Err("api-server-unavailable"),
        "no such UID"
    );
    let mut borrowed = Signer::claims("web-0", "web");
    borrowed["kubernetes.io"]["pod"]["uid"] = json!("uid-db-0");
    let borrowed = signer.sign(&json!({"alg": "ES256", "kid": "one"}), &borrowed);
    assert_eq!(ask(Some(web), borrowed).await, Err("pod-gone"), "another pod's UID");
    // A record does not help who shows another pod's token.
    let recorded = svid(&plane, "web-0", true).await;
    assert_eq!(ask(Some(recorded.clone()), of_db).await, Err("wrong-service-account"));
    assert_eq!(ask(Some(recorded.clone()), evil.token("web-0", "web")).await, Err("api-server-unavailable"));
    // It does where kubelet could not replace the token.
    let mut old = Signer::claims("web-0", "web");
    old["exp"] = json!(1);
    let old = signer.sign(&json!({"alg": "ES256", "kid": "one"}), &old);
    assert_eq!(ask(Some(recorded), old).await.unwrap(), "shop/web-0");
}

/// A proxy waits 10 s for its certificate.
#[tokio::test(start_paused = true)]
async fn an_api_server_that_hangs_keeps_nobody_waiting_for_longer_than_a_proxy_waits() {
    let home = tempfile::tempdir().unwrap();
    let mut plane = control_plane(home.path(), None);
    let silent = tower::service_fn(|_: hyper::Request<kube::client::Body>| {
        std::future::pending::<Result<hyper::Response<kube::client::Body>, std::convert::Infallible>>()
    });
    let clock = plane.clock.clone();
    let reviewer = Reviewer::new(kube::Client::new(silent, "default"), clock);
    let signer = Signer::new("one");
    reviewer.keys().know(ISSUER, &[signer.jwk()]);
    Arc::get_mut(&mut plane).unwrap().reviewer = Some(reviewer);
    let token = signer.token("web-0", "web");
    let web = svid(&plane, "web-0", false).await;
    let cases = [
        (Some(web), limits::REVIEW_RENEWAL, Ok("shop/web-0".to_owned())),
        (None, limits::REVIEW_FIRST, Err("api-server-unavailable")),
    ];
    for (identity, within, expected) in cases {
        let asked = tokio::time::Instant::now();
        let caller = caller(identity);
        let bound = plane.bind_by_token(&caller, &token).await;
        assert_eq!(bound.map(|bound| bound.pod.place()).map_err(|refused| refused.cause()), expected);
        let took = asked.elapsed();
        assert!((within..within + Duration::from_secs(1)).contains(&took) && took < Duration::from_secs(9), "{took:?}");
    }
}
