//! The rules of the SPIFFE X.509-SVID standard that webpki does not know. Section numbers are that standard's.

use super::{VerifyCause, VerifyError};
use crate::spiffe_id::{SpiffeId, TrustDomain};
use crate::x509::{Facts, KeyUsage};

/// The rules for a workload's certificate (sections 2, 4 and 5.2). Returns its SPIFFE ID.
pub(crate) fn check_leaf(leaf: &Facts) -> Result<SpiffeId, VerifyError> {
    let uri = match leaf.uris.as_slice() {
        [uri] => uri,
        [] => {
            return refuse(VerifyCause::NoUriSan, "the leaf names no URI: expected one, its SPIFFE ID");
        }
        uris => {
            let detail = format!("the leaf names {} URIs: expected one, its SPIFFE ID", uris.len());
            return refuse(VerifyCause::SeveralUriSans, detail);
        }
    };
    let id: SpiffeId = uri.parse().map_err(|error| {
        let shown: String = uri.chars().take(256).collect();
        VerifyError::new(VerifyCause::BadSpiffeId, format!("the leaf's URI {shown:?}: {error}"))
    })?;
    if id.path().is_empty() {
        return refuse(VerifyCause::BadSpiffeId, format!("the leaf's ID {id} names a trust domain and no workload"));
    }
    check_leaf_constraints(leaf)?;
    check_extended_key_usage(leaf, "the leaf")?;
    Ok(id)
}

/// The rules for everything above the leaf, roots included (sections 3.2, 4.1 and 4.3).
pub(crate) fn check_issuer(issuer: &Facts, what: &str, trust_domain: &TrustDomain) -> Result<(), VerifyError> {
    match issuer.basic_constraints {
        Some(constraints) if constraints.ca => {}
        Some(_) => {
            return refuse(VerifyCause::NotAnIssuer, format!("{what} is no certificate authority (CA:FALSE)"));
        }
        None => {
            return refuse(VerifyCause::NotAnIssuer, format!("{what} has no basicConstraints: expected CA:TRUE"));
        }
    }
    match issuer.key_usage {
        Some(usage) if !usage.has(KeyUsage::KEY_CERT_SIGN) => {
            return refuse(VerifyCause::NotAnIssuer, format!("{what} may not sign certificates (keyUsage)"));
        }
        Some(usage) if !usage.critical => {
            return refuse(VerifyCause::KeyUsage, format!("the keyUsage of {what} is not critical"));
        }
        Some(_) => {}
        None => {
            return refuse(VerifyCause::NotAnIssuer, format!("{what} has no keyUsage: expected keyCertSign"));
        }
    }
    check_issuer_id(issuer, what, trust_domain)?;
    check_extended_key_usage(issuer, what)
}

/// No issuer has more issuers below it than its path length allows (RFC 5280 section 4.2.1.9). `issuers` goes from
/// the one that signed the leaf up to the root: webpki does not know a root's path length.
pub(crate) fn check_path_lengths<'a>(issuers: impl Iterator<Item = &'a Facts>) -> Result<(), VerifyError> {
    for (below, issuer) in issuers.enumerate() {
        let allowed = issuer.basic_constraints.and_then(|constraints| constraints.path_length);
        if allowed.is_some_and(|allowed| below > allowed as usize) {
            let detail = format!("{below} issuers stand below one that allows {}", allowed.unwrap_or_default());
            return refuse(VerifyCause::PathLength, detail);
        }
    }
    Ok(())
}

fn check_leaf_constraints(leaf: &Facts) -> Result<(), VerifyError> {
    match leaf.basic_constraints {
        Some(constraints) if constraints.ca => {
            return refuse(VerifyCause::NotALeaf, "the leaf is a certificate authority (CA:TRUE)");
        }
        Some(_) => {}
        None => {
            return refuse(VerifyCause::BasicConstraints, "the leaf has no basicConstraints: expected CA:FALSE");
        }
    }
    let Some(usage) = leaf.key_usage else {
        return refuse(VerifyCause::KeyUsage, "the leaf has no keyUsage: expected digitalSignature");
    };
    if !usage.critical {
        return refuse(VerifyCause::KeyUsage, "the leaf's keyUsage is not critical");
    }
    if !usage.has(KeyUsage::DIGITAL_SIGNATURE) {
        return refuse(VerifyCause::KeyUsage, "the leaf's keyUsage lacks digitalSignature");
    }
    // Section 4.3 permits the two key-exchange usages in a leaf (SPIRE sets them), and nothing that issues.
    let permitted = KeyUsage::DIGITAL_SIGNATURE | KeyUsage::KEY_ENCIPHERMENT | KeyUsage::KEY_AGREEMENT;
    if !usage.only(permitted) {
        return refuse(VerifyCause::KeyUsage, "the leaf's keyUsage permits more than a leaf may do");
    }
    Ok(())
}

/// Section 4.4: both or no extension at all, at every level of the chain.
fn check_extended_key_usage(facts: &Facts, what: &str) -> Result<(), VerifyError> {
    match facts.extended_key_usage {
        Some(usage) if !(usage.server && usage.client) => {
            let detail = format!("the extendedKeyUsage of {what} lacks server or client authentication: expected both");
            refuse(VerifyCause::ExtendedKeyUsage, detail)
        }
        _ => Ok(()),
    }
}

/// Section 3.2: an issuer may bear an ID, but one without a path, and here only that of its own trust domain.
fn check_issuer_id(issuer: &Facts, what: &str, trust_domain: &TrustDomain) -> Result<(), VerifyError> {
    match issuer.uris.as_slice() {
        [] => Ok(()),
        [uri] if *uri == SpiffeId::of_trust_domain(trust_domain).as_str() => Ok(()),
        [uri] => {
            let shown: String = uri.chars().take(256).collect();
            let detail = format!("{what} bears {shown:?}: expected spiffe://{trust_domain} or no URI");
            refuse(VerifyCause::IssuerSpiffeId, detail)
        }
        uris => {
            let detail = format!("{what} bears {} URIs: expected at most spiffe://{trust_domain}", uris.len());
            refuse(VerifyCause::IssuerSpiffeId, detail)
        }
    }
}

fn refuse<T>(cause: VerifyCause, detail: impl Into<String>) -> Result<T, VerifyError> {
    Err(VerifyError::new(cause, detail))
}
