//! The two containers and the two volumes that a pod gets.
//!
//! Every field that the API server would fill in by itself is given, so that a pod that comes back is the one that went
//! out, and asking again changes nothing.

use std::collections::BTreeMap;

use byrnie_api::{Quantity as Amount, Resources, SidecarSettings, TerminationDelay, labels};
use byrnie_proto::probes::{PROBES, Probes};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapProjection, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, ExecAction,
    HTTPGetAction, KeyToPath, Lifecycle, LifecycleHandler, PodSpec, Probe, ProjectedVolumeSource, ResourceRequirements,
    SeccompProfile, SecurityContext, ServiceAccountTokenProjection, SleepAction, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Ours, Settings, ports};
use crate::limits;

/// What the containers are made from.
pub(super) struct Parts<'a> {
    pub settings: &'a Settings,
    /// With what the pod's annotations say.
    pub sidecar: &'a SidecarSettings,
    /// The pod, without ours.
    pub spec: &'a PodSpec,
    /// The originals of its probes, if it has any.
    pub probes: Option<String>,
    /// What stood there under our names.
    pub was: &'a Ours,
}

impl Parts<'_> {
    /// Puts the capture rules into the pod's network namespace, sees that they work, and ends.
    pub(super) fn capture(&self) -> Container {
        let mut args = words(&["--prove", "--exempt", &exempt()]);
        args.extend(self.sidecar.exclusions.arguments());
        let security = SecurityContext {
            run_as_user: Some(0),
            run_as_group: Some(0),
            run_as_non_root: Some(false),
            capabilities: Some(Capabilities { add: Some(words(&["NET_ADMIN"])), drop: Some(words(&["ALL"])) }),
            ..confined()
        };
        Container {
            command: Some(words(&["/byrnie-capture", "apply"])),
            args: Some(args),
            security_context: Some(security),
            // It may change the pod's network: which image does that is not the pod's author's to say.
            ..self.container(labels::CAPTURE_CONTAINER, &self.settings.sidecar, self.was.capture.as_ref())
        }
    }

    /// The native sidecar.
    pub(super) fn proxy(&self) -> Container {
        let handler = ExecAction {
            command: Some(words(&[BINARY, "drain", "--admin-socket", &format!("{}/admin.sock", labels::STATE_DIR)])),
        };
        let security = SecurityContext {
            run_as_user: Some(labels::PROXY_UID),
            run_as_group: Some(labels::PROXY_UID),
            run_as_non_root: Some(true),
            capabilities: Some(Capabilities { add: None, drop: Some(words(&["ALL"])) }),
            ..confined()
        };
        let probes =
            |text: &String| vec![EnvVar { name: PROBES.to_owned(), value: Some(text.clone()), ..EnvVar::default() }];
        Container {
            restart_policy: Some("Always".to_owned()),
            command: Some(words(&[BINARY])),
            args: Some(self.proxy_arguments()),
            env: self.probes.as_ref().map(probes),
            ports: Some(vec![ContainerPort {
                name: Some("byrnie-metrics".to_owned()),
                container_port: ports::METRICS,
                protocol: Some("TCP".to_owned()),
                ..ContainerPort::default()
            }]),
            startup_probe: Some(health("/healthz/ready", 1, 120)),
            readiness_probe: Some(health("/healthz/ready", 5, 3)),
            liveness_probe: Some(health("/healthz/live", 10, 3)),
            lifecycle: Some(Lifecycle {
                pre_stop: Some(LifecycleHandler { exec: Some(handler), ..LifecycleHandler::default() }),
                ..Lifecycle::default()
            }),
            security_context: Some(security),
            volume_mounts: Some(vec![
                mount(labels::IDENTITY_VOLUME, labels::IDENTITY_DIR, Some(true)),
                mount(labels::STATE_VOLUME, labels::STATE_DIR, None),
            ]),
            ..self.container(labels::PROXY_CONTAINER, self.sidecar, self.was.proxy.as_ref())
        }
    }

    fn proxy_arguments(&self) -> Vec<String> {
        let drain = grace_seconds(self.spec).clamp(1, limits::DRAIN_SECONDS);
        let pairs = [
            ("--control-plane", control_plane()),
            ("--trust-domain", self.settings.trust_domain.to_string()),
            ("--trust-bundle", format!("{}/{}", labels::IDENTITY_DIR, labels::BUNDLE_KEY)),
            ("--service-account-token-file", format!("{}/{TOKEN}", labels::IDENTITY_DIR)),
            ("--state", labels::STATE_DIR.to_owned()),
            ("--exempt", exempt()),
            ("--log-level", self.sidecar.log_level.as_str().to_owned()),
            ("--drain-timeout", format!("{drain}s")),
        ];
        pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }

    fn container(&self, name: &str, sidecar: &SidecarSettings, was: Option<&Container>) -> Container {
        Container {
            name: name.to_owned(),
            image: Some(sidecar.image.as_ref().unwrap_or(&self.settings.image.reference).to_string()),
            image_pull_policy: Some(self.settings.image.pull_policy.as_str().to_owned()),
            resources: Some(self.resources(was.and_then(|was| was.resources.as_ref()))),
            // What a container that fails wrote last shows in `kubectl describe`.
            termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
            termination_message_path: Some("/dev/termination-log".to_owned()),
            ..Container::default()
        }
    }

    /// Where the settings say nothing, what a LimitRange has filled in stays: without it the pod would be refused.
    fn resources(&self, was: Option<&ResourceRequirements>) -> ResourceRequirements {
        let said = &self.sidecar.resources;
        let mut limits = amounts(&said.limits);
        let mut requests = amounts(&said.requests);
        for (name, limit) in &limits {
            requests.entry(name.clone()).or_insert_with(|| limit.clone());
        }
        for name in ["cpu", "memory", "ephemeral-storage"] {
            let kept = |from: Option<&BTreeMap<String, Quantity>>| from.and_then(|from| from.get(name)).cloned();
            if let Some(limit) = was.and_then(|was| kept(was.limits.as_ref())) {
                limits.entry(name.to_owned()).or_insert(limit);
            }
            if let Some(request) = was.and_then(|was| kept(was.requests.as_ref())) {
                requests.entry(name.to_owned()).or_insert(request);
            }
        }
        let given = |amounts: BTreeMap<_, _>| (!amounts.is_empty()).then_some(amounts);
        ResourceRequirements { limits: given(limits), requests: given(requests), claims: None }
    }
}

/// Keeps the containers that have no `preStop` hook alive for a moment after the pod's deletion: see [`TerminationDelay`].
/// A pod that is to end faster than that is left alone.
pub(super) fn delay_termination(spec: &mut PodSpec, delay: TerminationDelay) {
    let seconds = i64::from(delay.seconds());
    if seconds == 0 || grace_seconds(spec) <= seconds {
        return;
    }
    for container in &mut spec.containers {
        let hooks = container.lifecycle.get_or_insert_default();
        hooks.pre_stop.get_or_insert_with(|| LifecycleHandler {
            sleep: Some(SleepAction { seconds }),
            ..LifecycleHandler::default()
        });
    }
}

/// How long the pod's containers may take to end.
pub(super) fn grace_seconds(spec: &PodSpec) -> i64 {
    spec.termination_grace_period_seconds.unwrap_or(limits::GRACE_SECONDS.into())
}

/// Puts our volumes in their places, or at the end.
pub(super) fn put_volumes(spec: &mut PodSpec) {
    let volumes = spec.volumes.get_or_insert_default();
    for ours in [identity_volume(), state_volume()] {
        match volumes.iter_mut().find(|volume| volume.name == ours.name) {
            Some(place) => *place = ours,
            None => volumes.push(ours),
        }
    }
}

/// The text of the environment variable. A dollar sign is written as JSON's escape: `$(NAME)` in a variable's value would
/// be replaced by Kubernetes.
pub(super) fn probes_text(probes: &Probes) -> String {
    // Texts and numbers alone: there is nothing in it that JSON can't say.
    let text = serde_json::to_string(probes).unwrap_or_default();
    text.replace('$', "\\u0024")
}

const BINARY: &str = "/byrnie-proxy";
const TOKEN: &str = "token";

/// Whose connections capture lets pass.
fn exempt() -> String {
    format!("uid:{}", labels::PROXY_UID)
}

fn control_plane() -> String {
    format!("{}.{}.svc:{}", labels::CONTROL_PLANE, labels::SYSTEM_NAMESPACE, labels::CONTROL_PLANE_PORT)
}

fn identity_volume() -> Volume {
    let token = ServiceAccountTokenProjection {
        audience: Some(labels::TOKEN_AUDIENCE.to_owned()),
        expiration_seconds: Some(3600),
        path: TOKEN.to_owned(),
    };
    let bundle = ConfigMapProjection {
        name: labels::BUNDLE_CONFIG_MAP.to_owned(),
        items: Some(vec![KeyToPath {
            key: labels::BUNDLE_KEY.to_owned(),
            path: labels::BUNDLE_KEY.to_owned(),
            mode: None,
        }]),
        optional: None,
    };
    Volume {
        name: labels::IDENTITY_VOLUME.to_owned(),
        projected: Some(ProjectedVolumeSource {
            default_mode: Some(0o444),
            sources: Some(vec![
                VolumeProjection { service_account_token: Some(token), ..VolumeProjection::default() },
                VolumeProjection { config_map: Some(bundle), ..VolumeProjection::default() },
            ]),
        }),
        ..Volume::default()
    }
}

fn state_volume() -> Volume {
    Volume {
        name: labels::STATE_VOLUME.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: Some("Memory".to_owned()),
            size_limit: Some(Quantity("1Mi".to_owned())),
        }),
        ..Volume::default()
    }
}

fn confined() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..SecurityContext::default()
    }
}

fn health(path: &str, period_seconds: i32, failure_threshold: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::Int(ports::HEALTH),
            scheme: Some("HTTP".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        failure_threshold: Some(failure_threshold),
        success_threshold: Some(1),
        timeout_seconds: Some(2),
        ..Probe::default()
    }
}

fn mount(name: &str, path: &str, read_only: Option<bool>) -> VolumeMount {
    VolumeMount { name: name.to_owned(), mount_path: path.to_owned(), read_only, ..VolumeMount::default() }
}

fn amounts(resources: &Resources) -> BTreeMap<String, Quantity> {
    let named = [("cpu", &resources.cpu), ("memory", &resources.memory)];
    let given = named.into_iter().filter_map(|(name, amount)| Some((name, amount.as_ref()?)));
    given.map(|(name, amount): (_, &Amount)| (name.to_owned(), Quantity(amount.to_string()))).collect()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
