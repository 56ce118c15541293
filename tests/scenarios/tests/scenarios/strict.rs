//! What is not mutual TLS: refused in strict mode, let in for a time in permissive mode, and never called.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use byrnie_scenarios::{DEADLINE, Ending, Mesh, Pod, World, apps, ending, eventually, exchange, hear, marker, within};
use tokio::io::AsyncWriteExt;

use crate::{rfc3339, whole_seconds_from_now};

pub(crate) async fn an_unmeshed_pod_is_refused_before_the_application_is_dialled(world: World) {
    let mesh = Mesh::start(&world).await;
    let [orders] = mesh.pods(["shop/orders"]).await;
    let probe = mesh.pod("legacy/probe").unmeshed().start().await;
    let echo = orders.serve(8080, apps::echo);
    for to in [orders.at(8080), orders.at6(8080)] {
        probe.is_refused(to).await;
    }
    assert_eq!(echo.connections(), 0);
    let line = orders.refused("plaintext-refused").await;
    assert!(line.text("error").contains("strict"), "{line:?}");
    let refusal = mesh.observed("the refusal", |seen| {
        seen.refusals.iter().find(|refusal| refusal.cause == "plaintext-refused").cloned()
    });
    let refusal = refusal.await;
    assert_eq!((refusal.source.as_str(), refusal.destination.as_str()), ("legacy/probe", "shop/orders"));
    // One that says nothing at all holds nothing for long.
    let mut silent = probe.connect(orders.at(8080)).await.unwrap();
    assert_eq!(within("the end of a silent client", Duration::from_secs(5), ending(&mut silent)).await, Ending::Reset);
    assert_eq!(echo.connections(), 0);
}

pub(crate) async fn permissive_lets_plaintext_in_until_it_ends_and_cuts_it_then(world: World) {
    let mesh = Mesh::start(&world).await;
    let end = whole_seconds_from_now(8);
    mesh.apply("permissive", &permissive("orders", Some(end)));
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let probe = mesh.pod("legacy/probe").unmeshed().start().await;
    let (_echo, _greeting) = (orders.serve(8080, apps::echo), orders.serve(25, apps::greet));
    // Mutual TLS goes on beside it.
    web.call(orders.at(8080)).await.unwrap();
    probe.call(orders.at(8080)).await.unwrap();
    // Where the server speaks first, its words are held back only as long as the client might still speak TLS.
    let mut silent = probe.connect(orders.at(25)).await.unwrap();
    assert_eq!(hear(&mut silent, apps::GREETING.len()).await.unwrap(), apps::GREETING);
    let mut open = probe.connect(orders.at(8080)).await.unwrap();
    assert_eq!(exchange(&mut open, b"in plaintext").await.unwrap(), b"in plaintext");
    let mut secured = web.connect(orders.at(8080)).await.unwrap();
    assert_eq!(exchange(&mut secured, b"in TLS").await.unwrap(), b"in TLS");
    assert!(SystemTime::now() < end, "this machine is too slow for this scenario");
    let left = end.duration_since(SystemTime::now()).unwrap_or_default();
    let cut = tokio::time::timeout(left + Duration::from_secs(5), ending(&mut open)).await;
    assert_eq!(cut, Ok(Ending::Reset), "cut within a second of the end of Permissive");
    assert!(SystemTime::now() >= end, "cut before the end of Permissive");
    assert_eq!(
        within("the other plaintext connection", Duration::from_secs(1), ending(&mut silent)).await,
        Ending::Reset
    );
    probe.is_refused(orders.at(8080)).await;
    assert_eq!(exchange(&mut secured, b"still in TLS").await.unwrap(), b"still in TLS");
    web.call(orders.at(8080)).await.unwrap();
}

pub(crate) async fn a_meshed_pods_address_is_never_classed_as_plaintext(world: World) {
    let mesh = Mesh::start(&world).await;
    mesh.apply("permissive", &permissive("orders", None));
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let echo = orders.serve(8080, apps::echo);
    // What somebody with too much power in web's pod would do to get around its proxy.
    web.flush_capture();
    web.is_refused(orders.at(8080)).await;
    assert_eq!(echo.connections(), 0);
    orders.refused("plaintext-refused").await;
}

pub(crate) async fn a_meshed_endpoint_is_never_called_in_plaintext(world: World) {
    let mesh = Mesh::start(&world).await;
    mesh.apply("permissive", &permissive("orders", None));
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let _echo = orders.serve(8080, apps::echo);
    web.call(orders.at(8080)).await.unwrap();
    // Now the application itself stands at the address that the proxy dials.
    orders.kill_proxy();
    orders.flush_capture();
    let words = marker();
    let tap = mesh.tap(&words, &[&web, &orders]);
    eventually("a refusal", DEADLINE / 5, async || {
        let mut stream = web.connect(orders.at(8080)).await.unwrap();
        let refused = stream.write_all(words.as_bytes()).await.is_err();
        (refused || within("an end", DEADLINE / 5, ending(&mut stream)).await == Ending::Reset).then_some(())
    })
    .await;
    let seen = tap.stop().unwrap();
    assert_eq!(seen.marker_hits, 0, "{:?}", seen.first_hit);
}

pub(crate) async fn an_unmeshed_endpoint_in_the_mesh_is_called_only_while_permissive(world: World) {
    let mesh = Mesh::start(&world).await;
    let [web] = mesh.pods(["shop/web"]).await;
    let bare = mesh.pod("shop/bare").unmeshed().start().await;
    let echo = bare.serve(8080, apps::echo);
    web.is_refused(bare.at(8080)).await;
    web.refused("unmeshed-endpoint").await;
    assert_eq!(echo.connections(), 0);
    mesh.apply("permissive", &permissive("bare", None));
    eventually("plaintext to an unmeshed endpoint", Duration::from_secs(1), async || {
        web.call(bare.at(8080)).await.ok()
    })
    .await;
    let mut open = web.connect(bare.at(8080)).await.unwrap();
    exchange(&mut open, b"in plaintext").await.unwrap();
    mesh.remove("permissive");
    assert_eq!(within("the cut", Duration::from_secs(1), ending(&mut open)).await, Ending::Reset);
    web.is_refused(bare.at(8080)).await;
}

pub(crate) async fn a_connection_straight_to_the_proxys_ports_is_refused(world: World) {
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let probe = mesh.pod("legacy/probe").unmeshed().start().await;
    let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
    for port in [15001, 15003] {
        refused_without_a_byte(&probe, orders.at(port)).await;
        refused_without_a_byte(&orders, loopback(port)).await;
        refused_without_a_byte(&web, orders.at(port)).await;
    }
    orders.refused("not-redirected").await;
    // Without capture the ports are there for everyone, and lead nowhere.
    orders.flush_capture();
    for port in [15001, 15003] {
        refused_without_a_byte(&probe, orders.at(port)).await;
    }
    // Status and administration are for the pod alone.
    let outside = probe.connect(orders.at(15000)).await;
    assert!(outside.is_err(), "the status port answers other pods");
}

pub(crate) async fn a_pod_is_ready_only_with_capture_and_an_svid(world: World) {
    let mesh = Mesh::start(&world).await;
    let web = mesh.pod("shop/web").uncaptured().launch().await;
    let reason = eventually("the proxy says why it is not ready", DEADLINE / 5, async || {
        let (code, text) = web.health().await.ok()?;
        let tried = !text.contains("not tried yet") && !text.contains("no SVID");
        (code == 503 && tried && text.contains("capture is not proved")).then_some(text)
    });
    assert!(reason.await.contains("byrnie capture"), "the reason says where to look");
    web.capture();
    web.ready().await;
    assert!(web.metric("byrnie_ready", &[]).await > 0.0);
    let seen = mesh.observed("a ready proxy", |seen| {
        seen.proxies
            .iter()
            .find(|proxy| proxy.workload == "shop/web" && proxy.status.as_ref().is_some_and(|status| status.ready))
            .cloned()
    });
    assert!(seen.await.status.unwrap().captured);
    web.flush_capture();
    // Three canaries, one every ten seconds at most, and each has its own deadline.
    eventually("lost capture is noticed", Duration::from_secs(10), async || {
        let (code, text) = web.health().await.ok()?;
        (code == 503 && text.contains("capture is not proved")).then_some(())
    })
    .await;
    let not_ready = mesh.observed("the control plane knows", |seen| {
        let proxy = seen.proxies.iter().find(|proxy| proxy.workload == "shop/web")?;
        proxy.status.clone().filter(|status| !status.ready && !status.captured)
    });
    assert!(not_ready.await.not_ready_reason.contains("capture"));
    web.capture();
    web.ready().await;
}

async fn refused_without_a_byte(pod: &Pod, to: SocketAddr) {
    pod.is_refused(to).await;
}

pub(crate) fn permissive(app: &str, until: Option<SystemTime>) -> String {
    let until = until.map(|end| format!("  until: \"{}\"\n", rfc3339(end))).unwrap_or_default();
    format!(
        "apiVersion: byrnie.dev/v1alpha1\nkind: MtlsPolicy\nmetadata: {{name: {app}-permissive, namespace: shop}}\n\
         spec:\n  selector: {{matchLabels: {{app: {app}}}}}\n  mode: Permissive\n{until}"
    )
}
