//! The command line of `byrnie-injector`.

use std::net::SocketAddr;
use std::path::PathBuf;

use byrnie_api::ImageReference;
use clap::{Parser, ValueEnum};

use crate::inject::{ProxyImage, PullPolicy};
use crate::run::Options;

/// Puts Byrnie's proxy into pods as they are made, and refuses what can not work.
///
/// The API server asks it (MutatingWebhookConfiguration and ValidatingWebhookConfiguration `byrnie-injector`) about each
/// pod of a namespace that is in the mesh, and about the objects of byrnie.dev. It answers by the pod, its namespace's
/// labels and the MeshConfig alone; it changes nothing itself. Until it has seen the MeshConfig and the namespaces once,
/// no pod is admitted: one without its proxy would speak in plaintext.
#[derive(Debug, Parser)]
#[command(name = "byrnie-injector", version, after_long_help = EXAMPLES)]
pub struct Arguments {
    /// Address of the webhooks, over TLS: /mutate and /validate.
    #[arg(long, value_name = "IP:PORT", default_value = "[::]:15443")]
    listen: SocketAddr,

    /// Address of /healthz, in the clear: ready when certificate, MeshConfig and namespaces are there; the answer says
    /// what is missing. /healthz/live answers as long as the process does.
    #[arg(long, value_name = "IP:PORT", default_value = "[::]:15444")]
    health_listen: SocketAddr,

    /// Directory with the serving certificate, tls.crt and tls.key, as a Secret of type kubernetes.io/tls is mounted.
    /// Waited for where it is missing; read again when it changes.
    #[arg(long, value_name = "DIR", default_value = "/var/run/secrets/byrnie-injector")]
    certificate_dir: PathBuf,

    /// Image of the proxy where neither MeshConfig (spec.sidecar.image) nor the pod (annotation
    /// byrnie.dev/proxy-image) names one.
    #[arg(long, value_name = "IMAGE", env = "BYRNIE_PROXY_IMAGE", default_value_t = ProxyImage::default().reference, value_parser = image)]
    proxy_image: ImageReference,

    /// When a node pulls the proxy's image.
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    proxy_image_pull_policy: PullPolicy,

    /// What to log: a level, or levels by module, such as `info,byrnie_injector=debug`.
    #[arg(long, value_name = "FILTER", default_value = "info", env = "BYRNIE_LOG")]
    pub log: String,

    /// How to log, on standard error.
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

impl Arguments {
    /// What they mean.
    pub fn options(&self) -> Options {
        Options {
            listen: self.listen,
            health_listen: self.health_listen,
            certificate: self.certificate_dir.clone(),
            proxy_image: ProxyImage { reference: self.proxy_image.clone(), pull_policy: self.proxy_image_pull_policy },
        }
    }
}

fn image(text: &str) -> Result<ImageReference, String> {
    text.parse().map_err(|problem: byrnie_api::Problem| problem.to_string())
}

const EXAMPLES: &str = "\
Examples:
  byrnie-injector                                       in a pod, with what `byrnie install` has made
  byrnie-injector --listen 127.0.0.1:15443 --certificate-dir ./tls    elsewhere, with $KUBECONFIG
  byrnie inject -f deployment.yaml                      the same injection without any server

It needs to get, list and watch meshconfigs.byrnie.dev and namespaces, and nothing else.

Exit codes: 0 ended by SIGTERM or SIGINT, 1 could not start (the reason is on standard error), 2 usage.";

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_its_help_teaches() {
        Arguments::command().debug_assert();
        let help = Arguments::command().render_long_help().to_string();
        for word in ["--listen", "/mutate", "--certificate-dir", "--proxy-image", "byrnie inject", "Exit codes"] {
            assert!(help.contains(word), "{word}");
        }
    }

    #[test]
    fn the_image_is_read_before_anything_starts() {
        let image = Arguments::try_parse_from(["x"]).unwrap().options().proxy_image;
        assert_eq!(image.reference.as_str(), concat!("byrnie/proxy:", env!("CARGO_PKG_VERSION")));
        assert_eq!(image.pull_policy, PullPolicy::IfNotPresent);
        let always = ["x", "--proxy-image-pull-policy=Always"];
        assert_eq!(Arguments::try_parse_from(always).unwrap().options().proxy_image.pull_policy, PullPolicy::Always);
        assert!(Arguments::try_parse_from(["x", "--proxy-image", "proxy --privileged"]).is_err());
    }
}
