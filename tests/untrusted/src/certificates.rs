//! Certificates, alone, as a chain, and in a `REAUTH`.

use std::sync::{Arc, LazyLock};

use byrnie_identity::authority::CertificateAuthority;
use byrnie_identity::{CertificateFacts, Clock, SvidVerifier, TrustBundles, verify_signature};
use byrnie_proto::tunnel::v1::Reauth;
use prost::Message;
use rustls_pki_types::CertificateDer;

/// One certificate, read for what it says.
pub fn certificate(bytes: &[u8]) {
    if let Ok(facts) = CertificateFacts::read(bytes) {
        assert!(!facts.serial.is_empty() && !facts.spki.is_empty());
        assert!(facts.uris.iter().chain(&facts.dns_names).all(|name| name.is_ascii()));
    }
}

/// Several, each behind two bytes with its length: nobody but a key that was made a moment ago can make one that holds.
pub fn chain(bytes: &[u8]) {
    let mut chain = Vec::new();
    let mut rest = bytes;
    while let Some(([high, low], after)) = rest.split_first_chunk() {
        let (certificate, after) = after.split_at(usize::from(u16::from_be_bytes([*high, *low])).min(after.len()));
        chain.push(CertificateDer::from(certificate.to_vec()));
        rest = after;
    }
    if let Ok(peer) = VERIFIER.verify(&chain) {
        panic!("{peer:?} was verified, and nobody has issued it");
    }
}

/// The payload of a `REAUTH`, as a proxy takes it.
pub fn reauth(bytes: &[u8]) {
    let Ok(reauth) = Reauth::decode(bytes) else { return };
    let chain: Vec<CertificateDer<'static>> = reauth.chain.iter().map(|der| der.clone().into()).collect();
    assert!(VERIFIER.verify(&chain).is_err());
    if let (Some(leaf), Ok(scheme)) = (chain.first(), u16::try_from(reauth.signature_scheme)) {
        assert!(verify_signature(leaf, scheme, b"a text that nobody has signed", &reauth.signature).is_err());
    }
}

static VERIFIER: LazyLock<Arc<SvidVerifier>> = LazyLock::new(|| {
    let clock = Clock::system();
    let authority = CertificateAuthority::create("cluster.local".parse().unwrap(), &clock).unwrap();
    SvidVerifier::new(TrustBundles::from(authority.bundle()).shared(), clock)
});
