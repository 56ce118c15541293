//! Reads the token that proves who this proxy is: a join token, or the ServiceAccount token of the pod. It is read anew at
//! every use, because the kubelet replaces the latter long before it expires, and never kept.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use byrnie_proto::mesh::v1::certify_request::Credential;
use zeroize::Zeroizing;

use crate::config::CredentialFile;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("the join token in {path} can't be read: {source}; make one with `byrnie token create`")]
    Join { path: PathBuf, source: io::Error },
    #[error(
        "the ServiceAccount token in {path} can't be read: {source}; expected the projected token of the volume \
         byrnie-identity (was the pod changed after its injection?)"
    )]
    ServiceAccount { path: PathBuf, source: io::Error },
}

/// A join token is a short line, a ServiceAccount token a JWT of about 1.5 KiB.
const MAX_TOKEN: u64 = 16 * 1024;

/// What the first SVID is asked for with; `None`: the operator named no file.
pub(super) fn first(file: &CredentialFile) -> Result<Option<Credential>, TokenError> {
    match file {
        CredentialFile::None => Ok(None),
        CredentialFile::JoinToken(path) => match read(path) {
            Ok(token) => Ok(Some(Credential::JoinToken(token.to_string()))),
            Err(source) => Err(TokenError::Join { path: path.clone(), source }),
        },
        CredentialFile::ServiceAccountToken(_) => Ok(service_account(file)?.map(Credential::ServiceAccountToken)),
    }
}

/// The ServiceAccount token of this moment; `None` outside of Kubernetes.
pub(crate) fn service_account(file: &CredentialFile) -> Result<Option<String>, TokenError> {
    let CredentialFile::ServiceAccountToken(path) = file else { return Ok(None) };
    match read(path) {
        Ok(token) => Ok(Some(token.to_string())),
        Err(source) => Err(TokenError::ServiceAccount { path: path.clone(), source }),
    }
}

fn read(path: &Path) -> io::Result<Zeroizing<String>> {
    // Sized beforehand: a text that grows leaves copies of the token behind.
    let mut text = Zeroizing::new(String::with_capacity(MAX_TOKEN as usize));
    File::open(path)?.take(MAX_TOKEN).read_to_string(&mut text)?;
    let token = Zeroizing::new(text.trim().to_owned());
    if token.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is empty"));
    }
    Ok(token)
}
