//! The command tree. Its `--help` is the first documentation that anyone reads, so it says what a command is for, what
//! it needs, and what its exit code means.

mod hidden;
mod inject;
mod kubernetes;

use std::path::PathBuf;

use byrnie_redirect::command::CaptureCommand;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use crate::output::Format;
pub use hidden::{App, HttpApp, IngressApp};
pub use inject::InjectArgs;
pub use kubernetes::{
    ChangeArgs, GenerateArgs, InstallArgs, ManifestFormat, NamespaceCommand, UninstallArgs, ValueArgs,
};

const EXIT_CODES: &str = "\
EXIT CODES
  0  done; every check passed
  1  the answer is no: a check failed, an edge is not secured, a certificate does not verify
  2  the command line is wrong
  3  this kernel, or its policy, does not allow what is needed
  4  no control plane, or no API server, answers
  5  the mesh answered, and refused or failed

FIRST STEPS
  byrnie demo --once             the whole mesh on this machine, in under 15 seconds
  byrnie demo                    the same, and it stays up; then, in another terminal:
  byrnie identity list           who has an identity
  byrnie edges                   who talks to whom, and whether it is encrypted
  byrnie demo exec shop/web -- curl http://orders.shop:8080/

IN A CLUSTER
  byrnie install                 what the mesh needs, in the namespace byrnie-system
  byrnie check                   what is missing, step by step
  byrnie namespace add shop      what enrolling it would break; then enrols it
  byrnie edges -n shop --require-mtls";

/// Every pod-to-pod connection mutually authenticated and encrypted, with a proof of it for each.
#[derive(Debug, Parser)]
#[command(name = "byrnie", version, after_help = EXIT_CODES, propagate_version = true)]
pub struct Args {
    /// Which mesh.
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How a command finds its mesh: on this machine, or in a cluster.
#[derive(Debug, Clone, Default, ClapArgs)]
pub struct MeshArgs {
    /// The mesh on this machine whose sockets are in $XDG_RUNTIME_DIR/byrnie/NAME (or /tmp/byrnie-UID/NAME)
    /// [default: demo where it runs, else the cluster that a kubeconfig names].
    #[arg(long, value_name = "NAME", global = true)]
    pub mesh: Option<String>,
    /// The control plane's socket, wherever it is; goes before --mesh.
    #[arg(long, value_name = "PATH", global = true)]
    pub socket: Option<PathBuf>,
    /// The mesh in the cluster of this kubeconfig [default: KUBECONFIG, ~/.kube/config, or the pod's own].
    #[arg(long, value_name = "PATH", global = true, conflicts_with_all = ["mesh", "socket"])]
    pub kubeconfig: Option<PathBuf>,
    /// The mesh in the cluster of this context of the kubeconfig.
    #[arg(long, value_name = "NAME", global = true, conflicts_with_all = ["mesh", "socket"])]
    pub context: Option<String>,
}

impl MeshArgs {
    /// The name of the mesh on this machine.
    pub fn name(&self) -> &str {
        self.mesh.as_deref().unwrap_or("demo")
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the whole mesh on this machine: real proxies, real capture, real mTLS; no cluster, no root.
    Demo(DemoArgs),
    /// Install Byrnie in a cluster. The same command again repairs, or goes on where it was stopped.
    Install(InstallArgs),
    /// Bring an installation to this program's version, with the values that it was installed with.
    Upgrade(InstallArgs),
    /// Take Byrnie out of a cluster. Refuses while the mesh is in use.
    Uninstall(UninstallArgs),
    /// Which namespaces of a cluster are in the mesh.
    #[command(subcommand)]
    Namespace(NamespaceCommand),
    /// Who has an identity, and what proves it.
    #[command(subcommand)]
    Identity(IdentityCommand),
    /// What is not as it should be: in a cluster what is missing, step by step; objects that were refused, proxies that are
    /// away or not ready; exit 1 if anything.
    Check(CheckArgs),
    /// Who talks to whom, as the proxies saw it, and whether it was encrypted.
    Edges(EdgesArgs),
    /// The proxies: how they are, and new certificates for them.
    #[command(subcommand)]
    Proxy(ProxyCommand),
    /// Put the proxy into pods in files, as the webhook does in the cluster: YAML in, YAML out, a report on standard error.
    Inject(InjectArgs),
    /// Traffic capture in the network namespace that this command runs in (needs CAP_NET_ADMIN there).
    #[command(subcommand)]
    Capture(CaptureCommand<ListArgs>),
    /// Join tokens: the first credential of a proxy outside of Kubernetes.
    #[command(subcommand)]
    Token(TokenCommand),
    /// A completion script for your shell, on standard output.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the chart and the table of permissions from the code.
    #[command(hide = true)]
    Generate(GenerateArgs),
    /// The applications in the demo's pods.
    #[command(subcommand, hide = true)]
    App(App),
}

/// `byrnie demo`.
#[derive(Debug, ClapArgs)]
#[command(
    args_conflicts_with_subcommands = true,
    long_about = "Show the whole mesh on this machine.\n\n\
        Makes network namespaces, one per pod, on this machine's kernel; runs small HTTP applications in them, first \
        without the mesh (their plaintext is read off the wire), then with it; attacks it; renews every certificate \
        under load; kills the control plane. Every promise is one line, PASS or FAIL. Needs Linux with user \
        namespaces (or root), and nothing else installed. Leaves nothing behind.",
    after_help = "EXIT CODES\n  0  every check passed\n  1  a check failed\n  2  the command line is wrong\n  \
        3  this kernel can't, with the reason"
)]
pub struct DemoArgs {
    /// Something else to do with a demo that runs.
    #[command(subcommand)]
    pub command: Option<DemoCommand>,
    /// End after the checks, instead of staying up.
    #[arg(long)]
    pub once: bool,
    /// Print the facts as JSON, alone on standard output (progress goes to standard error).
    #[arg(long)]
    pub json: bool,
    /// Write the packets between the pods to DIR/before.pcap and DIR/after.pcap.
    #[arg(long, value_name = "DIR")]
    pub capture: Option<PathBuf>,
}

/// Beside the demo itself.
#[derive(Debug, Subcommand)]
pub enum DemoCommand {
    /// Run a command in a pod of the demo that runs, as root of its namespaces: curl, openssl, tshark.
    Exec {
        /// The pod, such as `shop/web`; `router` and `node` (which has the pods' bridge) work too.
        pod: String,
        /// The command and its arguments.
        #[arg(required = true, last = true)]
        command: Vec<std::ffi::OsString>,
    },
}

/// `byrnie identity …`
#[derive(Debug, Subcommand)]
pub enum IdentityCommand {
    /// Every identity that the mesh has issued and that has not expired.
    List(NamespacedListArgs),
    /// One workload's identity; `-o pem` prints its certificate chain for openssl and others.
    Show {
        /// `namespace/name` of the workload; or its name, or `deploy/NAME`, `sts/NAME`, `ds/NAME`, `pod/NAME` in a cluster,
        /// in the namespace that -n names.
        workload: String,
        /// The namespace.
        #[arg(short, long, value_name = "NAME")]
        namespace: Option<String>,
        /// The form of the answer.
        #[arg(short, long, value_enum, default_value_t)]
        output: IdentityFormat,
    },
    /// Verify a certificate chain (a PEM file, `-` for standard input, or a workload) against the mesh's trust bundle.
    /// Exit code 1: it does not verify.
    Verify {
        /// A PEM file, leaf first; `-`; or `namespace/name` of a workload.
        what: String,
    },
    /// The trust bundle: the roots that every proxy checks against, as PEM.
    Bundle {
        /// Only this trust domain's; needed where there are several.
        #[arg(long, value_name = "NAME")]
        trust_domain: Option<String>,
    },
}

/// A listing without more choices.
#[derive(Debug, ClapArgs)]
pub struct ListArgs {
    /// The form of the listing.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// A listing of what is in namespaces.
#[derive(Debug, ClapArgs)]
pub struct NamespacedListArgs {
    /// Only what is in this namespace.
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// The form of the listing.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// The forms of one identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum IdentityFormat {
    /// Columns that fit a terminal.
    #[default]
    Table,
    /// Every column.
    Wide,
    /// A JSON object.
    Json,
    /// The same as YAML.
    Yaml,
    /// The certificate chain, leaf first.
    Pem,
}

/// `byrnie edges`
#[derive(Debug, ClapArgs)]
pub struct EdgesArgs {
    /// Only edges that begin or end in this namespace.
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// The form of the listing.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    /// Exit with 1 when any edge inside the mesh, or from an ingress into it, is not secured.
    #[arg(long)]
    pub require_mtls: bool,
}

/// `byrnie check`.
#[derive(Debug, ClapArgs)]
pub struct CheckArgs {
    /// The form of the listing.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    /// Exit with 1 for warnings too (in a cluster).
    #[arg(long)]
    pub fail_on_warning: bool,
    /// Warn of certificates that end within so many days (in a cluster) [default: only of those that should have been
    /// renewed].
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub min_cert_days: Option<u32>,
}

/// `byrnie proxy …`
#[derive(Debug, Subcommand)]
pub enum ProxyCommand {
    /// Every proxy: connected, ready, capturing, and with which certificate.
    Status(NamespacedListArgs),
    /// Get a new key and certificate for a workload's proxy now, without cutting a connection.
    Renew {
        /// `namespace/name` of the workload.
        workload: String,
    },
}

/// `byrnie token …`
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a join token for one pod and print it: short-lived, and good for the first key that uses it.
    Create {
        /// The pod that may use it.
        #[arg(value_name = "NAMESPACE/POD", required_unless_present_all = ["namespace", "pod_name"])]
        pod: Option<String>,
        /// The pod's namespace, in place of NAMESPACE/POD.
        #[arg(long, value_name = "NAME", conflicts_with = "pod", requires = "pod_name")]
        namespace: Option<String>,
        /// The pod's name, in place of NAMESPACE/POD.
        #[arg(long = "pod", value_name = "NAME", conflicts_with = "pod", requires = "namespace")]
        pod_name: Option<String>,
        /// The pod's service account [default: the pod's name].
        #[arg(long, value_name = "NAME")]
        service_account: Option<String>,
        /// Seconds for which it is good.
        #[arg(long, value_name = "SECONDS", default_value_t = 600)]
        ttl: u32,
        /// The form of the answer; `table` prints the token alone, for a file.
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
    /// Make a token worthless.
    Revoke {
        /// Its ID, as `token create -o json` printed it.
        id: String,
    },
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_tree_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_command_that_people_see_has_a_sentence_of_help() {
        fn visit(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments().filter(|each| !each.is_hide_set()) {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
            command.get_subcommands().for_each(visit);
        }
        visit(&Args::command());
    }

    #[test]
    fn exec_takes_the_command_after_two_dashes() {
        let args = Args::try_parse_from(["byrnie", "demo", "exec", "shop/web", "--", "curl", "-v", "x"]).unwrap();
        let Command::Demo(DemoArgs { command: Some(DemoCommand::Exec { pod, command }), .. }) = args.command else {
            unreachable!("parsed as something else");
        };
        assert_eq!((pod.as_str(), command.len()), ("shop/web", 3));
    }
}
