//! Who a workload is, and how it proves it: SPIFFE IDs, X.509-SVIDs (parse, verify, issue), trust bundles, and the
//! rustls configurations built from them.
//!
//! Verification is Byrnie's own, on top of webpki: webpki builds and checks the path, [`SvidVerifier`] then applies
//! every rule of the SPIFFE X.509-SVID standard, most of which webpki leaves open. A [`PeerIdentity`] exists only
//! where that verification succeeded, so that whoever holds one need not ask again.
//!
//! What this crate leaves to others: which identity is *expected* at an endpoint (the proxy), what an identity may do
//! (`byrnie-policy`), and who may have one (the control plane).

pub mod authority;
mod bundle;
mod certificate;
mod clock;
pub mod csr;
mod files;
mod key;
mod spiffe_id;
mod svid;
#[cfg(test)]
mod test_certificates;
mod time_format;
pub mod tls;
mod verifier;
mod x509;

pub use bundle::{Authority, BundleError, SharedBundles, TrustBundle, TrustBundles};
pub use certificate::{CertificateFacts, SelfSigned, certificate_to_pem, certificates_from_pem};
pub use clock::{Clock, ManualClock};
pub use key::{KeyError, KeyPair};
pub use spiffe_id::{SpiffeId, SpiffeIdError, TrustDomain, control_plane_id};
pub use svid::{Svid, SvidError};
pub use verifier::{PeerIdentity, SvidVerifier, VerifyCause, VerifyError, verify_signature};
