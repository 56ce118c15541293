//! The life of a proxy: how it drains, how it dies, and what happens to connections meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use byrnie_scenarios::{
    DEADLINE, Ending, Mesh, Pod, ProxyOptions, Service, World, apps, ending, eventually, exchange, finish, within,
};
use nix::sys::signal::Signal;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;

pub(crate) async fn a_drain_under_load_costs_no_connection(world: World) {
    let mesh = Mesh::start(&world).await;
    let [address, _] = mesh.service(&Service::new("shop/orders").port(80, 8080));
    let web = mesh.pod("shop/web").start().await;
    let first = mesh.pod("shop/orders-a").app("orders").service_account("orders").start().await;
    let second = mesh.pod("shop/orders-b").app("orders").service_account("orders").start().await;
    let (going, staying) = (first.serve(8080, apps::echo), second.serve(8080, apps::echo));
    let load = Load::on(&web, SocketAddr::new(address, 80), 4);
    eventually("both take part", DEADLINE / 5, async || {
        (going.connections() > 20 && staying.connections() > 20).then_some(())
    })
    .await;
    let mut open = web.connect(first.at(8080)).await.unwrap();
    exchange(&mut open, b"open").await.unwrap();
    // As in a cluster: the pod's object says that it goes, its proxy hears it, and SIGTERM follows.
    mesh.delete(&first);
    let (code, text) = first.admin("/drain").await;
    assert_eq!(code, 200, "{text}");
    first.signal_proxy(Signal::SIGTERM);
    // New connections end there, and what is open goes on.
    eventually("nobody new comes", Duration::from_secs(1), async || {
        let before = going.connections();
        tokio::time::sleep(Duration::from_millis(300)).await;
        (going.connections() == before).then_some(())
    })
    .await;
    assert_eq!(exchange(&mut open, b"still open").await.unwrap(), b"still open");
    assert_eq!(finish(&mut open).await.unwrap(), b"");
    assert_eq!(first.proxy_ended().await, 0);
    let (calls, failures) = load.stop().await;
    assert!(calls > 100, "{calls} calls");
    assert_eq!(failures, Vec::<String>::new(), "of {calls} calls");
}

pub(crate) async fn a_pod_that_is_deleted_drains_by_itself_and_goes_on_serving(world: World) {
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let _echoes = [web.serve(8080, apps::echo), orders.serve(8080, apps::echo)];
    web.call(orders.at(8080)).await.unwrap();
    mesh.delete(&orders);
    eventually("the proxy drains", Duration::from_secs(1), async || {
        let (code, text) = orders.health().await.ok()?;
        (code == 503 && text.contains("draining")).then_some(())
    })
    .await;
    // Who hears of it late is served, and the application that ends in peace may still call others.
    for _ in 0..20 {
        web.call(orders.at(8080)).await.unwrap();
        orders.call(web.at(8080)).await.unwrap();
    }
    assert_eq!(web.status().await["idle_tunnels"], 0, "no tunnel to it is kept");
    // That is as it should be, and nobody who looks at the mesh is alarmed.
    mesh.observed("the drained proxy is that of a pod that ends", |seen| {
        let proxy = seen.proxies.iter().find(|proxy| proxy.workload == "shop/orders")?;
        (proxy.terminating && proxy.status.as_ref()?.not_ready_reason.contains("draining")).then_some(())
    })
    .await;
}

pub(crate) async fn pods_that_go_while_they_are_still_endpoints_cost_no_request(world: World) {
    let mesh = Mesh::start(&world).await;
    let [address, _] = mesh.service(&Service::new("shop/orders").port(80, 8080));
    let web = mesh.pod("shop/web").start().await;
    let mut running = Vec::new();
    for name in ["shop/orders-a", "shop/orders-b", "shop/orders-c"] {
        let pod = mesh.pod(name).app("orders").service_account("orders").start().await;
        let app = pod.serve(8080, apps::echo);
        running.push((pod, app));
    }
    let load = Load::on(&web, SocketAddr::new(address, 80), 4);
    for _ in 0..2 {
        eventually("all take part", DEADLINE / 5, async || {
            running.iter().all(|(_, app)| app.connections() > 20).then_some(())
        })
        .await;
        // In the order of a kubelet: the sidecar's hook, the application's end, the sidecar's. Only then does anyone
        // hear that the pod was an endpoint no more.
        let (old, app) = running.remove(0);
        assert_eq!(old.admin("/drain").await.0, 200);
        app.retire().await;
        old.signal_proxy(Signal::SIGTERM);
        assert_eq!(old.proxy_ended().await, 0);
        web.call(SocketAddr::new(address, 80)).await.unwrap();
        mesh.remove(&format!("pod-{}", old.name().replace('/', "-")));
    }
    let (calls, failures) = load.stop().await;
    assert!(calls > 100, "{calls} calls");
    assert_eq!(failures, Vec::<String>::new(), "of {calls} calls");
}

pub(crate) async fn a_connection_under_way_to_a_pod_that_is_gone_ends_at_one_that_was_heard_of_meanwhile(world: World) {
    let mesh = Mesh::start(&world).await;
    let [address, _] = mesh.service(&Service::new("shop/orders").app("orders-a").port(80, 8080));
    let [web, gone, made] = mesh.pods(["shop/web", "shop/orders-a", "shop/orders-b"]).await;
    let _echo = made.serve(8080, apps::echo);
    mesh.lab().remove(gone.host()).unwrap();
    let service = "service-shop-orders";
    let now = std::fs::read_to_string(mesh.source().join(format!("{service}.yaml"))).unwrap();
    let (called, ()) = tokio::join!(web.call(SocketAddr::new(address, 80)), async {
        // Who does not answer is waited for longer than that.
        tokio::time::sleep(Duration::from_secs(1)).await;
        mesh.apply(service, &now.replace("orders-a", "orders-b"));
    });
    called.unwrap();
}

pub(crate) async fn a_proxy_that_is_told_to_end_does_when_its_connections_have(world: World) {
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let _echo = orders.serve(8080, apps::echo);
    let mut open = web.connect(orders.at(8080)).await.unwrap();
    exchange(&mut open, b"open").await.unwrap();
    orders.signal_proxy(Signal::SIGTERM);
    eventually("the proxy says that it drains", Duration::from_secs(1), async || {
        let (code, text) = orders.health().await.ok()?;
        (code == 503 && text.contains("draining")).then_some(())
    })
    .await;
    for _ in 0..20 {
        assert_eq!(exchange(&mut open, b"goes on").await.unwrap(), b"goes on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(finish(&mut open).await.unwrap(), b"");
    assert_eq!(orders.proxy_ended().await, 0);
}

pub(crate) async fn a_drain_that_takes_too_long_cuts_what_is_open(world: World) {
    let mesh = Mesh::start(&world).await;
    let web = mesh.pod("shop/web").start().await;
    let hurried = ProxyOptions { drain_timeout: Duration::from_secs(1), ..Default::default() };
    let orders = mesh.pod("shop/orders").proxy(hurried).start().await;
    let _echo = orders.serve(8080, apps::echo);
    let mut open = web.connect(orders.at(8080)).await.unwrap();
    exchange(&mut open, b"open").await.unwrap();
    orders.signal_proxy(Signal::SIGTERM);
    assert_eq!(within("the cut", Duration::from_secs(2), ending(&mut open)).await, Ending::Reset);
    assert_eq!(orders.proxy_ended().await, 0);
}

pub(crate) async fn connections_to_a_machine_that_vanished_are_reset_with_what_was_under_way(world: World) {
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let old = mesh.pod("legacy/old").unmeshed().start().await;
    let _echoes = [orders.serve(8080, apps::echo), old.serve(8080, apps::echo)];
    let mut open = Vec::new();
    for pod in [&orders, &old] {
        let mut stream = web.connect(pod.at(8080)).await.unwrap();
        exchange(&mut stream, b"open").await.unwrap();
        mesh.lab().remove(pod.host()).unwrap();
        stream.write_all(b"is anybody there?").await.unwrap();
        open.push(stream);
    }
    for mut stream in open {
        // 30 s of silence, 10 s until the next look, and room for a slow machine.
        let seen = within("the end of the connection", Duration::from_secs(50), ending(&mut stream)).await;
        assert_eq!(seen, Ending::Reset);
    }
    for pod in ["orders", "old"] {
        let line = web.logged(pod, |line| line.text("dst.workload") == pod).await;
        assert_eq!(line.text("connection.end"), "peer-unreachable", "{line:?}");
    }
}

pub(crate) async fn without_its_proxy_a_pods_traffic_is_refused_and_not_passed_by(world: World) {
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let echo = orders.serve(8080, apps::echo);
    let probe = mesh.pod("legacy/probe").unmeshed().start().await;
    let _old = probe.serve(8080, apps::echo);
    web.call(orders.at(8080)).await.unwrap();
    web.call(probe.at(8080)).await.unwrap();
    let served = echo.connections();
    let mut open = web.connect(orders.at(8080)).await.unwrap();
    exchange(&mut open, b"open").await.unwrap();
    orders.kill_proxy();
    assert_eq!(within("the end of what was open", Duration::from_secs(1), ending(&mut open)).await, Ending::Reset);
    for caller in [&web, &probe] {
        caller.is_refused(orders.at(8080)).await;
    }
    assert_eq!(echo.connections(), served + 1);
    // And out: neither to the mesh nor anywhere else.
    web.kill_proxy();
    web.is_refused(orders.at(8080)).await;
    web.is_refused(probe.at(8080)).await;
    // With the proxies back it goes on, with the certificates that they had kept.
    for pod in [&web, &orders] {
        pod.start_proxy();
        pod.ready().await;
    }
    web.call(orders.at(8080)).await.unwrap();
}

pub(crate) async fn a_port_that_is_taken_and_a_wrong_option_are_said_at_once(world: World) {
    let mesh = Mesh::start(&world).await;
    let web = mesh.pod("shop/web").uncaptured().launch().await;
    web.kill_proxy();
    let _taken = web.host().listen("0.0.0.0:15003".parse().unwrap()).unwrap();
    web.start_proxy();
    assert_eq!(web.proxy_ended().await, 1);
    let log = web.log().text();
    assert!(log.contains("15003") && log.contains("is taken"), "{log}");
    let wrong =
        ProxyOptions { extra: vec!["--log-level=loud=loud".into(), "--metrics-listen=x".into()], ..Default::default() };
    let other = mesh.pod("shop/other").uncaptured().proxy(wrong).launch().await;
    assert_eq!(other.proxy_ended().await, 2);
    let log = other.log().text();
    assert!(log.contains("--metrics-listen: expected") && log.contains("--log-level: expected"), "{log}");
}

/// Calls one after another, until it is stopped.
struct Load {
    stopped: Arc<AtomicBool>,
    callers: Vec<JoinHandle<(usize, Vec<String>)>>,
}

impl Load {
    fn on(pod: &Pod, to: SocketAddr, at_once: usize) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let caller = || {
            let (pod, stopped) = (pod.clone(), stopped.clone());
            tokio::spawn(async move {
                let (mut calls, mut failures) = (0, Vec::new());
                while !stopped.load(Ordering::Relaxed) {
                    calls += 1;
                    if let Err(error) = pod.call(to).await {
                        failures.push(format!("call {calls}: {error}"));
                    }
                }
                (calls, failures)
            })
        };
        let callers = (0..at_once).map(|_| caller()).collect();
        Self { stopped, callers }
    }

    /// How many calls there were, and what failed.
    async fn stop(self) -> (usize, Vec<String>) {
        self.stopped.store(true, Ordering::Relaxed);
        let (mut calls, mut failures) = (0, Vec::new());
        for caller in self.callers {
            let (made, failed) = within("a call's end", DEADLINE, caller).await.unwrap();
            calls += made;
            failures.extend(failed);
        }
        (calls, failures)
    }
}
