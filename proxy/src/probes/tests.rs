#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use byrnie_proto::probes::Nonce;
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
    let prober = prober([(name, action, seconds)]);
    assert!(ask(&prober, "web/other").await.is_none());
    prober.perform(nonce().as_str(), name, Asked { at: HERE, user_agent }).await.unwrap()
}

fn prober<'a>(probes: impl IntoIterator<Item = (&'a str, ProbeAction, u32)>) -> Prober {
    let probes = probes.into_iter().map(|(name, action, timeout_seconds)| {
        let probe = Probe { action, timeout_seconds };
        (name.to_owned(), probe)
    });
    Prober::new(Some(Probes { nonce: nonce(), probes: probes.collect() }), Exempt::Uid(PROXY_UID))
}

fn nonce() -> Nonce {
    Nonce::new([7; 16])
}

async fn ask(prober: &Prober, name: &str) -> Option<Outcome> {
    prober.perform(nonce().as_str(), name, Asked { at: HERE, user_agent: None }).await
}

#[tokio::test]
async fn nothing_is_performed_for_who_does_not_know_the_nonce() {
    let (listener, address) = listener().await;
    let prober = prober([("web/pre-stop", ProbeAction::TcpSocket { port: address.port() }, 5)]);
    let other = Nonce::new([8; 16]);
    for wrong in ["", "0", &nonce().as_str()[..31], other.as_str()] {
        assert!(prober.perform(wrong, "web/pre-stop", Asked { at: HERE, user_agent: None }).await.is_none(), "{wrong}");
    }
    assert!(prober.flights.lock().unwrap().is_empty());
    drop(listener);
}

#[tokio::test]
async fn a_probe_is_performed_once_at_a_time_and_all_who_ask_get_its_outcome() {
    let (listener, address) = listener().await;
    let prober = prober([("web/liveness", http_get(address.port(), "/", &[]), 5)]);
    let application = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        head(&mut stream).await;
        stream.write_all(status("200 OK").as_bytes()).await.unwrap();
        listener
    };
    let (first, second, listener) =
        tokio::join!(ask(&prober, "web/liveness"), ask(&prober, "web/liveness"), application);
    assert!(first.clone().unwrap().is_ok());
    assert_eq!(first, second);
    drop(listener);
    // The next one is a new one.
    assert!(ask(&prober, "web/liveness").await.unwrap().is_err());
}

#[tokio::test]
async fn who_goes_away_leaves_the_probe_to_the_next_who_asks() {
    let (listener, address) = listener().await;
    let prober = prober([("web/liveness", http_get(address.port(), "/", &[]), 5)]);
    let first = tokio::time::timeout(Duration::from_millis(50), ask(&prober, "web/liveness"));
    let second = ask(&prober, "web/liveness");
    let application = async {
        drop(listener.accept().await.unwrap());
        let (mut stream, _) = listener.accept().await.unwrap();
        head(&mut stream).await;
        stream.write_all(status("200 OK").as_bytes()).await.unwrap();
    };
    // The application's first connection is let go only after its asker is.
    let held = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        application.await;
    };
    let (first, second, ()) = tokio::join!(first, second, held);
    assert!(first.is_err());
    assert!(second.unwrap().is_ok());
}

#[tokio::test]
async fn hooks_take_no_place_from_the_probes() {
    let (silent, address) = listener().await;
    let (up, up_address) = listener().await;
    let names: Vec<String> = (0..PROBES).map(|number| format!("c{number}/pre-stop")).collect();
    let names_again = names.clone();
    let slow = names_again.iter().map(|name| (name.as_str(), http_get(address.port(), "/", &[]), 60));
    let prober =
        Arc::new(prober(slow.chain([("web/liveness", ProbeAction::TcpSocket { port: up_address.port() }, 5)])));
    let hooks = names.into_iter().map(|name| {
        let prober = prober.clone();
        tokio::spawn(async move { ask(&prober, &name).await })
    });
    let hooks: Vec<_> = hooks.collect();
    let mut open = Vec::new();
    for _ in 0..PROBES {
        open.push(silent.accept().await.unwrap());
    }
    assert!(ask(&prober, "web/liveness").await.unwrap().is_ok());
    hooks.iter().for_each(tokio::task::JoinHandle::abort);
    drop(up);
}

fn http_get(port: u16, path: &str, headers: &[(&str, &str)]) -> ProbeAction {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    ProbeAction::HttpGet { https: false, port, path: path.to_owned(), headers }
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
    let action = |port| ProbeAction::HttpGet { https: true, port, path: "/".into(), headers: vec![] };
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
    let probe = || ProbeAction::TcpSocket { port: address.port() };
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
