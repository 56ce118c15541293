//! The files by which a program finds the API server, and as whom it speaks to it.

use std::path::{Path, PathBuf};

/// Writes a kubeconfig that names the token's file, so that a renewed token is taken up.
pub(crate) fn write(directory: &Path, name: &str, url: &str, authority: &Path, token: &str) -> PathBuf {
    let token_file = directory.join(format!("{name}.token"));
    std::fs::write(&token_file, token).expect("a token file");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: {name}\n\
         clusters: [{{name: lab, cluster: {{server: {url:?}, certificate-authority: {authority:?}}}}}]\n\
         users: [{{name: {name}, user: {{tokenFile: {token_file:?}}}}}]\n\
         contexts: [{{name: {name}, context: {{cluster: lab, user: {name}}}}}]\n"
    );
    let path = directory.join(format!("{name}.kubeconfig"));
    std::fs::write(&path, text).expect("a kubeconfig");
    path
}
