#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, StatusCode};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::test_support::{TestMesh, listener};

fn administration() -> (TestMesh, Arc<Administration>) {
    let mesh = TestMesh::new();
    let shared = mesh.proxy("web");
    (mesh, Arc::new(Administration::new(shared, LogLevel::default())))
}

async fn ask(
    administration: &Administration,
    door: Door,
    method: Method,
    path: &str,
    body: &'static str,
) -> (StatusCode, String) {
    let request = Request::builder().method(method).uri(path).body(Full::new(Bytes::from(body))).unwrap();
    let response = routes::route(administration, door, request, None).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn readiness_names_every_reason() {
    let (_mesh, administration) = administration();
    administration.shared.drain.begin();
    let (status, text) = ask(&administration, Door::Health, Method::GET, "/healthz/ready", "").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(text.contains("draining") && text.contains("capture is not proved"), "{text}");
    let (status, _) = ask(&administration, Door::Health, Method::GET, "/healthz/live", "").await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn the_status_says_who_the_proxy_is_and_holds_no_key() {
    let (_mesh, administration) = administration();
    let (status, text) = ask(&administration, Door::Status, Method::GET, "/status", "").await;
    assert_eq!(status, StatusCode::OK);
    let view: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(view["workload"], "shop/web");
    assert_eq!(view["spiffe_id"], "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(view["svid"]["valid"], true);
    assert_eq!(view["control_plane"]["connected"], false);
    assert_eq!(view["bundles"][0]["trust_domain"], "cluster.local");
    for path in ["/status", "/config", "/destinations", "/metrics"] {
        let (status, text) = ask(&administration, Door::Status, Method::GET, path, "").await;
        assert_eq!(status, StatusCode::OK, "{path}");
        assert!(!text.contains("PRIVATE") && !text.contains("BEGIN"), "{path}");
    }
}

#[tokio::test]
async fn metrics_mirror_the_state_of_the_moment() {
    let (_mesh, administration) = administration();
    let (_, text) = ask(&administration, Door::Metrics, Method::GET, "/metrics", "").await;
    assert!(text.contains("byrnie_svid_generation 1\n"), "{text}");
    assert!(text.contains("byrnie_ready 0\n") && text.contains("byrnie_svid_not_after_seconds 1"), "{text}");
}

#[tokio::test]
async fn each_door_opens_to_its_own_and_only_the_unix_socket_changes_anything() {
    let (_mesh, administration) = administration();
    for (door, path, method, expected) in [
        (Door::Metrics, "/status", Method::GET, StatusCode::NOT_FOUND),
        (Door::Health, "/metrics", Method::GET, StatusCode::NOT_FOUND),
        (Door::Health, "/destinations", Method::GET, StatusCode::NOT_FOUND),
        (Door::Status, "/drain", Method::POST, StatusCode::NOT_FOUND),
        (Door::Status, "/renew", Method::POST, StatusCode::NOT_FOUND),
        (Door::Status, "/log-level", Method::POST, StatusCode::NOT_FOUND),
        (Door::Status, "/status", Method::POST, StatusCode::METHOD_NOT_ALLOWED),
        (Door::Control, "/drain", Method::GET, StatusCode::METHOD_NOT_ALLOWED),
        (Door::Control, "/nothing", Method::GET, StatusCode::NOT_FOUND),
        (Door::Control, "/status", Method::GET, StatusCode::OK),
    ] {
        let (status, _) = ask(&administration, door, method, path, "").await;
        assert_eq!(status, expected, "{door:?} {path}");
    }
    assert!(!administration.shared.drain.is_draining());
    let (status, _) = ask(&administration, Door::Control, Method::POST, "/drain", "").await;
    assert_eq!(status, StatusCode::OK);
    assert!(administration.shared.drain.is_draining());
}

#[tokio::test]
async fn a_level_that_is_none_is_refused_with_the_reason() {
    let (_mesh, administration) = administration();
    let (status, text) = ask(&administration, Door::Control, Method::POST, "/log-level", "=loud").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(text.contains("expected a level"), "{text}");
}

#[tokio::test]
async fn a_request_head_without_end_is_refused_and_others_are_served() {
    let (_mesh, administration) = administration();
    let (listener, address) = listener().await;
    tokio::spawn(serve(administration, Door::Health, listener));
    let mut endless = TcpStream::connect(address).await.unwrap();
    let head = format!("GET /healthz/live HTTP/1.1\r\nx: {}\r\n", "y".repeat(MAX_HEAD));
    endless.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    endless.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let mut other = TcpStream::connect(address).await.unwrap();
    other.write_all(b"GET /healthz/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    other.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn the_unix_socket_is_its_owners_alone_and_replaces_only_a_dead_one() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    let first = bind_unix(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(bind_unix(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    drop(first);
    drop(bind_unix(&path).unwrap());
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    assert!(bind_unix(&path).is_err());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn a_probe_is_performed_behind_the_health_door_and_a_hook_that_fails_is_not_answered() {
    let mesh = TestMesh::new();
    let mut shared = Arc::try_unwrap(mesh.proxy("web")).ok().unwrap();
    let (application, address) = listener().await;
    let probe = |port| format!(r#"{{"action": {{"tcpSocket": {{"port": {port}}}}}, "timeoutSeconds": 1}}"#);
    let (up, down) = (probe(address.port()), probe(1));
    const NONCE: &str = "0123456789abcdef0123456789abcdef";
    let probes = format!(
        r#"{{"nonce": "{NONCE}", "probes":
            {{"web/liveness": {up}, "web/readiness": {down}, "web/post-start": {up}, "web/pre-stop": {down}}}}}"#
    );
    shared.config.probes = Some(crate::probes::read(&probes).unwrap());
    shared.config.exempt = byrnie_redirect::Exempt::Uid(byrnie_redirect::PROXY_UID);
    let administration = Arc::new(Administration::new(Arc::new(shared), LogLevel::default()));
    let (health, address) = listener().await;
    tokio::spawn(serve(administration.clone(), Door::Health, health));
    let right = |name: &str| format!("{NONCE}/{name}");
    for (path, expected) in [
        (right("web/liveness"), "HTTP/1.1 200 OK"),
        (right("web/readiness"), "HTTP/1.1 503 Service Unavailable"),
        (right("web/startup"), "HTTP/1.1 404 Not Found"),
        (right("web/post-start"), "HTTP/1.1 200 OK"),
        (right("web/pre-stop"), ""),
        // Whoever does not know the nonce fires no hook, not even one that would fail.
        ("web/pre-stop".to_owned(), "HTTP/1.1 404 Not Found"),
        (format!("/{}", right("web/liveness")), "HTTP/1.1 404 Not Found"),
        (format!("{}/web/pre-stop", "0".repeat(32)), "HTTP/1.1 404 Not Found"),
        (format!("{}/web/pre-stop", &NONCE[1..]), "HTTP/1.1 404 Not Found"),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET /probe/{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        assert!(answer.starts_with(expected) && expected.is_empty() == answer.is_empty(), "{path}: {answer}");
    }
    let path = format!("/probe/{}", right("web/liveness"));
    let (status, _) = ask(&administration, Door::Status, Method::GET, &path, "").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    drop(application);
}

#[tokio::test]
async fn one_address_can_not_take_every_place() {
    let sources = Sources::default();
    let greedy = Some("10.0.0.9".parse().unwrap());
    let held: Vec<_> = (0..CONNECTIONS_PER_SOURCE).map(|_| sources.enter(greedy).unwrap()).collect();
    assert!(sources.enter(greedy).is_none());
    assert!(sources.enter(Some("10.0.0.1".parse().unwrap())).is_some());
    drop(held);
    assert!(sources.enter(greedy).is_some());
    assert_eq!(sources.0.lock().unwrap().len(), 0);
}
