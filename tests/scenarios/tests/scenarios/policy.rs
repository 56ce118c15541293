//! Who may call whom: policies that deny, allow and watch; ingress by principal; egress by network and port.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use byrnie_identity::Svid;
use byrnie_identity::tls;
use byrnie_scenarios::raw::{self, Mint};
use byrnie_scenarios::{DEADLINE, Ending, Mesh, Pod, Service, World, apps, deny, ending, eventually, exchange, within};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use crate::HOUR;

pub(crate) async fn a_denied_identity_is_refused_and_both_logs_name_the_event(world: World) {
    let mesh = Mesh::start(&world).await;
    mesh.apply("no-web", &deny("shop", "no-web", "web"));
    let [web, till, orders] = mesh.pods(["shop/web", "shop/till", "shop/orders"]).await;
    let echo = orders.serve(8080, apps::echo);
    web.is_refused(orders.at(8080)).await;
    assert_eq!(echo.connections(), 0);
    till.call(orders.at(8080)).await.unwrap();
    let at_client = web.refused("refused-policy-denied").await;
    let at_server = orders.refused("policy-denied").await;
    assert!(at_client.text("error").contains("AuthorizationPolicy shop/no-web"), "{at_client:?}");
    assert_eq!(at_server.text("src.identity"), web.spiffe_id());
    let event = at_server.text("correlation_id");
    assert!(!event.is_empty() && at_client.text("error").contains(event), "{at_client:?} {at_server:?}");
    let refusals = orders.metric("byrnie_refused_connections_total", &["cause=\"policy-denied\""]).await;
    assert!(refusals >= 1.0, "{refusals}");
}

pub(crate) async fn the_rules_name_is_for_the_same_namespace_only(world: World) {
    let mesh = Mesh::start(&world).await;
    mesh.apply(
        "no-audit",
        "apiVersion: byrnie.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: secret-name, namespace: shop}\n\
         spec:\n  action: Deny\n  rules:\n  - from: [{namespace: audit}]\n",
    );
    let [reader, orders] = mesh.pods(["audit/reader", "shop/orders"]).await;
    let _echo = orders.serve(8080, apps::echo);
    reader.is_refused(orders.at(8080)).await;
    let at_client = reader.refused("refused-policy-denied").await;
    assert!(!at_client.text("error").contains("secret-name"), "{at_client:?}");
    let at_server = orders.refused("policy-denied").await;
    assert!(at_server.text("error").contains("secret-name"), "{at_server:?}");
}

pub(crate) async fn an_enforced_allow_shuts_out_everyone_else_and_an_audited_one_nobody(world: World) {
    let mesh = Mesh::start(&world).await;
    mesh.apply("only-web", &allow("orders", "web", "audit"));
    let [web, till, orders] = mesh.pods(["shop/web", "shop/till", "shop/orders"]).await;
    let _echo = orders.serve(8080, apps::echo);
    for caller in [&web, &till] {
        caller.call(orders.at(8080)).await.unwrap();
    }
    mesh.apply("only-web", &allow("orders", "web", "enforce"));
    eventually("the others are shut out", Duration::from_secs(1), async || till.call(orders.at(8080)).await.err())
        .await;
    web.call(orders.at(8080)).await.unwrap();
    till.is_refused(orders.at(8080)).await;
    orders.refused("policy-denied").await;
    // A port that the rule does not name is as shut.
    let _other = orders.serve(8081, apps::echo);
    web.is_refused(orders.at(8081)).await;
}

pub(crate) async fn a_policy_change_cuts_what_no_longer_passes_within_a_second_and_nothing_else(world: World) {
    let mesh = Mesh::start(&world).await;
    let [web, till, orders] = mesh.pods(["shop/web", "shop/till", "shop/orders"]).await;
    let _echo = orders.serve(8080, apps::echo);
    let mut cut = Vec::new();
    let mut kept = Vec::new();
    for _ in 0..5 {
        cut.push(web.connect(orders.at(8080)).await.unwrap());
        kept.push(till.connect(orders.at(8080)).await.unwrap());
    }
    for stream in cut.iter_mut().chain(&mut kept) {
        exchange(stream, b"open").await.unwrap();
    }
    mesh.apply("no-web", &deny("shop", "no-web", "web"));
    for stream in &mut cut {
        assert_eq!(within("the cut", Duration::from_secs(1), ending(stream)).await, Ending::Reset);
    }
    for stream in &mut kept {
        exchange(stream, b"still open").await.unwrap();
    }
    web.is_refused(orders.at(8080)).await;
    mesh.remove("no-web");
    eventually("web is let in again", Duration::from_secs(1), async || web.call(orders.at(8080)).await.ok()).await;
}

pub(crate) async fn an_ingress_is_let_in_by_the_principal_that_it_proves(world: World) {
    let mesh = Mesh::start(&world).await;
    mesh.apply(
        "ingress",
        "apiVersion: byrnie.dev/v1alpha1\nkind: IngressPolicy\nmetadata: {name: edge, namespace: shop}\n\
         spec:\n  selector: {matchLabels: {app: web}}\n  ports: [8080]\n  \
         principals: [\"spiffe://cluster.local/ns/edge/sa/nginx\"]\n",
    );
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let (front, _back) = (web.serve(8080, apps::echo), orders.serve(8080, apps::echo));
    let other = web.serve(8081, apps::echo);
    let nginx = mesh.pod("legacy/nginx").unmeshed().start().await;
    let mint = Mint::of(&mesh);
    let right = mint.svid("edge", "nginx", HOUR);
    assert_eq!(as_ingress(&mint, &nginx, web.at(8080), &right).await.unwrap(), b"hello");
    let line = web.logged("the ingress", |line| line.text("edge.kind") == "ingress").await;
    assert_eq!(line.text("src.identity"), right.id().as_str());
    mesh.edge("legacy/nginx", "shop/web", |edge| edge.secured && edge.source_id == right.id().as_str()).await;
    let served = front.connections();

    let wrong = mint.svid("edge", "somebody", HOUR);
    as_ingress(&mint, &nginx, web.at(8080), &wrong).await.unwrap_err();
    web.refused("no-ingress-rule").await;
    as_ingress(&mint, &nginx, web.at(8081), &right).await.unwrap_err();
    as_ingress(&mint, &nginx, orders.at(8080), &right).await.unwrap_err();
    without_certificate(&mint, &nginx, web.at(8080)).await.unwrap_err();
    web.refused("no-certificate").await;
    let foreign = Mint::foreign("cluster.local");
    as_ingress(&mint, &nginx, web.at(8080), &foreign.svid("edge", "nginx", HOUR)).await.unwrap_err();
    web.refused("unknown-authority").await;
    nginx.is_refused(web.at(8080)).await;
    assert_eq!((front.connections(), other.connections()), (served, 0));
}

pub(crate) async fn a_policy_that_closes_an_ingress_cuts_its_open_connections(world: World) {
    let mesh = Mesh::start(&world).await;
    let open = "apiVersion: byrnie.dev/v1alpha1\nkind: IngressPolicy\nmetadata: {name: edge, namespace: shop}\n\
                spec:\n  principals: [\"spiffe://cluster.local/ns/edge/sa/nginx\"]\n";
    mesh.apply("ingress", open);
    let [web] = mesh.pods(["shop/web"]).await;
    let _echo = web.serve(8080, apps::echo);
    let nginx = mesh.pod("legacy/nginx").unmeshed().start().await;
    let mint = Mint::of(&mesh);
    let config = tls::ingress_client_config(&mint.svid("edge", "nginx", HOUR), &raw::verifier(mint.bundle())).unwrap();
    let stream = nginx.connect(web.at(8080)).await.unwrap();
    let name = ServerName::try_from("web.shop.cluster.local").unwrap();
    let mut stream = TlsConnector::from(config).connect(name, stream).await.unwrap();
    stream.write_all(b"open").await.unwrap();
    let mut words = [0; 4];
    stream.read_exact(&mut words).await.unwrap();
    mesh.remove("ingress");
    let cut = within("the cut", Duration::from_secs(1), stream.read_exact(&mut words)).await;
    cut.unwrap_err();
    web.logged("the cut", |line| line.text("connection.end") == "no-ingress-rule").await;
}

pub(crate) async fn egress_is_allowed_by_network_and_port_and_keeps_the_address(world: World) {
    let mesh = Mesh::start(&world).await;
    let addresses: [IpAddr; 2] = ["198.51.100.10".parse().unwrap(), "2001:db8::10".parse().unwrap()];
    let partner = mesh.external("partner", &addresses);
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut servers = Vec::new();
    for at in addresses.iter().flat_map(|address| [443, 444].map(|port| SocketAddr::new(*address, port))) {
        let listener = partner.listen(at).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let seen = seen.clone();
        servers.push(tokio::spawn(async move {
            while let Ok((stream, from)) = listener.accept().await {
                seen.lock().unwrap().push((from.ip(), stream.local_addr().unwrap()));
                apps::echo(stream).await;
            }
        }));
    }
    mesh.apply("partner", &egress(&["198.51.100.0/24", "2001:db8::/32"]));
    let [stock, web] = mesh.pods(["shop/stock", "shop/web"]).await;
    for address in addresses {
        let to = SocketAddr::new(address, 443);
        stock.call(to).await.unwrap();
        let (from, dialled) = *seen.lock().unwrap().last().unwrap();
        assert_eq!((stock.owns(from), dialled), (true, to));
    }
    let served = seen.lock().unwrap().len();
    // Another port, another service account, another network.
    stock.is_refused(SocketAddr::new(addresses[0], 444)).await;
    web.is_refused(SocketAddr::new(addresses[0], 443)).await;
    stock.is_refused("203.0.113.9:443".parse().unwrap()).await;
    web.refused("egress-default-deny").await;
    assert_eq!(seen.lock().unwrap().len(), served);
    mesh.observed("both records of egress", |seen| {
        let record = |allowed: bool, source: &str| {
            seen.egress.iter().any(|record| {
                record.allowed == allowed && record.source == source && record.dialled == "198.51.100.10:443"
            })
        };
        (record(true, "shop/stock") && record(false, "shop/web")).then_some(())
    })
    .await;
    // And what is open is cut when the policy goes.
    let mut open = stock.connect(SocketAddr::new(addresses[0], 443)).await.unwrap();
    exchange(&mut open, b"open").await.unwrap();
    mesh.remove("partner");
    assert_eq!(within("the cut", Duration::from_secs(1), ending(&mut open)).await, Ending::Reset);
    servers.iter().for_each(tokio::task::JoinHandle::abort);
}

pub(crate) async fn a_policy_that_cannot_be_read_keeps_everyone_out(world: World) {
    let mesh = Mesh::start(&world).await;
    mesh.apply(
        "half-understood",
        "apiVersion: byrnie.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: http, namespace: shop}\n\
         spec:\n  selector: {matchLabels: {app: orders}}\n  action: Deny\n  rules:\n  - to: [{paths: [/admin]}]\n",
    );
    let [web, orders, stock] = mesh.pods(["shop/web", "shop/orders", "shop/stock"]).await;
    let (echo, _other) = (orders.serve(8080, apps::echo), stock.serve(8080, apps::echo));
    web.is_refused(orders.at(8080)).await;
    assert_eq!(echo.connections(), 0);
    web.call(stock.at(8080)).await.unwrap();
    let status =
        mesh.observed("the refused object", |seen| seen.objects.iter().find(|object| !object.accepted).cloned()).await;
    assert!(status.message.contains("not supported yet"), "{status:?}");
    assert_eq!(status.file, "half-understood.yaml");
}

pub(crate) async fn the_mesh_may_be_default_deny(world: World) {
    let mesh = Mesh::builder(&world).config("  authorization: {default: Deny}\n").start().await;
    mesh.service(&Service::new("shop/orders").port(80, 8080));
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let _echo = orders.serve(8080, apps::echo);
    web.is_refused(orders.at(8080)).await;
    mesh.apply("web-may", &allow("orders", "web", "enforce"));
    eventually("web is let in", Duration::from_secs(1), async || web.call(orders.at(8080)).await.ok()).await;
}

async fn as_ingress(mint: &Mint, nginx: &Pod, to: SocketAddr, svid: &Svid) -> std::io::Result<Vec<u8>> {
    let config = tls::ingress_client_config(svid, &raw::verifier(mint.bundle())).unwrap();
    let name = ServerName::try_from("web.shop.cluster.local").unwrap();
    let stream = nginx.connect(to).await?;
    let mut stream = within("a handshake", DEADLINE / 5, TlsConnector::from(config).connect(name, stream)).await?;
    stream.write_all(b"hello").await?;
    let mut words = vec![0; 5];
    within("an answer", DEADLINE / 5, stream.read_exact(&mut words)).await?;
    Ok(words)
}

async fn without_certificate(mint: &Mint, nginx: &Pod, to: SocketAddr) -> std::io::Result<Vec<u8>> {
    let mut stream = raw::connect(nginx, to, None, &raw::verifier(mint.bundle()), b"").await?;
    stream.write_all(b"hello").await?;
    let mut words = vec![0; 5];
    within("an answer", DEADLINE / 5, stream.read_exact(&mut words)).await?;
    Ok(words)
}

fn allow(app: &str, service_account: &str, enforcement: &str) -> String {
    format!(
        "apiVersion: byrnie.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: only-{service_account}, namespace: shop}}\n\
         spec:\n  selector: {{matchLabels: {{app: {app}}}}}\n  action: Allow\n  enforcement: {enforcement}\n  \
         rules:\n  - from: [{{serviceAccount: {service_account}}}]\n    to: [{{ports: [8080]}}]\n"
    )
}

fn egress(networks: &[&str]) -> String {
    let networks: Vec<String> = networks.iter().map(|network| format!("\"{network}\"")).collect();
    format!(
        "apiVersion: byrnie.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {{name: partner, namespace: shop}}\n\
         spec:\n  serviceAccounts: [stock]\n  to:\n  - cidrs: [{}]\n    ports: [443]\n",
        networks.join(", ")
    )
}
