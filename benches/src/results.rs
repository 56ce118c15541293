//! What was measured, and its arithmetic: medians, spreads, ratios. No I/O.

use serde::Serialize;

use crate::contestants::Contestant;
use crate::rows::{Better, Bound, Metric};
use crate::statistics::spread;

/// How one figure came out in one round.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// It was measured.
    Value(f64),
    /// Something failed, so that the figure would be of something else.
    Void(String),
    /// It could not be tried.
    NotRun(String),
}

/// One figure of one contestant in one round.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    pub(crate) round: u32,
    pub(crate) contestant: Contestant,
    pub(crate) metric: Metric,
    pub(crate) outcome: Outcome,
    /// Whether other programs, or the machine's host, took a share that shows.
    pub(crate) busy: bool,
}

/// All samples of a run.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Results {
    samples: Vec<Sample>,
}

/// One figure of one contestant over all rounds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Summary {
    /// Measured in every round in which it was tried.
    Measured(Spread),
    /// Void, for the first reason.
    Void(String),
    /// Not run, for this reason.
    NotRun(String),
}

/// A median and how far the rounds are apart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) greatest: f64,
    /// How many rounds.
    pub(crate) rounds: usize,
    /// In how many of them the machine was busy.
    pub(crate) busy: usize,
}

/// Whether a bound holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    Met,
    NotMet,
    /// There is nothing to compare.
    Unknown,
}

impl Results {
    /// One more sample.
    pub(crate) fn add(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    /// Adds the figures that are differences to `direct` in the same round.
    pub(crate) fn derive(&mut self) {
        let differences = Metric::ALL.into_iter().filter_map(|metric| Some((metric, metric.added_to()?)));
        let mut derived = Vec::new();
        for (metric, basis) in differences {
            for sample in self.samples.iter().filter(|sample| sample.metric == basis) {
                let direct = self.value(sample.round, Contestant::Direct, basis);
                let outcome = match (&sample.outcome, direct) {
                    (Outcome::Value(value), Some(direct)) => Outcome::Value(value - direct),
                    (Outcome::Value(_), None) => Outcome::NotRun("needs the figure of direct".to_owned()),
                    (other, _) => other.clone(),
                };
                derived.push(Sample { metric, outcome, ..sample.clone() });
            }
        }
        self.samples.extend(derived);
    }

    /// A contestant's figure over all rounds; nothing when it was never tried. One void round voids it, and so does one
    /// that could not be run after others were: an error is no matter of luck.
    pub(crate) fn summary(&self, contestant: Contestant, metric: Metric) -> Option<Summary> {
        let mut values = Vec::new();
        let (mut void, mut not_run, mut busy) = (None, None, 0);
        for sample in self.of(contestant, metric) {
            match &sample.outcome {
                Outcome::Value(value) => values.push(*value),
                Outcome::Void(reason) => void = void.or_else(|| Some(reason.clone())),
                Outcome::NotRun(reason) => not_run = not_run.or_else(|| Some(reason.clone())),
            }
            busy += usize::from(sample.busy);
        }
        if let Some(reason) = void.or_else(|| not_run.clone().filter(|_| !values.is_empty())) {
            return Some(Summary::Void(reason));
        }
        match spread(&mut values) {
            Some((median, least, greatest)) => {
                Some(Summary::Measured(Spread { median, least, greatest, rounds: values.len(), busy }))
            }
            None => not_run.map(Summary::NotRun),
        }
    }

    /// The median over the rounds of one contestant's figure divided by another's; nothing when either is void or was
    /// not measured, or where the other's is not above zero. A difference to `direct` may be near zero in a round, or below
    /// it: of differences it is the medians that are divided.
    pub(crate) fn ratio(&self, metric: Metric, of: Contestant, to: Contestant) -> Option<f64> {
        let (of_median, to_median) = (self.median(of, metric)?, self.median(to, metric)?);
        if metric.added_to().is_some() {
            return (to_median > 0.0).then(|| of_median / to_median);
        }
        let in_round = |sample: &Sample| {
            let (Outcome::Value(value), Some(other)) = (&sample.outcome, self.value(sample.round, to, metric)) else {
                return None;
            };
            (other > 0.0).then(|| value / other)
        };
        let mut ratios: Vec<f64> = self.of(of, metric).filter_map(in_round).collect();
        spread(&mut ratios).map(|(median, _, _)| median)
    }

    /// A contestant's median; nothing where the figure is void or was not measured.
    fn median(&self, contestant: Contestant, metric: Metric) -> Option<f64> {
        match self.summary(contestant, metric)? {
            Summary::Measured(spread) => Some(spread.median),
            Summary::Void(_) | Summary::NotRun(_) => None,
        }
    }

    /// Whether Byrnie's figure is within a bound.
    pub(crate) fn verdict(&self, metric: Metric, bound: Bound) -> Verdict {
        let (found, wanted) = match bound {
            Bound::Times(times, other) => (self.ratio(metric, Contestant::Byrnie, other), times),
            Bound::Absolute(wanted) => (self.median(Contestant::Byrnie, metric), wanted),
        };
        match (found, metric.about().better) {
            (None, _) => Verdict::Unknown,
            (Some(found), Better::Higher) if found >= wanted => Verdict::Met,
            (Some(found), Better::Lower) if found <= wanted => Verdict::Met,
            (Some(_), _) => Verdict::NotMet,
        }
    }

    /// Whether anything was measured at all.
    pub(crate) fn has_values(&self) -> bool {
        self.samples.iter().any(|sample| matches!(sample.outcome, Outcome::Value(_)))
    }

    fn of(&self, contestant: Contestant, metric: Metric) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| sample.contestant == contestant && sample.metric == metric)
    }

    fn value(&self, round: u32, contestant: Contestant, metric: Metric) -> Option<f64> {
        let sample = self.of(contestant, metric).find(|sample| sample.round == round)?;
        match sample.outcome {
            Outcome::Value(value) => Some(value),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRIC: Metric = Metric::KeepaliveRequests;

    fn results(of: &[(Contestant, &[f64])]) -> Results {
        let mut results = Results::default();
        for (contestant, values) in of {
            for (round, value) in (1..).zip(*values) {
                results.add(sample(round, *contestant, METRIC, Outcome::Value(*value)));
            }
        }
        results
    }

    fn sample(round: u32, contestant: Contestant, metric: Metric, outcome: Outcome) -> Sample {
        Sample { round, contestant, metric, outcome, busy: false }
    }

    #[test]
    fn a_ratio_compares_within_a_round_before_it_takes_the_median() {
        // A machine that is half as fast in the second round changes no ratio.
        let results =
            results(&[(Contestant::Byrnie, &[120.0, 60.0, 120.0]), (Contestant::Relay, &[100.0, 50.0, 100.0])]);
        assert_eq!(results.ratio(METRIC, Contestant::Byrnie, Contestant::Relay), Some(1.2));
        assert_eq!(results.ratio(METRIC, Contestant::Byrnie, Contestant::EnvoyL4), None);
    }

    #[test]
    fn nothing_is_divided_by_zero_or_less() {
        let results = results(&[(Contestant::Byrnie, &[1.0, 1.0]), (Contestant::EnvoyL4, &[0.0, -1.0])]);
        assert_eq!(results.ratio(METRIC, Contestant::Byrnie, Contestant::EnvoyL4), None);
    }

    #[test]
    fn a_round_in_which_a_difference_is_negative_makes_no_ratio_of_its_own() {
        let mut results = Results::default();
        for (round, byrnie, envoy) in [(1, 0.6, 0.5), (2, -3.0, -2.0), (3, 0.4, 0.8)] {
            results.add(sample(round, Contestant::Byrnie, Metric::AddedP99, Outcome::Value(byrnie)));
            results.add(sample(round, Contestant::EnvoyL4, Metric::AddedP99, Outcome::Value(envoy)));
        }
        assert_eq!(results.ratio(Metric::AddedP99, Contestant::Byrnie, Contestant::EnvoyL4), Some(0.8));
    }

    #[test]
    fn who_stops_in_a_later_round_has_no_figure() {
        let mut results = results(&[(Contestant::Byrnie, &[120.0, 60.0])]);
        results.add(sample(3, Contestant::Byrnie, METRIC, Outcome::NotRun("the proxy ended".to_owned())));
        assert_eq!(results.summary(Contestant::Byrnie, METRIC), Some(Summary::Void("the proxy ended".to_owned())));
    }

    #[test]
    fn one_round_with_an_error_voids_the_figure_and_its_ratios() {
        let mut results = results(&[(Contestant::Byrnie, &[120.0, 60.0]), (Contestant::Relay, &[100.0, 50.0, 100.0])]);
        results.add(sample(3, Contestant::Byrnie, METRIC, Outcome::Void("3 read errors".to_owned())));
        let summary = results.summary(Contestant::Byrnie, METRIC);
        assert_eq!(summary, Some(Summary::Void("3 read errors".to_owned())));
        assert_eq!(results.ratio(METRIC, Contestant::Byrnie, Contestant::Relay), None);
        assert_eq!(results.verdict(METRIC, Bound::Times(1.0, Contestant::Relay)), Verdict::Unknown);
    }

    #[test]
    fn what_was_not_run_keeps_its_reason_and_what_was_not_asked_has_none() {
        let mut results = Results::default();
        results.add(sample(1, Contestant::Relay, METRIC, Outcome::NotRun("no haproxy".to_owned())));
        let summary = results.summary(Contestant::Relay, METRIC);
        assert_eq!(summary, Some(Summary::NotRun("no haproxy".to_owned())));
        assert_eq!(results.summary(Contestant::Direct, METRIC), None);
        assert!(!results.has_values());
    }

    #[test]
    fn a_bound_looks_in_the_direction_that_is_better() {
        let results = results(&[(Contestant::Byrnie, &[120.0]), (Contestant::Relay, &[100.0])]);
        let more = |times| results.verdict(METRIC, Bound::Times(times, Contestant::Relay));
        assert_eq!(more(1.2), Verdict::Met);
        assert_eq!(more(1.3), Verdict::NotMet);
        let mut results = Results::default();
        results.add(sample(1, Contestant::Byrnie, Metric::Cold, Outcome::Value(4.5)));
        assert_eq!(results.verdict(Metric::Cold, Bound::Absolute(10.0)), Verdict::Met);
        assert_eq!(results.verdict(Metric::Cold, Bound::Absolute(4.0)), Verdict::NotMet);
    }

    #[test]
    fn an_added_latency_is_the_difference_to_direct_in_the_same_round() {
        let mut results = Results::default();
        for (round, direct, byrnie) in [(1, 0.2, 0.5), (2, 0.4, 0.7), (3, 0.1, 0.3)] {
            results.add(sample(round, Contestant::Direct, Metric::RateP50, Outcome::Value(direct)));
            results.add(sample(round, Contestant::Byrnie, Metric::RateP50, Outcome::Value(byrnie)));
        }
        results.derive();
        assert!(results.median(Contestant::Byrnie, Metric::AddedP50).is_some_and(|median| (median - 0.3).abs() < 1e-9));
        assert!(results.median(Contestant::Direct, Metric::AddedP50).is_some_and(|median| median.abs() < 1e-9));
    }

    #[test]
    fn rounds_on_a_busy_machine_are_counted() {
        let mut results = results(&[(Contestant::Byrnie, &[1.0, 2.0])]);
        results.add(Sample { busy: true, ..sample(3, Contestant::Byrnie, METRIC, Outcome::Value(3.0)) });
        let Some(Summary::Measured(spread)) = results.summary(Contestant::Byrnie, METRIC) else { panic!("a summary") };
        assert_eq!((spread.rounds, spread.busy), (3, 1));
    }
}
