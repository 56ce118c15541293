//! A small `main` for tests that run in a lab. The standard harness starts
//! threads before a test may make namespaces, so such a test has
//! `harness = false` and calls [`main`].

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::{Entered, enter, shim};

/// One test: its name reads as a sentence, and its function panics when the
/// sentence is not true.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// The name.
    pub name: &'static str,
    /// The test.
    pub run: fn(&Entered) -> Verdict,
}

/// The scenarios of some modules: `sentences![module: [function, …], …]`. Each is run by the function `run` that is in scope
/// where this stands.
#[macro_export]
macro_rules! sentences {
    ($($module:ident: [$($name:ident),* $(,)?]),* $(,)?) => {
        &[$($($crate::harness::Scenario {
            name: stringify!($name),
            run: |entered| run(entered, stringify!($name), $module::$name),
        }),*),*]
    };
}

/// How a scenario that did not panic ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It passed.
    Passed,
    /// It could not run here, for this reason.
    NotRun(String),
}

/// A helper program inside the test program: `PROGRAM role NAME ARGS…` runs
/// it, outside of any test.
#[derive(Debug, Clone, Copy)]
pub struct Role {
    /// Its name.
    pub name: &'static str,
    /// Its main function; gets what follows the name.
    pub run: fn(&[String]) -> ExitCode,
}

/// The scenarios of a test program, by module: `scenarios![reach: [one, two],
/// wire: [three]]` is a slice of [`Scenario`] for [`main`].
#[macro_export]
macro_rules! scenarios {
    ($($module:ident: [$($name:ident),* $(,)?]),* $(,)?) => {
        &[$($($crate::harness::Scenario {
            name: stringify!($name),
            run: $module::$name,
        }),*),*]
    };
}

/// Runs the scenarios whose name contains one of the arguments (all, without
/// arguments), `--test-threads N` at a time (by default, as many as there are
/// processors). Understands `--list`, `--exact` and `--skip` as the standard
/// harness does, and passes over its other flags.
///
/// Where the kernel does not allow a lab, it says so in one line per scenario
/// and succeeds; with `BYRNIE_REQUIRE_LAB` in the environment, it fails.
pub fn main(scenarios: &[Scenario], roles: &[Role]) -> ExitCode {
    main_with(scenarios, roles, &Settings::default())
}

/// What a test program may choose.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Scenarios at a time, where no argument says otherwise.
    pub threads: usize,
    /// Runs inside, before the first scenario; returns what runs after the
    /// last one, which returns everything that is wrong then, one line each.
    pub around: fn() -> Box<dyn FnOnce() -> Vec<String>>,
}

impl Default for Settings {
    /// As many at a time as there are processors, and nothing around them.
    fn default() -> Self {
        Self { threads: std::thread::available_parallelism().map_or(1, usize::from), around: || Box::new(Vec::new) }
    }
}

/// As [`main`], with choices.
pub fn main_with(scenarios: &[Scenario], roles: &[Role], settings: &Settings) -> ExitCode {
    shim::maybe_run();
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [word, name, rest @ ..] = args.as_slice()
        && word == "role"
    {
        let role = roles.iter().find(|role| role.name == name);
        return role.map_or(ExitCode::from(64), |role| (role.run)(rest));
    }
    let options = Options::parse(&args, settings.threads);
    let chosen: Vec<Scenario> = scenarios.iter().filter(|scenario| options.wants(scenario.name)).copied().collect();
    if options.list {
        for scenario in &chosen {
            println!("{}: test", scenario.name);
        }
        return ExitCode::SUCCESS;
    }
    match enter() {
        Ok(entered) => run_all(&entered, &chosen, options.threads, settings),
        Err(reason) => {
            for scenario in &chosen {
                println!("test {} ... not run", scenario.name);
            }
            println!("\nnot run: {reason}\n0 passed, 0 failed, {} skipped", chosen.len());
            if std::env::var_os("BYRNIE_REQUIRE_LAB").is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
    }
}

fn run_all(entered: &Entered, scenarios: &[Scenario], threads: usize, settings: &Settings) -> ExitCode {
    println!("\nrunning {} scenarios ({:?})", scenarios.len(), entered.privileges());
    let started = Instant::now();
    let afterwards = (settings.around)();
    let next = AtomicUsize::new(0);
    let tally = Mutex::new(Tally::default());
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, scenarios.len().max(1)) {
            scope.spawn(|| {
                while let Some(scenario) = scenarios.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (begun, outcome) = (Instant::now(), run_one(entered, scenario));
                    if let Ok(mut tally) = tally.lock() {
                        tally.record(scenario.name, outcome, begun.elapsed());
                    }
                }
            });
        }
    });
    let mut tally = tally.into_inner().unwrap_or_default();
    tally.failed.extend(afterwards());
    println!("\nran for {:.1} s", started.elapsed().as_secs_f64());
    for name in &tally.failed {
        println!("failed: {name}");
    }
    println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed.len(), tally.not_run);
    ExitCode::from(u8::from(!tally.failed.is_empty()))
}

/// Runs a scenario on a thread that is called after it, so that the message
/// of a panic says whose it is.
fn run_one(entered: &Entered, scenario: &Scenario) -> Option<Verdict> {
    let thread = std::thread::Builder::new().name(scenario.name.to_owned());
    std::thread::scope(|scope| {
        let running = thread.spawn_scoped(scope, || (scenario.run)(entered)).ok()?;
        running.join().ok()
    })
}

#[derive(Debug, Default)]
struct Tally {
    passed: usize,
    not_run: usize,
    failed: Vec<String>,
}

impl Tally {
    fn record(&mut self, name: &'static str, outcome: Option<Verdict>, took: Duration) {
        let seconds = took.as_secs_f64();
        match outcome {
            Some(Verdict::Passed) => {
                self.passed += 1;
                println!("test {name} ... ok ({seconds:.1} s)");
            }
            Some(Verdict::NotRun(reason)) => {
                self.not_run += 1;
                println!("test {name} ... not run: {reason}");
            }
            None => {
                self.failed.push(name.to_owned());
                println!("test {name} ... FAILED ({seconds:.1} s)");
            }
        }
    }
}

#[derive(Debug)]
struct Options {
    filters: Vec<String>,
    skipped: Vec<String>,
    exact: bool,
    list: bool,
    threads: usize,
}

impl Options {
    fn parse(args: &[String], threads: usize) -> Self {
        let mut options = Self { filters: Vec::new(), skipped: Vec::new(), exact: false, list: false, threads };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let (name, value) = match arg.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (arg.as_str(), None),
            };
            match name {
                "--exact" => options.exact = true,
                "--list" => options.list = true,
                "--skip" => options.skipped.extend(value.or_else(|| args.next().cloned())),
                "--test-threads" => {
                    let given = value.or_else(|| args.next().cloned());
                    let number = given.and_then(|text| text.parse().ok());
                    options.threads = number.unwrap_or(options.threads);
                }
                "--format" | "--color" | "--logfile" if value.is_none() => {
                    args.next();
                }
                flag if flag.starts_with('-') => {}
                _ => options.filters.push(arg.clone()),
            }
        }
        options
    }

    fn wants(&self, name: &str) -> bool {
        let fits = |pattern: &String| {
            if self.exact { name == pattern } else { name.contains(pattern.as_str()) }
        };
        (self.filters.is_empty() || self.filters.iter().any(fits)) && !self.skipped.iter().any(fits)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn options(line: &str) -> Options {
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Options::parse(&args, 2)
    }

    #[test]
    fn the_arguments_are_those_of_the_standard_harness() {
        let some = options("pod --skip slow --test-threads=3 --nocapture --format terse");
        assert!(some.wants("a_pod_answers"));
        assert!(!some.wants("a_slow_pod_answers"));
        assert!(!some.wants("a_router_answers"));
        assert_eq!(some.threads, 3);
        assert!(!options("pod --exact").wants("a_pod"));
        assert!(options("").wants("anything"));
    }
}
