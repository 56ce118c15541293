//! Why a set of policies can't be taken.

use thiserror::Error;

/// A set of policies that is refused as a whole, because a part of it is not understood.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{place}: expected {expected}, found {found}; nothing of this set of policies is applied")]
pub struct PolicyError {
    /// Which field, such as `authorization[2].from[0].spiffe_id`, with the rule's name where it has one.
    pub place: String,
    /// What may stand there.
    pub expected: String,
    /// What stands there.
    pub found: String,
}

impl PolicyError {
    pub(crate) fn new(place: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self { place: place.into(), expected: expected.into(), found: found.into() }
    }

    /// The same, seen from the place that holds this one.
    pub(crate) fn within(mut self, outer: &str) -> Self {
        self.place = if self.place.is_empty() { outer.to_owned() } else { format!("{outer}.{}", self.place) };
        self
    }
}
