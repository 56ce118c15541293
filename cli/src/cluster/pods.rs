//! What of a pod says how it is, and whether it is in the mesh.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;

use crate::install::VERSION_LABEL;

/// Whether its proxy was injected.
pub fn is_meshed(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(byrnie_api::is_meshed)
}

/// Whether it has ended, or is about to.
pub fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed")) || pod.metadata.deletion_timestamp.is_some()
}

/// The version of one of our own pods: the tag of its image, which says what runs; where it has none, the label.
pub fn version(pod: &Pod) -> Option<String> {
    let image = pod.spec.as_ref()?.containers.first()?.image.as_deref()?;
    let (image, _digest) = image.split_once('@').unwrap_or((image, ""));
    let tag = image.rsplit_once(':').map(|(_, tag)| tag).filter(|tag| !tag.contains('/'));
    tag.or_else(|| Some(pod.labels().get(VERSION_LABEL)?.as_str())).map(str::to_owned)
}

/// Whether its condition `Ready` is true.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.filter(|condition| condition.type_ == "Ready").any(|condition| condition.status == "True")
}

/// `namespace/name: what it waits for`.
pub fn describe(pod: &Pod) -> String {
    let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or("Unknown");
    let containers = status.into_iter().flat_map(|status| {
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten())
    });
    let scheduled = status.into_iter().flat_map(|status| status.conditions.iter().flatten());
    let scheduled = scheduled.filter(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    let mut reasons: Vec<String> = scheduled.filter_map(|condition| condition.message.clone()).collect();
    reasons.extend(containers.filter_map(trouble));
    let reasons = if reasons.is_empty() { "not ready".to_owned() } else { reasons.join("; ") };
    super::printable(&format!("{name} is {phase}: {reasons}"))
}

fn trouble(status: &ContainerStatus) -> Option<String> {
    let state = status.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref().unwrap_or("waiting");
        if reason != "PodInitializing" && reason != "ContainerCreating" {
            let message = waiting.message.as_deref().unwrap_or_default();
            return Some(format!("{}: {reason} {message}", status.name).trim_end().to_owned());
        }
    }
    let ended = state.terminated.as_ref().or(status.last_state.as_ref()?.terminated.as_ref())?;
    (ended.exit_code != 0).then(|| format!("{} ended with exit code {}", status.name, ended.exit_code))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_pods_version_is_its_images_tag() {
        let of = |image: &str| {
            version(&pod(json!({"metadata": {"labels": {VERSION_LABEL: "label"}},
                "spec": {"containers": [{"name": "x", "image": image}]}})))
        };
        for image in ["byrnie/x:1.2.3", "registry:5000/byrnie/x:1.2.3", "byrnie/x:1.2.3@sha256:00"] {
            assert_eq!(of(image).as_deref(), Some("1.2.3"), "{image}");
        }
        for image in ["byrnie/x", "registry:5000/byrnie/x", "registry:5000/byrnie/x@sha256:00"] {
            assert_eq!(of(image).as_deref(), Some("label"), "{image}");
        }
    }

    #[test]
    fn a_pod_that_does_not_start_says_what_it_waits_for() {
        let pod = pod(json!({"metadata": {"name": "x", "namespace": "byrnie-system"}, "status": {"phase": "Pending",
            "containerStatuses": [{"name": "injector", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ErrImagePull", "message": "no such image\u{1b}[2J"}}}]}}));
        assert_eq!(describe(&pod), "byrnie-system/x is Pending: injector: ErrImagePull no such image [2J");
    }
}
