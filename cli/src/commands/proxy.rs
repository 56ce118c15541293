//! `byrnie proxy …`

use std::path::Path;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::args::{MeshArgs, ProxyCommand};
use crate::client::{Client, runtime};
use crate::failure::{Exit, Failure};
use crate::output::print_list;
use crate::view::{Proxy, in_namespace};

/// Largest answer of a proxy that is read.
const LARGEST: usize = 64 << 10;

pub(super) fn run(mesh: &MeshArgs, command: ProxyCommand) -> Result<Exit, Failure> {
    match command {
        ProxyCommand::Status(args) => {
            let mut proxies: Vec<Proxy> = super::observe(mesh)?.proxies.iter().map(Proxy::from).collect();
            if let Some(namespace) = &args.namespace {
                proxies.retain(|proxy| in_namespace(&proxy.workload, namespace));
            }
            print_list(&proxies, args.output, "No proxy has connected yet.")?;
        }
        ProxyCommand::Renew { workload } => runtime()?.block_on(renew_workload(mesh, &workload))?,
    }
    Ok(Exit::Success)
}

async fn renew_workload(mesh: &MeshArgs, workload: &str) -> Result<(), Failure> {
    let next =
        "kubectl rollout restart   (a pod that is made anew has a new key; proxies renew by themselves at half life)";
    super::only_on_this_machine(mesh, "byrnie proxy renew", next)?;
    let observed = Client::connect(&super::socket(mesh)?).await?.observe().await?;
    let proxies: Vec<Proxy> = observed.proxies.iter().map(Proxy::from).collect();
    let of_workload: Vec<_> = proxies.iter().filter(|proxy| proxy.workload == workload).collect();
    if of_workload.is_empty() {
        let known: Vec<_> = proxies.iter().map(|proxy| proxy.workload.as_str()).collect();
        return Err(Failure::new(Exit::Negative, format!("no proxy of `{workload}` is known"))
            .expected("the namespace/name of a workload that has a proxy")
            .found(if known.is_empty() { "no proxy at all".to_owned() } else { known.join(", ") })
            .next("byrnie proxy status"));
    }
    for proxy in of_workload {
        let Some(socket) = &proxy.admin_socket else {
            return Err(Failure::new(Exit::Refused, format!("the proxy of `{workload}` has no administration socket"))
                .next("start byrnie-proxy with --admin-socket PATH"));
        };
        let answer = renew(Path::new(socket)).await?;
        anstream::println!("{workload}: {}", describe(&answer));
    }
    Ok(())
}

/// The proxy's answer as a sentence; as it is, where it is not as expected.
fn describe(answer: &str) -> String {
    let parsed: serde_json::Value = serde_json::from_str(answer).unwrap_or_default();
    let field = |name: &str| parsed.get("svid")?.get(name)?.as_str().map(str::to_owned);
    match (field("serial"), field("not_after")) {
        (Some(serial), Some(not_after)) => format!("new key and certificate, serial {serial}, valid until {not_after}"),
        _ => answer.trim().to_owned(),
    }
}

/// Has the proxy at `socket` get a new key and certificate now, and returns what it says once it has them.
pub(crate) async fn renew(socket: &Path) -> Result<String, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Unreachable, "the proxy does not answer")
            .expected(format!("its administration socket at {}", socket.display()))
            .found(error)
            .next("byrnie proxy status   (run as the user who started the proxy, or as root)")
    };
    let stream = UnixStream::connect(socket).await.map_err(|error| failed(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    let request = Request::post("/renew").header("host", "proxy").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| failed(&error))?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST).collect().await;
        Ok::<_, hyper::Error>((status, body.map(|body| body.to_bytes()).unwrap_or_default()))
    };
    tokio::pin!(exchange, connection);
    let (status, body) = tokio::select! {
        biased;
        answer = &mut exchange => answer,
        _ = &mut connection => exchange.await,
    }
    .map_err(|error| failed(&error))?;
    let text = String::from_utf8_lossy(&body).into_owned();
    if status == StatusCode::OK || status == StatusCode::NO_CONTENT || status == StatusCode::ACCEPTED {
        return Ok(text);
    }
    Err(Failure::new(Exit::Refused, "the proxy could not renew; it keeps the certificate that it has")
        .found(format!("{status}: {}", text.trim()))
        .next("byrnie proxy status -o wide"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewal_is_told_in_a_sentence() {
        let answer = r#"{"generation":2,"svid":{"serial":"0a","not_after":"2026-01-01T00:00:00Z"}}"#;
        assert_eq!(describe(answer), "new key and certificate, serial 0a, valid until 2026-01-01T00:00:00Z");
        assert_eq!(describe("renewed\n"), "renewed");
    }
}
