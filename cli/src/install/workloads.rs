//! The two Deployments, with what belongs to them.

use std::collections::BTreeMap;

use byrnie_api::labels::{CONTROL_PLANE, CONTROL_PLANE_PORT, INJECTOR, INJECTOR_SECRET, PROXY_UID, SYSTEM_NAMESPACE};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource, HTTPGetAction,
    Lifecycle, LifecycleHandler, ObjectFieldSelector, PodAffinityTerm, PodAntiAffinity, PodSecurityContext, PodSpec,
    PodTemplateSpec, Probe, SeccompProfile, SecretVolumeSource, SecurityContext, Service, ServicePort, ServiceSpec,
    SleepAction, TopologySpreadConstraint, Volume, VolumeMount, WeightedPodAffinityTerm,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::manifest::metadata;
use super::values::selector;
use super::{Manifest, Values};

const CONTROL_PLANE_COMPONENT: &str = "control-plane";
const INJECTOR_COMPONENT: &str = "injector";
const CONTROL_PLANE_STATE: &str = "/var/lib/byrnie";
const CERTIFICATE_DIR: &str = "/var/run/secrets/byrnie-injector";
/// From a pod's deletion until no node sends to it any more: EndpointSlices follow within half a second, kube-proxy within
/// a second (`minSyncPeriod`), and both are busier in a large cluster.
const FORGOTTEN_SECONDS: i64 = 5;

/// One of the two, in what they differ.
struct Workload {
    name: &'static str,
    component: &'static str,
    replicas: i32,
    /// The Service's port, and the container's behind it.
    port: (i32, i32),
    container: Container,
    volume: Volume,
}

/// Deployments, Services and disruption budgets.
pub(super) fn objects(values: &Values) -> Vec<Manifest> {
    [control_plane(values), injector(values)].into_iter().flat_map(|workload| workload.objects(values)).collect()
}

fn control_plane(values: &Values) -> Workload {
    let port = i32::from(CONTROL_PLANE_PORT);
    let listen = format!("--listen=0.0.0.0:{port}");
    let flags = [
        "--source=kubernetes",
        "--state=/var/lib/byrnie/state",
        listen.as_str(),
        "--admin-listen=127.0.0.1:15129",
        "--health-listen=0.0.0.0:15121",
        "--log-format=json",
    ];
    Workload {
        name: CONTROL_PLANE,
        component: CONTROL_PLANE_COMPONENT,
        replicas: values.control_plane_replicas,
        port: (port, port),
        container: Container {
            args: Some(with_log(&flags, values)),
            resources: Some(values.control_plane_resources.requirements()),
            ..container(
                values,
                CONTROL_PLANE_COMPONENT,
                &[("grpc", port), ("health", 15_121)],
                VolumeMount { name: "state".into(), mount_path: CONTROL_PLANE_STATE.into(), ..VolumeMount::default() },
            )
        },
        volume: Volume {
            name: "state".into(),
            // In memory: the key of this replica's issuing certificate is in it, and must not outlive the pod on a disk.
            empty_dir: Some(EmptyDirVolumeSource {
                medium: Some("Memory".into()),
                size_limit: Some(Quantity("256Mi".into())),
            }),
            ..Volume::default()
        },
    }
}

fn injector(values: &Values) -> Workload {
    let image = format!("--proxy-image={}", values.image("proxy"));
    let pull = format!("--proxy-image-pull-policy={}", values.pull_policy);
    let flags = [
        "--listen=0.0.0.0:15443",
        "--health-listen=0.0.0.0:15444",
        "--certificate-dir=/var/run/secrets/byrnie-injector",
        "--log-format=json",
        image.as_str(),
        pull.as_str(),
    ];
    Workload {
        name: INJECTOR,
        component: INJECTOR_COMPONENT,
        replicas: values.injector_replicas,
        port: (443, 15_443),
        container: Container {
            args: Some(with_log(&flags, values)),
            resources: Some(values.injector_resources.requirements()),
            ..container(
                values,
                INJECTOR_COMPONENT,
                &[("https", 15_443), ("health", 15_444)],
                VolumeMount {
                    name: "certificate".into(),
                    mount_path: CERTIFICATE_DIR.into(),
                    read_only: Some(true),
                    ..VolumeMount::default()
                },
            )
        },
        volume: Volume {
            name: "certificate".into(),
            // The control plane makes it; until then the injector runs, and is not ready.
            secret: Some(SecretVolumeSource {
                secret_name: Some(INJECTOR_SECRET.into()),
                optional: Some(true),
                ..SecretVolumeSource::default()
            }),
            ..Volume::default()
        },
    }
}

fn with_log(flags: &[&str], values: &Values) -> Vec<String> {
    flags.iter().map(|flag| (*flag).to_owned()).chain([format!("--log={}", values.log)]).collect()
}

fn container(values: &Values, name: &str, ports: &[(&str, i32)], mount: VolumeMount) -> Container {
    let port = |(name, number): &(&str, i32)| ContainerPort {
        name: Some((*name).into()),
        container_port: *number,
        protocol: Some("TCP".into()),
        ..ContainerPort::default()
    };
    Container {
        name: name.into(),
        image: Some(values.image(name)),
        image_pull_policy: Some(values.pull_policy.clone()),
        ports: Some(ports.iter().map(port).collect()),
        env: Some(vec![field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace")]),
        volume_mounts: Some(vec![mount]),
        startup_probe: Some(probe("/healthz/live", 1, 60)),
        readiness_probe: Some(probe("/healthz/ready", 5, 2)),
        liveness_probe: Some(probe("/healthz/live", 10, 6)),
        // Whoever still has this pod's address from before its end is served meanwhile: measured, an API server that
        // connected in that second waited for the webhook until its time was over.
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction { seconds: FORGOTTEN_SECONDS }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
            ..SecurityContext::default()
        }),
        ..Container::default()
    }
}

fn field(name: &str, path: &str) -> EnvVar {
    EnvVar {
        name: name.into(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector { field_path: path.into(), api_version: Some("v1".into()) }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

fn probe(path: &str, period_seconds: i32, failure_threshold: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::String("health".into()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        failure_threshold: Some(failure_threshold),
        timeout_seconds: Some(3),
        ..Probe::default()
    }
}

impl Workload {
    fn objects(self, values: &Values) -> Vec<Manifest> {
        let named = || metadata(self.name, Some(SYSTEM_NAMESPACE), values.labels(self.component));
        let service = Service {
            metadata: named(),
            spec: Some(ServiceSpec {
                selector: Some(selector(self.component)),
                ports: Some(vec![ServicePort {
                    name: self.container.ports.iter().flatten().next().and_then(|port| port.name.clone()),
                    port: self.port.0,
                    target_port: Some(IntOrString::Int(self.port.1)),
                    protocol: Some("TCP".into()),
                    ..ServicePort::default()
                }]),
                ..ServiceSpec::default()
            }),
            ..Service::default()
        };
        let budget = PodDisruptionBudget {
            metadata: named(),
            spec: Some(PodDisruptionBudgetSpec {
                // With one replica a minimum would keep its node from being drained for ever.
                max_unavailable: Some(IntOrString::Int(1)),
                selector: Some(pods(self.component)),
                ..PodDisruptionBudgetSpec::default()
            }),
            ..PodDisruptionBudget::default()
        };
        let mut deployed = named();
        deployed.annotations = values.annotations().filter(|_| self.name == CONTROL_PLANE);
        let deployment = Deployment {
            metadata: deployed,
            spec: Some(DeploymentSpec {
                replicas: Some(self.replicas),
                revision_history_limit: Some(3),
                selector: pods(self.component),
                strategy: Some(DeploymentStrategy {
                    type_: Some("RollingUpdate".into()),
                    rolling_update: Some(RollingUpdateDeployment {
                        max_surge: Some(IntOrString::Int(1)),
                        max_unavailable: Some(IntOrString::Int(0)),
                    }),
                }),
                template: PodTemplateSpec {
                    metadata: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                        labels: Some(values.labels(self.component)),
                        ..Default::default()
                    }),
                    spec: Some(pod(self.name, self.component, self.container, self.volume)),
                },
                ..DeploymentSpec::default()
            }),
            ..Deployment::default()
        };
        vec![Manifest::of(&service), Manifest::of(&budget), Manifest::of(&deployment)]
    }
}

fn pod(account: &str, component: &str, container: Container, volume: Volume) -> PodSpec {
    let apart = |topology_key: &str| TopologySpreadConstraint {
        max_skew: 1,
        topology_key: topology_key.into(),
        // A cluster of one node, or one zone, is a cluster too.
        when_unsatisfiable: "ScheduleAnyway".into(),
        label_selector: Some(pods(component)),
        ..TopologySpreadConstraint::default()
    };
    PodSpec {
        service_account_name: Some(account.into()),
        priority_class_name: Some("system-cluster-critical".into()),
        // Variables of every Service of the namespace have no reader here.
        enable_service_links: Some(false),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(PROXY_UID),
            run_as_group: Some(PROXY_UID),
            fs_group: Some(PROXY_UID),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), ..SeccompProfile::default() }),
            ..PodSecurityContext::default()
        }),
        affinity: Some(Affinity {
            pod_anti_affinity: Some(PodAntiAffinity {
                preferred_during_scheduling_ignored_during_execution: Some(vec![WeightedPodAffinityTerm {
                    weight: 100,
                    pod_affinity_term: PodAffinityTerm {
                        label_selector: Some(pods(component)),
                        topology_key: "kubernetes.io/hostname".into(),
                        ..PodAffinityTerm::default()
                    },
                }]),
                ..PodAntiAffinity::default()
            }),
            ..Affinity::default()
        }),
        node_selector: Some(BTreeMap::from([("kubernetes.io/os".into(), "linux".into())])),
        topology_spread_constraints: Some(vec![apart("topology.kubernetes.io/zone")]),
        containers: vec![container],
        volumes: Some(vec![volume]),
        termination_grace_period_seconds: Some(30),
        ..PodSpec::default()
    }
}

fn pods(component: &str) -> LabelSelector {
    LabelSelector { match_labels: Some(selector(component)), ..LabelSelector::default() }
}
