//! What goes on without the control plane, and what bad input to it does.

use std::time::Duration;

use byrnie_redirect::{Capture, CaptureConfig, NfTables};
use byrnie_scenarios::{
    DEADLINE, Ending, Mesh, Pod, Service, World, apps, deny, ending, eventually, exchange, hexadecimal, holds_for,
    within,
};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;

use crate::strict::permissive;

pub(crate) async fn without_the_control_plane_what_is_known_goes_on_and_the_unknown_is_refused(world: World) {
    let mesh = Mesh::start(&world).await;
    let [web, orders, stock] = mesh.pods(["shop/web", "shop/orders", "shop/stock"]).await;
    let (_orders, unknown) = (orders.serve(8080, apps::echo), stock.serve(8080, apps::echo));
    web.call(orders.at(8080)).await.unwrap();
    let mut open = web.connect(orders.at(8080)).await.unwrap();
    exchange(&mut open, b"before").await.unwrap();
    mesh.control_plane().kill();
    web.says("no stream to the control plane").await;
    assert_eq!(exchange(&mut open, b"open").await.unwrap(), b"open");
    for _ in 0..20 {
        web.call(orders.at(8080)).await.unwrap();
    }
    // What was never dialled is inside of the cluster and unknown: refused, not guessed.
    web.is_refused(stock.at(8080)).await;
    web.refused("control-plane-away").await;
    assert_eq!(unknown.connections(), 0);
    // Nor is anything outside reached without a rule.
    web.is_refused("203.0.113.9:443".parse().unwrap()).await;
    assert_eq!(web.health().await.unwrap().0, 200);
    // It comes back: the proxies find it, and what changed meanwhile arrives.
    mesh.apply("no-web", &deny("shop", "no-web", "web"));
    mesh.control_plane().start();
    mesh.control_plane().answers().await;
    let cut = within("the change that was made meanwhile", Duration::from_secs(2), ending(&mut open)).await;
    assert_eq!(cut, Ending::Reset);
    mesh.remove("no-web");
    eventually("all is as before", Duration::from_secs(2), async || web.call(stock.at(8080)).await.ok()).await;
    mesh.observed("both proxies are connected again", |seen| {
        (seen.proxies.iter().filter(|proxy| proxy.connected).count() == 3).then_some(())
    })
    .await;
}

pub(crate) async fn a_change_of_endpoints_arrives_within_a_second(world: World) {
    let mesh = Mesh::start(&world).await;
    let [address, _] = mesh.service(&Service::new("shop/orders").port(80, 8080));
    let [web] = mesh.pods(["shop/web"]).await;
    let to = std::net::SocketAddr::new(address, 80);
    web.is_refused(to).await;
    web.refused("no-endpoints").await;
    let orders = mesh.pod("shop/orders").start().await;
    let _echo = orders.serve(8080, apps::echo);
    eventually("the new endpoint is found", Duration::from_secs(1), async || web.call(to).await.ok()).await;
    mesh.remove("pod-shop-orders");
    eventually("the endpoint is gone", Duration::from_secs(1), async || web.call(to).await.err()).await;
}

pub(crate) async fn a_file_that_is_half_written_or_no_yaml_keeps_its_last_good_content(world: World) {
    let mesh = Mesh::start(&world).await;
    mesh.apply("no-web", &deny("shop", "no-web", "web"));
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let _echo = orders.serve(8080, apps::echo);
    web.is_refused(orders.at(8080)).await;
    let path = mesh.source().join("no-web.yaml");
    let good = std::fs::read_to_string(&path).unwrap();
    // An editor that writes in place stops in the middle of a word; somebody writes something that is no YAML; a field is
    // wrong; and the file is empty for a moment.
    let half = good.get(..good.len() - 10).unwrap().to_owned();
    let broken = [half.as_str(), "kind: [\n", &good.replace("Deny", "Forbid"), ""];
    for text in broken {
        std::fs::write(&path, text).unwrap();
        let what = format!("the mistake of {text:?}, with its place");
        let status = mesh.observed(&what, |seen| {
            seen.objects.iter().find(|object| !object.accepted && object.file == "no-web.yaml").cloned()
        });
        let status = status.await;
        assert!(text.is_empty() || status.message.contains("no-web.yaml:"), "{text:?}: {status:?}");
        holds_for("what held before stays in force", Duration::from_millis(300), async || {
            web.call(orders.at(8080)).await.is_err()
        })
        .await;
        std::fs::write(&path, &good).unwrap();
        mesh.observed("the file is good again", |seen| {
            seen.objects.iter().all(|object| object.accepted || object.file != "no-web.yaml").then_some(())
        })
        .await;
    }
    // The others' changes went through all along.
    mesh.remove("no-web");
    eventually("the policy is gone", Duration::from_secs(1), async || web.call(orders.at(8080)).await.ok()).await;
}

pub(crate) async fn a_join_token_is_good_once_in_time_and_for_its_pod(world: World) {
    let mesh = Mesh::start(&world).await;
    let control_plane = mesh.control_plane();
    let web = mesh.pod("shop/web").start().await;
    let other = mesh.pod("shop/other").launch().await;
    other.ready().await;
    let used = control_plane.token("shop/third", "third").await;
    let brief = control_plane.try_token("shop/third", "third", 1).await.unwrap();
    let revoked = control_plane.try_token("shop/third", "third", 0).await.unwrap();
    control_plane.revoke_token(&revoked.id).await;
    // Another pod uses up the token of the third.
    let third = mesh.pod("shop/third").launch().await;
    third.ready().await;
    third.kill_proxy();
    drop(used);
    eventually("the short token expires", Duration::from_secs(2), async || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        (now > u64::try_from(brief.expires).unwrap()).then_some(())
    })
    .await;
    let fourth = mesh.pod("shop/fourth").launch().await;
    fourth.ready().await;
    let spent = std::fs::read_to_string(mesh.directory().join("pods/shop-fourth/token")).unwrap();
    for (token, words, cause) in [
        ("byrnie-join.0011223344556677.00".to_owned(), "unknown", "join-token-unknown"),
        (spent, "already used", "join-token-used"),
        (brief.token.clone(), "expired", "join-token-expired"),
        (revoked.token.clone(), "revoked", "join-token-revoked"),
    ] {
        starts_over(&mesh, &third, &token).await;
        third.says(words).await;
        mesh.observed("the refusal", |seen| seen.refusals.iter().find(|refusal| refusal.cause == cause).map(|_| ()))
            .await;
        let (code, text) = third.health().await.unwrap();
        assert!(code == 503 && text.contains("no SVID is held") && text.contains(words), "{text}");
    }
    for (whose, log) in mesh.all_logs() {
        for secret in [&brief.token, &revoked.token] {
            let secret = secret.rsplit('.').next().unwrap();
            assert!(!log.contains(secret), "a token's secret is in the log of {whose}");
        }
    }
    drop(web);
}

/// The proxy begins anew, without the state of before, with this token.
async fn starts_over(mesh: &Mesh, pod: &Pod, token: &str) {
    pod.kill_proxy();
    let state = mesh.directory().join(format!("pods/{}/state", pod.name().replace('/', "-")));
    std::fs::remove_dir_all(state).unwrap();
    pod.give_token(token);
    pod.start_proxy();
    eventually("the proxy answers", DEADLINE / 5, async || pod.health().await.ok()).await;
}

/// A private key of P-256 from a file.
struct PrivateKey {
    /// The number itself: 32 bytes, the highest first.
    bytes: Vec<u8>,
    /// How it would look in a text: in base64, and half of its bytes as Rust prints them.
    texts: [String; 3],
}

/// Those in the files of a directory.
fn private_keys(directory: &std::path::Path) -> Vec<PrivateKey> {
    /// Where the number is in its PKCS #8 (RFC 5958, RFC 5915), as aws-lc writes it.
    const NUMBER: std::ops::Range<usize> = 36..68;
    let mut keys = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            keys.extend(private_keys(&entry.path()));
        } else if let Ok(key) = PrivatePkcs8KeyDer::from_pem_file(entry.path()) {
            let text = std::fs::read_to_string(entry.path()).unwrap();
            let first = text.lines().skip_while(|line| !line.contains("PRIVATE KEY")).nth(1).unwrap().to_owned();
            let bytes = key.secret_pkcs8_der()[NUMBER].to_vec();
            let list = format!("{:?}", &bytes[8..24]);
            let texts = [first, list[1..list.len() - 1].to_owned(), hexadecimal(&bytes[8..24])];
            keys.push(PrivateKey { bytes, texts });
        }
    }
    keys
}

pub(crate) async fn nothing_secret_is_in_any_log(world: World) {
    let mesh = Mesh::start(&world).await;
    mesh.apply("permissive", &permissive("orders", None));
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let _echo = orders.serve(8080, apps::echo);
    web.call(orders.at(8080)).await.unwrap();
    web.renew().await;
    web.call(orders.at(8080)).await.unwrap();
    web.logged("both calls", |line| line.text("connection.end") == "clean").await;
    let tokens = [&web, &orders].map(|pod| {
        let path = mesh.directory().join(format!("pods/{}/token", pod.name().replace('/', "-")));
        std::fs::read_to_string(path).unwrap().rsplit('.').next().unwrap().trim().to_owned()
    });
    let mut shown = mesh.all_logs();
    for pod in [&web, &orders] {
        for path in ["/status", "/config", "/destinations", "/metrics"] {
            shown.push((format!("{path} of {}", pod.name()), pod.get(15000, path).await.unwrap().1));
        }
    }
    shown.push(("Observe".to_owned(), format!("{:?}", mesh.observe().await)));
    let keys = private_keys(&mesh.control_plane().state());
    assert!(!keys.is_empty(), "the authority's key is in a file");
    for (whose, text) in shown {
        assert!(!text.contains("PRIVATE KEY"), "a private key in {whose}");
        let mut forms = keys.iter().flat_map(|key| &key.texts);
        assert!(forms.all(|form| !text.contains(form.as_str())), "bytes of a private key in {whose}");
        assert!(
            tokens.iter().all(|token| token.len() >= 32 && !text.contains(token.as_str())),
            "a join token in {whose}"
        );
    }
    // Port 15000 changes nothing.
    let renewed = web.get(15000, "/renew").await.unwrap();
    assert_eq!(renewed.0, 404, "{}", renewed.1);
}

pub(crate) async fn a_private_key_is_in_memory_only_where_it_is_used_and_then_nowhere(world: World) {
    /// The key object twice (rustls signs with one, tunnels with the other), and the PKCS #8 that is kept for the file.
    const USED: usize = 3;
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let _echo = orders.serve(8080, apps::echo);
    let key = || private_keys(&mesh.directory().join("pods/shop-web/state")).remove(0);
    // As bytes, the highest or the lowest first, and as text, which is what buffers of logs hold.
    let places = |key: &PrivateKey| {
        let lowest_first: Vec<u8> = key.bytes.iter().rev().copied().collect();
        let [first, second, third] = key.texts.each_ref().map(|text| text.as_bytes());
        let [found @ .., a, b, c] = web.found_in_memory([&key.bytes, &lowest_first, first, second, third]);
        (found.iter().sum::<usize>(), a + b + c)
    };
    let mut before: Option<PrivateKey> = None;
    for _ in 0..2 {
        web.call(orders.at(8080)).await.unwrap();
        let now = key();
        let seen = places(&now);
        assert!((1..=USED).contains(&seen.0) && seen.1 == 0, "as bytes, as text: {seen:?}");
        if let Some(before) = before.replace(now) {
            assert_ne!(before.bytes, key().bytes, "a renewal makes a new key");
            eventually("the key of before is gone", DEADLINE / 5, async || (places(&before) == (0, 0)).then_some(()))
                .await;
        }
        web.renew().await;
    }
    // Also where it was read from the file.
    web.kill_proxy();
    web.start_proxy();
    eventually("the proxy is back", DEADLINE / 5, async || web.call(orders.at(8080)).await.ok()).await;
    let seen = places(&key());
    assert!((1..=USED).contains(&seen.0) && seen.1 == 0, "as bytes, as text: {seen:?}");
}

pub(crate) async fn capture_that_the_kernel_refuses_says_why(world: World) {
    let mesh = Mesh::start(&world).await;
    let bare = mesh.pod("shop/bare").unmeshed().start().await;
    let refused = bare.host().run(|| {
        // Of this thread alone, which ends with this closure.
        caps::drop(None, caps::CapSet::Effective, caps::Capability::CAP_NET_ADMIN).unwrap();
        NfTables.apply(&CaptureConfig::new("uid".parse().unwrap()))
    });
    let reason = refused.unwrap().unwrap_err().to_string();
    assert!(reason.contains("CAP_NET_ADMIN") && reason.contains("EPERM"), "{reason}");
    // The command line says the same, and ends with the code for a kernel that can't.
    let path = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("byrnie");
    let mut output = bare.host().command(&path).args(["capture", "apply"]).output().unwrap();
    let words = String::from_utf8_lossy(&std::mem::take(&mut output.stderr)).into_owned();
    assert!(words.contains("CAP_NET_ADMIN"), "{words}");
    assert_eq!(output.status.code(), Some(3), "{words}");
}
