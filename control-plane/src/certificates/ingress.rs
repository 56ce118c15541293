//! Client certificates for ingress controllers, as files: `STATE/ingress/<namespace>/<service account>/` with
//! `tls.crt`, `tls.key` and `ca.crt`, the names of a Kubernetes TLS Secret. The three change together: they are links
//! into a directory that one `rename` replaces, as kubelet does it for Secrets.

use std::{
    collections::BTreeSet,
    io,
    os::unix::fs::{DirBuilderExt, symlink},
    path::{Path, PathBuf},
    sync::Arc,
};

use byrnie_api::{IngressCertificate, labels};
use byrnie_identity::{KeyPair, SpiffeId, Svid};

use super::{CHECK, CertificateError};
use crate::{
    journal::Holder,
    model::{Model, PodFacts},
    plane::Plane,
    state::write_atomically,
};

const FILES: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];
const DATA: &str = "..data";

/// Keeps the files as MeshConfig wants them, for as long as the control plane runs.
pub(crate) async fn keep(plane: Arc<Plane>, directory: PathBuf, mut changed: tokio::sync::watch::Receiver<u64>) {
    let mut told = BTreeSet::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(CHECK) => {}
            // The sender lives as long as the plane.
            _ = changed.changed() => {}
        }
        let failures = refresh(&plane, &directory).await;
        for failure in failures.difference(&told) {
            tracing::error!(reason = failure, "an ingress certificate can't be written");
        }
        told = failures;
    }
}

/// Brings all files up to date; what went wrong, in words.
pub(crate) async fn refresh(plane: &Plane, directory: &Path) -> BTreeSet<String> {
    let mut failures = BTreeSet::new();
    let model = plane.model.load_full();
    for wanted in &model.settings.ingress_certificates {
        if let Err(error) = ensure(plane, &model, directory, wanted).await {
            failures.insert(format!("{}/{}: {error}", wanted.namespace, wanted.service_account));
        }
    }
    if let Err(error) = remove_unwanted(&model, directory) {
        failures.insert(format!("{}: {error}", directory.display()));
    }
    failures
}

async fn ensure(
    plane: &Plane,
    model: &Model,
    directory: &Path,
    wanted: &IngressCertificate,
) -> Result<(), CertificateError> {
    let folder = directory.join(&wanted.namespace).join(&wanted.service_account);
    let failed = |source: io::Error| CertificateError::File { path: folder.display().to_string(), source };
    let id = identity(model, wanted).map_err(|reason| failed(io::Error::other(reason)))?;
    let holder = Holder::Ingress(id.clone());
    let roots = plane.authority.bundle().to_pem();
    if let Some(current) = plane.journal.newest(&holder) {
        let written =
            std::fs::read_link(folder.join(DATA)).is_ok_and(|target| target == Path::new(&data_name(&current.serial)));
        let trusted = std::fs::read(folder.join("ca.crt")).is_ok_and(|content| content == roots.as_bytes());
        if written && trusted && !plane.is_due(current.not_before, current.not_after) {
            return Ok(());
        }
    }
    let key = KeyPair::generate()?;
    // A folder that takes no files is found out before there is a certificate for it.
    try_out(&folder, &roots).map_err(failed)?;
    let workload = format!("{}/{}", wanted.namespace, wanted.service_account);
    let certificate = plane.issue(&key.spki_der(), &id, holder, &workload).await?;
    let key_pem = key.to_pem();
    let svid = Svid::new(certificate.chain, key)?;
    let contents = [svid.chain_pem().into_bytes(), key_pem.as_bytes().to_vec(), roots.into_bytes()];
    let contents = contents.map(zeroize::Zeroizing::new);
    replace(&folder, svid.serial(), [&contents[0], &contents[1], &contents[2]]).map_err(failed)?;
    tracing::info!(id = id.as_str(), serial = svid.serial(), folder = %folder.display(), "ingress certificate written");
    Ok(())
}

/// Whom the certificate is for.
///
/// # Errors
/// It can't be given away, and why.
pub(crate) fn identity(model: &Model, wanted: &IngressCertificate) -> Result<SpiffeId, String> {
    if wanted.namespace == labels::SYSTEM_NAMESPACE {
        return Err("identities of the mesh's own namespace are not given away".to_owned());
    }
    let id = SpiffeId::workload(&model.settings.trust_domain, &wanted.namespace, &wanted.service_account)
        .map_err(|error| error.to_string())?;
    // Whoever holds such a certificate could answer in the place of the pod.
    let member = |pod: &&Arc<PodFacts>| (pod.enrolled || pod.injected) && !pod.finished && pod.spiffe_id == id;
    match model.pods().find(member) {
        Some(pod) => Err(format!(
            "expected a service account outside of the mesh, found that of pod {}; give the ingress one of its own",
            pod.place()
        )),
        None => Ok(id),
    }
}

fn try_out(folder: &Path, content: &str) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let trial = folder.join(".trial");
    write_atomically(&trial, content.as_bytes(), 0o600)?;
    std::fs::remove_file(trial)
}

fn replace(folder: &Path, serial: &str, contents: [&[u8]; 3]) -> io::Result<()> {
    let data = folder.join(data_name(serial));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&data)?;
    for (name, content) in FILES.iter().zip(contents) {
        write_atomically(&data.join(name), content, 0o600)?;
    }
    link(folder, DATA, &data_name(serial))?;
    for name in FILES {
        let target = format!("{DATA}/{name}");
        if !std::fs::read_link(folder.join(name)).is_ok_and(|present| present == Path::new(&target)) {
            link(folder, name, &target)?;
        }
    }
    for entry in folder.read_dir()?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("..") && name != DATA && name != data_name(serial) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// A link made aside and renamed: the name is never without its file.
fn link(folder: &Path, name: &str, target: &str) -> io::Result<()> {
    let aside = folder.join(format!(".{name}.new"));
    let _ = std::fs::remove_file(&aside);
    symlink(target, &aside)?;
    std::fs::rename(&aside, folder.join(name))
}

/// Keys that MeshConfig no longer asks for are not left lying about.
fn remove_unwanted(model: &Model, directory: &Path) -> io::Result<()> {
    let namespaces = match directory.read_dir() {
        Ok(namespaces) => namespaces,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for namespace in namespaces.flatten() {
        for account in namespace.path().read_dir()?.flatten() {
            let wanted = model.settings.ingress_certificates.iter().any(|wanted| {
                *wanted.namespace == *namespace.file_name() && *wanted.service_account == *account.file_name()
            });
            if !wanted {
                std::fs::remove_dir_all(account.path())?;
                tracing::info!(folder = %account.path().display(), "ingress certificate removed: MeshConfig no longer names it");
            }
        }
    }
    Ok(())
}

fn data_name(serial: &str) -> String {
    format!("..{serial}")
}
