//! What is wrong with an object that someone wrote, said so that they can mend it.

use std::fmt;

use serde_json::Value;
use thiserror::Error;

use crate::Object;

/// The words in every [`Problem`] about something that Byrnie's design has and this version does not do.
pub const NOT_SUPPORTED_YET: &str = "not supported yet";

/// One thing that is wrong at one place of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The field, such as `spec.rules[0].to[0].ports[1]`.
    pub path: String,
    /// What may stand there.
    pub expected: String,
    /// What stands there.
    pub found: String,
    /// What to do, or why it is so; empty where the rest says it.
    pub hint: String,
}

impl Problem {
    /// What may stand at `path`, and what stands there.
    pub fn new(path: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self { path: path.into(), expected: expected.into(), found: found.into(), hint: String::new() }
    }

    /// The same with what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Whether it is refused only because this version does not do it.
    pub fn is_not_supported_yet(&self) -> bool {
        self.hint.starts_with(NOT_SUPPORTED_YET)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, found {}", self.path, self.expected, self.found)?;
        if !self.hint.is_empty() {
            write!(f, " ({})", self.hint)?;
        }
        Ok(())
    }
}

/// An object that is refused, with everything that is wrong with it.
#[derive(Clone, Debug, PartialEq, Error)]
#[error("{object} is refused: {}", in_words(.problems))]
pub struct ParseError {
    /// `Kind namespace/name`, as far as it can be read.
    pub object: String,
    /// At least one.
    pub problems: Vec<Problem>,
    pub(crate) stand_in: Option<Box<Object>>,
}

impl ParseError {
    /// What [`crate::compile`] must be given in the place of the object where no good earlier version of it is held.
    ///
    /// An `AuthorizationPolicy` or `MtlsPolicy` that nobody understood may have been there to forbid something: left
    /// out, it would open what it was to close. `None` where leaving it out opens nothing.
    pub fn stand_in(&self) -> Option<&Object> {
        self.stand_in.as_deref()
    }
}

fn in_words(problems: &[Problem]) -> String {
    let words: Vec<String> = problems.iter().map(ToString::to_string).collect();
    words.join("; ")
}

/// A value that someone else wrote, short enough for an error message.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(_) | Value::Number(_) => format!("`{value}`"),
        Value::String(text) => quote(text),
        Value::Array(items) if items.is_empty() => "an empty list".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "fields".to_owned(),
    }
}

/// An error and what is behind it: the outer ones of an HTTP client say nothing by themselves.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut inner = error.source();
    while let Some(error) = inner {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        inner = error.source();
    }
    text
}

/// A text that someone else wrote, in quotes, without control characters and of bounded length.
pub fn quote(text: &str) -> String {
    const MOST: usize = 80;
    let start: String = text.chars().take(MOST).flat_map(char::escape_debug).collect();
    let more = if text.chars().nth(MOST).is_some() { "…" } else { "" };
    format!("`{start}{more}`")
}
