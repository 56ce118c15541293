//! `byrnie check` for a cluster: from an empty one to a mesh that is well, step by step. A step that rests on one that
//! failed is not run, so that the first line that is not green is the one to mend.

mod steps;

use serde::Serialize;

use crate::args::{CheckArgs, MeshArgs};
use crate::client::runtime;
use crate::cluster::Cluster;
use crate::failure::{Exit, Failure};
use crate::output::{Cell, Row, print_list};

/// How a step went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Outcome {
    /// As it should be.
    Ok,
    /// It works, and should not stay so.
    Warning,
    /// It does not work.
    Failed,
    /// Another step must be right first.
    NotRun,
}

/// One line of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Step {
    /// What was looked at.
    pub(super) check: &'static str,
    /// How it went.
    pub(super) outcome: Outcome,
    /// What was found.
    pub(super) found: String,
    /// What to do.
    pub(super) next: Option<String>,
}

impl Step {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, outcome: Outcome::Ok, found: found.into(), next: None }
    }

    fn warning(check: &'static str, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self { check, outcome: Outcome::Warning, found: found.into(), next: Some(next.into()) }
    }

    fn failed(check: &'static str, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self { check, outcome: Outcome::Failed, found: found.into(), next: Some(next.into()) }
    }

    fn from_failure(check: &'static str, failure: &Failure) -> Self {
        let found = match &failure.found {
            Some(found) => format!("{}: {found}", failure.summary),
            None => failure.summary.clone(),
        };
        Self { check, outcome: Outcome::Failed, found, next: failure.next.clone() }
    }
}

/// Names of the steps that need an installation, in their order.
const AFTER_INSTALLATION: [&str; 9] = [
    "definitions",
    "permissions",
    "services",
    "control plane",
    "injector",
    "webhooks",
    "trust bundles",
    "pods",
    "mesh",
];

pub(super) fn run(mesh: &MeshArgs, options: &CheckArgs) -> Result<Exit, Failure> {
    let steps = runtime()?.block_on(all(mesh, options));
    print_list(&steps, options.output, "")?;
    Ok(verdict(&steps, options.fail_on_warning))
}

async fn all(mesh: &MeshArgs, options: &CheckArgs) -> Vec<Step> {
    let cluster = match Cluster::connect(mesh).await {
        Ok(cluster) => cluster,
        Err(failure) => return vec![Step::from_failure("API server", &failure)],
    };
    let first = steps::api_server(&cluster).await;
    if first.outcome == Outcome::Failed {
        return vec![first];
    }
    let mut done = vec![first, steps::installation(&cluster).await];
    if done.iter().any(|step| step.outcome == Outcome::Failed) {
        let not_run = |check| Step { check, outcome: Outcome::NotRun, found: "-".to_owned(), next: None };
        done.extend(AFTER_INSTALLATION.map(not_run));
        return done;
    }
    done.push(steps::definitions(&cluster).await);
    done.push(steps::permissions(&cluster).await);
    done.push(steps::services(&cluster).await);
    done.push(steps::control_plane(&cluster).await);
    done.push(steps::injector(&cluster).await);
    done.push(steps::webhooks(&cluster).await);
    done.extend(steps::trust_bundles(&cluster).await);
    done.extend(steps::pods(&cluster).await);
    done.extend(steps::mesh(&cluster, options.min_cert_days).await);
    done
}

fn verdict(steps: &[Step], fail_on_warning: bool) -> Exit {
    let has = |outcome| steps.iter().any(|step| step.outcome == outcome);
    if has(Outcome::Failed) || (fail_on_warning && has(Outcome::Warning)) { Exit::Negative } else { Exit::Success }
}

impl Row for Step {
    const HEADINGS: &'static [&'static str] = &["CHECK", "RESULT", "FOUND", "NEXT"];
    const WIDE_HEADINGS: &'static [&'static str] = &[];
    fn cells(&self) -> Vec<Cell> {
        let result = match self.outcome {
            Outcome::Ok => Cell::from("ok").good(),
            Outcome::Warning => Cell::from("warning").worth_a_look(),
            Outcome::Failed => Cell::from("failed").bad(),
            Outcome::NotRun => "not run".into(),
        };
        // A table has one line for each step; JSON has all of them.
        let first = self.found.lines().next().unwrap_or_default();
        let more = self.found.lines().count().saturating_sub(1);
        let found = if more == 0 {
            first.to_owned()
        } else {
            format!("{first} ({})", self.found.lines().nth(1).unwrap_or_default())
        };
        vec![self.check.into(), result, found.into(), Cell::optional(self.next.as_deref())]
    }
    fn wide_cells(&self) -> Vec<Cell> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_fails_only_where_it_is_to() {
        let steps = [Step::ok("a", "well"), Step::warning("b", "soon", "renew")];
        assert_eq!(verdict(&steps, false), Exit::Success);
        assert_eq!(verdict(&steps, true), Exit::Negative);
        assert_eq!(verdict(&[Step::failed("a", "gone", "install")], false), Exit::Negative);
    }

    #[test]
    fn every_step_that_is_not_well_says_what_to_do() {
        let failure =
            Failure::new(Exit::Refused, "cannot list pods").found("403: no").next("kubectl auth can-i --list");
        let step = Step::from_failure("pods", &failure);
        assert_eq!(step.found, "cannot list pods: 403: no");
        assert!(step.next.is_some());
    }
}
