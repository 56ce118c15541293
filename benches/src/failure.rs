//! What went wrong, in words: where, and what was found. Nothing here is told apart by kind: a failure voids a sample,
//! keeps a contestant out, or ends the run, and is printed in each case.

use std::fmt;

/// A failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure(String);

/// A value, or why there is none.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// With these words.
    pub(crate) fn new(words: impl fmt::Display) -> Self {
        Self(words.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Puts what was being done before an error's own words: for `map_err`.
pub(crate) fn doing<E: fmt::Display>(what: impl fmt::Display) -> impl FnOnce(E) -> Failure {
    move |error| Failure(format!("{what}: {error}"))
}
