//! `byrnie inject`.

use std::path::PathBuf;

use byrnie_injector::inject::PullPolicy;
use clap::Args;

/// Put the proxy into pods in files.
#[derive(Debug, Args)]
#[command(
    long_about = "Put the proxy into pods in files, as the webhook does in the cluster.\n\n\
        Reads Pods, Deployments, StatefulSets, DaemonSets, ReplicaSets, Jobs, CronJobs and Lists of them, from YAML (one \
        document or several) or JSON, and prints the same as YAML with the proxy in it; other objects are printed as \
        they are. What was injected, passed by or refused, and why, goes to standard error. Needs no cluster. Injecting \
        again changes nothing.\n\n\
        When an object is refused nothing is printed on standard output, so that a pipe into kubectl does not bring \
        half of a file.",
    after_help = "EXAMPLES\n  \
        byrnie inject -f web.yaml | kubectl apply -f -\n  \
        kubectl get deploy web -o yaml | byrnie inject -f - > /dev/null    what would happen, and why\n\n\
        EXIT CODES\n  0  done\n  1  an object is refused, with the field and the reason\n  2  the command line, the file \
        or the MeshConfig is wrong"
)]
pub struct InjectArgs {
    /// The file; `-` for standard input.
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// A file with the MeshConfig that the mesh has [default: what holds where there is none].
    #[arg(long, value_name = "FILE")]
    pub mesh_config: Option<PathBuf>,
    /// The proxy's image, unless MeshConfig or a pod's annotation names one [default: byrnie/proxy of this version].
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// When a node pulls the proxy's image.
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    pub image_pull_policy: PullPolicy,
}
