//! What verification says when it refuses.

use std::fmt;

/// Why a chain, or a signature, was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause}: {detail}")]
#[non_exhaustive]
pub struct VerifyError {
    /// From a closed set: for metrics, logs and comparisons.
    pub cause: VerifyCause,
    /// For people: what was expected and what was found.
    pub detail: String,
}

impl VerifyError {
    /// A refusal for `cause`.
    pub fn new(cause: VerifyCause, detail: impl Into<String>) -> Self {
        Self { cause, detail: detail.into() }
    }
}

/// The closed set of causes. [`VerifyCause::as_str`] is the label in logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VerifyCause {
    /// The peer sent no certificate.
    NoCertificate,
    /// Something can't be parsed, or is not written as DER and RFC 5280 want it.
    Malformed,
    /// More or larger certificates than a chain may have.
    ChainTooLong,
    /// An extension occurs twice (RFC 5280 section 4.2).
    DuplicateExtension,
    /// A critical extension that is not known here.
    CriticalExtension,
    /// The leaf has no URI among its names.
    NoUriSan,
    /// The leaf has more than one URI among its names (X.509-SVID section 2).
    SeveralUriSans,
    /// The URI is no SPIFFE ID, or it names a trust domain and no workload.
    BadSpiffeId,
    /// The leaf is the certificate of an authority (X.509-SVID section 5.2).
    NotALeaf,
    /// A leaf or an issuer lacks basicConstraints.
    BasicConstraints,
    /// keyUsage is missing, not critical, or says something else than it must.
    KeyUsage,
    /// extendedKeyUsage is there without both server and client authentication.
    ExtendedKeyUsage,
    /// A certificate above the leaf may not issue.
    NotAnIssuer,
    /// A certificate above the leaf bears the SPIFFE ID of a workload or of another trust domain.
    IssuerSpiffeId,
    /// There is no bundle for the trust domain of the leaf.
    UnknownTrustDomain,
    /// The chain does not lead to a root of the bundle.
    UnknownAuthority,
    /// More issuers than one of them allows below it.
    PathLength,
    /// A name is outside of an issuer's name constraints.
    NameConstraints,
    /// A signature does not fit the key.
    BadSignature,
    /// A signature of a kind that is not taken here.
    UnsupportedAlgorithm,
    /// Something of the chain has run out.
    Expired,
    /// Something of the chain is not valid yet.
    NotYetValid,
    /// A good identity, but another one than was expected.
    WrongIdentity,
    /// A good identity without the DNS name that was called (non-mesh legs only).
    WrongName,
}

impl VerifyCause {
    /// All causes, so that metrics can start at zero.
    pub const ALL: [Self; 24] = [
        Self::NoCertificate,
        Self::Malformed,
        Self::ChainTooLong,
        Self::DuplicateExtension,
        Self::CriticalExtension,
        Self::NoUriSan,
        Self::SeveralUriSans,
        Self::BadSpiffeId,
        Self::NotALeaf,
        Self::BasicConstraints,
        Self::KeyUsage,
        Self::ExtendedKeyUsage,
        Self::NotAnIssuer,
        Self::IssuerSpiffeId,
        Self::UnknownTrustDomain,
        Self::UnknownAuthority,
        Self::PathLength,
        Self::NameConstraints,
        Self::BadSignature,
        Self::UnsupportedAlgorithm,
        Self::Expired,
        Self::NotYetValid,
        Self::WrongIdentity,
        Self::WrongName,
    ];

    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoCertificate => "no-certificate",
            Self::Malformed => "malformed",
            Self::ChainTooLong => "chain-too-long",
            Self::DuplicateExtension => "duplicate-extension",
            Self::CriticalExtension => "critical-extension",
            Self::NoUriSan => "no-uri-san",
            Self::SeveralUriSans => "several-uri-sans",
            Self::BadSpiffeId => "bad-spiffe-id",
            Self::NotALeaf => "not-a-leaf",
            Self::BasicConstraints => "basic-constraints",
            Self::KeyUsage => "key-usage",
            Self::ExtendedKeyUsage => "extended-key-usage",
            Self::NotAnIssuer => "not-an-issuer",
            Self::IssuerSpiffeId => "issuer-spiffe-id",
            Self::UnknownTrustDomain => "unknown-trust-domain",
            Self::UnknownAuthority => "unknown-authority",
            Self::PathLength => "path-length",
            Self::NameConstraints => "name-constraints",
            Self::BadSignature => "bad-signature",
            Self::UnsupportedAlgorithm => "unsupported-algorithm",
            Self::Expired => "expired",
            Self::NotYetValid => "not-yet-valid",
            Self::WrongIdentity => "wrong-identity",
            Self::WrongName => "wrong-name",
        }
    }
}

impl fmt::Display for VerifyCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
