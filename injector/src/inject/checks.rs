//! What can't work in the mesh, found before the pod runs; and what its author should know.

use std::collections::BTreeMap;

use byrnie_api::{Problem, labels, quote};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume};

use super::{is_ours, ports};

/// Everything that can't work.
pub(super) fn refusals(pod: &Pod, spec: &PodSpec, annotations: &BTreeMap<String, String>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, container) in others(spec) {
        uid(spec, &path, container, &mut problems);
        ports_of(&path, container, &mut problems);
        mounts(&path, container, &mut problems);
    }
    for (index, container) in spec.containers.iter().enumerate() {
        if is_ours(&container.name) {
            problems.push(forged(&format!("spec.containers[{index}]"), &container.name));
        }
    }
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        let path = format!("spec.volumes[{index}]");
        volume_name(&path, volume, &mut problems);
        tokens(&path, volume, &mut problems);
    }
    problems.extend(other_mesh(pod, spec));
    problems.extend(shared_processes(spec, annotations));
    problems
}

/// Containers of our names in a pod that stays outside of the mesh: others would take it for a member.
pub(super) fn names_of_ours(spec: &PodSpec) -> Vec<Problem> {
    let init = spec.init_containers.iter().flatten().enumerate().map(|(index, each)| ("initContainers", index, each));
    let rest = spec.containers.iter().enumerate().map(|(index, each)| ("containers", index, each));
    let ours = init.chain(rest).filter(|(_, _, container)| is_ours(&container.name));
    ours.map(|(list, index, container)| forged(&format!("spec.{list}[{index}]"), &container.name)).collect()
}

/// What the author should know, of a pod that is let in.
pub(super) fn warnings(pod: &Pod, annotations: &BTreeMap<String, String>) -> Vec<String> {
    let mut warnings = Vec::new();
    let Some(spec) = &pod.spec else { return warnings };
    for (path, container) in others(spec) {
        let Some(context) = &container.security_context else { continue };
        let added = context.capabilities.iter().flat_map(|capabilities| capabilities.add.iter().flatten());
        let strong = |name: &&String| ["NET_ADMIN", "NET_RAW", "ALL"].contains(&bare(name));
        for capability in added.filter(strong) {
            let capability = quote(capability);
            warnings
                .push(format!("byrnie: {path} has the capability {capability}: it can take its traffic past the mesh"));
        }
        if context.privileged == Some(true) {
            warnings.push(format!("byrnie: {path} is privileged: it can take its traffic past the mesh"));
        }
    }
    if spec.dns_policy.as_deref() == Some("Default") {
        warnings.push(
            "byrnie: spec.dnsPolicy is Default: the proxy finds the control plane only if the node's DNS knows the \
             cluster's names"
                .to_owned(),
        );
    }
    if annotations.contains_key(labels::OSM_INCLUDE_OUTBOUND_CIDRS) {
        let name = labels::OSM_INCLUDE_OUTBOUND_CIDRS;
        warnings.push(format!(
            "byrnie: the annotation {name} is not followed: everything that is not excluded is captured"
        ));
    }
    warnings
}

/// Every container but ours, with its place.
fn others(spec: &PodSpec) -> impl Iterator<Item = (String, &Container)> {
    let init = spec.init_containers.iter().flatten().enumerate();
    let init = init.map(|(index, container)| (format!("spec.initContainers[{index}]"), container));
    let rest = spec.containers.iter().enumerate();
    let rest = rest.map(|(index, container)| (format!("spec.containers[{index}]"), container));
    init.filter(|(_, container)| !is_ours(&container.name)).chain(rest)
}

/// Capture lets the proxy's user pass by: an application of the same user would be outside of the mesh, unseen.
fn uid(spec: &PodSpec, path: &str, container: &Container, problems: &mut Vec<Problem>) {
    let own = container.security_context.as_ref().and_then(|context| context.run_as_user);
    let pod = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let path = if own.is_some() {
        format!("{path}.securityContext.runAsUser")
    } else {
        format!("spec.securityContext.runAsUser (of {path})")
    };
    if own.or(pod) == Some(labels::PROXY_UID) {
        let expected = format!("a user other than {}, which is the proxy's", labels::PROXY_UID);
        let problem = Problem::new(path, expected, format!("`{}`", labels::PROXY_UID));
        problems.push(problem.hint("capture lets this user's connections pass by"));
    }
}

fn ports_of(path: &str, container: &Container, problems: &mut Vec<Problem>) {
    for (index, port) in container.ports.iter().flatten().enumerate() {
        if port.protocol.as_deref().is_some_and(|protocol| protocol != "TCP") {
            continue;
        }
        for (field, number) in [("containerPort", Some(port.container_port)), ("hostPort", port.host_port)] {
            if let Some((number, what)) = ports::ALL.into_iter().find(|(ours, _)| Some(*ours) == number) {
                let path = format!("{path}.ports[{index}].{field}");
                let expected = format!("a port other than {number}, which is for {what}");
                let hint = "15000, 15001, 15003, 15010 and 15021 are the proxy's in every pod";
                problems.push(Problem::new(path, expected, format!("`{number}`")).hint(hint));
            }
        }
    }
}

/// Our volumes hold the proxy's private key and the token that gets its certificate.
fn mounts(path: &str, container: &Container, problems: &mut Vec<Problem>) {
    let mounted = container.volume_mounts.iter().flatten().map(|mount| ("volumeMounts", &mount.name));
    let devices = container.volume_devices.iter().flatten().map(|device| ("volumeDevices", &device.name));
    for (field, name) in mounted.chain(devices).filter(|(_, name)| is_our_volume(name)) {
        let expected = format!("no mount of {}, which is the proxy's alone", quote(name));
        let hint = "give the application's volume another name";
        problems.push(Problem::new(format!("{path}.{field}"), expected, quote(name)).hint(hint));
    }
}

fn volume_name(path: &str, volume: &Volume, problems: &mut Vec<Problem>) {
    let of_our_kind = match volume.name.as_str() {
        labels::IDENTITY_VOLUME => volume.projected.is_some(),
        labels::STATE_VOLUME => volume.empty_dir.is_some(),
        _ => true,
    };
    if !of_our_kind {
        let expected = "a name that is not one of the mesh's volumes";
        problems.push(Problem::new(format!("{path}.name"), expected, quote(&volume.name)).hint("give it another name"));
    }
}

/// With a token of this audience a container would get the pod's identity for a key of its own.
fn tokens(path: &str, volume: &Volume, problems: &mut Vec<Problem>) {
    let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()).enumerate();
    for (index, source) in sources.filter(|_| volume.name != labels::IDENTITY_VOLUME) {
        let audience = source.service_account_token.as_ref().and_then(|token| token.audience.as_deref());
        if audience == Some(labels::TOKEN_AUDIENCE) {
            let path = format!("{path}.projected.sources[{index}].serviceAccountToken.audience");
            let problem = Problem::new(path, "an audience other than the mesh's", quote(labels::TOKEN_AUDIENCE));
            problems.push(problem.hint("only the proxy gets a token for the mesh's CA"));
        }
    }
}

fn is_our_volume(name: &str) -> bool {
    [labels::IDENTITY_VOLUME, labels::STATE_VOLUME].contains(&name)
}

fn forged(path: &str, name: &str) -> Problem {
    let expected = "a name that is not one of the mesh's containers";
    Problem::new(format!("{path}.name"), expected, quote(name)).hint("only the injector makes containers of this name")
}

/// Two proxies would take the connections from each other.
fn other_mesh(pod: &Pod, spec: &PodSpec) -> Option<Problem> {
    const CONTAINERS: [(&str, &str); 12] = [
        ("istio-proxy", "Istio"),
        ("istio-init", "Istio"),
        ("istio-validation", "Istio"),
        ("linkerd-proxy", "Linkerd"),
        ("linkerd-init", "Linkerd"),
        ("consul-dataplane", "Consul"),
        ("consul-connect-inject-init", "Consul"),
        ("envoy-sidecar", "Consul"),
        ("kuma-sidecar", "Kuma"),
        ("kuma-init", "Kuma"),
        ("osm-init", "Open Service Mesh"),
        ("fsm-init", "Flomesh"),
    ];
    // OSM's proxy is called `envoy`, as many an Envoy is that is nobody's sidecar; this label only OSM sets.
    const OSM_POD: &str = "osm-proxy-uuid";
    let known = |name: &str| CONTAINERS.into_iter().find(|(known, _)| *known == name);
    let problem = |path: String, found: &str, mesh: &str| {
        let hint = "two meshes can't both capture a pod; take it out of the other one first, or set the annotation \
                    byrnie.dev/inject: \"false\"";
        Problem::new(path, format!("no sidecar of {mesh}"), quote(found)).hint(hint)
    };
    let by_name = others(spec).find_map(|(path, container)| {
        let (name, mesh) = known(&container.name)?;
        Some(problem(format!("{path}.name"), name, mesh))
    });
    let labelled = pod.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(OSM_POD));
    let envoy = others(spec).find(|(_, container)| labelled && container.name == "envoy");
    by_name.or_else(|| envoy.map(|(path, _)| problem(format!("{path}.name"), "envoy", "Open Service Mesh")))
}

fn shared_processes(spec: &PodSpec, annotations: &BTreeMap<String, String>) -> Option<Problem> {
    let allowed = match annotations.get(labels::ALLOW_SHARED_PROCESS_NAMESPACE).map(String::as_str) {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => {
            let path = format!("metadata.annotations[{}]", labels::ALLOW_SHARED_PROCESS_NAMESPACE);
            return Some(Problem::new(path, "`true` or `false`", quote(other)));
        }
    };
    (spec.share_process_namespace == Some(true) && !allowed).then(|| {
        let hint = format!(
            "a container of root could read the proxy's private key from its memory; if that is acceptable, set the \
             annotation {}: \"true\"",
            labels::ALLOW_SHARED_PROCESS_NAMESPACE
        );
        Problem::new("spec.shareProcessNamespace", "`false`", "`true`").hint(hint)
    })
}

/// Without the prefix that some runtimes take.
fn bare(capability: &str) -> &str {
    capability.strip_prefix("CAP_").unwrap_or(capability)
}
