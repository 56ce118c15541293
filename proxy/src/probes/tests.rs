#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use byrnie_redirect::PROXY_UID;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::test_support::listener;

const HERE: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));

/// Performs one probe of a pod whose addresses are loopback's.
async fn perform(action: ProbeAction, seconds: u32) -> Outcome {
    perform_as("web/liveness", action, seconds, None).await
}

async fn perform_as(name: &str, action: ProbeAction, seconds: u32, user_agent: Option<&str>) -> Outcome {
    let probes = Probes([(name.to_owned(), Probe { action, timeout_seconds: seconds })].into());
    let prober = Prober::new(probes, Exempt::Uid(PROXY_UID));
    assert!(prober.perform("web/other", Asked::default()).await.is_none());
    prober.perform(name, Asked { at: HERE, user_agent }).await.unwrap()
}

fn http_get(port: u16, path: &str, headers: &[(&str, &str)]) -> ProbeAction {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    ProbeAction::HttpGet { https: false, host: None, port, path: path.to_owned(), headers }
}

/// An application that gives these answers, one per connection, and keeps the heads that it heard.
async fn application(answers: Vec<String>) -> (u16, Arc<Mutex<Vec<String>>>) {
    let (listener, address) = listener().await;
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let heads = heard.clone();
    tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let head = head(&mut stream).await;
            heads.lock().unwrap().push(head);
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (address.port(), heard)
}

async fn head(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

fn status(line: &str) -> String {
    format!("HTTP/1.1 {line}\r\ncontent-length: 0\r\n\r\n")
}

#[tokio::test]
async fn a_status_from_200_to_399_is_good_and_any_other_is_named() {
    for (line, good) in [("200 OK", true), ("204 No Content", true), ("304 Not Modified", true), ("404 No", false)] {
        let (port, _) = application(vec![status(line)]).await;
        assert_eq!(perform(http_get(port, "/", &[]), 5).await.is_ok(), good, "{line}");
    }
    let (port, _) = application(vec![status("503 Busy")]).await;
    let reason = perform(http_get(port, "/live?token=x", &[]), 5).await.unwrap_err();
    assert_eq!(reason, format!("status 503 of http://127.0.0.1:{port}/live"));
}

#[tokio::test]
async fn the_request_is_the_kubelets_with_the_headers_that_were_admitted() {
    let (port, heard) = application(vec![status("200 OK"), status("200 OK")]).await;
    let headers = [("Host", "shop.example"), ("X-Probe", "a"), ("X-Probe", "b")];
    perform_as("web/liveness", http_get(port, "/live?deep=1", &headers), 5, Some("kube-probe/1.36")).await.unwrap();
    let head = heard.lock().unwrap()[0].to_ascii_lowercase();
    assert!(head.starts_with("get /live?deep=1 http/1.1\r\n"), "{head}");
    for line in ["host: shop.example", "x-probe: a", "x-probe: b", "user-agent: kube-probe/1.36", "accept: */*"] {
        assert_eq!(head.matches(&format!("\r\n{line}\r\n")).count(), 1, "{line} in {head}");
    }
    // Whoever else asks puts no word into the request; an empty header takes the kubelet's own away.
    perform_as("web/liveness", http_get(port, "/", &[("Accept", "")]), 5, Some("curl/8")).await.unwrap();
    let head = heard.lock().unwrap()[1].to_ascii_lowercase();
    assert!(head.contains(&format!("host: 127.0.0.1:{port}\r\n")), "{head}");
    assert!(head.contains("user-agent: kube-probe/") && !head.contains("curl") && !head.contains("accept"), "{head}");
}

#[tokio::test]
async fn a_redirect_is_followed_on_the_same_host_and_good_where_it_leads_away() {
    let to = |location: &str| format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
    let (port, heard) = application(vec![to("/second"), status("500 Broken")]).await;
    assert!(perform(http_get(port, "/first", &[("Host", "shop.example")]), 5).await.is_err());
    assert!(heard.lock().unwrap()[1].contains("/second") && heard.lock().unwrap()[1].contains("shop.example"));
    let (port, _) = application(vec![to("http://elsewhere.example/")]).await;
    assert!(perform(http_get(port, "/", &[]), 5).await.unwrap().contains("another host"));
    let (port, heard) = application(vec![to("/again"); 20]).await;
    assert_eq!(perform(http_get(port, "/", &[]), 5).await, Err("stopped after 10 redirects".into()));
    assert_eq!(heard.lock().unwrap().len(), 11);
}

#[tokio::test]
async fn an_application_that_is_silent_or_talks_nonsense_or_breaks_off_has_failed() {
    let (port, _) = application(vec!["SSH-2.0-x\r\n".into()]).await;
    assert!(perform(http_get(port, "/", &[]), 5).await.is_err());
    let (port, _) = application(vec!["HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf".into()]).await;
    assert!(perform(http_get(port, "/", &[]), 5).await.unwrap_err().contains("broke off"));
    let (silent, address) = listener().await;
    assert_eq!(perform(http_get(address.port(), "/", &[]), 1).await, Err("no answer within 1 s".into()));
    drop(silent);
    assert!(perform(http_get(address.port(), "/", &[]), 1).await.unwrap_err().contains("refused"));
}

#[tokio::test]
async fn a_large_body_is_not_read_to_its_end() {
    let body = "x".repeat(200_000);
    let (port, _) = application(vec![format!("HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n{body}")]).await;
    perform(http_get(port, "/", &[]), 5).await.unwrap();
}

#[tokio::test]
async fn a_hook_takes_any_answer_and_only_no_answer_fails_it() {
    let (port, _) = application(vec![status("500 Broken")]).await;
    perform_as("web/pre-stop", http_get(port, "/bye", &[]), 5, None).await.unwrap();
    assert!(is_hook("web/post-start") && is_hook("web/pre-stop") && !is_hook("web/liveness"));
}

#[tokio::test]
async fn https_is_asked_without_a_look_at_the_certificate() {
    let mesh = crate::test_support::TestMesh::new();
    let shared = mesh.proxy("web");
    let svid = mesh.svid("web", Duration::from_secs(3600));
    let verifier = shared.certificates.verifier();
    let config = byrnie_identity::tls::server_config(&svid, verifier, b"", byrnie_identity::tls::ClientAuth::Optional);
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = tokio_rustls::TlsAcceptor::from(config.unwrap()).accept(stream).await.unwrap();
        head(&mut stream).await;
        stream.write_all(status("200 OK").as_bytes()).await.unwrap();
        let _ = stream.shutdown().await;
    });
    let action = |port| ProbeAction::HttpGet { https: true, host: None, port, path: "/".into(), headers: vec![] };
    perform(action(address.port()), 5).await.unwrap();
    let (plain, address) = listener_that_says(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    assert!(perform(action(address.port()), 5).await.unwrap_err().contains("TLS handshake"));
    drop(plain);
}

/// Says this to everyone who connects.
async fn listener_that_says(text: &'static [u8]) -> (tokio::task::JoinHandle<()>, SocketAddr) {
    let (listener, address) = listener().await;
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(text).await;
        }
    });
    (task, address)
}

#[tokio::test]
async fn a_tcp_probe_asks_whether_the_port_takes_connections_and_no_more() {
    let (listener, address) = listener().await;
    let probe = || ProbeAction::TcpSocket { host: None, port: address.port() };
    perform(probe(), 1).await.unwrap();
    let mut said = Vec::new();
    listener.accept().await.unwrap().0.read_to_end(&mut said).await.unwrap();
    assert!(said.is_empty());
    drop(listener);
    assert!(perform(probe(), 1).await.unwrap_err().contains("refused"));
}

#[tokio::test]
async fn a_grpc_probe_is_good_only_while_the_service_serves() {
    let (health, address) = listener().await;
    tokio::spawn(serve_health(health));
    let probe = |service: &str| ProbeAction::Grpc { port: address.port(), service: service.into() };
    perform(probe(""), 5).await.unwrap();
    assert!(perform(probe("broken"), 5).await.unwrap_err().ends_with("is NOT_SERVING"));
    assert!(perform(probe("unknown"), 5).await.unwrap_err().contains("NotFound"));
    let (port, _) = application(vec![status("200 OK")]).await;
    assert!(perform(ProbeAction::Grpc { port, service: String::new() }, 5).await.is_err());
}

/// The health service: `broken` does not serve, `unknown` is not known, the rest serves.
async fn serve_health(listener: TcpListener) {
    use byrnie_proto::health::v1::health_server::{Health, HealthServer};
    use byrnie_proto::health::v1::{HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus};

    struct Services;
    #[tonic::async_trait]
    impl Health for Services {
        async fn check(
            &self,
            request: tonic::Request<HealthCheckRequest>,
        ) -> Result<tonic::Response<HealthCheckResponse>, tonic::Status> {
            let status = match request.into_inner().service.as_str() {
                "broken" => ServingStatus::NotServing,
                "unknown" => return Err(tonic::Status::not_found("unknown service")),
                _ => ServingStatus::Serving,
            };
            Ok(tonic::Response::new(HealthCheckResponse { status: status.into() }))
        }
    }
    while let Ok((stream, _)) = listener.accept().await {
        let service = hyper_util::service::TowerToHyperService::new(HealthServer::new(Services));
        let http2 = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
        tokio::spawn(http2.serve_connection(hyper_util::rt::TokioIo::new(stream), service));
    }
}
