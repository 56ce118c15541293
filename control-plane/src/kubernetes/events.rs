//! Events (events.k8s.io/v1) for what an operator should see with `kubectl describe`. They are for people: bounded in
//! number, and nothing of the mesh depends on one being written.

use std::{collections::HashMap, time::Duration};

use aws_lc_rs::digest;
use byrnie_api::labels::CONTROL_PLANE;
use byrnie_identity::Clock;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

use super::client::{ApiError, Cluster, call};
use crate::{limits, proxies::cut_to};

/// Writes events, each cause once in a while.
pub(super) struct Events {
    recorder: Recorder,
    clock: Clock,
    /// What was told, and when.
    told: HashMap<[u8; 32], Duration>,
    left: f64,
    at: Duration,
}

impl Events {
    pub(super) fn new(cluster: &Cluster, clock: Clock) -> Self {
        Self::with(cluster.client.clone(), cluster.replica.clone(), clock)
    }

    fn with(client: Client, replica: String, clock: Clock) -> Self {
        let reporter = Reporter { controller: CONTROL_PLANE.to_owned(), instance: Some(replica) };
        let (left, at) = (f64::from(limits::EVENTS_BURST), clock.monotonic());
        Self { recorder: Recorder::new(client, reporter), clock, told: HashMap::new(), left, at }
    }

    /// Tells that something is wrong with an object, unless that was told lately or there is too much to tell.
    ///
    /// # Errors
    /// It could not be written, and is told at the next occasion.
    pub(super) async fn warn(
        &mut self,
        regarding: &ObjectReference,
        reason: &'static str,
        action: &'static str,
        note: String,
    ) -> Result<(), ApiError> {
        let now = self.clock.monotonic();
        let key = key(regarding, reason, &note);
        if self.told.get(&key).is_some_and(|told| now.saturating_sub(*told) < limits::EVENT_AGAIN) || !self.take(now) {
            return Ok(());
        }
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: Some(cut_to(note, limits::EVENT_NOTE_BYTES)),
            action: action.to_owned(),
            secondary: None,
        };
        call(self.recorder.publish(&event, regarding)).await?;
        if self.told.len() >= limits::EVENTS_REMEMBERED {
            self.told.retain(|_, told| now.saturating_sub(*told) < limits::EVENT_AGAIN);
        }
        if self.told.len() < limits::EVENTS_REMEMBERED {
            self.told.insert(key, now);
        }
        Ok(())
    }

    fn take(&mut self, now: Duration) -> bool {
        let grown = now.saturating_sub(self.at).as_secs_f64() * f64::from(limits::EVENTS_PER_SECOND);
        self.left = (self.left + grown).min(f64::from(limits::EVENTS_BURST));
        self.at = now;
        let enough = self.left >= 1.0;
        if enough {
            self.left -= 1.0;
        }
        enough
    }
}

fn key(regarding: &ObjectReference, reason: &str, note: &str) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    let parts = [&regarding.kind, &regarding.namespace, &regarding.name, &regarding.uid];
    for part in parts.into_iter().map(|part| part.as_deref().unwrap_or_default()).chain([reason, note]) {
        context.update(part.as_bytes());
        context.update(&[0]);
    }
    let mut key = [0; 32];
    key.copy_from_slice(context.finish().as_ref());
    key
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::time::SystemTime;

    use super::{
        super::testing::{Answer, fake},
        *,
    };

    fn about(name: &str) -> ObjectReference {
        ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: Some("shop".to_owned()),
            name: Some(name.to_owned()),
            ..ObjectReference::default()
        }
    }

    #[tokio::test]
    async fn a_cause_is_told_once_in_a_while_and_all_of_them_at_a_bounded_rate() {
        let (client, seen) = fake(|request| Answer::json(201, &request.json()));
        let (clock, time) = Clock::manual(SystemTime::now());
        let mut events = Events::with(client, "replica".to_owned(), clock);
        let written = || seen.lock().unwrap().len();
        for _ in 0..3 {
            events.warn(&about("web-0"), "CaptureLost", "Report", "it is gone".to_owned()).await.unwrap();
        }
        assert_eq!(written(), 1);
        assert_eq!(seen.lock().unwrap()[0].path, "/apis/events.k8s.io/v1/namespaces/shop/events");
        time.advance(limits::EVENT_AGAIN);
        events.warn(&about("web-0"), "CaptureLost", "Report", "it is gone".to_owned()).await.unwrap();
        assert_eq!(written(), 2);
        for number in 0..200 {
            events.warn(&about(&format!("web-{number}")), "CaptureLost", "Report", "x".repeat(5000)).await.unwrap();
        }
        assert_eq!(written(), 1 + limits::EVENTS_BURST as usize);
        let last = seen.lock().unwrap().last().unwrap().json();
        assert!(last["note"].as_str().unwrap().len() <= limits::EVENT_NOTE_BYTES);
    }

    #[tokio::test]
    async fn what_could_not_be_written_is_told_again() {
        let (client, seen) = fake(|_| Answer::status(403, "Forbidden"));
        let (clock, _) = Clock::manual(SystemTime::now());
        let mut events = Events::with(client, "replica".to_owned(), clock);
        for _ in 0..2 {
            events.warn(&about("web-0"), "CaptureLost", "Report", "it is gone".to_owned()).await.unwrap_err();
        }
        assert_eq!(seen.lock().unwrap().len(), 2);
    }
}
