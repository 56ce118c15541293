//! `byrnie identity …`

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::Path;

use byrnie_identity::{Clock, SvidVerifier, TrustBundle, TrustBundles};
use byrnie_proto::mesh::v1::{IssuedIdentity, ObserveResponse};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::args::{IdentityCommand, IdentityFormat, MeshArgs};
use crate::client::runtime;
use crate::cluster::workload::Reference;
use crate::cluster::{Cluster, Target};
use crate::failure::{Exit, Failure};
use crate::output::{Format, cannot_print, print_list, print_one};
use crate::view::{Identity, in_namespace};

pub(super) fn run(mesh: &MeshArgs, command: IdentityCommand) -> Result<Exit, Failure> {
    match command {
        IdentityCommand::List(args) => {
            let mut identities: Vec<Identity> = super::observe(mesh)?.identities.iter().map(Identity::from).collect();
            if let Some(namespace) = &args.namespace {
                identities.retain(|identity| in_namespace(&identity.workload, namespace));
            }
            print_list(&identities, args.output, "The mesh has issued no identity yet.")?;
        }
        IdentityCommand::Show { workload, namespace, output } => {
            let issued = named(mesh, &workload, namespace.as_deref())?;
            show(&issued, output)?;
        }
        IdentityCommand::Verify { what } => verify(&super::observe(mesh)?, &what)?,
        IdentityCommand::Bundle { trust_domain } => bundle(&super::observe(mesh)?, trust_domain.as_deref())?,
    }
    Ok(Exit::Success)
}

/// The identity that the command line names.
fn named(mesh: &MeshArgs, workload: &str, namespace: Option<&str>) -> Result<IssuedIdentity, Failure> {
    let reference = Reference::parse(workload);
    match (reference, namespace) {
        (Some(reference), Some(namespace)) if Target::of(mesh)? == Target::Cluster => runtime()?.block_on(async {
            let cluster = Cluster::connect(mesh).await?;
            let pods = cluster.pod_uids(namespace, &reference).await?;
            let observed = cluster.observe().await?;
            of_pods(&observed, &pods, workload).cloned()
        }),
        (_, Some(namespace)) => find(&super::observe(mesh)?, &format!("{namespace}/{workload}")).cloned(),
        (_, None) => find(&super::observe(mesh)?, workload).cloned(),
    }
}

/// The newest identity of any of these pods.
fn of_pods<'a>(
    observed: &'a ObserveResponse,
    pods: &BTreeSet<String>,
    workload: &str,
) -> Result<&'a IssuedIdentity, Failure> {
    let theirs = observed.identities.iter().filter(|each| pods.contains(&each.pod_uid));
    theirs.max_by_key(|each| (each.not_before, each.not_after)).ok_or_else(|| {
        Failure::new(Exit::Negative, format!("no pod of {workload} has an identity"))
            .expected("a pod with a proxy that is connected to the control plane")
            .found(format!("{} pods without one", pods.len()))
            .next("byrnie namespace list   (pods that were made before their namespace was enrolled have no proxy)")
    })
}

fn show(issued: &IssuedIdentity, format: IdentityFormat) -> Result<(), Failure> {
    let format = match format {
        IdentityFormat::Pem => {
            return std::io::stdout().write_all(chain_pem(&issued.chain).as_bytes()).map_err(cannot_print);
        }
        IdentityFormat::Table => Format::Table,
        IdentityFormat::Wide => Format::Wide,
        IdentityFormat::Json => Format::Json,
        IdentityFormat::Yaml => Format::Yaml,
    };
    print_one(&Identity::from(issued), format, describe)
}

fn describe(identity: &Identity) -> String {
    let unknown = "-".to_owned();
    let rows = [
        ("workload", &identity.workload),
        ("SPIFFE ID", &identity.spiffe_id),
        ("serial", &identity.serial),
        ("issuer", &identity.issuer),
        ("not before", identity.not_before.as_ref().unwrap_or(&unknown)),
        ("not after", identity.not_after.as_ref().unwrap_or(&unknown)),
    ];
    rows.iter().map(|(label, value)| format!("{label:<12}{value}\n")).collect()
}

/// The workload's identity; where it was renewed, the latest.
fn find<'a>(observed: &'a ObserveResponse, workload: &str) -> Result<&'a IssuedIdentity, Failure> {
    let of_workload = observed.identities.iter().filter(|each| each.workload == workload);
    of_workload.max_by_key(|each| (each.not_before, each.not_after)).ok_or_else(|| {
        let known: Vec<_> = observed.identities.iter().map(|each| each.workload.as_str()).collect();
        Failure::new(Exit::Negative, format!("`{workload}` has no identity"))
            .expected("the namespace/name of a workload with a certificate of this mesh")
            .found(if known.is_empty() { "no identity at all".to_owned() } else { known.join(", ") })
            .next("byrnie identity list")
    })
}

fn verify(observed: &ObserveResponse, what: &str) -> Result<(), Failure> {
    let chain = match what {
        "-" => {
            let mut text = Vec::new();
            std::io::stdin().read_to_end(&mut text).map_err(|error| no_certificates(what, &error))?;
            parse_chain(what, &text)?
        }
        path if Path::new(path).exists() => {
            parse_chain(what, &std::fs::read(path).map_err(|error| no_certificates(what, &error))?)?
        }
        workload => find(observed, workload)?.chain.iter().cloned().map(CertificateDer::from).collect(),
    };
    let mut bundles = TrustBundles::default();
    for bundle in &observed.bundles {
        bundles.insert(trust_bundle(bundle)?);
    }
    match SvidVerifier::new(bundles.shared(), Clock::system()).verify(&chain) {
        Ok(peer) => {
            anstream::println!("{} {} (serial {})", crate::output::green("verified:"), peer.id(), peer.serial());
            Ok(())
        }
        Err(error) => Err(Failure::new(Exit::Negative, format!("{what} does not verify"))
            .expected("a valid X.509-SVID of a trust domain whose bundle the mesh has")
            .found(error)
            .next("byrnie identity list   (or `openssl x509 -text` on the file)")),
    }
}

fn bundle(observed: &ObserveResponse, trust_domain: Option<&str>) -> Result<(), Failure> {
    let known: Vec<_> = observed.bundles.iter().map(|each| each.trust_domain.as_str()).collect();
    let wanted = match (trust_domain, observed.bundles.as_slice()) {
        (None, [only]) => Some(only),
        (None, _) => None,
        (Some(name), all) => all.iter().find(|each| each.trust_domain == name),
    };
    let Some(bundle) = wanted else {
        return Err(Failure::new(Exit::Negative, "there is no such trust bundle")
            .expected(trust_domain.map_or_else(|| "exactly one bundle".into(), |name| format!("a bundle of `{name}`")))
            .found(if known.is_empty() { "none".to_owned() } else { known.join(", ") })
            .next("byrnie identity bundle --trust-domain NAME"));
    };
    std::io::stdout().write_all(trust_bundle(bundle)?.to_pem().as_bytes()).map_err(cannot_print)
}

fn trust_bundle(from: &byrnie_proto::mesh::v1::Bundle) -> Result<TrustBundle, Failure> {
    TrustBundle::try_from(from)
        .map_err(|error| Failure::new(Exit::Refused, "the control plane's trust bundle can't be read").found(error))
}

fn parse_chain(what: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(no_certificates(what, &"no CERTIFICATE block")),
        Err(error) => Err(no_certificates(what, &error)),
    }
}

fn no_certificates(what: &str, found: &dyn std::fmt::Display) -> Failure {
    Failure::new(Exit::Usage, format!("`{what}` holds no certificate chain"))
        .expected("PEM certificates, leaf first, or the namespace/name of a workload")
        .found(found)
}

/// DER certificates as PEM (RFC 7468).
fn chain_pem(chain: &[Vec<u8>]) -> String {
    chain.iter().map(|der| pem_block(der)).collect()
}

fn pem_block(der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
            for position in 0..4 {
                let digit = (bits >> (18 - 6 * position)) as usize & 63;
                let padding = position > group.len();
                text.push(if padding { '=' } else { char::from(ALPHABET.get(digit).copied().unwrap_or(b'=')) });
            }
        }
        text.push('\n');
    }
    text + "-----END CERTIFICATE-----\n"
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pem_is_read_back_as_it_was() {
        for length in [1_u8, 2, 3, 47, 48, 49, 200] {
            let der: Vec<u8> = (0..length).collect();
            let pem = pem_block(&der);
            let read: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap();
            assert_eq!(read, [CertificateDer::from(der)]);
        }
    }

    #[test]
    fn the_latest_of_several_certificates_is_shown() {
        let issued = |serial: &str, not_before| IssuedIdentity {
            workload: "shop/web".into(),
            serial: serial.into(),
            not_before,
            ..Default::default()
        };
        let observed = ObserveResponse { identities: vec![issued("b", 2), issued("a", 1)], ..Default::default() };
        assert_eq!(find(&observed, "shop/web").unwrap().serial, "b");
        assert_eq!(find(&observed, "shop/none").unwrap_err().exit, Exit::Negative);
    }
}
