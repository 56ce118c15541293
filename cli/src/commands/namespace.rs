//! `byrnie namespace …`

use std::collections::BTreeSet;
use std::time::SystemTime;

use byrnie_api::labels::{MESH, MESH_DISABLED, MESH_ENABLED, NEVER_ENROLLED};
use byrnie_injector::inject::stays_outside;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::args::{ChangeArgs, MeshArgs, NamespaceCommand};
use crate::client::runtime;
use crate::cluster::enrolment::{Enrolment, Finding, Gravity, facts, findings, workload};
use crate::cluster::{Cluster, pods, printable};
use crate::failure::{Exit, Failure};
use crate::install::apply::FIELD_MANAGER;
use crate::output::{Cell, Row, dim, green, print_list, red};

pub(super) fn run(mesh: &MeshArgs, command: NamespaceCommand) -> Result<Exit, Failure> {
    runtime()?.block_on(async {
        let cluster = Cluster::connect(mesh).await?;
        match command {
            NamespaceCommand::Add { namespace, change, force } => add(&cluster, &namespace, change, force).await,
            NamespaceCommand::Remove { namespace, change } => take_out(&cluster, &namespace, None, change).await,
            NamespaceCommand::Ignore { namespace, change } => {
                take_out(&cluster, &namespace, Some(MESH_DISABLED), change).await
            }
            NamespaceCommand::List { all, output } => {
                let mut listed = cluster.enrolments().await?;
                listed.retain(|each| all || each.enrolled || each.ignored || each.meshed > 0);
                print_list(&listed, output, "No namespace is in the mesh: byrnie namespace add NAMESPACE")?;
                Ok(Exit::Success)
            }
        }
    })
}

async fn add(cluster: &Cluster, name: &str, change: ChangeArgs, force: bool) -> Result<Exit, Failure> {
    if NEVER_ENROLLED.contains(&name) {
        return Err(Failure::new(Exit::Usage, format!("{name} can't be in the mesh"))
            .expected("a namespace whose pods can wait for the mesh")
            .found("one that brings the mesh up")
            .next("byrnie namespace list -A"));
    }
    let namespace = get(cluster, name).await?;
    let found = findings(cluster, &namespace).await?;
    found.iter().for_each(tell);
    let breaking = found.iter().filter(|each| each.gravity == Gravity::Breaks).count();
    if breaking > 0 && !force && !change.dry_run {
        return Err(Failure::new(Exit::Negative, format!("enrolling {name} would break {breaking} things"))
            .expected("nothing that works now and would not then")
            .found("the list above; nothing was changed")
            .next(format!("mend them, and then: byrnie namespace add {name}   (or --force)")));
    }
    label(cluster, &namespace, Some(MESH_ENABLED), change).await?;
    let pods = cluster.pods(Some(name)).await?;
    let unmeshed = pods.iter().filter(|pod| !pods::is_finished(pod) && !pods::is_meshed(pod));
    let facts = facts(&namespace).with_our_label();
    let unmeshed: Vec<&Pod> = unmeshed.filter(|pod| stays_outside(pod, &facts).is_none()).collect();
    restart(cluster, name, &unmeshed, "have no proxy yet", change).await
}

/// Out of the mesh: without the label, or with one that says so.
async fn take_out(cluster: &Cluster, name: &str, value: Option<&str>, change: ChangeArgs) -> Result<Exit, Failure> {
    let namespace = get(cluster, name).await?;
    label(cluster, &namespace, value, change).await?;
    if value.is_none() && namespace.labels().contains_key(byrnie_api::labels::OSM_MONITORED_BY) {
        let told = "it still has OSM's label, by which it is in the mesh where MeshConfig adopts that mesh";
        anstream::eprintln!("note: {told}; byrnie namespace ignore {name} goes before it");
    }
    let pods = cluster.pods(Some(name)).await?;
    let meshed: Vec<&Pod> = pods.iter().filter(|pod| pods::is_meshed(pod) && !pods::is_finished(pod)).collect();
    restart(cluster, name, &meshed, "still have their proxy, and stay in the mesh until they are made anew", change)
        .await
}

async fn get(cluster: &Cluster, name: &str) -> Result<Namespace, Failure> {
    let api: Api<Namespace> = Api::all(cluster.client());
    let found = cluster.call(&format!("get namespace {name}"), api.get_opt(name)).await?;
    found.ok_or_else(|| {
        Failure::new(Exit::Negative, format!("there is no namespace {}", printable(name)))
            .next("kubectl get namespaces")
    })
}

async fn label(
    cluster: &Cluster,
    namespace: &Namespace,
    value: Option<&str>,
    change: ChangeArgs,
) -> Result<(), Failure> {
    let name = namespace.name_any();
    let now = namespace.labels().get(MESH).map(String::as_str);
    let what = match value {
        Some(value) => format!("{MESH}={value}"),
        None => format!("no label {MESH}"),
    };
    if now == value {
        anstream::println!("namespace {name} has {what} already");
        return Ok(());
    }
    if change.dry_run {
        anstream::println!("namespace {name} would get {what}");
        return Ok(());
    }
    let api: Api<Namespace> = Api::all(cluster.client());
    let patch = json!({"metadata": {"labels": {MESH: value}}});
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    cluster.call(&format!("label namespace {name}"), api.patch(&name, &params, &Patch::Merge(&patch))).await?;
    anstream::println!("{} namespace {name} has {what}", green("done:"));
    Ok(())
}

/// Says which workloads must be restarted, or restarts them.
async fn restart(
    cluster: &Cluster,
    namespace: &str,
    of: &[&Pod],
    why: &str,
    change: ChangeArgs,
) -> Result<Exit, Failure> {
    if of.is_empty() {
        return Ok(Exit::Success);
    }
    let workloads: BTreeSet<String> = of.iter().filter_map(|pod| workload(pod)).collect();
    let restartable =
        |each: &&String| ["deployment/", "statefulset/", "daemonset/"].iter().any(|kind| each.starts_with(kind));
    let bare = of.iter().filter(|pod| workload(pod).is_none()).map(|pod| format!("pod/{}", pod.name_any()));
    let by_hand: Vec<String> = workloads.iter().filter(|each| !restartable(each)).cloned().chain(bare).collect();
    anstream::println!("{} running pods {why}", of.len());
    for each in workloads.iter().filter(restartable) {
        if change.restart && !change.dry_run {
            restart_one(cluster, namespace, each).await?;
            anstream::println!("restarted {each}");
        } else {
            anstream::println!("  kubectl -n {namespace} rollout restart {}", printable(each));
        }
    }
    for each in by_hand {
        anstream::println!("  to be made anew by hand, when it suits: {}", printable(&each));
    }
    if !change.restart {
        anstream::println!("{}", dim("or: the same command with --restart"));
    }
    Ok(Exit::Success)
}

/// As `kubectl rollout restart` does it.
async fn restart_one(cluster: &Cluster, namespace: &str, of: &str) -> Result<(), Failure> {
    let Some((kind, name)) = of.split_once('/') else {
        return Ok(());
    };
    let now = OffsetDateTime::from(SystemTime::now()).format(&Rfc3339).unwrap_or_default();
    let annotations = json!({"kubectl.kubernetes.io/restartedAt": now});
    let patch = Patch::Merge(json!({"spec": {"template": {"metadata": {"annotations": annotations}}}}));
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let what = format!("restart {of} in namespace {namespace}");
    let client = cluster.client();
    match kind {
        "deployment" => {
            let api: Api<Deployment> = Api::namespaced(client, namespace);
            cluster.call(&what, api.patch(name, &params, &patch)).await.map(drop)
        }
        "statefulset" => {
            let api: Api<StatefulSet> = Api::namespaced(client, namespace);
            cluster.call(&what, api.patch(name, &params, &patch)).await.map(drop)
        }
        _ => {
            let api: Api<DaemonSet> = Api::namespaced(client, namespace);
            cluster.call(&what, api.patch(name, &params, &patch)).await.map(drop)
        }
    }
}

fn tell(finding: &Finding) {
    let gravity = match finding.gravity {
        Gravity::Breaks => red("breaks:"),
        Gravity::Note => dim("note:  "),
    };
    anstream::eprintln!("{gravity} {} {}", printable(&finding.about), printable(&finding.problem));
    for line in finding.mend.iter().flat_map(|mend| mend.lines()) {
        anstream::eprintln!("          {}", printable(line));
    }
}

impl Row for Enrolment {
    const HEADINGS: &'static [&'static str] = &["NAMESPACE", "ENROLLED", "MESHED", "UNMESHED", "OUTSIDE"];
    const WIDE_HEADINGS: &'static [&'static str] = &["IGNORED"];
    fn cells(&self) -> Vec<Cell> {
        let unmeshed = Cell::from(self.unmeshed);
        let enrolled = if self.enrolled { Cell::yes_no(true) } else { "no".into() };
        vec![
            self.namespace.as_str().into(),
            enrolled,
            self.meshed.into(),
            if self.enrolled && self.unmeshed > 0 { unmeshed.bad() } else { unmeshed },
            self.outside.into(),
        ]
    }
    fn wide_cells(&self) -> Vec<Cell> {
        vec![if self.ignored { "yes" } else { "no" }.into()]
    }
}
