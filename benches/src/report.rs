//! The report: Markdown for people, JSON for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::contestants::Contestant;
use crate::results::{Outcome, Results, Spread, Summary, Verdict};
use crate::rig::Seen;
use crate::rows::{Better, Bound, Metric};

/// What the figures were measured on.
#[derive(Debug, Clone)]
pub(crate) struct Conditions {
    /// Date and time, UTC.
    pub(crate) when: String,
    /// Processor, cores, memory, kernel.
    pub(crate) machine: String,
    /// Names and versions.
    pub(crate) programs: Vec<(&'static str, String)>,
    /// TCP congestion control of the pods.
    pub(crate) congestion_control: String,
    /// How many rounds were measured.
    pub(crate) rounds: u32,
    /// The length of a load.
    pub(crate) seconds: u32,
}

/// Everything that a report says.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    pub(crate) conditions: Conditions,
    pub(crate) contestants: Vec<Contestant>,
    pub(crate) seen: Vec<Seen>,
    pub(crate) results: Results,
}

impl Report {
    /// For people.
    pub(crate) fn markdown(&self) -> String {
        let Conditions { when, machine, programs, congestion_control, rounds, seconds } = &self.conditions;
        let programs: Vec<_> = programs.iter().map(|(name, version)| format!("{name} {version}")).collect();
        let mut text = format!(
            "Measured {when} on {machine}; {}. TCP congestion control: {congestion_control}. Rounds: {rounds}, loads of \
             {seconds} s. Medians, with the least and the greatest; ratios are medians of the ratios within a \
             round, and of added latencies the ratios of the medians.\n\n",
            programs.join(", ")
        );
        self.figures(&mut text);
        self.remarks(&mut text);
        text
    }

    /// For programs: every sample, and what they come to.
    pub(crate) fn json(&self) -> Value {
        let Conditions { when, machine, programs, congestion_control, rounds, seconds } = &self.conditions;
        let metrics = Metric::ALL.into_iter().filter(|metric| self.has(*metric)).map(|metric| {
            let of = |contestant: &Contestant| {
                let summary = self.results.summary(*contestant, metric)?;
                Some((contestant.name().to_owned(), summary_json(&summary)))
            };
            let ratio = |to: Contestant| {
                let ratio = self.results.ratio(metric, Contestant::Byrnie, to)?;
                Some((to.name().to_owned(), json!(ratio)))
            };
            json!({
                "metric": metric,
                "title": metric.about().title,
                "better": if metric.about().better == Better::Higher { "higher" } else { "lower" },
                "contestants": self.contestants.iter().filter_map(of).collect::<serde_json::Map<_, _>>(),
                "byrnie-to": self.compared().filter_map(ratio).collect::<serde_json::Map<_, _>>(),
                "first-target": metric.about().first.map(|bound| self.bound_json(metric, bound)),
                "goal": metric.about().goal.map(|bound| self.bound_json(metric, bound)),
            })
        });
        let wire = self.seen.iter().map(|seen| match &seen.on_the_wire {
            Ok(words) => (seen.contestant.name().to_owned(), json!({"seen": words})),
            Err(failure) => (seen.contestant.name().to_owned(), json!({"out": failure.to_string()})),
        });
        json!({
            "measured": when,
            "machine": machine,
            "programs": programs.iter().map(|(name, version)| ((*name).to_owned(), json!(version))).collect::<serde_json::Map<_, _>>(),
            "congestion_control": congestion_control,
            "rounds": rounds,
            "seconds": seconds,
            "wire": wire.collect::<serde_json::Map<_, _>>(),
            "metrics": metrics.collect::<Vec<_>>(),
            "results": self.results,
        })
    }

    fn has(&self, metric: Metric) -> bool {
        self.contestants.iter().any(|contestant| self.results.summary(*contestant, metric).is_some())
    }

    /// With whom Byrnie is compared by a ratio.
    fn compared(&self) -> impl Iterator<Item = Contestant> {
        self.contestants.iter().copied().filter(|one| *one != Contestant::Byrnie)
    }

    fn figures(&self, text: &mut String) {
        let names: String = self.contestants.iter().map(|contestant| format!(" {} |", contestant.name())).collect();
        let compared: String = self.compared().map(|to| format!(" ÷ {} |", to.name())).collect();
        let rule = "---:|".repeat(self.contestants.len() + self.compared().count());
        let _ = writeln!(text, "| |{names}{compared} first target | goal |\n|---|{rule}---|---|");
        for metric in Metric::ALL.into_iter().filter(|metric| self.has(*metric)) {
            let about = metric.about();
            let _ = write!(text, "| {} |", about.title);
            for contestant in &self.contestants {
                let _ = write!(text, " {} |", cell(metric, self.results.summary(*contestant, metric).as_ref()));
            }
            for to in self.compared() {
                let ratio = self.results.ratio(metric, Contestant::Byrnie, to);
                let _ = write!(text, " {} |", ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default());
            }
            let _ = writeln!(text, " {} | {} |", self.bound(metric, about.first), self.bound(metric, about.goal));
        }
    }

    /// Why cells are empty, what was on the wire, and whether the machine was busy.
    fn remarks(&self, text: &mut String) {
        let mut reasons: Vec<String> = Vec::new();
        let (mut samples, mut busy) = (0, 0);
        for metric in Metric::ALL {
            for contestant in &self.contestants {
                let reason = match self.results.summary(*contestant, metric) {
                    Some(Summary::Void(reason)) => {
                        format!("`{}`, {}: void: {reason}", contestant.name(), metric.row().name())
                    }
                    Some(Summary::NotRun(reason)) => {
                        format!("`{}`, {}: not run: {reason}", contestant.name(), metric.row().name())
                    }
                    Some(Summary::Measured(spread)) => {
                        (samples, busy) = (samples + spread.rounds, busy + spread.busy);
                        continue;
                    }
                    None => continue,
                };
                let reason = reason.replace('\n', " ");
                if !reasons.contains(&reason) {
                    reasons.push(reason);
                }
            }
        }
        if busy > 0 {
            let _ = writeln!(
                text,
                "\n† {busy} of {samples} figures were measured while other programs (or the host of this machine) used more than \
                 5 % of it; `2/5†` says in how many rounds. Ratios suffer less than figures, but they do suffer."
            );
        } else {
            let _ = writeln!(text, "\nNothing else used more than 5 % of the machine during any load.");
        }
        text.push_str("\nOn the wire between the pods, for one request and its answer:\n\n");
        for seen in &self.seen {
            let words = seen.on_the_wire.as_ref().map_or_else(|failure| format!("out: {failure}"), Clone::clone);
            let _ = writeln!(text, "* `{}`: {}", seen.contestant.name(), words.replace('\n', " "));
        }
        if !reasons.is_empty() {
            text.push_str("\nWithout figures:\n\n");
            for reason in reasons {
                let _ = writeln!(text, "* {reason}");
            }
        }
    }

    fn bound(&self, metric: Metric, bound: Option<Bound>) -> String {
        let Some(bound) = bound else { return String::new() };
        let sign = if metric.about().better == Better::Higher { "≥" } else { "≤" };
        let wanted = match bound {
            Bound::Times(times, other) => format!("{sign} {times} × {}", other.name()),
            Bound::Absolute(value) => format!("{sign} {value}"),
        };
        match self.results.verdict(metric, bound) {
            Verdict::Met => format!("{wanted}: met"),
            Verdict::NotMet => format!("{wanted}: **not met**"),
            Verdict::Unknown => format!("{wanted}: unknown"),
        }
    }

    fn bound_json(&self, metric: Metric, bound: Bound) -> Value {
        let verdict = match self.results.verdict(metric, bound) {
            Verdict::Met => Some(true),
            Verdict::NotMet => Some(false),
            Verdict::Unknown => None,
        };
        match bound {
            Bound::Times(times, other) => json!({"times": times, "of": other.name(), "met": verdict}),
            Bound::Absolute(value) => json!({"value": value, "met": verdict}),
        }
    }
}

fn cell(metric: Metric, summary: Option<&Summary>) -> String {
    let digits = metric.about().digits;
    match summary {
        Some(Summary::Measured(Spread { median, least, greatest, rounds, busy })) => {
            let dagger = if *busy > 0 { format!(" {busy}/{rounds}†") } else { String::new() };
            format!("{} ({}–{}){dagger}", number(*median, digits), number(*least, digits), number(*greatest, digits))
        }
        Some(Summary::Void(_)) => "void".to_owned(),
        Some(Summary::NotRun(_)) => "not run".to_owned(),
        None => String::new(),
    }
}

/// A number with its thousands apart.
fn number(value: f64, digits: usize) -> String {
    let plain = format!("{value:.digits$}");
    let (whole, rest) = plain.split_once('.').map_or((plain.as_str(), None), |(whole, rest)| (whole, Some(rest)));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |whole| ("-", whole));
    let mut text = String::from(sign);
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if let Some(rest) = rest {
        text.push('.');
        text.push_str(rest);
    }
    text
}

fn summary_json(summary: &Summary) -> Value {
    match summary {
        Summary::Measured(spread) => json!(spread),
        Summary::Void(reason) => json!(Outcome::Void(reason.clone())),
        Summary::NotRun(reason) => json!(Outcome::NotRun(reason.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Sample;

    fn report(samples: &[(Contestant, Outcome)]) -> Report {
        let mut results = Results::default();
        for (contestant, outcome) in samples {
            let (metric, outcome) = (Metric::KeepaliveRequests, outcome.clone());
            results.add(Sample {
                round: 1,
                contestant: *contestant,
                metric,
                outcome,
                busy: *contestant == Contestant::Relay,
            });
        }
        let conditions = Conditions {
            when: "2026-11-28 12:00".to_owned(),
            machine: "two cores".to_owned(),
            programs: vec![("nginx", "1.22.1".to_owned())],
            congestion_control: "cubic".to_owned(),
            rounds: 1,
            seconds: 5,
        };
        let contestants = Contestant::ALL.into_iter().filter(|one| one.takes_part_unchosen()).collect();
        Report { conditions, contestants, seen: Vec::new(), results }
    }

    #[test]
    fn numbers_have_their_thousands_apart() {
        assert_eq!(number(1_234_567.4, 0), "1,234,567");
        assert_eq!(number(-1234.5, 1), "-1,234.5");
        assert_eq!(number(0.151, 3), "0.151");
        assert_eq!(number(100.0, 0), "100");
    }

    #[test]
    fn a_line_has_every_contestant_the_ratios_and_both_verdicts() {
        let text = report(&[
            (Contestant::Direct, Outcome::Value(120_000.0)),
            (Contestant::Relay, Outcome::Value(30_000.0)),
            (Contestant::EnvoyL4, Outcome::Value(20_000.0)),
            (Contestant::EnvoyHttp, Outcome::Void("status 503".to_owned())),
            (Contestant::Byrnie, Outcome::Value(30_000.0)),
        ])
        .markdown();
        let line = text.lines().find(|line| line.starts_with("| HTTP/1.1")).expect("the line");
        assert!(line.contains(" 120,000 (120,000–120,000) | 30,000 (30,000–30,000) 1/1† |"), "{line}");
        assert!(line.contains("| void | 30,000 (30,000–30,000) | 0.25 | 1.00 | 1.50 |  |"), "{line}");
        assert!(line.ends_with("| ≥ 1.2 × envoy-l4: met | ≥ 1.1 × relay: **not met** |"), "{line}");
        assert!(text.contains("* `envoy-http`, keepalive: void: status 503"), "{text}");
        assert!(text.contains("† 1 of 4 figures"), "{text}");
    }

    #[test]
    fn the_json_has_samples_and_verdicts() {
        let value =
            report(&[(Contestant::EnvoyL4, Outcome::Value(20_000.0)), (Contestant::Byrnie, Outcome::Value(30_000.0))])
                .json();
        assert_eq!(value.pointer("/metrics/0/contestants/byrnie/median"), Some(&json!(30_000.0)));
        assert_eq!(value.pointer("/metrics/0/byrnie-to/envoy-l4"), Some(&json!(1.5)));
        assert_eq!(value.pointer("/metrics/0/first-target/met"), Some(&json!(true)));
        assert_eq!(value.pointer("/metrics/0/goal/met"), Some(&Value::Null));
        assert_eq!(value.pointer("/results/samples/1/outcome/value"), Some(&json!(30_000.0)));
    }
}
