//! Who may be whom: the identity that must answer at an address, and identities that hold no longer or never did.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use byrnie_identity::{Svid, SvidVerifier};
use byrnie_scenarios::raw::{self, Mint, RawTunnel, Said};
use byrnie_scenarios::{App, DEADLINE, Mesh, Pod, World, apps, eventually, exchange, hear, within};
use rcgen::PublicKeyData;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::HOUR;

pub(crate) async fn a_hijacked_pod_address_is_refused_by_the_client(world: World) {
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let mint = Mint::of(&mesh);
    let trusting = raw::verifier(mint.bundle());
    // Whoever holds the address now has a good certificate of this mesh: somebody else's.
    orders.kill_proxy();
    orders.flush_capture();
    let impostor = Endpoint::serve(&orders, mint.svid("shop", "evil", HOUR), trusting.clone());
    refused_for(&web, orders.at(8080), "wrong-identity").await;
    assert_eq!(impostor.heard(), Vec::<String>::new());
    let line = web.refused("wrong-identity").await;
    assert!(line.text("error").contains("/sa/orders") && line.text("error").contains("/sa/evil"), "{line:?}");
    impostor.close().await;
    // The same server with the right identity is let through: it was the name alone.
    let _right = Endpoint::serve(&orders, mint.svid("shop", "orders", HOUR), trusting);
    let mut stream = web.connect(orders.at(8080)).await.unwrap();
    assert_eq!(exchange(&mut stream, b"hello").await.unwrap(), b"hello");
}

pub(crate) async fn an_expired_certificate_is_refused_by_both_sides(world: World) {
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let echo = orders.serve(8081, apps::echo);
    let probe = mesh.pod("legacy/probe").unmeshed().start().await;
    let mint = Mint::of(&mesh);
    let trusting = raw::verifier(mint.bundle());
    let expired =
        [mint.svid("shop", "web", Duration::from_secs(1)), mint.svid("shop", "orders", Duration::from_secs(1))];
    eventually("the certificates expire", Duration::from_secs(2), async || {
        // `not_after` is inclusive.
        expired.iter().all(|svid| svid.not_after() + Duration::from_secs(1) < SystemTime::now()).then_some(())
    })
    .await;
    let [client, server] = expired;
    let_down(&probe, orders.at(8081), &client, &trusting).await;
    let line = orders.refused("expired").await;
    assert_eq!((line.text("src.addr").starts_with("10."), echo.connections()), (true, 0));
    orders.kill_proxy();
    orders.flush_capture();
    let endpoint = Endpoint::serve(&orders, server, trusting);
    refused_for(&web, orders.at(8080), "expired").await;
    assert_eq!(endpoint.heard(), Vec::<String>::new());
}

pub(crate) async fn a_foreign_trust_domain_is_refused_by_both_sides(world: World) {
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let echo = orders.serve(8081, apps::echo);
    let probe = mesh.pod("legacy/probe").unmeshed().start().await;
    let ours = raw::verifier(mesh.control_plane().bundle().await);
    // Another domain, and another authority that takes our domain's name.
    let foreign = [
        (Mint::foreign("evil.example"), "unknown-trust-domain"),
        (Mint::foreign("cluster.local"), "unknown-authority"),
    ];
    for (mint, cause) in &foreign {
        let_down(&probe, orders.at(8081), &mint.svid("shop", "web", HOUR), &ours).await;
        orders.refused(cause).await;
    }
    assert_eq!(echo.connections(), 0);
    orders.kill_proxy();
    orders.flush_capture();
    for (mint, cause) in &foreign {
        let endpoint = Endpoint::serve(&orders, mint.svid("shop", "orders", HOUR), ours.clone());
        refused_for(&web, orders.at(8080), cause).await;
        assert_eq!(endpoint.heard(), Vec::<String>::new());
        endpoint.close().await;
    }
}

pub(crate) async fn a_client_without_a_certificate_is_refused(world: World) {
    let mesh = Mesh::start(&world).await;
    let [orders] = mesh.pods(["shop/orders"]).await;
    let echo = orders.serve(8080, apps::echo);
    let probe = mesh.pod("legacy/probe").unmeshed().start().await;
    let ours = raw::verifier(mesh.control_plane().bundle().await);
    let stream = raw::connect(&probe, orders.at(8080), None, &ours, b"byrnie/1").await;
    if let Ok(mut stream) = stream {
        let ended = within("the refusal", DEADLINE / 5, tokio::io::AsyncReadExt::read_u8(&mut stream)).await;
        ended.unwrap_err();
    }
    orders.refused("no-certificate").await;
    assert_eq!(echo.connections(), 0);
}

pub(crate) async fn streams_outlive_renewals_and_a_bundle_change_unless_their_peer_stays_silent(world: World) {
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let _echo = orders.serve(8080, apps::echo);
    let probe = mesh.pod("legacy/probe").unmeshed().start().await;
    let mint = Mint::of(&mesh);
    let trusting = raw::verifier(mint.bundle());
    let mut open = Vec::new();
    for _ in 0..50 {
        let mut stream = web.connect(orders.at(8080)).await.unwrap();
        exchange(&mut stream, b"before").await.unwrap();
        open.push(stream);
    }
    // A peer whose certificate ends soon and who will not prove another one.
    let short = mint.svid("shop", "web", Duration::from_secs(8));
    let mut silent = raw::tunnel(&probe, orders.at(8080), &short, &trusting).await.unwrap();
    assert!(matches!(silent.open_and_hear().await, Said::Accept(_)));
    silent.data(b"hello").await;
    assert_eq!(silent.hear_data(5).await, b"hello");

    let before = serial(&web).await;
    renew_both(&web, &orders).await;
    all_alive(&mut open, b"after one renewal").await;
    reissue_root(&mesh).await;
    for pod in [&web, &orders] {
        eventually("the new bundle arrives", Duration::from_secs(1), async || {
            (pod.log().text().matches("new trust bundle").count() >= 2).then_some(())
        })
        .await;
    }
    all_alive(&mut open, b"after a bundle change").await;
    renew_both(&web, &orders).await;
    all_alive(&mut open, b"after two renewals").await;
    assert_ne!(serial(&web).await, before);

    let left = short.not_after().duration_since(SystemTime::now()).unwrap_or_default();
    let cut = tokio::time::timeout(left + Duration::from_secs(6), async {
        loop {
            match silent.next().await {
                Said::Reauth => {}
                other => return other,
            }
        }
    });
    let cut = cut.await.expect("the silent peer is cut within a second of its expiry");
    assert_eq!(cut, Said::Reset(byrnie_proto::tunnel::v1::ResetCode::IdentityExpired));
    assert!(short.not_after() <= SystemTime::now(), "cut before its certificate had ended");
    all_alive(&mut open, b"after the other's cut").await;
    let cut = web.access_log().lines().iter().filter(|line| line.text("dst.workload") == "orders").count();
    assert_eq!(cut, 0, "a stream of web has ended");
}

pub(crate) async fn short_lived_certificates_are_renewed_by_themselves(world: World) {
    const TTL: Duration = Duration::from_secs(6);
    let mesh = Mesh::builder(&world).svid_ttl(TTL).start().await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let _echo = orders.serve(8080, apps::echo);
    let mut stream = web.connect(orders.at(8080)).await.unwrap();
    exchange(&mut stream, b"first").await.unwrap();
    let (first, begun) = (serial(&web).await, SystemTime::now());
    // More than a whole life, which nothing outlives without a renewal and a REAUTH.
    let mut calls = 0;
    while begun.elapsed().unwrap() < TTL * 2 {
        web.call(orders.at(8080)).await.unwrap();
        exchange(&mut stream, b"still").await.unwrap();
        calls += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_ne!(serial(&web).await, first);
    assert!(calls > 50, "{calls}");
}

/// A server of the mesh's protocol, beside the application of a pod, on port 8080: it echoes every stream.
struct Endpoint {
    app: App,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Endpoint {
    fn serve(pod: &Pod, svid: Svid, trusting: Arc<SvidVerifier>) -> Self {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hears = heard.clone();
        let app = pod.serve(8080, move |stream| {
            let (svid, trusting, hears) = (svid.clone(), trusting.clone(), hears.clone());
            async move {
                if let Ok(tunnel) = raw::accept(stream, &svid, &trusting).await {
                    echo(tunnel, &hears).await;
                }
            }
        });
        Self { app, heard }
    }

    async fn close(self) {
        self.app.close().await;
    }

    /// The frames that came.
    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }
}

async fn echo(mut tunnel: RawTunnel<TlsStream<TcpStream>>, hears: &Mutex<Vec<String>>) {
    loop {
        let said = tunnel.next().await;
        if !matches!(said, Said::Closed | Said::Broken) {
            hears.lock().unwrap().push(format!("{said:?}"));
        }
        match said {
            Said::Open(_) => tunnel.accept_stream().await,
            Said::Data(bytes) => tunnel.data(&bytes).await,
            Said::Fin => tunnel.fin().await,
            Said::Closed | Said::Broken => return,
            _ => {}
        }
    }
}

/// Until the proxy knows of the change, its pool may still lead to the old server.
async fn refused_for(web: &Pod, to: SocketAddr, cause: &str) {
    eventually(&format!("a refusal for {cause}"), DEADLINE / 5, async || {
        web.is_refused(to).await;
        web.access_log().lines().iter().any(|line| line.text("refusal.cause") == cause).then_some(())
    })
    .await;
}

/// In TLS 1.3 a client learns that its certificate was refused only when it reads.
async fn let_down(probe: &Pod, to: SocketAddr, svid: &Svid, trusting: &Arc<SvidVerifier>) {
    if let Ok(mut tunnel) = raw::tunnel(probe, to, svid, trusting).await {
        let said = tunnel.open_and_hear().await;
        assert_eq!(said, Said::Broken);
    }
}

async fn serial(pod: &Pod) -> String {
    pod.status().await["svid"]["serial"].as_str().unwrap().to_owned()
}

async fn renew_both(web: &Pod, orders: &Pod) {
    tokio::join!(web.renew(), orders.renew());
}

async fn all_alive(open: &mut [TcpStream], words: &[u8]) {
    for stream in open {
        tokio::io::AsyncWriteExt::write_all(stream, words).await.unwrap();
        assert_eq!(hear(stream, words.len()).await.unwrap(), words);
    }
}

/// Gives the mesh another root certificate of the same authority, as when a root is about to end: what is trusted changes
/// in form and stays the same in substance.
async fn reissue_root(mesh: &Mesh) {
    let path = mesh.control_plane().state().join("ca/root.pem");
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(mesh.control_plane().stop().await, 0);
    std::fs::write(&path, reissued(&text)).unwrap();
    mesh.control_plane().start();
    mesh.control_plane().answers().await;
}

fn reissued(root: &str) -> String {
    let key = rcgen::KeyPair::from_pem(root).unwrap();
    let print = digest::digest(&digest::SHA256, &key.subject_public_key_info());
    let print: String = print.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "Byrnie");
    params.distinguished_name.push(rcgen::DnType::CommonName, format!("Byrnie root {print}"));
    params.serial_number = Some(rcgen::SerialNumber::from_slice(&[0x42; 16]));
    params.subject_alt_names = vec![rcgen::SanType::URI("spiffe://cluster.local".try_into().unwrap())];
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(1));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    params.not_before = (SystemTime::now() - HOUR * 2).into();
    params.not_after = (SystemTime::now() + HOUR * 24 * 365).into();
    let certificate = params.self_signed(&key).unwrap();
    format!("{}{}", key.serialize_pem(), certificate.pem())
}
