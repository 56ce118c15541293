//! SPIFFE IDs and trust domains, exactly as the SPIFFE-ID standard allows them.
//!
//! Nothing is normalized: an ID that is not written in the one permitted form is refused, because two spellings of
//! one identity are how a comparison elsewhere goes wrong.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The name of a trust domain: lower-case letters, digits, dots, dashes and underscores, at most 255 bytes
/// (SPIFFE-ID section 2.1). Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The name, without the scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    fn from_str(name: &str) -> Result<Self, SpiffeIdError> {
        if name.is_empty() {
            return Err(SpiffeIdError::NoTrustDomain);
        }
        if name.len() > MAX_TRUST_DOMAIN {
            return Err(SpiffeIdError::TrustDomainTooLong(name.len()));
        }
        match name.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_')) {
            Some(found) => Err(SpiffeIdError::TrustDomainCharacter(found)),
            None => Ok(Self(name.into())),
        }
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustDomain({})", self.0)
    }
}

/// A SPIFFE ID, `spiffe://<trust-domain>[/<path>]`, at most 2048 bytes (SPIFFE-ID section 2). Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    uri: Arc<str>,
    trust_domain: TrustDomain,
}

impl SpiffeId {
    /// The ID of a Kubernetes workload: `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`.
    ///
    /// # Errors
    /// When a name can't be a path segment of a SPIFFE ID: empty, `.`, `..`, or with a character outside
    /// `[A-Za-z0-9.-_]`.
    pub fn workload(trust_domain: &TrustDomain, namespace: &str, service_account: &str) -> Result<Self, SpiffeIdError> {
        check_segment(namespace)?;
        check_segment(service_account)?;
        format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}").parse()
    }

    /// The ID of the trust domain itself, which has no path. An issuer may carry it, a workload may not.
    pub fn of_trust_domain(trust_domain: &TrustDomain) -> Self {
        Self { uri: format!("{SCHEME}{trust_domain}").into(), trust_domain: trust_domain.clone() }
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The trust domain whose bundle must vouch for this ID.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path with its leading slash; empty for the ID of a trust domain.
    pub fn path(&self) -> &str {
        self.uri.get(SCHEME.len() + self.trust_domain.0.len()..).unwrap_or_default()
    }

    /// The namespace, where the path is `/ns/<namespace>/sa/<service-account>` and nothing else.
    pub fn namespace(&self) -> Option<&str> {
        self.workload_names().map(|(namespace, _)| namespace)
    }

    /// The service account, where the path is `/ns/<namespace>/sa/<service-account>` and nothing else.
    pub fn service_account(&self) -> Option<&str> {
        self.workload_names().map(|(_, service_account)| service_account)
    }

    fn workload_names(&self) -> Option<(&str, &str)> {
        let (namespace, rest) = self.path().strip_prefix("/ns/")?.split_once('/')?;
        let service_account = rest.strip_prefix("sa/")?;
        (!service_account.contains('/')).then_some((namespace, service_account))
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(uri: &str) -> Result<Self, SpiffeIdError> {
        if uri.len() > MAX_ID {
            return Err(SpiffeIdError::TooLong(uri.len()));
        }
        let rest = uri.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        let (name, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        let trust_domain = name.parse()?;
        if let Some(segments) = path.strip_prefix('/') {
            segments.split('/').try_for_each(check_segment)?;
        }
        Ok(Self { uri: uri.into(), trust_domain })
    }
}

impl AsRef<str> for SpiffeId {
    fn as_ref(&self) -> &str {
        &self.uri
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpiffeId({})", self.uri)
    }
}

/// Why a string is no SPIFFE ID or trust domain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpiffeIdError {
    /// Not `spiffe://`, in lower case.
    #[error("a SPIFFE ID begins with `spiffe://`")]
    Scheme,
    /// Nothing between the slashes.
    #[error("the trust domain is empty: expected a name such as `cluster.local`")]
    NoTrustDomain,
    /// Longer than 255 bytes.
    #[error("the trust domain has {0} bytes, at most 255 are allowed")]
    TrustDomainTooLong(usize),
    /// An upper-case letter, a port, user information, an escape, or anything else outside the set.
    #[error("the trust domain holds {0:?}; only a-z, 0-9, dot, dash and underscore are allowed")]
    TrustDomainCharacter(char),
    /// Longer than 2048 bytes.
    #[error("the SPIFFE ID has {0} bytes, at most 2048 are allowed")]
    TooLong(usize),
    /// `//`, or a slash at the end.
    #[error("the path holds an empty segment: no double slash and no slash at the end is allowed")]
    EmptySegment,
    /// `.` or `..`.
    #[error("the path holds a relative segment (`.` or `..`)")]
    RelativeSegment,
    /// A query, a fragment, an escape, or anything else outside the set.
    #[error("the path holds {0:?}; only letters, digits, dot, dash and underscore are allowed")]
    PathCharacter(char),
}

/// The ID that a proxy requires of its control plane.
pub fn control_plane_id(trust_domain: &TrustDomain) -> SpiffeId {
    let uri = format!("{SCHEME}{trust_domain}/ns/{CONTROL_PLANE_NAMESPACE}/sa/{CONTROL_PLANE_SERVICE_ACCOUNT}");
    SpiffeId { uri: uri.into(), trust_domain: trust_domain.clone() }
}

const SCHEME: &str = "spiffe://";
/// SPIFFE-ID section 2.3: implementations must support up to 2048 bytes, and must not generate more.
const MAX_ID: usize = 2048;
const MAX_TRUST_DOMAIN: usize = 255;
const CONTROL_PLANE_NAMESPACE: &str = "byrnie-system";
const CONTROL_PLANE_SERVICE_ACCOUNT: &str = "byrnie-control-plane";

fn check_segment(segment: &str) -> Result<(), SpiffeIdError> {
    match segment {
        "" => return Err(SpiffeIdError::EmptySegment),
        "." | ".." => return Err(SpiffeIdError::RelativeSegment),
        _ => {}
    }
    let outside = |c: &char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    segment.chars().find(outside).map_or(Ok(()), |found| Err(SpiffeIdError::PathCharacter(found)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("spiffe://cluster.local", "cluster.local", "")]
    #[case("spiffe://cluster.local/ns/shop/sa/web", "cluster.local", "/ns/shop/sa/web")]
    #[case("spiffe://a_b-c.1/9eebccd2-12bf-40a6-b262-65fe0487d453", "a_b-c.1", "/9eebccd2-12bf-40a6-b262-65fe0487d453")]
    #[case("spiffe://td/...", "td", "/...")]
    fn a_well_formed_id_is_taken_apart(#[case] uri: &str, #[case] trust_domain: &str, #[case] path: &str) {
        let id: SpiffeId = uri.parse().unwrap();
        assert_eq!((id.as_str(), id.trust_domain().as_str(), id.path()), (uri, trust_domain, path));
    }

    #[rstest]
    #[case("", SpiffeIdError::Scheme)]
    #[case("http://cluster.local/ns/a/sa/b", SpiffeIdError::Scheme)]
    #[case("SPIFFE://cluster.local/a", SpiffeIdError::Scheme)]
    #[case("spiffe:/cluster.local/a", SpiffeIdError::Scheme)]
    #[case("spiffe://", SpiffeIdError::NoTrustDomain)]
    #[case("spiffe:///ns/a/sa/b", SpiffeIdError::NoTrustDomain)]
    #[case("spiffe://Cluster.local/a", SpiffeIdError::TrustDomainCharacter('C'))]
    #[case("spiffe://cluster.local:443/a", SpiffeIdError::TrustDomainCharacter(':'))]
    #[case("spiffe://user@cluster.local/a", SpiffeIdError::TrustDomainCharacter('@'))]
    #[case("spiffe://cluster.local?x", SpiffeIdError::TrustDomainCharacter('?'))]
    #[case("spiffe://clüster.local/a", SpiffeIdError::TrustDomainCharacter('ü'))]
    #[case("spiffe://td/", SpiffeIdError::EmptySegment)]
    #[case("spiffe://td/a/", SpiffeIdError::EmptySegment)]
    #[case("spiffe://td//a", SpiffeIdError::EmptySegment)]
    #[case("spiffe://td/./a", SpiffeIdError::RelativeSegment)]
    #[case("spiffe://td/a/..", SpiffeIdError::RelativeSegment)]
    #[case("spiffe://td/a?x=1", SpiffeIdError::PathCharacter('?'))]
    #[case("spiffe://td/a#f", SpiffeIdError::PathCharacter('#'))]
    #[case("spiffe://td/%61", SpiffeIdError::PathCharacter('%'))]
    #[case("spiffe://td/a\0", SpiffeIdError::PathCharacter('\0'))]
    #[case("spiffe://td/ns/*", SpiffeIdError::PathCharacter('*'))]
    fn a_malformed_id_is_refused_with_its_reason(#[case] uri: &str, #[case] reason: SpiffeIdError) {
        assert_eq!(uri.parse::<SpiffeId>(), Err(reason));
    }

    #[test]
    fn lengths_are_bounded_as_the_standard_says() {
        let trust_domain = "a".repeat(255);
        assert!(trust_domain.parse::<TrustDomain>().is_ok());
        assert_eq!("a".repeat(256).parse::<TrustDomain>(), Err(SpiffeIdError::TrustDomainTooLong(256)));
        let longest = format!("spiffe://td/{}", "p".repeat(2048 - "spiffe://td/".len()));
        assert!(longest.parse::<SpiffeId>().is_ok());
        assert_eq!(format!("{longest}p").parse::<SpiffeId>(), Err(SpiffeIdError::TooLong(2049)));
    }

    #[rstest]
    #[case("/ns/shop/sa/web", Some(("shop", "web")))]
    #[case("/ns/shop/sa/web/more", None)]
    #[case("/ns/shop/sa", None)]
    #[case("/ns/shop", None)]
    #[case("/sa/web/ns/shop", None)]
    #[case("/x/ns/shop/sa/web", None)]
    #[case("", None)]
    fn only_the_workload_form_names_a_service_account(#[case] path: &str, #[case] names: Option<(&str, &str)>) {
        let id: SpiffeId = format!("spiffe://td{path}").parse().unwrap();
        assert_eq!(id.namespace().zip(id.service_account()), names);
    }

    #[test]
    fn a_workload_id_can_not_be_built_from_names_that_hold_a_slash() {
        let trust_domain: TrustDomain = "td".parse().unwrap();
        assert_eq!(SpiffeId::workload(&trust_domain, "a/sa/b", "c"), Err(SpiffeIdError::PathCharacter('/')));
        assert_eq!(SpiffeId::workload(&trust_domain, "a", ""), Err(SpiffeIdError::EmptySegment));
        assert_eq!(SpiffeId::workload(&trust_domain, "..", "c"), Err(SpiffeIdError::RelativeSegment));
    }

    #[test]
    fn the_control_plane_has_a_fixed_name() {
        let id = control_plane_id(&"cluster.local".parse().unwrap());
        assert_eq!(id, "spiffe://cluster.local/ns/byrnie-system/sa/byrnie-control-plane".parse().unwrap());
    }

    proptest! {
        #[test]
        fn every_workload_id_reads_back_as_it_was_built(
            trust_domain in "[a-z0-9._-]{1,40}",
            namespace in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?",
            service_account in "[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?",
        ) {
            let trust_domain: TrustDomain = trust_domain.parse().unwrap();
            let id = SpiffeId::workload(&trust_domain, &namespace, &service_account).unwrap();
            let read: SpiffeId = id.to_string().parse().unwrap();
            prop_assert_eq!(&read, &id);
            prop_assert_eq!(read.trust_domain(), &trust_domain);
            prop_assert_eq!(read.namespace(), Some(namespace.as_str()));
            prop_assert_eq!(read.service_account(), Some(service_account.as_str()));
        }

        #[test]
        fn any_string_is_judged_without_a_panic_and_never_changed(text in ".{0,64}") {
            for uri in [text.clone(), format!("spiffe://{text}"), format!("spiffe://td/{text}")] {
                if let Ok(id) = uri.parse::<SpiffeId>() {
                    prop_assert_eq!(id.as_str(), uri.as_str());
                    let whole = format!("spiffe://{}{}", id.trust_domain(), id.path());
                    prop_assert_eq!(whole.as_str(), uri.as_str());
                    prop_assert!(uri.is_ascii() && !uri.ends_with('/'));
                }
            }
        }

        #[test]
        fn two_ids_are_equal_only_if_their_text_is(a in "spiffe://[ab]{1,2}(/[ab]{1,2}){0,2}", b in "spiffe://[ab]{1,2}(/[ab]{1,2}){0,2}") {
            let (left, right): (SpiffeId, SpiffeId) = (a.parse().unwrap(), b.parse().unwrap());
            prop_assert_eq!(left == right, a == b);
        }
    }
}
