//! The commands that are about a cluster.

use std::path::PathBuf;
use std::time::Duration;

use byrnie_injector::inject::PullPolicy;
use clap::{Args, Subcommand, ValueEnum};

use crate::output::Format;

/// What `install` and `upgrade` have in common.
#[derive(Debug, Clone, Args)]
pub struct InstallArgs {
    /// What may differ between installations; left out: as it was installed, or else the default.
    #[command(flatten)]
    pub values: ValueArgs,
    /// The trust domain of a new mesh, which stands in every identity and can't be changed: makes the MeshConfig `default`
    /// that says so, where there is none [default: cluster.local, or what the MeshConfig says].
    #[arg(long, value_name = "NAME")]
    pub trust_domain: Option<byrnie_identity::TrustDomain>,
    /// Print the objects instead of applying them; asks no cluster.
    #[arg(long)]
    pub dry_run: bool,
    /// The form of what --dry-run prints.
    #[arg(short, long, value_enum, default_value_t, requires = "dry_run")]
    pub output: ManifestFormat,
    /// Wait until everything is ready.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub wait: bool,
    /// Longest wait, such as 90s or 5m.
    #[arg(long, value_name = "TIME", default_value = "3m", value_parser = duration)]
    pub timeout: Duration,
    /// Take over objects and fields that are somebody else's, and put an older version over a newer one.
    #[arg(long)]
    pub force: bool,
}

/// What may differ between installations.
#[derive(Debug, Clone, Default, Args)]
pub struct ValueArgs {
    /// What stands before `/proxy`, `/control-plane` and `/injector` in the images' names [default: byrnie].
    #[arg(long, value_name = "NAME")]
    pub image_prefix: Option<String>,
    /// The images' tag [default: this program's version].
    #[arg(long, value_name = "TAG")]
    pub image_tag: Option<String>,
    /// When kubelet pulls the images [default: IfNotPresent].
    #[arg(long, value_enum, value_name = "WHEN")]
    pub pull_policy: Option<PullPolicy>,
    /// What the control plane and the injector log: a level, or levels by module [default: info].
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// Pods of the control plane [default: 2].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i32).range(1..=9))]
    pub control_plane_replicas: Option<i32>,
    /// Pods of the injector [default: 2].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i32).range(1..=9))]
    pub injector_replicas: Option<i32>,
    /// CPU, memory and memory limit of a pod of the control plane [default: 100m,128Mi,1Gi].
    #[arg(long, value_name = "CPU,MEMORY,LIMIT", value_parser = resources)]
    pub control_plane_resources: Option<crate::install::Resources>,
    /// CPU, memory and memory limit of a pod of the injector [default: 50m,32Mi,256Mi].
    #[arg(long, value_name = "CPU,MEMORY,LIMIT", value_parser = resources)]
    pub injector_resources: Option<crate::install::Resources>,
    /// Another name, besides `byrnie-ingress-client`, that a Secret with an ingress controller's client certificate may have
    /// (MeshConfig's secretName); may be given several times.
    #[arg(long = "ingress-secret", value_name = "NAME", value_parser = object_name)]
    pub ingress_secrets: Vec<String>,
}

/// The forms of manifests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ManifestFormat {
    /// YAML documents, for `kubectl apply -f -`.
    #[default]
    Yaml,
    /// One JSON `List`.
    Json,
}

/// `byrnie uninstall`
#[derive(Debug, Clone, Args)]
pub struct UninstallArgs {
    /// Remove the CustomResourceDefinitions too, and with them every MeshConfig and policy. Without a word about it, a
    /// person is asked, and a script keeps them.
    #[arg(long, conflicts_with = "keep_crds")]
    pub crds: bool,
    /// Keep the CustomResourceDefinitions, and every MeshConfig and policy.
    #[arg(long)]
    pub keep_crds: bool,
    /// Although namespaces are enrolled, or pods run with a proxy: they break when their certificates expire.
    #[arg(long)]
    pub force: bool,
    /// Longest wait until all is gone, such as 90s or 5m.
    #[arg(long, value_name = "TIME", default_value = "3m", value_parser = duration)]
    pub timeout: Duration,
}

/// `byrnie namespace …`
#[derive(Debug, Subcommand)]
pub enum NamespaceCommand {
    /// Enrol a namespace: its pods get a proxy when they are made. Looks first at what that would break, and prints what
    /// mends it; exit 1, and nothing changed, where something would.
    Add {
        /// The namespace.
        namespace: String,
        /// What to do about it.
        #[command(flatten)]
        change: ChangeArgs,
        /// Enrol it although something would break.
        #[arg(long)]
        force: bool,
    },
    /// Take a namespace out of the mesh: its pods lose their proxy when they are made anew.
    Remove {
        /// The namespace.
        namespace: String,
        /// What to do about it.
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Keep a namespace out of the mesh, whatever other labels say (those of OSM).
    Ignore {
        /// The namespace.
        namespace: String,
        /// What to do about it.
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// The namespaces of the mesh, and how many of their pods have a proxy.
    List {
        /// All namespaces, those outside of the mesh too.
        #[arg(short = 'A', long)]
        all: bool,
        /// The form of the listing.
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
}

/// What a change of a namespace may do besides.
#[derive(Debug, Clone, Copy, Args)]
pub struct ChangeArgs {
    /// Only say what would be done.
    #[arg(long)]
    pub dry_run: bool,
    /// Restart its Deployments, StatefulSets and DaemonSets, one pod after the other as their own strategies say.
    #[arg(long)]
    pub restart: bool,
}

/// `byrnie generate`
#[derive(Debug, Clone, Args)]
pub struct GenerateArgs {
    /// The root of the repository.
    pub repository: PathBuf,
}

fn object_name(text: &str) -> Result<String, String> {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let good = text.len() <= 253 && text.bytes().all(known) && edge(text.bytes().next()) && edge(text.bytes().last());
    good.then(|| text.to_owned()).ok_or_else(|| "expected the name of a Secret: a-z, 0-9, `-` and `.`".to_owned())
}

fn resources(text: &str) -> Result<crate::install::Resources, String> {
    let expected = || "expected three quantities such as 100m,128Mi,1Gi".to_owned();
    let good = |part: &&str| {
        !part.is_empty() && part.len() <= 16 && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.')
    };
    let parts: Vec<&str> = text.split(',').filter(good).collect();
    match parts.as_slice() {
        [cpu, memory, limit] if text.split(',').count() == 3 => Ok(crate::install::Resources {
            cpu: (*cpu).to_owned(),
            memory: (*memory).to_owned(),
            memory_limit: (*limit).to_owned(),
        }),
        _ => Err(expected()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    const LONGEST: u64 = 24 * 3600;
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let size = match unit {
        "s" | "" => 1,
        "m" => 60,
        "h" => 3600,
        _ => 0,
    };
    let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(size));
    match seconds {
        Some(seconds) if (1..=LONGEST).contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("expected a time from 1s to 24h, such as 90s or 5m, found {text:?}")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_a_number_and_a_unit() {
        assert_eq!(duration("90s").unwrap().as_secs(), 90);
        assert_eq!(duration("5m").unwrap().as_secs(), 300);
        for bad in ["", "0s", "5x", "-1s", "25h", "99999999999999999999s", "m"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn resources_are_three_quantities() {
        assert_eq!(resources("100m,1Gi,2Gi").unwrap().memory, "1Gi");
        for bad in ["", "1", "1,2", "1,2,3,4", "1,,3", "1,2,{{ }}", "1,2,3\n"] {
            assert!(resources(bad).is_err(), "{bad}");
        }
    }
}
