//! Certificates as this crate sees them: parsed once, strictly, into the few facts that the SPIFFE rules speak of.
//!
//! x509-parser is lenient where a verifier must not be: a getter answers "absent" for a malformed value, bytes after
//! an extension's value are skipped, names may hold more than ASCII. Everything here that is not exactly right is
//! [`VerifyCause::Malformed`].

use std::collections::BTreeSet;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension, X509Extension};
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Version;

use crate::key::PEM_STYLE;
use crate::time_format::LAST_SECOND;
use crate::verifier::{VerifyCause, VerifyError};

/// What a certificate says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Lower-case hexadecimal.
    pub(crate) serial: String,
    pub(crate) issuer: String,
    /// Bears [`OUTSIDE_MESH`].
    pub(crate) outside_mesh: bool,
    /// Unix seconds, both inclusive.
    pub(crate) not_before: u64,
    pub(crate) not_after: u64,
    /// DER.
    pub(crate) spki: Vec<u8>,
    pub(crate) uris: Vec<String>,
    pub(crate) dns_names: Vec<String>,
    pub(crate) basic_constraints: Option<BasicConstraints>,
    pub(crate) key_usage: Option<KeyUsage>,
    pub(crate) extended_key_usage: Option<ExtendedKeyUsage>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BasicConstraints {
    pub(crate) ca: bool,
    pub(crate) path_length: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyUsage {
    pub(crate) critical: bool,
    /// Bit n of RFC 5280 section 4.2.1.3 is bit n here.
    bits: u16,
}

impl KeyUsage {
    pub(crate) const DIGITAL_SIGNATURE: u16 = 1;
    pub(crate) const KEY_ENCIPHERMENT: u16 = 1 << 2;
    pub(crate) const KEY_AGREEMENT: u16 = 1 << 4;
    pub(crate) const KEY_CERT_SIGN: u16 = 1 << 5;

    pub(crate) fn has(self, usage: u16) -> bool {
        self.bits & usage == usage
    }

    /// No bit outside of `usages` is set.
    pub(crate) fn only(self, usages: u16) -> bool {
        self.bits & !usages == 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExtendedKeyUsage {
    pub(crate) server: bool,
    pub(crate) client: bool,
}

/// The organizational unit in the subject of a certificate that is for a client outside of the mesh. Any TLS library
/// ignores it, and people read it.
pub(crate) const OUTSIDE_MESH: &str = "outside of the mesh";

/// Reads one certificate.
pub(crate) fn parse(der: &[u8]) -> Result<Facts, VerifyError> {
    if der.len() > MAX_CERTIFICATE {
        return Err(malformed(format!("a certificate has {} bytes: expected at most {MAX_CERTIFICATE}", der.len())));
    }
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|error| malformed(format!("no X.509 certificate: {error}")))?;
    if !rest.is_empty() {
        return Err(malformed(format!("{} bytes follow the certificate", rest.len())));
    }
    if certificate.version() != X509Version::V3 {
        return Err(malformed(format!("X.509 version is {}: expected V3", certificate.version())));
    }
    if certificate.signature_algorithm != certificate.tbs_certificate.signature {
        return Err(malformed("the signature algorithm inside the certificate differs from the one outside"));
    }
    let mut facts = Facts {
        serial: hex(trim_sign_byte(certificate.raw_serial())),
        issuer: certificate.issuer().to_string(),
        outside_mesh: certificate.subject().iter_organizational_unit().any(|unit| unit.as_str() == Ok(OUTSIDE_MESH)),
        not_before: seconds(certificate.validity().not_before.timestamp()),
        not_after: seconds(certificate.validity().not_after.timestamp()),
        spki: certificate.public_key().raw.to_vec(),
        uris: Vec::new(),
        dns_names: Vec::new(),
        basic_constraints: None,
        key_usage: None,
        extended_key_usage: None,
    };
    let mut seen = BTreeSet::new();
    for extension in certificate.extensions() {
        if !seen.insert(extension.oid.as_bytes().to_vec()) {
            let detail = format!("extension {} occurs twice", extension.oid);
            return Err(VerifyError::new(VerifyCause::DuplicateExtension, detail));
        }
        read_extension(extension, &mut facts)?;
    }
    Ok(facts)
}

/// The distinguished name of whom a certificate speaks.
pub(crate) fn subject(der: &[u8]) -> Result<String, VerifyError> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|error| malformed(format!("no X.509 certificate: {error}")))?;
    Ok(certificate.subject().to_string())
}

/// Whether the key in the certificate `issuer` signed the certificate `der`.
pub(crate) fn is_signed_by(der: &[u8], issuer: &[u8]) -> bool {
    match (X509Certificate::from_der(der), X509Certificate::from_der(issuer)) {
        (Ok((_, certificate)), Ok((_, issuer))) => certificate.verify_signature(Some(issuer.public_key())).is_ok(),
        _ => false,
    }
}

/// All certificates of a PEM text, in order; other sections are skipped.
pub(crate) fn certificates_from_pem(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, rustls_pki_types::pem::Error> {
    CertificateDer::pem_slice_iter(pem).collect()
}

/// The part of a file of ours that comes after the key, so that no reader of certificates ever decodes the key.
pub(crate) fn after_key(text: &str) -> &[u8] {
    text.find("-----BEGIN CERTIFICATE").and_then(|at| text.get(at..)).unwrap_or_default().as_bytes()
}

/// `certificates` as PEM, in order.
pub(crate) fn certificates_to_pem<'a>(certificates: impl IntoIterator<Item = &'a CertificateDer<'static>>) -> String {
    let sections = certificates.into_iter().map(|der| pem::Pem::new("CERTIFICATE", der.as_ref()));
    pem::encode_many_config(&sections.collect::<Vec<_>>(), PEM_STYLE)
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest_array(&aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes))
}

pub(crate) fn digest_array(digest: &aws_lc_rs::digest::Digest) -> [u8; 32] {
    let mut array = [0; 32];
    // Both are 32 bytes; `zip` says so without a panic.
    array.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
    array
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Far more than an X.509-SVID needs; RSA-8192 with many names still fits.
const MAX_CERTIFICATE: usize = 16 * 1024;

fn read_extension(extension: &X509Extension<'_>, facts: &mut Facts) -> Result<(), VerifyError> {
    let parsed = extension.parsed_extension();
    let ours = matches!(
        parsed,
        ParsedExtension::BasicConstraints(_)
            | ParsedExtension::KeyUsage(_)
            | ParsedExtension::ExtendedKeyUsage(_)
            | ParsedExtension::SubjectAlternativeName(_)
    );
    if ours && !is_one_element(extension.value) {
        return Err(malformed(format!("bytes follow the value of extension {}", extension.oid)));
    }
    match parsed {
        ParsedExtension::ParseError { .. } => {
            return Err(malformed(format!("extension {} can't be read", extension.oid)));
        }
        ParsedExtension::BasicConstraints(found) => {
            let found = BasicConstraints { ca: found.ca, path_length: found.path_len_constraint };
            if found.path_length.is_some() && !found.ca {
                return Err(malformed("basicConstraints has a path length without CA:TRUE"));
            }
            facts.basic_constraints = Some(found);
        }
        ParsedExtension::KeyUsage(found) => {
            facts.key_usage = Some(KeyUsage { critical: extension.critical, bits: found.flags });
        }
        ParsedExtension::ExtendedKeyUsage(found) => {
            facts.extended_key_usage = Some(ExtendedKeyUsage { server: found.server_auth, client: found.client_auth });
        }
        ParsedExtension::SubjectAlternativeName(names) => {
            names.general_names.iter().try_for_each(|name| read_name(name, facts))?;
        }
        // webpki enforces these where it meets them.
        ParsedExtension::NameConstraints(_) => {}
        _ if extension.critical => {
            let detail = format!("extension {} is critical and not known here", extension.oid);
            return Err(VerifyError::new(VerifyCause::CriticalExtension, detail));
        }
        _ => {}
    }
    Ok(())
}

fn read_name(name: &GeneralName<'_>, facts: &mut Facts) -> Result<(), VerifyError> {
    match name {
        GeneralName::URI(uri) if uri.is_ascii() => facts.uris.push((*uri).to_owned()),
        GeneralName::DNSName(dns) if dns.is_ascii() => facts.dns_names.push((*dns).to_owned()),
        GeneralName::URI(_) | GeneralName::DNSName(_) | GeneralName::Invalid(..) => {
            return Err(malformed("a subject alternative name can't be read"));
        }
        _ => {}
    }
    Ok(())
}

/// `value` is one DER element and nothing behind it. Lengths above 64 KiB can't occur below [`MAX_CERTIFICATE`].
fn is_one_element(value: &[u8]) -> bool {
    let (header, length) = match value {
        [_, short @ 0..=0x7f, ..] => (2, usize::from(*short)),
        [_, 0x81, length, ..] => (3, usize::from(*length)),
        [_, 0x82, high, low, ..] => (4, usize::from(u16::from_be_bytes([*high, *low]))),
        _ => return false,
    };
    value.len() == header + length
}

/// A positive INTEGER whose first bit is set carries a zero byte before it, which is no part of the number.
fn trim_sign_byte(serial: &[u8]) -> &[u8] {
    match serial {
        [0, rest @ ..] if !rest.is_empty() => rest,
        _ => serial,
    }
}

fn seconds(timestamp: i64) -> u64 {
    u64::try_from(timestamp).unwrap_or(0).min(LAST_SECOND)
}

fn malformed(detail: impl Into<String>) -> VerifyError {
    VerifyError::new(VerifyCause::Malformed, detail)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use rcgen::IsCa;

    use super::*;
    use crate::test_certificates::{Recipe, extension};

    fn parse_with(change: fn(&mut Recipe)) -> Result<Facts, VerifyError> {
        let mut recipe = Recipe::good();
        change(&mut recipe);
        parse(&recipe.make().chain[0])
    }

    #[test]
    fn bytes_behind_the_value_of_an_extension_are_refused() {
        let refused = parse_with(|recipe| {
            recipe.leaf.is_ca = IsCa::NoCa;
            let value = [0x30, 0x00, 0x05, 0x00];
            recipe.leaf.custom_extensions.push(extension(&[2, 5, 29, 19], true, &value));
        });
        let error = refused.unwrap_err();
        assert!(error.cause == VerifyCause::Malformed && error.detail.contains("2.5.29.19"), "{error}");
    }

    #[test]
    fn a_serial_number_is_shown_as_openssl_shows_it() {
        assert_eq!(hex(trim_sign_byte(&[0, 0xab, 0x01])), "ab01");
        assert_eq!(hex(trim_sign_byte(&[0])), "00");
        assert_eq!(hex(trim_sign_byte(&[0x0a])), "0a");
    }

    #[test]
    fn one_element_is_told_from_more_or_less_of_it() {
        for one in [&[5, 0][..], &[4, 1, 9], &[&[0x04, 0x81, 0x80][..], &[0; 128]].concat()] {
            assert!(is_one_element(one));
            assert!(!is_one_element(&[one, &[0]].concat()));
            assert!(!is_one_element(&one[..one.len() - 1]));
        }
        assert!(!is_one_element(&[]) && !is_one_element(&[0x30, 0x80, 0, 0]));
    }
}
