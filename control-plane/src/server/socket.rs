//! The Unix socket: for this process's own user and root, whatever the directory around it permits.

use std::{
    fs::Permissions,
    io,
    os::unix::{fs::PermissionsExt, net::UnixStream as BlockingStream},
    path::Path,
};

use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc,
};

/// Listens at `path`, 0600. What a control plane that was killed left there is removed.
///
/// # Errors
/// The reason and what to do about it.
pub(crate) fn bind(path: &Path) -> Result<UnixListener, String> {
    let place = path.display();
    match BlockingStream::connect(path) {
        Ok(_) => {
            return Err(format!(
                "{place}: another process listens on this socket; stop it, or give another path with --socket"
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|error| format!("{place}: an old socket can't be removed: {error}"))?;
        }
        // Mostly: there is none.
        Err(_) => {}
    }
    let hint = "give a path of at most 107 bytes in a directory that this user may write with --socket";
    let listener = UnixListener::bind(path).map_err(|error| format!("{place}: {error}; {hint}"))?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))
        .map_err(|error| format!("{place}: {error}; {hint}"))?;
    Ok(listener)
}

/// Accepts until the receiver is dropped; whoever is neither root nor our own user is turned away.
pub(super) async fn accept(listener: UnixListener, ready: mpsc::Sender<io::Result<UnixStream>>) {
    let own = nix::unistd::geteuid().as_raw();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ready.closed() => return,
        };
        match accepted.and_then(|(stream, _)| Ok((stream.peer_cred()?.uid(), stream))) {
            Ok((uid, stream)) if uid == own || uid == 0 => {
                // The server has ended where this fails.
                let _ = ready.send(Ok(stream)).await;
            }
            Ok((uid, _)) => tracing::warn!(uid, "the control socket refused another user"),
            Err(error) => {
                tracing::warn!(%error, "a connection to the control socket could not be accepted");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}
