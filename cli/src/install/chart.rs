//! `charts/byrnie`, from the same functions as `byrnie install`: what is a value there is a placeholder here.

use std::io;
use std::path::Path;

use super::values::{HELM, Resources};
use super::{Manifest, Values, admission, crds, rbac, workloads};

/// The one entry of a list, in the place of which a loop comes.
const EACH_SECRET: &str = "each-ingress-secret";
const INGRESS_SECRETS: &str = "  {{- range $.Values.ingressSecrets }}\n  - {{ . | quote }}\n  {{- end }}\n";

/// Where the chart stands, below the repository's root.
pub const DIR: &str = "charts/byrnie";

/// Numbers that no cluster has, in the place of which the placeholders come: the objects are typed, and a number can't be
/// a text.
const CONTROL_PLANE_REPLICAS: i32 = 770_001;
const INJECTOR_REPLICAS: i32 = 770_002;

/// Every file of the chart: its path below [`DIR`], and its text.
///
/// # Errors
/// None that the objects of the installation can give.
pub fn files() -> io::Result<Vec<(&'static str, String)>> {
    let values = placeholders();
    let no_ingress = Values { ingress_secrets: Vec::new(), ..values.clone() };
    let ingress = documents(&rbac::ingress_secrets(&values))?;
    let ingress = ingress.replace(&format!("  - {EACH_SECRET}\n"), INGRESS_SECRETS);
    let ingress = format!("{{{{- if $.Values.ingressSecrets }}}}\n{ingress}{{{{- end }}}}\n");
    let wrong_namespace = "{{- if ne .Release.Namespace \"byrnie-system\" }}\n\
        {{- fail \"Byrnie lives in the namespace byrnie-system: helm install byrnie … -n byrnie-system --create-namespace\" }}\n\
        {{- end }}\n";
    let templates = [
        ("templates/crds.yaml", wrong_namespace.to_owned() + &documents(&crds(&no_ingress))?),
        ("templates/rbac.yaml", documents(&rbac::objects(&no_ingress))?),
        ("templates/ingress.yaml", ingress),
        ("templates/policy.yaml", documents(&admission::policies(&no_ingress))?),
        ("templates/workloads.yaml", documents(&workloads::objects(&no_ingress))?),
        ("templates/webhooks.yaml", documents(&admission::webhooks(&no_ingress))?),
    ];
    let mut files: Vec<_> =
        templates.into_iter().map(|(path, text)| (path, GENERATED.to_owned() + &substituted(&text))).collect();
    files.push(("Chart.yaml", CHART.replace("VERSION", env!("CARGO_PKG_VERSION"))));
    files.push(("values.yaml", default_values()));
    files.push(("templates/NOTES.txt", NOTES.to_owned()));
    Ok(files)
}

/// Writes the chart below the repository at `root`.
///
/// # Errors
/// A file can't be written.
pub fn write(root: &Path) -> io::Result<()> {
    for (path, text) in files()? {
        let path = root.join(DIR).join(path);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, text)?;
    }
    Ok(())
}

fn placeholders() -> Values {
    let value = |path: &str| format!("{{{{ $.Values.{path} }}}}");
    let resources = |of: &str| Resources {
        cpu: value(&format!("{of}.resources.cpu")),
        memory: value(&format!("{of}.resources.memory")),
        memory_limit: value(&format!("{of}.resources.memoryLimit")),
    };
    Values {
        image_prefix: value("image.prefix"),
        version: value("image.tag"),
        pull_policy: value("image.pullPolicy"),
        log: value("log"),
        control_plane_replicas: CONTROL_PLANE_REPLICAS,
        injector_replicas: INJECTOR_REPLICAS,
        control_plane_resources: resources("controlPlane"),
        injector_resources: resources("injector"),
        ingress_secrets: vec![EACH_SECRET.to_owned()],
        managed_by: HELM,
    }
}

/// A log filter may have what YAML reads as its own (`[span{field="a: b"}]=debug`); the other values can't.
const LOG: &str = "--log={{ $.Values.log }}";
const QUOTED_LOG: &str = "{{ printf \"--log=%s\" $.Values.log | quote }}";

fn substituted(text: &str) -> String {
    text.replace(LOG, QUOTED_LOG)
        .replace(&CONTROL_PLANE_REPLICAS.to_string(), "{{ $.Values.controlPlane.replicas }}")
        .replace(&INJECTOR_REPLICAS.to_string(), "{{ $.Values.injector.replicas }}")
}

/// The objects as YAML documents.
///
/// # Errors
/// None that the objects of the installation can give.
pub fn documents(objects: &[Manifest]) -> io::Result<String> {
    objects.iter().try_fold(String::new(), |mut text, object| {
        let yaml = object.yaml().map_err(io::Error::other)?;
        text.push_str("---\n");
        text.push_str(yaml.trim_end());
        text.push('\n');
        Ok(text)
    })
}

const GENERATED: &str = "# Written by `cargo run -p byrnie-cli -- generate .` from cli/src/install; a test compares.\n";

const CHART: &str = "\
apiVersion: v2
name: byrnie
description: Every pod-to-pod connection mutually authenticated and encrypted, with a proof of it for each
type: application
version: VERSION
appVersion: VERSION
kubeVersion: \">=1.30.0-0\"
";

fn default_values() -> String {
    let values = Values::default();
    let Values { image_prefix, version, pull_policy, log, .. } = &values;
    let workload = |replicas: i32, resources: &Resources| {
        let Resources { cpu, memory, memory_limit } = resources;
        format!(
            "  replicas: {replicas}\n  resources:\n    cpu: {cpu}\n    memory: {memory}\n    memoryLimit: {memory_limit}\n"
        )
    };
    format!(
        "# What stands before /proxy, /control-plane and /injector in the names of the images, and their tag.\n\
         image:\n  prefix: {image_prefix}\n  tag: {version}\n  pullPolicy: {pull_policy}\n\n\
         # What the control plane and the injector log: a level, or levels by module.\n\
         log: {log}\n\n\
         # Memory has a limit; CPU has none, because it would slow handshakes down when they are most.\n\
         controlPlane:\n{}\n\
         injector:\n{}\n\
         # Names, besides byrnie-ingress-client, of the Secrets into which client certificates of ingress controllers may be\n\
         # written (MeshConfig's spec.ingressCertificates[].secretName).\n\
         ingressSecrets: []\n",
        workload(values.control_plane_replicas, &values.control_plane_resources),
        workload(values.injector_replicas, &values.injector_resources),
    )
}

const NOTES: &str = "\
Byrnie {{ .Chart.AppVersion }} is being installed in {{ .Release.Namespace }}.

  byrnie check                   what is still missing, step by step
  byrnie namespace add shop      what enrolling a namespace would break, and then enrols it

A pod gets its proxy when it is made: restart what runs already (`byrnie namespace add shop --restart`).

Before `helm uninstall`: take every namespace out of the mesh (`byrnie namespace list`, `byrnie namespace remove`). Pods
of an enrolled namespace can't be made without the injector. The CustomResourceDefinitions go with the release, and every
policy with them.
";
