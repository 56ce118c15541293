//! What happens when two things happen at once, or one at a bad moment.

use super::*;
use socket2::SockRef;

async fn echo(near: &mut TcpStream, application: &mut TcpStream) {
    near.write_all(b"x").await.unwrap();
    application.read_exact(&mut [0]).await.unwrap();
    application.write_all(b"y").await.unwrap();
    near.read_exact(&mut [0]).await.unwrap();
}

#[tokio::test]
async fn a_renewal_before_a_stream_begins_is_proved_on_it_by_both_sides() {
    let rig = Rig::new().await;
    let tunnel = rig.dial().await;
    rig.renew(&rig.client, "web");
    rig.renew(&rig.server, "orders");
    // The sweep that asks every open stream to prove the renewal finds none.
    tokio::time::sleep(Duration::from_millis(600)).await;
    let (mut near, relay) = rig.open(tunnel).await;
    let mut application = rig.accepted().await;
    echo(&mut near, &mut application).await;
    drop((near, application));
    let (tunnel, end) = relay.await.unwrap();
    assert!(matches!(end, End::Clean), "{end:?}");
    assert_eq!(tunnel.peer().serial(), rig.server.certificates.current().unwrap().svid.serial());
    assert_eq!(tunnel.generation, rig.client.certificates.current().unwrap().number);
}

#[tokio::test]
async fn a_half_closed_stream_on_which_bytes_move_is_not_forgotten() {
    let rig = Rig::new().await;
    let (mut near, relay) = rig.open(rig.dial().await).await;
    let mut application = rig.accepted().await;
    near.shutdown().await.unwrap();
    for _ in 0..4 {
        application.write_all(b"tick").await.unwrap();
        near.read_exact(&mut [0; 4]).await.unwrap();
        rig.client.streams.pass(crate::limits::HALF_CLOSED / 2);
        rig.server.streams.pass(crate::limits::HALF_CLOSED / 2);
        tokio::time::sleep(crate::limits::SWEEP + Duration::from_millis(100)).await;
    }
    drop(application);
    near.read_to_end(&mut vec![]).await.unwrap();
    assert!(matches!(relay.await.unwrap().1, End::Clean));
}

#[tokio::test]
async fn a_half_closed_stream_on_which_nothing_moves_is_cut() {
    let rig = Rig::new().await;
    let (mut near, relay) = rig.open(rig.dial().await).await;
    let _application = rig.accepted().await;
    near.shutdown().await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    rig.client.streams.pass(crate::limits::HALF_CLOSED + Duration::from_secs(1));
    let (_, end) = tokio::time::timeout(Duration::from_secs(5), relay).await.expect("it is cut").unwrap();
    assert_eq!(end.label(), "half-closed");
}

#[tokio::test]
async fn a_stream_on_which_nobody_speaks_for_hours_stays_open() {
    let rig = Rig::new().await;
    let (mut near, relay) = rig.open(rig.dial().await).await;
    let mut application = rig.accepted().await;
    // The server speaks first, as sshd does.
    application.write_all(b"hello").await.unwrap();
    near.read_exact(&mut [0; 5]).await.unwrap();
    for _ in 0..3 {
        rig.client.streams.pass(Duration::from_secs(4 * 3600));
        rig.server.streams.pass(Duration::from_secs(4 * 3600));
        tokio::time::sleep(crate::limits::SWEEP + Duration::from_millis(100)).await;
    }
    echo(&mut near, &mut application).await;
    drop((near, application));
    assert!(matches!(relay.await.unwrap().1, End::Clean));
}

#[tokio::test]
async fn changes_do_not_make_time_pass() {
    let rig = Rig::new().await;
    let (before, begun) = (rig.client.streams.sweeps(), std::time::Instant::now());
    for _ in 0..10 {
        rig.client.control.take_own(own_pod("web", Policies::default()));
        tokio::time::sleep(2 * crate::limits::SETTLE).await;
    }
    let most = begun.elapsed().as_millis() / crate::limits::SWEEP.as_millis() + 2;
    assert!(u128::from(rig.client.streams.sweeps() - before) <= most);
}

#[tokio::test]
async fn a_refusal_is_heard_though_writing_fails() {
    let mut rig = Rig::new().await;
    rig.application = listener().await.0;
    let mut tunnel = rig.dial().await;
    let socket = SockRef::from(tunnel.tls.io()).try_clone().unwrap();
    let (near, far) = connected().await;
    let mut early = Early::default();
    let mut opening = Box::pin(client::open(&mut tunnel, &rig.client, &far, &mut early, Open::default()));
    assert!(std::future::poll_fn(|cx| Poll::Ready(opening.as_mut().poll(cx).is_pending())).await);
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    near.try_write(b"a request").unwrap();
    let refused = opening.await.unwrap_err();
    assert!(matches!(refused, OpenError::Refused(_)) && refused.retryable(), "{refused}");
}

#[tokio::test]
async fn a_client_that_the_server_does_not_trust_hears_so() {
    let rig = Rig::new().await;
    // The server learns of another authority for the trust domain, and forgets this one.
    rig.server.certificates.take_bundle(TestMesh::new().authority.bundle());
    for _ in 0..20 {
        let mut tunnel = rig.dial().await;
        let (mut near, far) = connected().await;
        near.write_all(&pattern(50_000, 1)).await.unwrap();
        let refused =
            client::open(&mut tunnel, &rig.client, &far, &mut Early::default(), Open::default()).await.unwrap_err();
        assert_eq!(refused.label(), "refused-by-peer", "{refused}");
    }
}

#[tokio::test]
async fn a_peer_with_too_many_tunnels_is_told_so_and_may_try_elsewhere() {
    let rig = Rig::new().await;
    let (inbound, address) = listener().await;
    let shared = rig.server.clone();
    tokio::spawn(async move {
        let (stream, source) = inbound.accept().await.unwrap();
        let (own, until) = (shared.certificates.current().unwrap(), Instant::now() + crate::limits::TLS_HANDSHAKE);
        let tunnel = server::accept(&shared, &own, stream, Vec::new(), until).await.unwrap();
        let connection = shared.telemetry.connection(crate::telemetry::Direction::Inbound, source, address);
        server::turn_away(&shared, tunnel, connection, until).await;
    });
    let own = rig.client.certificates.current().unwrap();
    let mut tunnel = client::dial(&rig.client, &own, address, &id("orders")).await.unwrap();
    let (mut near, far) = connected().await;
    near.write_all(&pattern(60_000, 1)).await.unwrap();
    let refused =
        client::open(&mut tunnel, &rig.client, &far, &mut Early::default(), Open::default()).await.unwrap_err();
    assert!(refused.retryable() && refused.label() == "refused-overloaded", "{refused}");
}

#[tokio::test]
async fn a_handshake_message_without_an_end_is_given_up() {
    let rig = Rig::new().await;
    let (mut near, far) = connected().await;
    let own = rig.server.certificates.current().unwrap();
    let shared = rig.server.clone();
    let until = Instant::now() + crate::limits::TLS_HANDSHAKE;
    let accepting = tokio::spawn(async move { server::accept(&shared, &own, far, Vec::new(), until).await.map(drop) });
    // A ClientHello of 60,000 bytes, in records of one byte.
    near.write_all(&[22, 3, 1, 0, 4, 1, 0, 0xea, 0x60]).await.unwrap();
    let _ = near.write_all(&[22, 3, 1, 0, 1, 0].repeat(10_000)).await;
    let refused = tokio::time::timeout(Duration::from_secs(2), accepting).await.expect("given up").unwrap();
    assert!(matches!(refused, Err(TunnelError::Tls(TlsError::EndlessMessage(_)))), "{refused:?}");
}
