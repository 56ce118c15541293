//! Who gets a certificate, and who does not.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod rig;

use std::time::Duration;

use byrnie_identity::{KeyPair, Svid, authority::CertificateAuthority};
use byrnie_proto::mesh::v1::{CertifyRequest, RevokeTokenRequest, identity_client::IdentityClient};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use rig::{PATIENCE, Rig, eventually, pod};

#[tokio::test]
async fn a_join_token_gives_its_pod_an_identity_once() {
    let rig = Rig::start().await;
    let token = rig.token("web", "web-0", 0).await;
    let svid = rig.certify(Some(token.clone()), None).await.unwrap();
    assert_eq!(svid.id().as_str(), "spiffe://cluster.local/ns/shop/sa/web");
    rig.verifier().verify(svid.chain()).unwrap();

    let again = rig.certify(Some(token), None).await.unwrap_err();
    assert_eq!(again.code(), Code::Unauthenticated);
    assert!(again.message().contains("already used"), "{}", again.message());

    let observed = rig.observe().await;
    let identity = observed.identities.iter().find(|identity| identity.pod_uid == "uid-web-0").unwrap();
    assert_eq!((identity.workload.as_str(), identity.serial.as_str()), ("shop/web-0", svid.serial()));
    assert!(observed.refusals.iter().any(|refusal| refusal.cause == "join-token-used"), "{:?}", observed.refusals);
}

#[tokio::test]
async fn an_answer_that_got_lost_is_asked_for_again_with_the_same_key() {
    let mut rig = Rig::start().await;
    let token = rig.token("web", "web-0", 60).await;
    let key = KeyPair::generate().unwrap();
    // Nobody reads it: the connection ends with this line.
    drop(rig.certify_key(&key, Some(token.clone()), None).await.unwrap());
    rig.down().await;
    rig.up().await;

    let stranger = rig.certify(Some(token.clone()), None).await.unwrap_err();
    assert_eq!(stranger.code(), Code::Unauthenticated);
    assert!(stranger.message().contains("already used"), "{}", stranger.message());
    let chain = rig.certify_key(&key, Some(token.clone()), None).await.unwrap();
    rig.verifier().verify(&chain).unwrap();

    rig.time.advance(Duration::from_secs(61));
    let late = rig.certify_key(&key, Some(token), None).await.unwrap_err();
    assert!(late.message().contains("expired"), "{}", late.message());
    let svid = Svid::new(chain, key).unwrap();
    rig.certify(None, Some(&svid)).await.expect("what came the second time is as good as the first");
}

#[tokio::test]
async fn of_two_keys_that_come_with_one_token_at_once_one_is_certified_each_time() {
    let rig = Rig::start().await;
    let token = rig.token("web", "web-0", 0).await;
    let (one, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let ask = |key| rig.certify_key(key, Some(token.clone()), None);
    let (a, b, c, d) = tokio::join!(ask(&one), ask(&other), ask(&one), ask(&other));
    assert_eq!((a.is_ok(), b.is_ok()), (c.is_ok(), d.is_ok()), "the same key, the same answer");
    assert_ne!(a.is_ok(), b.is_ok());
}

#[tokio::test]
async fn a_token_without_the_private_key_that_it_was_used_for_is_worth_nothing() {
    let rig = Rig::start().await;
    let token = rig.token("web", "web-0", 0).await;
    let key = KeyPair::generate().unwrap();
    rig.certify_key(&key, Some(token.clone()), None).await.unwrap();
    // The request with that public key, but with a signature of somebody else.
    let mut csr = key.csr_der().unwrap();
    *csr.last_mut().unwrap() ^= 1;
    let credential = Some(byrnie_proto::mesh::v1::certify_request::Credential::JoinToken(token));
    let request = CertifyRequest { csr, credential };
    let refused = IdentityClient::new(rig.channel(None).await.unwrap()).certify(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn wrong_expired_and_revoked_tokens_are_refused_with_their_reason() {
    let rig = Rig::start().await;
    let refused = rig.certify(Some("byrnie-join.0123456789abcdef.x".to_owned()), None).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);

    let expired = rig.token("web", "web-0", 60).await;
    rig.time.advance(Duration::from_secs(61));
    let refused = rig.certify(Some(expired), None).await.unwrap_err();
    assert!(refused.message().contains("expired"), "{}", refused.message());

    let revoked = rig.token("web", "web-0", 60).await;
    let id = revoked.split('.').nth(1).unwrap().to_owned();
    rig.administration().await.revoke_token(RevokeTokenRequest { id }).await.unwrap();
    let refused = rig.certify(Some(revoked), None).await.unwrap_err();
    assert!(refused.message().contains("revoked"), "{}", refused.message());

    let nobody = rig.certify(None, None).await.unwrap_err();
    assert_eq!(nobody.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_token_is_good_for_a_pod_of_the_source_with_that_service_account_only() {
    let rig = Rig::start().await;
    let absent = rig.token("web", "web-7", 0).await;
    let refused = rig.certify(Some(absent.clone()), None).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);

    let other = rig.token("orders", "web-0", 0).await;
    let refused = rig.certify(Some(other), None).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    // A refusal for another reason has not used the token up.
    rig.write("more.yaml", &pod("web-7", "web", "10.0.0.7"));
    let svid = eventually("the new pod is known", async || rig.certify(Some(absent.clone()), None).await.ok()).await;
    assert_eq!(svid.id().service_account(), Some("web"));
}

#[tokio::test]
async fn only_pods_of_enrolled_namespaces_join() {
    let rig = Rig::start().await;
    let mut request = pod("old-0", "old", "10.0.0.9");
    request = request.replace("namespace: shop", "namespace: legacy");
    rig.write("old.yaml", &request);
    let create = byrnie_proto::mesh::v1::CreateTokenRequest {
        namespace: "legacy".to_owned(),
        service_account: "old".to_owned(),
        pod: "old-0".to_owned(),
        ttl_seconds: 0,
    };
    let token = rig.administration().await.create_token(create).await.unwrap().into_inner().token;
    let refused = eventually("the pod is known", async || {
        let refused = rig.certify(Some(token.clone()), None).await.unwrap_err();
        refused.message().contains("enrolled").then_some(refused)
    })
    .await;
    assert_eq!(refused.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn a_current_svid_renews_itself_and_an_expired_one_does_not() {
    let rig = Rig::start().await;
    let first = rig.join("web", "web-0").await;
    let second = rig.certify(None, Some(&first)).await.unwrap();
    assert_ne!(first.serial(), second.serial());
    assert_eq!(first.id(), second.id());
    // The one before is good until it expires: the proxy's old connections stand.
    rig.certify(None, Some(&first)).await.unwrap();

    rig.time.advance(Duration::from_secs(25 * 3600));
    assert!(rig.certify(None, Some(&second)).await.is_err());
}

#[tokio::test]
async fn the_identity_of_a_pod_that_is_gone_or_was_made_anew_is_not_renewed() {
    let rig = Rig::start().await;
    let svid = rig.join("web", "web-0").await;
    // The same name, another pod.
    rig.write("pods.yaml", &pod("web-0", "web", "10.0.0.1").replace("uid-web-0", "uid-other"));
    let refused = eventually("the pod is gone", async || rig.certify(None, Some(&svid)).await.err()).await;
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("uid-web-0"), "{}", refused.message());
}

#[tokio::test]
async fn what_the_request_names_beside_its_key_counts_for_nothing() {
    let rig = Rig::start().await;
    let token = rig.token("web", "web-0", 0).await;
    let key = rcgen::KeyPair::generate().unwrap();
    let mut wish = rcgen::CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
    wish.subject_alt_names.push(rcgen::SanType::URI(
        "spiffe://cluster.local/ns/byrnie-system/sa/byrnie-control-plane".try_into().unwrap(),
    ));
    let csr = wish.serialize_request(&key).unwrap();
    let channel = rig.channel(None).await.unwrap();
    let credential = Some(byrnie_proto::mesh::v1::certify_request::Credential::JoinToken(token));
    let request = CertifyRequest { csr: csr.der().to_vec(), credential };
    let chain = IdentityClient::new(channel).certify(request).await.unwrap().into_inner().chain;
    let chain: Vec<CertificateDer<'_>> = chain.into_iter().map(CertificateDer::from).collect();
    let svid = Svid::new(chain, KeyPair::from_pem(&key.serialize_pem()).unwrap()).unwrap();
    assert_eq!(svid.id().as_str(), "spiffe://cluster.local/ns/shop/sa/web");
}

#[tokio::test]
async fn a_damaged_request_uses_no_token_up() {
    let rig = Rig::start().await;
    let token = rig.token("web", "web-0", 0).await;
    for csr in [Vec::new(), vec![0x30; 64], vec![0; 9000]] {
        let credential = Some(byrnie_proto::mesh::v1::certify_request::Credential::JoinToken(token.clone()));
        let refused = IdentityClient::new(rig.channel(None).await.unwrap())
            .certify(CertifyRequest { csr, credential })
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    rig.certify(Some(token), None).await.unwrap();
}

#[tokio::test]
async fn an_identity_of_another_authority_gets_no_connection_and_is_told() {
    let rig = Rig::start().await;
    let domain = "cluster.local".parse().unwrap();
    let foreign = CertificateAuthority::create(domain, &rig.clock).unwrap();
    let key = KeyPair::generate().unwrap();
    let id = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    let issued = foreign.issue(&key.spki_der(), &id, Duration::from_secs(3600)).unwrap();
    let svid = Svid::new(issued.chain, key).unwrap();
    assert!(rig.certify(None, Some(&svid)).await.is_err());
    assert!(rig.watch(Some(&svid)).await.is_err());
    let refusals = rig.observe().await.refusals;
    assert_eq!(refusals.len(), 2, "{refusals:?}");
    assert!(
        refusals.iter().all(|refusal| refusal.cause == "unknown-authority" && refusal.source == "127.0.0.1"),
        "{refusals:?}"
    );
}

#[tokio::test]
async fn garbage_on_the_tls_port_disturbs_nobody() {
    let rig = Rig::start().await;
    for garbage in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0xff; 5000], vec![0x16, 0x03, 0x01], Vec::new()] {
        let mut stream = tokio::net::TcpStream::connect(rig.address).await.unwrap();
        let _ = stream.write_all(&garbage).await;
        let _ = stream.shutdown().await;
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("the server closes");
    }
    rig.join("web", "web-0").await;
}

#[tokio::test]
async fn one_address_can_not_take_all_places_with_connections_that_prove_nothing() {
    let rig = Rig::start().await;
    let svid = rig.join("web", "web-0").await;
    let mut held = Vec::new();
    let most = 64;
    for _ in 0..most {
        held.push(rig.channel(None).await.unwrap());
    }
    // In TLS 1.3 the client learns of it when it first waits for an answer.
    assert!(rig.certify(None, None).await.unwrap_err().code() != Code::Unauthenticated);
    rig.certify(None, Some(&svid)).await.expect("whoever proves who it is is not concerned");
    held.truncate(most / 2);
    eventually("there is room again", async || {
        (rig.certify(None, None).await.unwrap_err().code() == Code::Unauthenticated).then_some(())
    })
    .await;
}

#[tokio::test]
async fn everything_survives_a_restart() {
    let mut rig = Rig::start().await;
    let svid = rig.join("web", "web-0").await;
    let unused = rig.token("orders", "orders-0", 0).await;
    let bundle = std::fs::read(rig.path("state/bundle.pem")).unwrap();
    rig.down().await;
    assert!(!rig::exists(&rig.path("state/control.sock")), "nothing is left of the socket");
    rig.up().await;
    assert_eq!(std::fs::read(rig.path("state/bundle.pem")).unwrap(), bundle);
    rig.certify(None, Some(&svid)).await.unwrap();
    rig.certify(Some(unused), None).await.unwrap();
}
