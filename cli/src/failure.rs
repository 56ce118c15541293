//! How the command ends: exit codes that scripts may rely on, and errors that name the next step.

use std::fmt;
use std::process::ExitCode;

/// The exit codes, documented in `byrnie --help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done; every check passed.
    Success = 0,
    /// The answer is no: a check failed, an edge is not secured, a certificate does not verify.
    Negative = 1,
    /// The command line is wrong.
    Usage = 2,
    /// This kernel, or its policy, does not allow what is needed.
    KernelCannot = 3,
    /// No mesh answers at the socket.
    Unreachable = 4,
    /// The mesh answered, and refused or failed.
    Refused = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command could not do its work: what was expected, what was found, and what to run next.
#[derive(Debug, thiserror::Error)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// One line: what went wrong.
    pub summary: String,
    /// What should have been there.
    pub expected: Option<String>,
    /// What was there instead.
    pub found: Option<String>,
    /// The command to run next, or what to change.
    pub next: Option<String>,
}

impl Failure {
    /// A failure that so far says only what went wrong.
    pub fn new(exit: Exit, summary: impl Into<String>) -> Self {
        Self { exit, summary: summary.into(), expected: None, found: None, next: None }
    }

    /// The same with what was expected.
    #[must_use]
    pub fn expected(mut self, text: impl Into<String>) -> Self {
        self.expected = Some(text.into());
        self
    }

    /// The same with what was found.
    #[must_use]
    pub fn found(mut self, text: impl fmt::Display) -> Self {
        self.found = Some(text.to_string());
        self
    }

    /// The same with what to do now.
    #[must_use]
    pub fn next(mut self, text: impl Into<String>) -> Self {
        self.next = Some(text.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.summary)?;
        for (label, text) in [("expected", &self.expected), ("found", &self.found), ("next", &self.next)] {
            if let Some(text) = text {
                write!(f, "\n  {label:<9} {}", text.replace('\n', "\n            "))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_was_expected_what_was_found_and_what_to_run() {
        let failure = Failure::new(Exit::Unreachable, "no mesh named `demo` answers")
            .expected("a control plane at /run/x")
            .found("no such file")
            .next("byrnie demo");
        assert_eq!(
            failure.to_string(),
            "no mesh named `demo` answers\n  expected  a control plane at /run/x\n  found     no such file\n  next      byrnie demo"
        );
    }
}
