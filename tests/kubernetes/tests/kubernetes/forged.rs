//! Tokens of an attacker who has the cluster's own signing key: what only the claims can give away.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use byrnie_kubelab::Cluster;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::Value;

/// The token with claims changed, signed again.
pub(crate) fn with_claims(cluster: &Cluster, token: &str, change: impl FnOnce(&mut Value)) -> String {
    let parts: Vec<&str> = token.split('.').collect();
    let mut claims: Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
    change(&mut claims);
    let text = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    // The header names the key.
    let signed = format!("{}.{}", parts[0], text(&claims));
    let key = PrivatePkcs8KeyDer::from_pem_file(cluster.server.directory().join("service-accounts.key")).unwrap();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_pkcs8_der()).unwrap();
    let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}
