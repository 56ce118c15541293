#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod corpus;

use std::time::Duration;

use rstest::rstest;
use rustls::client::ClientSessionMemoryCache;
use rustls::server::ServerSessionMemoryCache;
use rustls::{ClientConnection, HandshakeKind, ServerConnection};
use rustls_pki_types::ServerName;

use super::*;
use crate::authority::{CertificateAuthority, IssueLimits};
use crate::test_certificates::{
    DAY, Made, Ours, Recipe, TRUST_DOMAIN, WEB, leaf, start, trust_domain, valid, verifier,
};
use crate::{Clock, KeyPair, ManualClock, SpiffeId, TrustBundle, TrustBundles, VerifyCause};

/// A mesh of one authority, with its clock in our hand.
struct Mesh {
    authority: CertificateAuthority,
    verifier: Arc<SvidVerifier>,
    hand: ManualClock,
}

impl Mesh {
    fn new() -> Self {
        let (clock, hand) = Clock::manual(start());
        let limits = IssueLimits::default();
        let authority = CertificateAuthority::create_with(trust_domain(TRUST_DOMAIN), &clock, limits).unwrap();
        let verifier = SvidVerifier::new(TrustBundles::from(authority.bundle()).shared(), clock);
        Self { authority, verifier, hand }
    }

    fn svid(&self, namespace: &str, service_account: &str) -> Svid {
        let id = SpiffeId::workload(self.authority.trust_domain(), namespace, service_account).unwrap();
        let key = KeyPair::generate().unwrap();
        let issued = self.authority.issue(&key.spki_der(), &id, Duration::from_secs(DAY as u64)).unwrap();
        Svid::new(issued.chain, key).unwrap()
    }

    fn client(&self, svid: &Svid) -> Arc<ClientConfig> {
        client_config(Some(svid), &self.verifier, ALPN_TUNNEL).unwrap()
    }

    fn server(&self, svid: &Svid) -> Arc<ServerConfig> {
        server_config(svid, &self.verifier, ALPN_TUNNEL, ClientAuth::Required).unwrap()
    }
}

#[derive(Debug)]
enum Failure {
    AtClient(rustls::Error),
    AtServer(rustls::Error),
}

impl Failure {
    fn cause(&self) -> Option<VerifyCause> {
        let (Self::AtClient(error) | Self::AtServer(error)) = self;
        verify_error(error).map(|error| error.cause)
    }
}

/// A whole handshake in memory, and until nobody has anything more to say: in TLS 1.3 the client is through before the
/// server has judged it. The first error of either side ends it.
fn shake(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
    name: &'static str,
) -> Result<(ClientConnection, ServerConnection), Failure> {
    let mut client = ClientConnection::new(Arc::clone(client), ServerName::try_from(name).unwrap()).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    while client.wants_write() || server.wants_write() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        let mut rest = &wire[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets().map_err(Failure::AtServer)?;
        }
        let mut wire = Vec::new();
        server.write_tls(&mut wire).unwrap();
        let mut rest = &wire[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().map_err(Failure::AtClient)?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok((client, server))
}

/// The chain of `made` as an SVID; `Svid::new` accepts what only time or trust make bad.
fn svid(made: Made) -> Svid {
    Svid::new(made.chain.clone(), made.key()).unwrap()
}

#[test]
fn two_proxies_know_each_other_after_one_handshake() {
    let mesh = Mesh::new();
    let (web, orders) = (mesh.svid("shop", "web"), mesh.svid("shop", "orders"));
    let (client, server) = shake(&mesh.client(&web), &mesh.server(&orders), "unused.invalid").unwrap();
    assert_eq!(peer_identity(&client, &mesh.verifier).unwrap().id(), orders.id());
    let at_server = peer_identity(&server, &mesh.verifier).unwrap();
    assert_eq!((at_server.id(), at_server.serial()), (web.id(), web.serial()));
    assert_eq!(at_server.leaf_fingerprint(), web.leaf_fingerprint());
    assert_eq!(client.alpn_protocol(), Some(ALPN_TUNNEL));
    assert_eq!(server.server_name(), None);
    let facts = TlsFacts::of(&client).unwrap();
    assert_eq!((facts.version, facts.key_exchange.as_str()), ("TLSv1.3", "X25519MLKEM768"));
    assert!(facts.cipher == "TLS13_AES_128_GCM_SHA256" || facts.cipher == "TLS13_CHACHA20_POLY1305_SHA256");
    assert_eq!(TlsFacts::of(&server).unwrap(), facts);
}

#[test]
fn there_are_no_facts_before_the_handshake_is_through() {
    let mesh = Mesh::new();
    let config = mesh.client(&mesh.svid("shop", "web"));
    let client = ClientConnection::new(config, ServerName::try_from("x.invalid").unwrap()).unwrap();
    assert_eq!(TlsFacts::of(&client), None);
    assert_eq!(peer_identity(&client, &mesh.verifier).unwrap_err().cause, VerifyCause::NoCertificate);
}

#[test]
fn an_expired_certificate_is_refused_by_either_side() {
    let mesh = Mesh::new();
    let (old, server) = (mesh.svid("shop", "web"), mesh.svid("shop", "orders"));
    shake(&mesh.client(&old), &mesh.server(&server), "x").unwrap();
    mesh.hand.advance(Duration::from_secs(DAY as u64 + 1));
    let fresh = mesh.svid("shop", "orders");
    let refused = shake(&mesh.client(&old), &mesh.server(&fresh), "x").unwrap_err();
    assert!(matches!(refused, Failure::AtServer(_)));
    assert_eq!(refused.cause(), Some(VerifyCause::Expired));
    let refused = shake(&mesh.client(&fresh), &mesh.server(&old), "x").unwrap_err();
    assert!(matches!(refused, Failure::AtClient(_)));
    assert_eq!(refused.cause(), Some(VerifyCause::Expired));
}

#[rstest]
#[case::a_foreign_trust_domain("spiffe://other.example/ns/shop/sa/web", VerifyCause::UnknownTrustDomain)]
#[case::our_own_id_under_a_foreign_root(WEB, VerifyCause::UnknownAuthority)]
fn a_stranger_is_refused_by_either_side(#[case] id: &str, #[case] cause: VerifyCause) {
    let mesh = Mesh::new();
    let mut recipe = Recipe::good();
    recipe.leaf = leaf(&[id]);
    if id != WEB {
        recipe.trust_domain = "other.example".to_owned();
    }
    let stranger = svid(recipe.make());
    let ours = mesh.svid("shop", "orders");
    // The stranger trusts us: it is we who refuse.
    let refused = shake(&mesh.client(&stranger), &mesh.server(&ours), "x").unwrap_err();
    assert!(matches!(refused, Failure::AtServer(_)));
    assert_eq!(refused.cause(), Some(cause));
    let refused = shake(&mesh.client(&ours), &mesh.server(&stranger), "x").unwrap_err();
    assert!(matches!(refused, Failure::AtClient(_)));
    assert_eq!(refused.cause(), Some(cause));
}

#[test]
fn federated_trust_domains_meet_when_each_has_the_others_bundle() {
    let (ours, mut theirs) = (Recipe::good().make(), Recipe::good());
    theirs.leaf = leaf(&["spiffe://other.example/ns/shop/sa/web"]);
    let theirs = theirs.make();
    let (verifier, _) = verifier([ours.bundle(TRUST_DOMAIN), theirs.bundle("other.example")]);
    let (ours, theirs) = (svid(ours), svid(theirs));
    let client = client_config(Some(&ours), &verifier, ALPN_TUNNEL).unwrap();
    let server = server_config(&theirs, &verifier, ALPN_TUNNEL, ClientAuth::Required).unwrap();
    let (client, _) = shake(&client, &server, "x").unwrap();
    assert_eq!(peer_identity(&client, &verifier).unwrap().id().trust_domain().as_str(), "other.example");
}

#[test]
fn a_client_without_a_certificate_gets_in_only_where_that_is_allowed() {
    let mesh = Mesh::new();
    let server = mesh.svid("byrnie-system", "byrnie-control-plane");
    let anonymous = client_config(None, &mesh.verifier, ALPN_H2).unwrap();
    let required = server_config(&server, &mesh.verifier, ALPN_H2, ClientAuth::Required).unwrap();
    let refused = shake(&anonymous, &required, "x").unwrap_err();
    assert!(matches!(refused, Failure::AtServer(_)));
    assert_eq!(refused.cause(), Some(VerifyCause::NoCertificate));

    let optional = server_config(&server, &mesh.verifier, ALPN_H2, ClientAuth::Optional).unwrap();
    let (client, at_server) = shake(&anonymous, &optional, "x").unwrap();
    assert_eq!(peer_identity(&at_server, &mesh.verifier).unwrap_err().cause, VerifyCause::NoCertificate);
    let control_plane = crate::control_plane_id(mesh.authority.trust_domain());
    peer_identity(&client, &mesh.verifier).unwrap().expect(&control_plane).unwrap();
    // Optional is not "whatever": a bad certificate is worse than none.
    let stranger = svid(Recipe::good().make());
    let pretender = client_config(Some(&stranger), &mesh.verifier, ALPN_H2).unwrap();
    assert_eq!(shake(&pretender, &optional, "x").unwrap_err().cause(), Some(VerifyCause::UnknownAuthority));
}

#[test]
fn a_certificate_without_its_key_is_worth_nothing() {
    let mesh = Mesh::new();
    let (web, orders) = (mesh.svid("shop", "web"), mesh.svid("shop", "orders"));
    let stolen = Arc::new(rustls::sign::CertifiedKey::new(
        web.chain().to_vec(),
        KeyPair::generate().unwrap().rustls_key().unwrap(),
    ));
    let mut client = (*mesh.client(&web)).clone();
    client.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(stolen));
    let refused = shake(&Arc::new(client), &mesh.server(&orders), "x").unwrap_err();
    assert_eq!(refused.cause(), Some(VerifyCause::BadSignature));
}

#[test]
fn nothing_is_ever_resumed() {
    let mesh = Mesh::new();
    let (web, orders) = (mesh.svid("shop", "web"), mesh.svid("shop", "orders"));
    let (client, server) = (mesh.client(&web), mesh.server(&orders));
    for _ in 0..3 {
        let (client, server) = shake(&client, &server, "same.invalid").unwrap();
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(server.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(client.tls13_tickets_received(), 0);
    }
    assert!(!server.ticketer.enabled());
}

#[test]
fn a_peer_that_would_resume_gets_a_full_handshake_all_the_same() {
    let mesh = Mesh::new();
    let (web, orders) = (mesh.svid("shop", "web"), mesh.svid("shop", "orders"));
    let mut eager_client = (*mesh.client(&web)).clone();
    eager_client.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(32)));
    let mut eager_server = (*mesh.server(&orders)).clone();
    eager_server.session_storage = ServerSessionMemoryCache::new(32);
    eager_server.send_tls13_tickets = 2;
    let (eager_client, eager_server) = (Arc::new(eager_client), Arc::new(eager_server));
    let second = |client: &Arc<ClientConfig>, server: &Arc<ServerConfig>| {
        shake(client, server, "same.invalid").unwrap();
        shake(client, server, "same.invalid").unwrap().0.handshake_kind().unwrap()
    };
    assert_eq!(second(&eager_client, &mesh.server(&orders)), HandshakeKind::Full);
    assert_eq!(second(&mesh.client(&web), &eager_server), HandshakeKind::Full);
    assert_eq!(mesh.server(&orders).send_tls13_tickets, 0);
    // The ingress's leg as well, where TLS 1.2 resumes by session ID.
    let mut old = client(Some(&web), &mesh.verifier, NameRule::Ignored, &[&TLS12]).unwrap();
    old.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(32)));
    let ingress = ingress_server_config(&orders, &mesh.verifier).unwrap();
    assert_eq!(second(&Arc::new(old), &ingress), HandshakeKind::Full);
    // The test can tell: two that want to, do.
    assert_eq!(second(&eager_client, &eager_server), HandshakeKind::Resumed);
}

#[test]
fn tls_1_2_is_refused_inside_the_mesh() {
    let mesh = Mesh::new();
    let (web, orders) = (mesh.svid("shop", "web"), mesh.svid("shop", "orders"));
    let old_client = Arc::new(client(Some(&web), &mesh.verifier, NameRule::Ignored, &[&TLS12]).unwrap());
    assert!(matches!(shake(&old_client, &mesh.server(&orders), "x"), Err(Failure::AtServer(_))));
    let old_server = Arc::new(server(&orders, &mesh.verifier, ClientAuth::Required, &[&TLS12]).unwrap());
    assert!(shake(&mesh.client(&web), &old_server, "x").is_err());
}

#[test]
fn another_protocol_is_refused_and_none_is_seen() {
    let mesh = Mesh::new();
    let (web, orders) = (mesh.svid("shop", "web"), mesh.svid("shop", "orders"));
    let http = client_config(Some(&web), &mesh.verifier, ALPN_H2).unwrap();
    let refused = shake(&http, &mesh.server(&orders), "x").unwrap_err();
    assert!(matches!(refused, Failure::AtServer(rustls::Error::NoApplicationProtocol)), "{refused:?}");
    let silent = client_config(Some(&web), &mesh.verifier, b"").unwrap();
    let (_, server) = shake(&silent, &mesh.server(&orders), "x").unwrap();
    assert_eq!(server.alpn_protocol(), None);
}

#[rstest]
#[case::tls_1_3(&TLS13, "TLSv1.3", "X25519MLKEM768")]
#[case::tls_1_2(&TLS12, "TLSv1.2", "X25519")]
fn an_ingress_comes_in_with_its_certificate(
    #[case] version: &'static SupportedProtocolVersion,
    #[case] name: &str,
    #[case] group: &str,
) {
    let mesh = Mesh::new();
    let (ingress, web) = (mesh.svid("edge", "ingress"), mesh.svid("shop", "web"));
    let server = ingress_server_config(&web, &mesh.verifier).unwrap();
    let mut one = client(Some(&ingress), &mesh.verifier, NameRule::MustMatch, &[version]).unwrap();
    one.alpn_protocols = vec![b"http/1.1".to_vec()];
    let one = Arc::new(one);
    for _ in 0..2 {
        let (client, server) = shake(&one, &server, "web.shop.cluster.local").unwrap();
        assert_eq!(peer_identity(&server, &mesh.verifier).unwrap().id(), ingress.id());
        let facts = TlsFacts::of(&server).unwrap();
        assert_eq!((facts.version, facts.key_exchange.as_str()), (name, group));
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(server.alpn_protocol(), None);
    }
    let anonymous = Arc::new(client(None, &mesh.verifier, NameRule::MustMatch, &[version]).unwrap());
    let refused = shake(&anonymous, &server, "web.shop.cluster.local").unwrap_err();
    assert_eq!(refused.cause(), Some(VerifyCause::NoCertificate));
}

#[test]
fn an_ingress_checks_the_name_that_it_called() {
    let mesh = Mesh::new();
    let (ingress, web) = (mesh.svid("edge", "ingress"), mesh.svid("shop", "web"));
    let client = ingress_client_config(&ingress, &mesh.verifier).unwrap();
    let server = ingress_server_config(&web, &mesh.verifier).unwrap();
    let (_, at_server) = shake(&client, &server, "web.shop.cluster.local").unwrap();
    assert_eq!(at_server.server_name(), Some("web.shop.cluster.local"));
    let refused = shake(&client, &server, "orders.shop.cluster.local").unwrap_err();
    assert!(matches!(refused, Failure::AtClient(_)));
    assert_eq!(refused.cause(), Some(VerifyCause::WrongName));
}

#[test]
fn a_new_bundle_holds_for_the_next_handshake_without_a_new_configuration() {
    let mesh = Mesh::new();
    let (web, orders) = (mesh.svid("shop", "web"), mesh.svid("shop", "orders"));
    let (client, server) = (mesh.client(&web), mesh.server(&orders));
    let (_, at_server) = shake(&client, &server, "x").unwrap();
    let other = Recipe::good().make();
    let bundle = TrustBundle::new(trust_domain(TRUST_DOMAIN), 2, vec![other.root]).unwrap();
    mesh.verifier.bundles().store(Arc::new(bundle.into()));
    assert_eq!(shake(&client, &server, "x").unwrap_err().cause(), Some(VerifyCause::UnknownAuthority));
    assert_eq!(peer_identity(&at_server, &mesh.verifier).unwrap_err().cause, VerifyCause::UnknownAuthority);
}

#[test]
fn an_error_that_is_not_about_a_certificate_has_no_cause() {
    assert!(verify_error(&rustls::Error::DecryptError).is_none());
    assert!(verify_error(&rustls::Error::InvalidCertificate(CertificateError::Expired)).is_none());
}

#[test]
fn a_chain_that_is_about_to_begin_is_refused_until_then() {
    let mut recipe = Recipe::good();
    valid(&mut recipe.leaf, 60, DAY);
    let (early, other) = (recipe.make(), Recipe::good().make());
    let roots = vec![early.root.clone(), other.root.clone()];
    let (verifier, hand) = verifier([TrustBundle::new(trust_domain(TRUST_DOMAIN), 1, roots).unwrap()]);
    let client = client_config(Some(&svid(early)), &verifier, ALPN_TUNNEL).unwrap();
    let server = server_config(&svid(other), &verifier, ALPN_TUNNEL, ClientAuth::Required).unwrap();
    assert_eq!(shake(&client, &server, "x").unwrap_err().cause(), Some(VerifyCause::NotYetValid));
    hand.advance(Duration::from_secs(60));
    shake(&client, &server, "x").unwrap();
}
