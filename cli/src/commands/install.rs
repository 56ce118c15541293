//! `byrnie install`, `byrnie upgrade` and `byrnie uninstall`

use std::io::{IsTerminal, Write};

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use kube::api::Api;
use tokio::time::Instant;

use byrnie_api::labels::{CONTROL_PLANE, SYSTEM_NAMESPACE};

use crate::args::{GenerateArgs, InstallArgs, ManifestFormat, MeshArgs, UninstallArgs, ValueArgs};
use crate::client::runtime;
use crate::cluster::Cluster;
use crate::failure::{Exit, Failure};
use crate::install::{self, Values, apply, chart, rbac, ready, remove};
use crate::output::{cannot_print, green};

pub(super) fn install(mesh: &MeshArgs, options: &InstallArgs, upgrade: bool) -> Result<Exit, Failure> {
    if options.dry_run {
        print(options)?;
        return Ok(Exit::Success);
    }
    runtime()?.block_on(async {
        let deadline = Instant::now() + options.timeout;
        let cluster = Cluster::connect(mesh).await?;
        let values = given(&options.values, stored(&cluster).await?);
        let trust_domain = options.trust_domain.as_ref();
        let how = apply::Options { force: options.force, upgrade, trust_domain, deadline };
        let mut tell = say;
        apply::apply(&cluster, &values, how, &mut tell).await?;
        if options.wait {
            ready::wait(&cluster, deadline, &mut tell).await?;
            anstream::println!("{} Byrnie {} is ready", green("done:"), values.version);
            anstream::println!("next: byrnie namespace add NAMESPACE");
        } else {
            anstream::println!("Byrnie {} is applied; `byrnie check` says when it is ready", values.version);
        }
        Ok(Exit::Success)
    })
}

pub(super) fn uninstall(mesh: &MeshArgs, options: &UninstallArgs) -> Result<Exit, Failure> {
    let definitions = options.crds || (!options.keep_crds && asked_for_definitions()?);
    runtime()?.block_on(async {
        let cluster = Cluster::connect(mesh).await?;
        let deadline = Instant::now() + options.timeout;
        let how = remove::Options { force: options.force, definitions, deadline };
        remove::remove(&cluster, how, &mut say).await?;
        if definitions {
            anstream::println!("{} nothing of Byrnie is left", green("done:"));
        } else {
            anstream::println!(
                "{} Byrnie is gone, but for the CustomResourceDefinitions of byrnie.dev and their objects (--crds)",
                green("done:")
            );
        }
        Ok(Exit::Success)
    })
}

/// Writes what is written from the code: the chart, and the table of permissions.
pub(super) fn generate(options: &GenerateArgs) -> Result<Exit, Failure> {
    let root = &options.repository;
    let failed = |error: std::io::Error| {
        Failure::new(Exit::Refused, format!("cannot write below {}", root.display()))
            .expected("the root of Byrnie's repository")
            .found(error)
    };
    chart::write(root).map_err(failed)?;
    rbac::write(root).map_err(failed)?;
    Ok(Exit::Success)
}

/// Progress goes to standard error: standard output is for the result.
fn say(text: &str) {
    anstream::eprintln!("{text}");
}

fn asked_for_definitions() -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    let mut out = anstream::stderr();
    write!(out, "Remove the CustomResourceDefinitions too, with every MeshConfig and policy? [y/N] ")
        .map_err(cannot_print)?;
    out.flush().map_err(cannot_print)?;
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|error| Failure::new(Exit::Refused, "cannot read the answer").found(error))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn print(options: &InstallArgs) -> Result<(), Failure> {
    let mut objects = install::objects(&given(&options.values, Values::default()));
    if let Some(trust_domain) = &options.trust_domain {
        let before = objects.iter().position(|object| object.kind() == "Deployment").unwrap_or_default();
        objects.insert(before, install::trust_domain::mesh_config(trust_domain));
    }
    let text = match options.output {
        ManifestFormat::Yaml => chart::documents(&objects).map_err(cannot_print)?,
        ManifestFormat::Json => {
            let items: Vec<_> = objects.iter().map(|object| &object.object).collect();
            let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items});
            format!("{list:#}\n")
        }
    };
    std::io::stdout().write_all(text.as_bytes()).map_err(cannot_print)
}

/// The values of the installation that is there, so that an upgrade without flags changes nothing but the version.
async fn stored(cluster: &Cluster) -> Result<Values, Failure> {
    let api: Api<Deployment> = Api::namespaced(cluster.client(), SYSTEM_NAMESPACE);
    let found = cluster.call("look for an installation", api.get_metadata_opt(CONTROL_PLANE)).await?;
    let values = found.and_then(|found| Values::from_annotations(found.annotations()));
    Ok(values.unwrap_or_default())
}

/// `base` with what the command line says.
fn given(args: &ValueArgs, base: Values) -> Values {
    let flags = args.clone();
    Values {
        image_prefix: flags.image_prefix.unwrap_or(base.image_prefix),
        version: flags.image_tag.unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned()),
        pull_policy: flags.pull_policy.map_or(base.pull_policy, |policy| policy.as_str().to_owned()),
        log: flags.log.unwrap_or(base.log),
        control_plane_replicas: flags.control_plane_replicas.unwrap_or(base.control_plane_replicas),
        injector_replicas: flags.injector_replicas.unwrap_or(base.injector_replicas),
        control_plane_resources: flags.control_plane_resources.unwrap_or(base.control_plane_resources),
        injector_resources: flags.injector_resources.unwrap_or(base.injector_resources),
        ingress_secrets: if flags.ingress_secrets.is_empty() { base.ingress_secrets } else { flags.ingress_secrets },
        managed_by: base.managed_by,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_stays_as_it_was_installed() {
        let installed =
            Values { image_prefix: "registry.example/byrnie".into(), injector_replicas: 3, ..Values::default() };
        let flags = ValueArgs { control_plane_replicas: Some(1), ..ValueArgs::default() };
        let now = given(&flags, installed);
        assert_eq!(now.image_prefix, "registry.example/byrnie");
        assert_eq!((now.control_plane_replicas, now.injector_replicas), (1, 3));
        assert_eq!(now.version, env!("CARGO_PKG_VERSION"));
    }
}
