#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod corpus;
mod races;

use std::net::SocketAddr;
use std::time::Duration;

use byrnie_policy::{Action, AuthorizationRule, Enforcement, Policies, Ports};
use byrnie_proto::tunnel::v1::{Open, RefuseCode};
use byrnie_redirect::OriginalDestination;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::client::{self, Early, OpenError};
use super::relay::{End, Relay};
use super::*;
use crate::shared::Shared;
use crate::streams::{self, Grounds, Registered};
use crate::test_support::{TestMesh, connected, id, listener, own_pod};

/// A client proxy and a server proxy with an application behind it.
pub(crate) struct Rig {
    mesh: TestMesh,
    pub(crate) client: Arc<Shared>,
    pub(crate) server: Arc<Shared>,
    /// Where the server proxy listens.
    pub(crate) address: SocketAddr,
    pub(crate) application: TcpListener,
    application_address: SocketAddr,
}

impl Rig {
    pub(crate) async fn new() -> Rig {
        Rig::of(TestMesh::new()).await
    }

    async fn of(mesh: TestMesh) -> Rig {
        let (client, server) = (mesh.proxy("web"), mesh.proxy("orders"));
        let (application, application_address) = listener().await;
        let (inbound, address) = listener().await;
        let shared = server.clone();
        tokio::spawn(async move {
            loop {
                let (stream, source) = inbound.accept().await.unwrap();
                let (shared, own) = (shared.clone(), shared.certificates.current().unwrap());
                tokio::spawn(async move {
                    if let Ok(tunnel) =
                        server::accept(&shared, &own, stream, Vec::new(), Instant::now() + crate::limits::TLS_HANDSHAKE)
                            .await
                    {
                        server::serve(&shared, tunnel, source, OriginalDestination(application_address)).await;
                    }
                });
            }
        });
        tokio::spawn(streams::supervise(client.clone()));
        tokio::spawn(streams::supervise(server.clone()));
        Rig { mesh, client, server, address, application, application_address }
    }

    pub(crate) async fn dial(&self) -> Box<Tunnel> {
        let own = self.client.certificates.current().unwrap();
        client::dial(&self.client, &own, self.address, &id("orders")).await.unwrap()
    }

    /// Opens a stream for a new application connection; gives back the application's end and the relay's end.
    async fn open(&self, tunnel: Box<Tunnel>) -> (TcpStream, JoinHandle<(Box<Tunnel>, End)>) {
        let (near, far) = connected().await;
        (near, carry(self.client.clone(), tunnel, far, self.address))
    }

    pub(crate) async fn accepted(&self) -> TcpStream {
        self.application.accept().await.unwrap().0
    }

    pub(crate) fn renew(&self, shared: &Shared, service_account: &str) {
        shared.certificates.take(self.mesh.svid(service_account, Duration::from_secs(3600))).unwrap();
    }
}

pub(crate) fn registered<'a>(shared: &'a Shared, tunnel: &Tunnel, endpoint: SocketAddr) -> Registered<'a> {
    let grounds = Grounds::Outbound { dialled: endpoint, endpoint, expected: tunnel.peer().id().clone() };
    shared.streams.register(grounds, Some(tunnel.peer().clone()))
}

fn carry(
    shared: Arc<Shared>,
    mut tunnel: Box<Tunnel>,
    far: TcpStream,
    endpoint: SocketAddr,
) -> JoinHandle<(Box<Tunnel>, End)> {
    tokio::spawn(async move {
        crate::sockets::reset_unless_clean(&far);
        client::open(&mut tunnel, &shared, &far, &mut Early::default(), Open::default()).await.unwrap();
        let registered = registered(&shared, &tunnel, endpoint);
        let end = Relay::new(&shared, &mut tunnel, &far, &registered).run().await;
        drop(registered);
        if matches!(end, End::Clean) {
            crate::sockets::ended_cleanly(&far);
        }
        (tunnel, end)
    })
}

/// An SVID with the identity of a member, but for a client outside of the mesh.
fn outside_mesh(rig: &Rig, service_account: &str) -> byrnie_identity::Svid {
    let key = byrnie_identity::KeyPair::generate().unwrap();
    let life = Duration::from_secs(3600);
    let issued = rig.mesh.authority.issue_outside(&key.spki_der(), &id(service_account), life).unwrap();
    byrnie_identity::Svid::new(issued.chain, key).unwrap()
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|index| (index as u8).wrapping_mul(31).wrapping_add((index >> 8) as u8) ^ seed).collect()
}

#[tokio::test]
async fn a_request_and_its_answer_cross_and_the_tunnel_serves_the_next_stream() {
    let rig = Rig::new().await;
    let mut tunnel = rig.dial().await;
    assert_eq!(tunnel.peer().id(), &id("orders"));
    assert_eq!(&*tunnel.facts().key_exchange, "X25519MLKEM768");
    for turn in 1..=3u8 {
        let (mut near, relay) = rig.open(tunnel).await;
        near.write_all(&[turn; 100]).await.unwrap();
        near.shutdown().await.unwrap();
        let mut application = rig.accepted().await;
        let mut request = vec![];
        application.read_to_end(&mut request).await.unwrap();
        assert_eq!(request, [turn; 100]);
        application.write_all(b"answer").await.unwrap();
        drop(application);
        let mut answer = vec![];
        near.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
        let (back, end) = relay.await.unwrap();
        assert!(matches!(end, End::Clean), "{end:?}");
        assert!(back.session.reusable());
        assert_eq!(back.session.stream(), u32::from(turn));
        tunnel = back;
    }
}

#[tokio::test]
async fn each_side_may_end_first_and_still_hear_the_other() {
    let rig = Rig::new().await;
    let (mut near, relay) = rig.open(rig.dial().await).await;
    let mut application = rig.accepted().await;
    application.write_all(b"banner").await.unwrap();
    application.shutdown().await.unwrap();
    let mut banner = vec![];
    near.read_to_end(&mut banner).await.unwrap();
    assert_eq!(banner, b"banner");
    near.write_all(&pattern(200_000, 1)).await.unwrap();
    near.shutdown().await.unwrap();
    let mut rest = vec![];
    application.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, pattern(200_000, 1));
    assert!(matches!(relay.await.unwrap().1, End::Clean));
}

#[tokio::test]
async fn bulk_crosses_both_ways_at_once_byte_for_byte() {
    const SIZE: usize = 8 << 20;
    let rig = Rig::new().await;
    let (near, relay) = rig.open(rig.dial().await).await;
    let application = rig.accepted().await;
    let exchange = |stream: TcpStream, seed: u8| async move {
        let (mut read, mut write) = stream.into_split();
        let send = tokio::spawn(async move {
            write.write_all(&pattern(SIZE, seed)).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let mut received = vec![];
        read.read_to_end(&mut received).await.unwrap();
        send.await.unwrap();
        received
    };
    let (answered, asked) = tokio::join!(exchange(near, 3), exchange(application, 5));
    assert!(answered == pattern(SIZE, 5) && asked == pattern(SIZE, 3));
    assert!(matches!(relay.await.unwrap().1, End::Clean));
}

#[tokio::test]
async fn an_application_that_resets_is_a_reset_at_the_other_end_and_the_tunnel_is_not_used_again() {
    let rig = Rig::new().await;
    let (mut near, relay) = rig.open(rig.dial().await).await;
    let mut application = rig.accepted().await;
    near.write_all(b"x").await.unwrap();
    application.read_exact(&mut [0]).await.unwrap();
    application.set_zero_linger().unwrap();
    drop(application);
    let (tunnel, end) = relay.await.unwrap();
    assert!(matches!(end, End::ResetByPeer(v1::ResetCode::Application)), "{end:?}");
    assert!(!tunnel.session.reusable());
    let error = near.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_tunnel_that_breaks_is_a_reset_and_never_a_clean_end() {
    let rig = Rig::new().await;
    // A relay of bytes between the proxies that ends TCP in the middle.
    let (between, address) = listener().await;
    let target = rig.address;
    let cut = tokio::spawn(async move {
        let (mut from, _) = between.accept().await.unwrap();
        let mut to = TcpStream::connect(target).await.unwrap();
        let copying = tokio::io::copy_bidirectional(&mut from, &mut to);
        let _ = tokio::time::timeout(Duration::from_millis(700), copying).await;
    });
    let own = rig.client.certificates.current().unwrap();
    let tunnel = client::dial(&rig.client, &own, address, &id("orders")).await.unwrap();
    let (mut near, relay) = rig.open(tunnel).await;
    let mut application = rig.accepted().await;
    application.write_all(b"half of").await.unwrap();
    let mut half = [0; 7];
    near.read_exact(&mut half).await.unwrap();
    cut.await.unwrap();
    assert!(near.read(&mut [0]).await.is_err());
    let (_, end) = relay.await.unwrap();
    assert!(matches!(end, End::Tunnel(_)), "{end:?}");
    assert!(application.read(&mut [0]).await.is_err());
}

#[tokio::test]
async fn a_stream_that_policy_denies_never_reaches_the_application() {
    let rig = Rig::new().await;
    let allow_nobody = AuthorizationRule {
        name: "AuthorizationPolicy shop/nobody[0]".into(),
        action: Action::Deny,
        enforcement: Enforcement::Enforce,
        from: vec![],
        ports: Ports::default(),
    };
    let policies = Policies { authorization: vec![allow_nobody], ..Policies::default() };
    rig.server.control.take_own(own_pod("orders", policies));
    let mut tunnel = rig.dial().await;
    let (mut near, far) = connected().await;
    near.write_all(b"secret").await.unwrap();
    let mut early = Early::default();
    let refused = client::open(&mut tunnel, &rig.client, &far, &mut early, Open::default()).await.unwrap_err();
    let OpenError::Refused(refuse) = &refused else { panic!("{refused:?}") };
    assert_eq!(refuse.code(), RefuseCode::PolicyDenied);
    assert_eq!(refuse.rule, "AuthorizationPolicy shop/nobody[0]", "the peer is of the same namespace");
    assert!(!refuse.correlation_id.is_empty() && !refused.retryable());
    let accepted = tokio::time::timeout(Duration::from_millis(50), rig.application.accept()).await;
    assert!(accepted.is_err(), "the application saw the connection");
}

#[tokio::test]
async fn an_application_that_does_not_listen_is_a_retryable_refusal() {
    let mut rig = Rig::new().await;
    rig.application = listener().await.0;
    let mut tunnel = rig.dial().await;
    let (_near, far) = connected().await;
    let refused =
        client::open(&mut tunnel, &rig.client, &far, &mut Early::default(), Open::default()).await.unwrap_err();
    assert!(refused.retryable(), "{refused} at {}", rig.application_address);
    assert_eq!(refused.label(), "refused-connect-refused");
}

#[tokio::test]
async fn who_is_not_the_expected_identity_gets_nothing() {
    let rig = Rig::new().await;
    let own = rig.client.certificates.current().unwrap();
    let Err(refused) = client::dial(&rig.client, &own, rig.address, &id("stock")).await else { panic!("dialled") };
    assert_eq!(refused.cause(), "wrong-identity");
}

#[tokio::test]
async fn open_streams_outlive_two_renewals_on_both_sides() {
    let rig = Rig::new().await;
    let (mut near, relay) = rig.open(rig.dial().await).await;
    let mut application = rig.accepted().await;
    for turn in 1..=2u8 {
        rig.renew(&rig.client, "web");
        rig.renew(&rig.server, "orders");
        for _ in 0..20 {
            near.write_all(&[turn]).await.unwrap();
            application.read_exact(&mut [0]).await.unwrap();
            application.write_all(&[turn]).await.unwrap();
            near.read_exact(&mut [0]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    drop((near, application));
    let (tunnel, end) = relay.await.unwrap();
    assert!(matches!(end, End::Clean), "{end:?}");
    let renewed = rig.server.certificates.current().unwrap();
    assert_eq!(tunnel.peer().serial(), renewed.svid.serial(), "the client knows the server's newest SVID");
    assert_eq!(tunnel.generation, rig.client.certificates.current().unwrap().number);
}

#[tokio::test]
async fn a_stream_whose_peer_does_not_renew_is_cut_when_its_svid_ends() {
    let (clock, hand) = byrnie_identity::Clock::manual(std::time::SystemTime::now());
    let rig = Rig::of(TestMesh::with_clock(clock)).await;
    let (mut near, relay) = rig.open(rig.dial().await).await;
    let mut application = rig.accepted().await;
    near.write_all(b"x").await.unwrap();
    application.read_exact(&mut [0]).await.unwrap();
    hand.advance(Duration::from_secs(3601));
    let (_, end) =
        tokio::time::timeout(Duration::from_secs(5), relay).await.expect("within five times a second").unwrap();
    assert!(!matches!(end, End::Clean), "{end:?}");
    assert!(near.read(&mut [0]).await.is_err());
    assert!(application.read(&mut [0]).await.is_err());
}

#[tokio::test]
async fn a_reauth_that_does_not_hold_is_refused() {
    let rig = Rig::new().await;
    let mut tunnel = rig.dial().await;
    let verifier = rig.client.certificates.verifier().clone();
    let other = rig.mesh.svid("stock", Duration::from_secs(3600));
    let own = rig.mesh.svid("orders", Duration::from_secs(3600));
    let reauth = |svid: &byrnie_identity::Svid, text: &[u8]| {
        let (scheme, signature) = svid.sign(text).unwrap();
        let chain = svid.chain().iter().map(|der| der.to_vec()).collect();
        v1::Reauth { chain, signature_scheme: scheme.into(), signature, sequence: 1 }
    };
    let text = |svid: &byrnie_identity::Svid, role| tunnel.binding.signed_text(role, 1, &svid.chain()[0]);
    let stranger = reauth(&other, &text(&other, Role::Server));
    let reflected = reauth(&own, &text(&own, Role::Client));
    let good = reauth(&own, &text(&own, Role::Server));
    let outside = outside_mesh(&rig, "orders");
    let disguised = reauth(&outside, &text(&outside, Role::Server));
    let elsewhere = {
        let binding = Binding { client_nonce: [9; NONCE_LEN], ..tunnel.binding.clone() };
        reauth(&own, &binding.signed_text(Role::Server, 1, &own.chain()[0]))
    };
    assert!(matches!(tunnel.renewed(&stranger, &verifier), Err(TunnelError::Reauth(_))));
    assert!(matches!(tunnel.renewed(&disguised, &verifier), Err(TunnelError::Reauth(_))));
    assert!(tunnel.renewed(&reflected, &verifier).is_err());
    assert!(tunnel.renewed(&elsewhere, &verifier).is_err());
    assert!(tunnel.renewed(&v1::Reauth::default(), &verifier).is_err());
    tunnel.renewed(&good, &verifier).unwrap();
}

#[tokio::test]
async fn a_policy_that_changes_cuts_the_streams_it_denies() {
    let rig = Rig::new().await;
    let (mut near, relay) = rig.open(rig.dial().await).await;
    let _application = rig.accepted().await;
    near.write_all(b"x").await.unwrap();
    let policies = Policies { authorization_default: byrnie_policy::DefaultAction::Deny, ..Policies::default() };
    rig.server.control.take_own(own_pod("orders", policies));
    let (_, end) =
        tokio::time::timeout(Duration::from_secs(5), relay).await.expect("within five times a second").unwrap();
    assert!(matches!(end, End::ResetByPeer(v1::ResetCode::PolicyDenied)), "{end:?}");
}

#[tokio::test]
async fn a_server_that_drains_lets_a_stream_end_and_takes_no_other() {
    let rig = Rig::new().await;
    let (mut near, relay) = rig.open(rig.dial().await).await;
    let mut application = rig.accepted().await;
    near.write_all(b"x").await.unwrap();
    application.read_exact(&mut [0]).await.unwrap();
    rig.server.drain.begin();
    tokio::time::sleep(Duration::from_millis(600)).await;
    application.write_all(b"still here").await.unwrap();
    let mut answer = [0; 10];
    near.read_exact(&mut answer).await.unwrap();
    drop((near, application));
    let (tunnel, end) = relay.await.unwrap();
    assert!(matches!(end, End::Clean), "{end:?}");
    assert!(!tunnel.session.reusable());
}

#[tokio::test]
async fn a_reader_that_stops_for_minutes_gets_every_byte() {
    const SIZE: usize = 24 << 20;
    let rig = Rig::new().await;
    let (near, relay) = rig.open(rig.dial().await).await;
    let application = rig.accepted().await;
    let writer = tokio::spawn(async move {
        let mut application = application;
        application.write_all(&pattern(SIZE, 9)).await.unwrap();
        application.shutdown().await.unwrap();
        let _ = application.read(&mut [0]).await;
    });
    // Long enough for every buffer on the way to be full, then ten minutes on tokio's clock.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!writer.is_finished());
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(600)).await;
    tokio::time::resume();
    let mut near = near;
    near.shutdown().await.unwrap();
    let mut received = vec![];
    near.read_to_end(&mut received).await.unwrap();
    assert!(received == pattern(SIZE, 9));
    assert!(matches!(relay.await.unwrap().1, End::Clean));
    writer.await.unwrap();
}

#[tokio::test]
async fn a_tunnel_between_streams_holds_no_buffer() {
    let rig = Rig::new().await;
    let (mut near, relay) = rig.open(rig.dial().await).await;
    let mut application = rig.accepted().await;
    near.write_all(&pattern(100_000, 1)).await.unwrap();
    application.read_exact(&mut vec![0; 100_000]).await.unwrap();
    application.write_all(&pattern(100_000, 1)).await.unwrap();
    near.read_exact(&mut vec![0; 100_000]).await.unwrap();
    drop((near, application));
    let (tunnel, _) = relay.await.unwrap();
    assert_eq!(tunnel.tls.buffered(), 0);
}

#[tokio::test]
async fn what_a_connection_and_an_idle_tunnel_cost_is_known() {
    // Within a twentieth, up or down: growth wants a reason, and a gain wants to be kept.
    let rig = Rig::new().await;
    let worker = pool::Worker::new();
    let (one, two) = connected().await;
    let address = rig.address;
    let outbound = crate::outbound::handle(rig.client.clone(), worker.clone(), one, address);
    let inbound = crate::inbound::handle(rig.server.clone(), two, address);
    let tunnel = rig.dial().await;
    let idle = pool::watch_size(&worker, &rig.client, address, tunnel);
    let sizes = [
        ("a tunnel, rustls' own state apart", std::mem::size_of::<Tunnel>(), 504),
        ("the future of an outbound connection", std::mem::size_of_val(&outbound), 1_472),
        ("the future of an inbound connection", std::mem::size_of_val(&inbound), 1_448),
        ("the future that watches an idle tunnel", idle, 520),
    ];
    for (what, size, expected) in sizes {
        assert!(size.abs_diff(expected) <= expected / 20, "{what}: {size} bytes, expected {expected}");
        println!("{what}: {size}");
    }
}
