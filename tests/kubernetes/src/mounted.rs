//! What a kubelet does with a Secret that a pod mounts.

use std::path::PathBuf;
use std::time::Duration;

use rustls_pki_types::pem::PemObject;
use serde_json::Value;

use crate::Api;

/// A kubelet takes up to a minute; a test should not.
const EVERY: Duration = Duration::from_millis(200);

/// Writes the Secret's content to `directory`, and again whenever it changes.
pub(crate) async fn keep_mounted(api: Api, secret: String, directory: PathBuf) {
    let mut last = Value::Null;
    loop {
        if let Ok(mut object) = api.get(&secret).await
            && object["data"] != last
        {
            last = object["data"].take();
            for (name, encoded) in last.as_object().into_iter().flatten() {
                let bytes = base64(encoded.as_str().unwrap_or_default());
                // By another name first, so that nobody reads half of it.
                let new = directory.join(format!(".{name}"));
                std::fs::write(&new, bytes).expect("a file");
                std::fs::rename(new, directory.join(name)).expect("a file");
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// The PEM reader is the one decoder at hand.
fn base64(text: &str) -> Vec<u8> {
    let pem = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
    rustls_pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).map(|der| der.to_vec()).unwrap_or_default()
}
