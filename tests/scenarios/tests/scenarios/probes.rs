//! The kubelet's probes: it is no member of the mesh, and asks the proxy.

use std::io;
use std::net::SocketAddr;

use byrnie_scenarios::{Mesh, Pod, ProxyOptions, World, apps};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(crate) async fn a_probe_passes_through_the_proxy_where_mtls_is_strict_and_fails_with_the_application(world: World) {
    let mesh = Mesh::start(&world).await;
    let kubelet = mesh.pod("legacy/kubelet").unmeshed().start().await;
    let probes = r#"{"app/liveness": {"action": {"httpGet": {"https": false, "port": 8080, "path": "/live",
        "headers": [["X-Probe", "yes"]]}}, "timeoutSeconds": 1}}"#;
    let orders = mesh.pod("shop/orders").proxy(with_probes(probes)).start().await;
    let app = orders.serve(8080, healthy);
    kubelet.is_refused(orders.at(8080)).await;
    for at in [orders.at(15021), orders.at6(15021)] {
        let answer = get(&kubelet, at, &path("app/liveness")).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert_eq!(app.connections(), 2);
    // Nothing but what was admitted.
    let unknown = ["app/readiness", "app/liveness/../readiness", "app"].map(path);
    let without_nonce = [format!("/probe/{}/app/liveness", "0".repeat(32)), "/probe/app/liveness".to_owned()];
    for path in unknown.into_iter().chain(without_nonce).chain(["/status".to_owned()]) {
        let answer = get(&kubelet, orders.at(15021), &path).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
    }
    assert_eq!(app.connections(), 2);
    app.close().await;
    let answer = get(&kubelet, orders.at(15021), &path("app/liveness")).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("connection refused"), "{answer}");
}

pub(crate) async fn probes_of_every_kind_reach_the_application_past_capture(world: World) {
    let mesh = Mesh::start(&world).await;
    let kubelet = mesh.pod("legacy/kubelet").unmeshed().start().await;
    let tcp = |port: u16| format!(r#"{{"action": {{"tcpSocket": {{"port": {port}}}}}, "timeoutSeconds": 1}}"#);
    let http = r#"{"action": {"httpGet": {"https": false, "port": 8080, "path": "/bye", "headers": []}},
        "timeoutSeconds": 1}"#;
    let probes = format!(
        r#"{{"app/startup": {}, "app/readiness": {}, "app/post-start": {http}, "other/pre-stop": {}}}"#,
        tcp(9090),
        tcp(9091),
        tcp(9091)
    );
    let orders = mesh.pod("shop/orders").proxy(with_probes(&probes)).start().await;
    let _apps = [orders.serve(8080, healthy), orders.serve(9090, apps::echo)];
    for (probe, expected) in
        [("app/startup", "HTTP/1.1 200"), ("app/readiness", "HTTP/1.1 503"), ("app/post-start", "HTTP/1.1 200")]
    {
        let answer = get(&kubelet, orders.at(15021), &path(probe)).await.unwrap();
        assert!(answer.starts_with(expected), "{probe}: {answer}");
    }
    // The kubelet looks at no status of a hook: where it failed there is no answer.
    let answer = get(&kubelet, orders.at(15021), &path("other/pre-stop")).await.unwrap_or_default();
    assert_eq!(answer, "");
}

const NONCE: &str = "0123456789abcdef0123456789abcdef";

fn with_probes(json: &str) -> ProxyOptions {
    let probes = format!(r#"{{"nonce": "{NONCE}", "probes": {json}}}"#);
    ProxyOptions { extra: vec![format!("--probes={probes}")], ..Default::default() }
}

/// Where the kubelet asks for a probe.
fn path(probe: &str) -> String {
    format!("/probe/{NONCE}/{probe}")
}

/// Answers every request well, once.
async fn healthy(mut stream: TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    let _ = stream.shutdown().await;
}

async fn get(from: &Pod, to: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = from.connect(to).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: kubelet\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
