//! Which mesh a command means: one on this machine, or one in a cluster.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::args::MeshArgs;
use crate::failure::Failure;
use crate::mesh_dir;

/// Where a command looks.
#[derive(Debug, PartialEq, Eq)]
pub enum Target {
    /// The control plane at a Unix socket.
    Local(PathBuf),
    /// The cluster that [`super::Cluster::connect`] finds.
    Cluster,
}

impl Target {
    /// What the command line says: `--socket` and `--mesh` are local, `--kubeconfig` and `--context` a cluster. Where it
    /// says nothing: the demo if it runs, else a cluster if there is one to be found, else the demo, whose absence the
    /// error then explains.
    ///
    /// # Errors
    /// A bad name of a mesh, or a directory of its sockets that somebody else controls.
    pub fn of(mesh: &MeshArgs) -> Result<Self, Failure> {
        if mesh.kubeconfig.is_some() || mesh.context.is_some() {
            return Ok(Self::Cluster);
        }
        if let Some(socket) = &mesh.socket {
            return Ok(Self::Local(socket.clone()));
        }
        let socket = mesh_dir::control_socket(mesh.name())?;
        if mesh.mesh.is_some() || UnixStream::connect(&socket).is_ok() || !a_cluster_is_configured() {
            return Ok(Self::Local(socket));
        }
        Ok(Self::Cluster)
    }
}

/// Whether [`super::Cluster::connect`] would find something.
fn a_cluster_is_configured() -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let in_home = set("HOME").is_some_and(|home| Path::new(&home).join(".kube/config").exists());
    set("KUBECONFIG").is_some() || in_home || set("KUBERNETES_SERVICE_HOST").is_some()
}
