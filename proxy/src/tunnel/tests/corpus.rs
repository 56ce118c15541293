//! Every chain of the corpus over TCP, shown to the proxy's server and to its client by a peer that takes anybody.

use byrnie_chains::tls::{client_that_shows, server_that_shows};
use byrnie_chains::{Case, Judged, NOW, Presented, corpus};
use byrnie_identity::{Clock, TrustBundle, TrustBundles};
use rustls::pki_types::ServerName;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

#[tokio::test]
async fn the_proxys_server_refuses_every_bad_client_of_the_corpus_for_its_rule() {
    let mesh = mesh();
    let mut wrong = Vec::new();
    for case in corpus() {
        let (server, presented) = (mesh.proxy("orders"), case.make());
        trust(&server, &presented);
        let (near, far) = connected().await;
        let own = server.certificates.current().unwrap();
        let client = TlsConnector::from(client_that_shows(&presented, byrnie_identity::tls::ALPN_TUNNEL));
        let name = ServerName::try_from("unused.invalid").unwrap();
        let until = Instant::now() + crate::limits::TLS_HANDSHAKE;
        // Gone when it has said all that it has to say: the server waits a second for the end of whom it refuses.
        let shows = async { drop(client.connect(name, near).await) };
        let ((), accepted) = tokio::join!(shows, server::accept(&server, &own, far, Vec::new(), until));
        let found = accepted.map(|tunnel| tunnel.peer().id().to_string()).map_err(|error| error.cause());
        wrong.extend(misjudged(case, &presented, found));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn the_proxys_client_refuses_every_bad_server_of_the_corpus_for_its_rule() {
    let mesh = mesh();
    let mut wrong = Vec::new();
    for case in corpus() {
        let (client, presented) = (mesh.proxy("web"), case.make());
        trust(&client, &presented);
        let (listener, address) = listener().await;
        let acceptor = TlsAcceptor::from(server_that_shows(&presented, byrnie_identity::tls::ALPN_TUNNEL));
        let serving = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            // Held until the client has judged it.
            let _open = acceptor.accept(stream).await;
            std::future::pending::<()>().await;
        });
        let own = client.certificates.current().unwrap();
        // Who else it should be does not matter where the chain is refused.
        let expected = presented.id.parse().unwrap_or_else(|_| id("orders"));
        let dialled = client::dial(&client, &own, address, &expected).await;
        serving.abort();
        let found = dialled.map(|tunnel| tunnel.peer().id().to_string()).map_err(|error| error.cause());
        wrong.extend(misjudged(case, &presented, found));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A mesh at the time of the corpus.
fn mesh() -> TestMesh {
    let at: SystemTime = UNIX_EPOCH + Duration::from_secs(NOW);
    TestMesh::with_clock(Clock::manual(at).0)
}

/// From now on the proxy trusts what the case is to be judged by, and nothing else.
fn trust(shared: &Shared, presented: &Presented) {
    let mut bundles = TrustBundles::default();
    for (name, roots) in &presented.bundles {
        bundles.insert(TrustBundle::new(name.parse().unwrap(), 1, roots.clone()).unwrap());
    }
    shared.certificates.verifier().bundles().store(Arc::new(bundles));
}

/// What should have become of the connection and did not.
fn misjudged(case: &Case, presented: &Presented, found: Result<String, &'static str>) -> Option<String> {
    let expected = match case.judged {
        Judged::Good => Ok(presented.id.clone()),
        Judged::Refused(cause) | Judged::RefusedInHandshake(cause) => Err(cause),
    };
    (found != expected).then(|| format!("{}: expected {expected:?}, found {found:?}", case.name))
}
