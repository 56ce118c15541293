//! How the proxy of a pod is run: what MeshConfig says for all, and a pod's annotations for one.
//!
//! Everything that ends in an argument or in a field of the pod is read into a type here and printed back from it; no
//! text of an annotation goes on as it came.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::problem::quote;
use crate::{CaptureExclusions, Problem, labels};

/// How the proxy of a pod is run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SidecarSettings {
    /// Its image; `None`: the one that the injector was installed with.
    pub image: Option<ImageReference>,
    /// What it logs.
    pub log_level: LogLevel,
    /// What it asks for and may have.
    pub resources: ResourceSettings,
    /// What is not captured.
    pub exclusions: CaptureExclusions,
    /// How long the pod's containers go on when the pod is deleted.
    pub termination_delay: TerminationDelay,
}

impl SidecarSettings {
    /// The same with what a pod's annotations say: they go before the mesh's image, log level and resources, and are
    /// added to its exclusions.
    ///
    /// # Errors
    /// Everything that is malformed in the annotations, and a request above its limit.
    pub fn with_annotations(&self, annotations: &BTreeMap<String, String>) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut settings = self.clone();
        let image = read(annotations, labels::PROXY_IMAGE, ImageReference::EXPECTED, &mut problems);
        settings.image = image.or(settings.image);
        if let Some(level) = read(annotations, labels::LOG_LEVEL, LogLevel::EXPECTED, &mut problems) {
            settings.log_level = level;
        }
        if let Some(delay) = read(annotations, labels::TERMINATION_DELAY, TerminationDelay::EXPECTED, &mut problems) {
            settings.termination_delay = delay;
        }
        let resources = &mut settings.resources;
        for (annotation, quantity) in [
            (labels::PROXY_CPU_REQUEST, &mut resources.requests.cpu),
            (labels::PROXY_MEMORY_REQUEST, &mut resources.requests.memory),
            (labels::PROXY_CPU_LIMIT, &mut resources.limits.cpu),
            (labels::PROXY_MEMORY_LIMIT, &mut resources.limits.memory),
        ] {
            if let Some(said) = read(annotations, annotation, Quantity::EXPECTED, &mut problems) {
                *quantity = Some(said);
            }
        }
        if problems.is_empty() {
            let request = |annotation: &str| format!("metadata.annotations[{annotation}]");
            resources.check(request(labels::PROXY_CPU_REQUEST), request(labels::PROXY_MEMORY_REQUEST), &mut problems);
        }
        match CaptureExclusions::from_annotations(annotations) {
            Ok(exclusions) => {
                settings.exclusions.extend(exclusions);
                problems.extend(settings.exclusions.too_many());
            }
            Err(more) => problems.extend(more),
        }
        if problems.is_empty() { Ok(settings) } else { Err(problems) }
    }
}

/// How long a container without a `preStop` hook of its own goes on after its pod was deleted, in seconds; 0: not at all.
///
/// A server that closes its listener at SIGTERM, as most do, resets what waits there, and the callers hear of the pod's end
/// only about then: every rolling update would lose requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminationDelay(u8);

impl TerminationDelay {
    pub(crate) const EXPECTED: &'static str = "whole seconds from 0 to 60";
    pub(crate) const MOST: u8 = 60;

    /// `None`: longer than a minute.
    pub fn from_seconds(seconds: u8) -> Option<Self> {
        (seconds <= Self::MOST).then_some(Self(seconds))
    }

    /// Seconds.
    pub fn seconds(self) -> u8 {
        self.0
    }
}

impl Default for TerminationDelay {
    /// Twice the second within which every proxy hears of a change of endpoints.
    fn default() -> Self {
        Self(2)
    }
}

impl FromStr for TerminationDelay {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        text.parse().ok().and_then(Self::from_seconds).ok_or(())
    }
}

/// What a container asks for and may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceSettings {
    /// What the node must have free for it.
    pub requests: Resources,
    /// What it may not go above.
    pub limits: Resources,
}

impl ResourceSettings {
    pub(crate) fn check(&self, cpu_path: String, memory_path: String, problems: &mut Vec<Problem>) {
        for (path, request, limit) in [
            (cpu_path, &self.requests.cpu, &self.limits.cpu),
            (memory_path, &self.requests.memory, &self.limits.memory),
        ] {
            if let (Some(request), Some(limit)) = (request, limit)
                && request.nano > limit.nano
            {
                let expected = format!("at most the limit, `{limit}`");
                problems.push(Problem::new(path, expected, quote(&request.text)));
            }
        }
    }
}

/// CPU and memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// In CPUs, such as `100m`.
    pub cpu: Option<Quantity>,
    /// In bytes, such as `64Mi`.
    pub memory: Option<Quantity>,
}

/// An amount as Kubernetes writes it: a number, then nothing, a decimal unit (`m`, `k`, `M`, `G`) or a binary one
/// (`Ki`, `Mi`, `Gi`). Exponents, and units that no proxy needs, are not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantity {
    text: String,
    nano: u128,
}

impl Quantity {
    pub(crate) const EXPECTED: &'static str = "an amount above 0 such as `100m`, `0.5`, `64Mi` or `1Gi`";
}

impl FromStr for Quantity {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        // As many digits as an amount that a node could have needs; more would only overflow.
        const MOST_DIGITS: usize = 12;
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at_checked(end).ok_or(())?;
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit).ok_or(())?;
        let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |text: &str, most: usize| {
            let good = !text.is_empty() && text.len() <= most && text.bytes().all(|byte| byte.is_ascii_digit());
            good.then(|| text.parse::<u128>().ok()).flatten().ok_or(())
        };
        let (whole, fraction) = (digits(whole, MOST_DIGITS)?, digits(part, 3)?);
        let thousandths = whole * 1_000 + fraction * [100, 10, 1].get(part.len() - 1).ok_or(())?;
        let nano = thousandths * scale;
        if nano == 0 {
            return Err(());
        }
        Ok(Self { text: text.to_owned(), nano })
    }
}

/// In thousandths of a thousandth of a thousandth, a thousandth of which the number itself has.
const UNITS: [(&str, u128); 10] = [
    ("m", 1_000),
    ("", 1_000_000),
    ("k", 1_000_000_000),
    ("M", 1_000_000_000_000),
    ("G", 1_000_000_000_000_000),
    ("T", 1_000_000_000_000_000_000),
    ("Ki", 1_000_000 << 10),
    ("Mi", 1_000_000 << 20),
    ("Gi", 1_000_000 << 30),
    ("Ti", 1_000_000 << 40),
];

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The name of an image: registry and path, and a tag or a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageReference(String);

impl ImageReference {
    pub(crate) const EXPECTED: &'static str = "an image such as `registry.example/byrnie/proxy:1.0`";

    /// As it is written in a pod.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ImageReference {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        // The form is the runtime's to judge in the end; here nothing passes that could mean something else elsewhere.
        const LONGEST: usize = 512;
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte);
        let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        let last = text.bytes().last().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
        let parts = text.split(['/', ':', '@']).all(|part| !part.is_empty());
        if first && last && parts && text.len() <= LONGEST && text.bytes().all(good) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Problem::new("image", Self::EXPECTED, quote(text)))
        }
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a proxy logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What keeps it from its work.
    Error,
    /// What is not as it should be.
    Warn,
    /// What an operator wants to know.
    #[default]
    Info,
    /// What someone needs who looks into a problem.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    const EXPECTED: &'static str = "`error`, `warn`, `info`, `debug` or `trace`";
    const ALL: [Self; 5] = [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl FromStr for LogLevel {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|level| level.as_str() == text).ok_or(())
    }
}

fn read<T: FromStr>(
    annotations: &BTreeMap<String, String>,
    annotation: &str,
    expected: &str,
    problems: &mut Vec<Problem>,
) -> Option<T> {
    let text = annotations.get(annotation)?;
    let value = text.parse().ok();
    if value.is_none() {
        problems.push(Problem::new(format!("metadata.annotations[{annotation}]"), expected, quote(text)));
    }
    value
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn an_amount_is_a_number_with_one_of_kubernetes_units() {
        let nano = |text: &str| text.parse::<Quantity>().unwrap().nano;
        assert_eq!(nano("1"), nano("1000m"));
        assert_eq!(nano("0.5"), nano("500m"));
        assert_eq!(nano("1.25"), nano("1250m"));
        assert_eq!(nano("1Ki"), nano("1024"));
        assert!(nano("64Mi") > nano("64M"));
        for bad in ["", "0", "0m", "-1", "1e3", "1 Mi", "1mi", "Mi", "1.", ".5", "1.2345", "1.2.3", "1Mi;x", "1ü"] {
            assert!(bad.parse::<Quantity>().is_err(), "{bad}");
        }
        assert!("9".repeat(40).parse::<Quantity>().is_err());
    }

    #[test]
    fn an_image_is_a_name_and_nothing_that_could_be_taken_for_something_else() {
        for good in ["proxy", "byrnie/proxy:0.1.0", "r.example:5000/a/b_c:v1", "a/b@sha256:0123abcd"] {
            assert_eq!(good.parse::<ImageReference>().unwrap().as_str(), good);
        }
        for bad in ["", "-x", "a b", "a\nb", "$(X)", "a/", "/a", "a::b", "a@", "a;b", &"a".repeat(513)] {
            assert!(bad.parse::<ImageReference>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pods_annotations_go_before_what_the_mesh_says_and_add_to_its_exclusions() {
        let mut mesh = SidecarSettings { log_level: LogLevel::Warn, ..SidecarSettings::default() };
        mesh.resources.requests.cpu = Some("10m".parse().unwrap());
        mesh.exclusions.outbound_ports = vec![53.try_into().unwrap()];
        assert_eq!(mesh.with_annotations(&BTreeMap::new()).unwrap(), mesh);
        let pod = mesh
            .with_annotations(&annotations(&[
                (labels::LOG_LEVEL, "debug"),
                (labels::PROXY_CPU_REQUEST, "1"),
                (labels::PROXY_IMAGE, "proxy:2"),
                (labels::EXCLUDE_OUTBOUND_PORTS, "5432,53"),
            ]))
            .unwrap();
        assert_eq!(pod.log_level, LogLevel::Debug);
        assert_eq!(pod.resources.requests.cpu.unwrap().to_string(), "1");
        assert_eq!(pod.image.unwrap().as_str(), "proxy:2");
        assert_eq!(pod.exclusions.outbound_ports.len(), 2);
    }

    #[test]
    fn exclusions_of_mesh_and_pod_together_fit_an_argument() {
        let mut mesh = SidecarSettings::default();
        mesh.exclusions.uids = (0..200).collect();
        let uids: Vec<String> = (1000..1200).map(|uid: u32| uid.to_string()).collect();
        let problems = mesh.with_annotations(&annotations(&[(labels::EXCLUDE_UIDS, &uids.join(","))])).unwrap_err();
        assert!(problems[0].expected.starts_with("at most 256 entries"), "{}", problems[0]);
    }

    #[test]
    fn everything_malformed_in_the_annotations_is_told_at_once() {
        let problems = SidecarSettings::default()
            .with_annotations(&annotations(&[
                (labels::LOG_LEVEL, "info,byrnie=trace"),
                (labels::PROXY_IMAGE, "proxy --privileged"),
                (labels::PROXY_MEMORY_LIMIT, "much"),
                (labels::EXCLUDE_UIDS, "root"),
            ]))
            .unwrap_err();
        assert_eq!(problems.len(), 4);
    }

    #[test]
    fn a_request_above_its_limit_is_refused() {
        let said = annotations(&[(labels::PROXY_MEMORY_REQUEST, "1Gi"), (labels::PROXY_MEMORY_LIMIT, "64Mi")]);
        let problems = SidecarSettings::default().with_annotations(&said).unwrap_err();
        assert_eq!(problems.len(), 1);
        assert!(problems[0].path.contains(labels::PROXY_MEMORY_REQUEST), "{}", problems[0]);
    }
}
