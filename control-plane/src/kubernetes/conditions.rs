//! `status.conditions[type=Accepted]` of the mesh's own objects: whether the mesh does what an object says, for the
//! generation that the model has seen.

use std::{collections::BTreeMap, time::Duration};

use byrnie_api::{ACCEPTED, Kind};
use k8s_openapi::{
    api::core::v1::ObjectReference,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DynamicObject, ListParams, Patch},
};
use serde_json::json;

use super::{
    apply,
    client::{ApiError, Cluster, call},
    events::Events,
    writer::{Failures, Writer},
};
use crate::{
    limits,
    model::{Condition as Judged, Model},
    plane::Plane,
    proxies::cut_to,
    source::kubernetes::definition,
};

/// Writes the conditions that differ, and an event for every object that is refused.
pub(super) struct Conditions {
    client: Client,
    events: Events,
    /// What was compared last with what is there, and when.
    compared: Option<(Duration, BTreeMap<String, Verdict>)>,
}

/// What the model made of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Verdict {
    accepted: bool,
    message: String,
    /// Which generation was judged.
    generation: i64,
}

impl Conditions {
    pub(super) fn new(cluster: &Cluster, clock: byrnie_identity::Clock) -> Self {
        Self { client: cluster.client.clone(), events: Events::new(cluster, clock), compared: None }
    }

    /// Brings all objects of a kind up to date. False: some are newer than what was judged.
    async fn write_kind(
        &mut self,
        kind: Kind,
        verdicts: &BTreeMap<String, Verdict>,
        now: Timestamp,
        failures: &mut Failures,
    ) -> Result<bool, ApiError> {
        let mut complete = true;
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &definition(kind));
        let mut page = ListParams::default().limit(limits::LIST_PAGE);
        loop {
            let list = match call(api.list(&page)).await {
                // Not installed: there is nothing to write to, and the source says so.
                Err(error) if error.code() == Some(404) => return Ok(true),
                list => list?,
            };
            for object in list.items {
                let name = name(kind, &object);
                let Some(verdict) = verdicts.get(&name) else {
                    continue;
                };
                if object.metadata.generation != Some(verdict.generation) {
                    complete = false;
                    continue;
                }
                let written = self.write(kind, &object, verdict, now).await;
                failures.keep(name, written);
            }
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(complete),
            }
        }
    }

    async fn write(
        &mut self,
        kind: Kind,
        object: &DynamicObject,
        verdict: &Verdict,
        now: Timestamp,
    ) -> Result<(), ApiError> {
        let present = present(object);
        let wanted = condition(verdict, present.as_ref(), now);
        let definition = definition(kind);
        if present.as_ref() != Some(&wanted) {
            let api: Api<DynamicObject> = match object.metadata.namespace.as_deref() {
                Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &definition),
                None => Api::all_with(self.client.clone(), &definition),
            };
            let patch = json!({
                "apiVersion": definition.api_version,
                "kind": definition.kind,
                "metadata": {"name": object.name_any()},
                "status": {"observedGeneration": wanted.observed_generation, "conditions": [wanted]},
            });
            call(api.patch_status(&object.name_any(), &apply(), &Patch::Apply(&patch))).await?;
        }
        if !verdict.accepted {
            let about = ObjectReference {
                api_version: Some(definition.api_version),
                kind: Some(definition.kind),
                namespace: object.namespace(),
                name: Some(object.name_any()),
                uid: object.uid(),
                ..ObjectReference::default()
            };
            self.events.warn(&about, "Refused", "Validate", verdict.message.clone()).await?;
        }
        Ok(())
    }
}

impl Writer for Conditions {
    const WHAT: &'static str = "status conditions";
    const EVERY: Duration = limits::COMPARED;

    async fn pass(&mut self, plane: &Plane) -> Failures {
        let mut failures = Failures::default();
        let verdicts = verdicts(&plane.model.load());
        let now = plane.clock.boot();
        let fresh = |(at, then): &(Duration, _)| *then == verdicts && now.saturating_sub(*at) < limits::SWEPT;
        if self.compared.as_ref().is_some_and(fresh) {
            return failures;
        }
        let time = Timestamp::try_from(plane.clock.wall()).unwrap_or_default();
        let mut complete = true;
        for kind in Kind::ALL {
            match self.write_kind(kind, &verdicts, time, &mut failures).await {
                Ok(all) => complete &= all,
                Err(error) => failures.add(format!("objects of kind {kind}"), error),
            }
        }
        self.compared = (complete && failures.is_empty()).then_some((now, verdicts));
        failures
    }
}

/// By object, as the model names it.
fn verdicts(model: &Model) -> BTreeMap<String, Verdict> {
    let verdict = |judged: &Judged| Verdict {
        accepted: judged.accepted,
        message: cut_to(judged.message.clone(), limits::CONDITION_BYTES),
        generation: judged.generation,
    };
    model.conditions.iter().map(|judged| (judged.object.to_string(), verdict(judged))).collect()
}

/// `Kind namespace/name`, as the model names it.
fn name(kind: Kind, object: &DynamicObject) -> String {
    match object.metadata.namespace.as_deref() {
        Some(namespace) if kind.is_namespaced() => format!("{kind} {namespace}/{}", object.name_any()),
        _ => format!("{kind} {}", object.name_any()),
    }
}

/// The condition that is there; one that can't be read is written anew.
fn present(object: &DynamicObject) -> Option<Condition> {
    let conditions = object.data.get("status")?.get("conditions")?.as_array()?;
    let ours =
        conditions.iter().find(|condition| condition.get("type").and_then(|kind| kind.as_str()) == Some(ACCEPTED))?;
    serde_json::from_value(ours.clone()).ok()
}

fn condition(verdict: &Verdict, present: Option<&Condition>, now: Timestamp) -> Condition {
    let status = if verdict.accepted { "True" } else { "False" };
    let since = present.filter(|present| present.status == status).map(|present| present.last_transition_time.clone());
    // Kubernetes keeps whole seconds.
    let now = Timestamp::from_second(now.as_second()).unwrap_or_default();
    let reason = match (verdict.accepted, verdict.message.is_empty()) {
        (true, true) => "Accepted",
        (true, false) => "AcceptedWithNotes",
        (false, _) => "Refused",
    };
    Condition {
        type_: ACCEPTED.to_owned(),
        status: status.to_owned(),
        observed_generation: Some(verdict.generation),
        last_transition_time: since.unwrap_or(Time(now)),
        reason: reason.to_owned(),
        message: if verdict.message.is_empty() { "in force".to_owned() } else { verdict.message.clone() },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn refused() -> Verdict {
        Verdict { accepted: false, message: "spec.mode: expected".to_owned(), generation: 2 }
    }

    fn object(status: serde_json::Value) -> DynamicObject {
        serde_json::from_value(json!({"apiVersion": "byrnie.dev/v1alpha1", "kind": "MtlsPolicy",
            "metadata": {"name": "open", "namespace": "shop", "generation": 2}, "status": status}))
        .unwrap()
    }

    #[test]
    fn a_condition_keeps_the_time_of_its_last_change() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let first = condition(&refused(), None, at(100));
        assert_eq!((first.status.as_str(), first.reason.as_str()), ("False", "Refused"));
        let read = present(&object(json!({"conditions": [first]}))).unwrap();
        assert_eq!(read, first);
        assert_eq!(condition(&refused(), Some(&read), at(200)), first);
        let newer = condition(&Verdict { generation: 3, ..refused() }, Some(&read), at(200));
        assert_eq!(newer.last_transition_time, first.last_transition_time);
        let good = Verdict { accepted: true, message: String::new(), generation: 4 };
        assert_eq!(condition(&good, Some(&read), at(300)).last_transition_time, Time(at(300)));
    }

    #[test]
    fn a_status_that_can_not_be_read_is_written_anew() {
        for status in [json!(null), json!([]), json!({"conditions": 7}), json!({"conditions": [{"type": "Accepted"}]})]
        {
            assert_eq!(present(&object(status)), None);
        }
        assert_eq!(name(Kind::MtlsPolicy, &object(json!({}))), "MtlsPolicy shop/open");
    }
}
