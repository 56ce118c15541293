//! Tells the story line by line: on standard output, or on standard error where that one belongs to the JSON.

use std::io::Write;
use std::time::Instant;

use crate::output::{bold, dim, green, red};

/// The voice of the demo.
#[derive(Debug)]
pub(super) struct Narrator {
    to_stderr: bool,
    started: Instant,
}

impl Narrator {
    /// With `json`, standard output is left alone.
    pub(super) fn new(json: bool) -> Self {
        Self { to_stderr: json, started: Instant::now() }
    }

    /// Seconds since the start.
    pub(super) fn elapsed(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// The headline.
    pub(super) fn title(&self, text: &str) {
        self.line(&bold(text));
    }

    /// A new part of the story.
    pub(super) fn part(&self, text: &str) {
        self.line(&format!("\n{} {}", bold(text), dim(&format!("({:.1} s)", self.elapsed()))));
    }

    /// What is going on.
    pub(super) fn note(&self, text: &str) {
        self.line(&format!("  {text}"));
    }

    /// What is shown as it is: bytes off the wire, a table.
    pub(super) fn quote(&self, text: &str) {
        for line in text.lines() {
            self.line(&format!("    {}", dim(line)));
        }
    }

    /// A promise and whether it was kept.
    pub(super) fn verdict(&self, passed: bool, name: &str, found: &str) {
        let mark = if passed { green("PASS") } else { red("FAIL") };
        self.line(&format!("  {mark} {name:<30} {found}"));
    }

    /// A line as it is.
    pub(super) fn line(&self, text: &str) {
        // A reader that has gone away does not stop the checks; the exit code still tells.
        let _ = if self.to_stderr {
            writeln!(anstream::stderr(), "{text}")
        } else {
            writeln!(anstream::stdout(), "{text}")
        };
    }
}
