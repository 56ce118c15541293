//! What became of each object, for those who wrote it.

use std::{collections::HashMap, sync::Arc};

use byrnie_proto::mesh::v1::ObjectStatus;

use super::builder::Builder;
use crate::source::{KUBERNETES, MeshedBy, Object, ObjectKey, Stored};

/// A change of one object's status.
pub(super) enum Amendment {
    /// It is not taken after all.
    Refused { object: String, message: String },
    /// It is taken, with a note.
    Note { object: String, message: String },
}

/// Whether an object of the mesh is in force: what its condition `Accepted` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Which object.
    pub object: Arc<ObjectKey>,
    /// `metadata.generation` of what was judged.
    pub generation: i64,
    /// It is in force.
    pub accepted: bool,
    /// Why it is not, or what there is to know of it; empty: nothing.
    pub message: String,
}

impl Builder<'_> {
    /// One for each of the mesh's own objects of which the source says a generation; the API server does.
    pub(super) fn conditions(&self) -> Vec<Condition> {
        if self.objects.generations.is_empty() {
            return Vec::new();
        }
        let mut told: HashMap<&str, &ObjectStatus> = HashMap::new();
        for status in &self.statuses {
            // Of one that is refused the last good version is in force, and says so of itself.
            let told = told.entry(&status.object).or_insert(status);
            if !status.accepted {
                *told = status;
            }
        }
        let condition = |(object, generation): (&Arc<ObjectKey>, &i64)| {
            let status = told.get(object.to_string().as_str())?;
            let (accepted, message) = (status.accepted, status.message.clone());
            Some(Condition { object: object.clone(), generation: *generation, accepted, message })
        };
        self.objects.generations.iter().filter_map(condition).collect()
    }

    pub(super) fn status(&mut self, key: &ObjectKey, stored: &Stored, taken: Result<Vec<String>, String>) {
        let accepted = taken.is_ok();
        let message = taken.map_or_else(|refused| format!("{}{refused}", stored.place()), |notes| notes.join("; "));
        // A cluster has thousands of pods and Services of which there is nothing to say.
        let ours = matches!(&*stored.object, Object::Mesh(_));
        if self.objects.meshed_by == MeshedBy::Sidecar && message.is_empty() && !ours {
            return;
        }
        self.statuses.push(ObjectStatus { object: key.to_string(), file: stored.file.to_string(), accepted, message });
    }

    /// Writes what was found out late into the statuses; of an object that had nothing to say there is none yet.
    pub(super) fn amend(&mut self) {
        let mut places: HashMap<String, usize> =
            self.statuses.iter().enumerate().map(|(place, status)| (status.object.clone(), place)).collect();
        for amendment in std::mem::take(&mut self.amendments) {
            let (object, message, refused) = match amendment {
                Amendment::Refused { object, message } => (object, message, true),
                Amendment::Note { object, message } => (object, message, false),
            };
            let place = *places.entry(object.clone()).or_insert_with(|| {
                let file = KUBERNETES.to_owned();
                self.statuses.push(ObjectStatus { object, file, accepted: true, message: String::new() });
                self.statuses.len() - 1
            });
            let Some(status) = self.statuses.get_mut(place) else {
                continue;
            };
            if refused {
                status.accepted = false;
                status.message = message;
            } else if status.accepted {
                let before = std::mem::take(&mut status.message);
                status.message = if before.is_empty() { message } else { format!("{before}; {message}") };
            }
        }
    }
}
