//! Processes that are killed, certificates that can't be renewed, a disk that is full: what was promised still holds, and
//! it is said what is wrong.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use byrnie_netlab::harness::Verdict;
use byrnie_scenarios::{
    DEADLINE, Ending, Mesh, Pod, ProxyOptions, Random, Service, World, apps, ending, eventually, exchange, missing,
    seed, within,
};
use nix::sys::signal::Signal;

pub(crate) async fn a_certificate_that_can_not_be_renewed_is_used_until_its_end_which_is_announced(world: World) {
    let mesh = Mesh::builder(&world).svid_ttl(Duration::from_secs(8)).start().await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let echo = orders.serve(8080, apps::echo);
    web.call(orders.at(8080)).await.unwrap();
    let mut open = web.connect(orders.at(8080)).await.unwrap();
    exchange(&mut open, b"before").await.unwrap();
    mesh.control_plane().kill();
    web.says("no stream to the control plane").await;
    web.call(orders.at(8080)).await.unwrap();
    // Long before the end it tries to renew, and says that it could not.
    web.says("the SVID could not be renewed").await;
    // With the certificates ends all that rests on them.
    let cut = within("the end of what rests on the certificates", Duration::from_secs(8), ending(&mut open)).await;
    assert_eq!(cut, Ending::Reset);
    let served = echo.connections();
    web.is_refused(orders.at(8080)).await;
    assert_eq!(echo.connections(), served);
    let (code, reason) = web.health().await.unwrap();
    assert_eq!(code, 503);
    assert!(reason.contains("SVID"), "{reason}");
    // Back it takes no expired certificate as a proof; a new token is one.
    mesh.control_plane().start();
    mesh.control_plane().answers().await;
    for pod in [&web, &orders] {
        let (_, name) = byrnie_scenarios::namespace_of(pod.name());
        pod.give_token(&mesh.control_plane().token(pod.name(), name).await);
    }
    eventually("all is as before", DEADLINE / 5, async || web.call(orders.at(8080)).await.ok()).await;
}

pub(crate) async fn a_clock_that_is_set_a_day_on_or_back_refuses_everything_until_it_is_right_again(
    world: World,
) -> Verdict {
    let Some(library) = FAKETIME.iter().find(|path| std::path::Path::new(path).is_file()) else {
        return Verdict::NotRun(missing("libfaketime is missing (apt-get install libfaketime)"));
    };
    let mesh = Mesh::start(&world).await;
    let offset = mesh.directory().join("clock");
    let set = |text: &str| {
        let next = mesh.directory().join("clock.next");
        std::fs::write(&next, text).unwrap();
        std::fs::set_permissions(&next, Permissions::from_mode(0o644)).unwrap();
        std::fs::rename(&next, &offset).unwrap();
    };
    set("+0");
    let environment = vec![
        ("LD_PRELOAD", (*library).to_owned()),
        ("FAKETIME_TIMESTAMP_FILE", offset.display().to_string()),
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        // Only the time of day is set by somebody; timeouts go on.
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ];
    let web = mesh.pod("shop/web").start().await;
    let orders = mesh.pod("shop/orders").proxy(ProxyOptions { environment, ..Default::default() }).start().await;
    let echo = orders.serve(8080, apps::echo);
    for wrong in ["+1d", "-1d"] {
        let mut open = web.connect(orders.at(8080)).await.unwrap();
        exchange(&mut open, b"while it is right").await.unwrap();
        let served = echo.connections();
        set(wrong);
        let reason = eventually("it is not ready", DEADLINE / 5, async || {
            orders.health().await.ok().filter(|(code, _)| *code == 503).map(|(_, reason)| reason)
        });
        let reason = reason.await;
        assert!(reason.contains("SVID"), "{wrong}: {reason}");
        web.is_refused(orders.at(8080)).await;
        assert_eq!(echo.connections(), served, "{wrong}");
        set("+0");
        eventually("all is as before", DEADLINE / 5, async || web.call(orders.at(8080)).await.ok()).await;
        orders.ready().await;
    }
    // The library removes its shared memory when its program ends by itself.
    orders.signal_proxy(Signal::SIGTERM);
    orders.proxy_ended().await;
    Verdict::Passed
}

/// Where Debian and Fedora have it.
const FAKETIME: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
];

pub(crate) async fn a_disk_that_is_full_stops_new_certificates_and_nothing_else(world: World) {
    let mesh = Mesh::builder(&world).state_of(4 << 20).start().await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let _echo = orders.serve(8080, apps::echo);
    let filling = mesh.control_plane().state().join("filling");
    fill(&filling);
    // Who needs the journal hears what is wrong with it.
    let mut refused = None;
    for _ in 0..200 {
        if let Err(status) = mesh.control_plane().try_token("shop/web", "web", 0).await {
            refused = Some(status.message().to_owned());
            break;
        }
    }
    let reason = refused.expect("a disk without a byte takes no 200 tokens");
    assert!(reason.contains("journal") && reason.contains("check the disk"), "{reason}");
    // Policy needs no disk of ours, and connections no new certificate.
    web.call(orders.at(8080)).await.unwrap();
    mesh.apply("no-web", &byrnie_scenarios::deny("shop", "no-web", "web"));
    eventually("a policy arrives", Duration::from_secs(1), async || web.call(orders.at(8080)).await.err()).await;
    mesh.remove("no-web");
    eventually("it is gone", Duration::from_secs(1), async || web.call(orders.at(8080)).await.ok()).await;
    // Room again, and all is as before, without a restart.
    std::fs::remove_file(&filling).unwrap();
    eventually("tokens are made again", DEADLINE / 5, async || {
        mesh.control_plane().try_token("shop/web", "web", 0).await.ok().map(|_| ())
    })
    .await;
    web.renew().await;
    web.call(orders.at(8080)).await.unwrap();
}

/// Takes every byte that is left.
fn fill(path: &std::path::Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).unwrap();
    for size in [64 * 1024, 4096, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
}

pub(crate) async fn processes_that_are_killed_at_random_cost_only_what_ran_through_them(world: World) {
    const KILLS: u64 = 12;
    println!("processes_that_are_killed_at_random_cost_only_what_ran_through_them: SEED={}", seed());
    let mesh = Mesh::start(&world).await;
    let [address, _] = mesh.service(&Service::new("shop/orders").port(80, 8080));
    let web = mesh.pod("shop/web").start().await;
    let other = mesh.pod("shop/other").start().await;
    let stock = mesh.pod("shop/stock").start().await;
    let mut servers = Vec::new();
    for name in ["a", "b"] {
        let place = format!("shop/orders-{name}");
        servers.push(mesh.pod(&place).app("orders").service_account("orders").start().await);
    }
    let _orders: Vec<_> = servers.iter().map(|server| server.serve(8080, apps::echo)).collect();
    let _stock = stock.serve(8080, apps::echo);
    // While nobody is down, a request must pass; what fails is asked about that.
    let stop = Arc::new(AtomicBool::new(false));
    let down = Arc::new(AtomicUsize::new(0));
    let callers = [
        calls(&web, SocketAddr::new(address, 80), &stop, Some(&down)),
        // Neither of these two is ever killed: nothing of theirs may fail.
        calls(&other, stock.at(8080), &stop, None),
    ];
    let mut random = Random::of("kills", 0);
    for _ in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(100 + random.below(200))).await;
        match random.below(3) {
            0 => {
                mesh.control_plane().kill();
                tokio::time::sleep(Duration::from_millis(random.below(300))).await;
                mesh.control_plane().start();
                mesh.control_plane().answers().await;
            }
            server => {
                let server = &servers[server as usize - 1];
                down.fetch_add(1, Ordering::SeqCst);
                server.kill_proxy();
                let token = mesh.control_plane().token(server.name(), "orders").await;
                server.give_token(&token);
                server.start_proxy();
                server.ready().await;
                down.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
    stop.store(true, Ordering::SeqCst);
    for caller in callers {
        let (good, lost) = within("the callers' end", DEADLINE, caller).await.unwrap();
        println!("{good} requests answered, {lost} lost while a proxy on their way was down");
        assert!(good > 20, "{good}");
    }
}

/// Calls, one after another, until told to stop: how many were answered, and how many were not. `down` counts a proxy's
/// death and its return; a request may fail only where it was odd at some time during it.
fn calls(
    from: &Pod,
    to: SocketAddr,
    stop: &Arc<AtomicBool>,
    down: Option<&Arc<AtomicUsize>>,
) -> tokio::task::JoinHandle<(usize, usize)> {
    let (from, stop, down) = (from.clone(), stop.clone(), down.cloned());
    let deaths = move || down.as_ref().map_or(0, |down| down.load(Ordering::SeqCst));
    tokio::spawn(async move {
        let (mut good, mut lost) = (0, 0);
        while !stop.load(Ordering::SeqCst) {
            let (before, begun) = (deaths(), Instant::now());
            match from.call(to).await {
                Ok(()) => good += 1,
                Err(error) => {
                    let after = deaths();
                    assert!(before % 2 == 1 || after > before, "after {:?}: {error}", begun.elapsed());
                    lost += 1;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (good, lost)
    })
}
