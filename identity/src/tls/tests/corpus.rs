//! Every chain of the corpus in a handshake, shown to our client and to our server by a peer that takes anybody.

use byrnie_chains::tls::{client_that_shows, server_that_shows};

use super::*;
use crate::test_certificates::{Case, Judged, Presented, corpus, judge_of};

#[test]
fn a_server_judges_every_client_of_the_corpus_by_its_rule() {
    let ours = svid(Recipe::good().make());
    let wrong: Vec<String> = corpus()
        .filter_map(|case| {
            let presented = case.make();
            let verifier = judge_of(&presented);
            let server = server_config(&ours, &verifier, ALPN_TUNNEL, ClientAuth::Required).unwrap();
            let shaken = shake(&client_that_shows(&presented, ALPN_TUNNEL), &server, "x");
            assert!(!matches!(shaken, Err(Failure::AtClient(_))), "{}: the client takes anybody", case.name);
            misjudged(case, &presented, shaken.map(|(_, server)| peer_identity(&server, &verifier).unwrap()))
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_client_judges_every_server_of_the_corpus_by_its_rule() {
    let ours = svid(Recipe::good().make());
    let wrong: Vec<String> = corpus()
        .filter_map(|case| {
            let presented = case.make();
            let verifier = judge_of(&presented);
            let client = client_config(Some(&ours), &verifier, ALPN_TUNNEL).unwrap();
            let shaken = shake(&client, &server_that_shows(&presented, ALPN_TUNNEL), "x");
            assert!(!matches!(shaken, Err(Failure::AtServer(_))), "{}: the server takes anybody", case.name);
            misjudged(case, &presented, shaken.map(|(client, _)| peer_identity(&client, &verifier).unwrap()))
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What should have become of the handshake and did not.
fn misjudged(case: &Case, presented: &Presented, shaken: Result<PeerIdentity, Failure>) -> Option<String> {
    let found = match &shaken {
        Ok(peer) => peer.id().as_str(),
        Err(failure) => failure.cause().map_or("no cause", VerifyCause::as_str),
    };
    let expected = match case.judged {
        Judged::Good => presented.id.as_str(),
        Judged::Refused(cause) | Judged::RefusedInHandshake(cause) => cause,
    };
    (found != expected).then(|| format!("{}: expected {expected}, found {found}: {shaken:?}", case.name))
}
