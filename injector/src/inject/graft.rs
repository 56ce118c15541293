//! Carries what [`super::inject`] did over to the object as it was sent.
//!
//! A newer API server knows fields that our types do not have. They must not be lost from a pod, so the patch is made of
//! the sent object and of this, and not of two of our own readings of it.

use byrnie_api::labels;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Lifecycle, LifecycleHandler, Pod, PodSpec, Probe};
use serde_json::{Map, Value};

use super::is_ours;

/// `sent`, with the changes of `injected`, which [`super::inject`] made of it.
///
/// Only what an injection changes is changed: the annotation, our volumes, our containers and their places, and where
/// probes and hooks of others point.
pub fn graft(sent: &Value, injected: &Pod) -> Value {
    let mut whole = sent.clone();
    let annotations = injected.metadata.annotations.as_ref().and_then(|all| all.get(labels::INJECTED));
    if let (Some(version), Some(metadata)) = (annotations, fields(&mut whole, "metadata")) {
        let at = metadata.entry("annotations").or_insert_with(|| Value::Object(Map::new()));
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        if let Some(annotations) = at.as_object_mut() {
            annotations.insert(labels::INJECTED.to_owned(), Value::from(version.as_str()));
        }
    }
    let (Some(typed), Some(spec)) = (&injected.spec, fields(&mut whole, "spec")) else {
        return whole;
    };
    if let Some(sent) = list(spec, "volumes") {
        put_volumes(sent, typed);
    }
    if let Some(sent) = list(spec, "initContainers") {
        let (ours, others): (Vec<&Container>, Vec<&Container>) =
            typed.init_containers.iter().flatten().partition(|each| is_ours(&each.name));
        sent.retain(|each| !name(each).is_some_and(is_ours));
        point(sent, others.into_iter());
        sent.splice(0..0, ours.into_iter().map(|each| serde_json::to_value(each).unwrap_or_default()));
    }
    if let Some(sent) = list(spec, "containers") {
        point(sent, typed.containers.iter());
    }
    whole
}

fn put_volumes(sent: &mut Vec<Value>, injected: &PodSpec) {
    let volumes = injected.volumes.iter().flatten();
    for volume in volumes.filter(|each| [labels::IDENTITY_VOLUME, labels::STATE_VOLUME].contains(&each.name.as_str())) {
        let value = serde_json::to_value(volume).unwrap_or_default();
        match sent.iter_mut().find(|each| name(each) == Some(&volume.name)) {
            Some(place) => *place = value,
            None => sent.push(value),
        }
    }
}

fn point<'a>(sent: &mut [Value], injected: impl Iterator<Item = &'a Container>) {
    for (sent, injected) in sent.iter_mut().zip(injected) {
        let Some(sent) = sent.as_object_mut() else { continue };
        for (field, probe) in [
            ("startupProbe", &injected.startup_probe),
            ("readinessProbe", &injected.readiness_probe),
            ("livenessProbe", &injected.liveness_probe),
        ] {
            if let (Some(probe), Some(sent)) = (probe, sent.get_mut(field)) {
                point_probe(sent, probe);
            }
        }
        let Some(lifecycle) = &injected.lifecycle else { continue };
        if lifecycle.pre_stop.as_ref().is_some_and(|hook| hook.sleep.is_some()) {
            add_hook(sent, lifecycle);
        }
        for (field, hook) in [("postStart", &lifecycle.post_start), ("preStop", &lifecycle.pre_stop)] {
            let sent = sent.get_mut("lifecycle").and_then(|lifecycle| lifecycle.get_mut(field));
            if let (Some(hook), Some(sent)) = (hook, sent) {
                point_hook(sent, hook);
            }
        }
    }
}

fn point_probe(sent: &mut Value, probe: &Probe) {
    // What is not the proxy's to perform (`exec`, another host) was not changed.
    let (Some(sent), Some(get)) = (sent.as_object_mut(), pointed(probe.http_get.as_ref())) else { return };
    sent.retain(|field, _| !["tcpSocket", "grpc"].contains(&field.as_str()));
    sent.insert("httpGet".to_owned(), serde_json::to_value(get).unwrap_or_default());
    if let Some(seconds) = probe.timeout_seconds {
        sent.insert("timeoutSeconds".to_owned(), Value::from(seconds));
    }
}

fn pointed(get: Option<&HTTPGetAction>) -> Option<&HTTPGetAction> {
    get.filter(|get| get.host.is_none())
}

/// The hook that was added where there was none.
fn add_hook(sent: &mut Map<String, Value>, injected: &Lifecycle) {
    let hooks = sent.entry("lifecycle").or_insert(Value::Null);
    if hooks.is_null() {
        *hooks = Value::Object(Map::new());
    }
    let Some(hooks) = hooks.as_object_mut() else { return };
    let hook = hooks.entry("preStop").or_insert(Value::Null);
    if hook.is_null() {
        *hook = serde_json::to_value(&injected.pre_stop).unwrap_or_default();
    }
}

fn point_hook(sent: &mut Value, hook: &LifecycleHandler) {
    let (Some(sent), Some(get)) = (sent.as_object_mut(), pointed(hook.http_get.as_ref())) else { return };
    sent.retain(|field, _| field != "tcpSocket");
    sent.insert("httpGet".to_owned(), serde_json::to_value(get).unwrap_or_default());
}

fn fields<'a>(whole: &'a mut Value, name: &str) -> Option<&'a mut Map<String, Value>> {
    let at = whole.as_object_mut()?.entry(name).or_insert_with(|| Value::Object(Map::new()));
    at.as_object_mut()
}

/// `None` for what is neither a list nor nothing; a pod of our types was read from it, so it is not.
fn list<'a>(fields: &'a mut Map<String, Value>, name: &str) -> Option<&'a mut Vec<Value>> {
    let at = fields.entry(name).or_insert(Value::Null);
    if at.is_null() {
        *at = Value::Array(Vec::new());
    }
    at.as_array_mut()
}

fn name(item: &Value) -> Option<&str> {
    item.get("name").and_then(Value::as_str)
}
