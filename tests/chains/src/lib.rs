//! Certificate chains for tests: a [`Recipe`] is good by default and bad in exactly the way that a test asks for, and
//! the [`corpus`] has a chain for every rule of the SPIFFE X.509-SVID and SPIFFE-ID standards.
//!
//! Nothing of Byrnie is needed to make them, so that whoever judges them has no part in it: `identity` alone and in a
//! handshake, `proxy` over its own connections, and the libraries of others. `docs/certificates.md` says what each
//! chain is, and what each of them says to it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod corpus;
mod recipe;
pub mod tls;

pub use corpus::{Case, Judged, Presented, bad, corpus, good};
pub use recipe::{DAY, Made, NOW, Recipe, TRUST_DOMAIN, WEB, ca, extension, leaf, uri, valid};
pub use rustls_pki_types::CertificateDer;
