//! What of a pod's traffic its annotations keep out of the mesh.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use byrnie_policy::parse_cidr;
use ipnet::IpNet;

use crate::problem::quote;
use crate::{Problem, labels};

/// Traffic of a pod that is not captured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptureExclusions {
    /// Ports of the pod.
    pub inbound_ports: Vec<NonZeroU16>,
    /// Ports of destinations.
    pub outbound_ports: Vec<NonZeroU16>,
    /// Networks of destinations.
    pub outbound_cidrs: Vec<IpNet>,
    /// Users of the pod.
    pub uids: Vec<u32>,
    /// Network interfaces of the pod.
    pub interfaces: Vec<String>,
}

impl CaptureExclusions {
    /// Reads a pod's annotations.
    ///
    /// # Errors
    /// Everything that is malformed in them. What to do then is the caller's to say; to exclude nothing is safe.
    pub fn from_annotations(annotations: &BTreeMap<String, String>) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let port = |text: &str| text.parse().ok();
        let exclusions = Self {
            inbound_ports: list(
                annotations,
                labels::EXCLUDE_INBOUND_PORTS,
                "a port from 1 to 65535",
                port,
                &mut problems,
            ),
            outbound_ports: list(
                annotations,
                labels::EXCLUDE_OUTBOUND_PORTS,
                "a port from 1 to 65535",
                port,
                &mut problems,
            ),
            outbound_cidrs: list(
                annotations,
                labels::EXCLUDE_OUTBOUND_CIDRS,
                "a network such as 203.0.113.0/24, without host bits",
                |text| parse_cidr(text).ok(),
                &mut problems,
            ),
            uids: list(annotations, labels::EXCLUDE_UIDS, "a user ID", |text| text.parse().ok(), &mut problems),
            interfaces: list(
                annotations,
                labels::EXCLUDE_INTERFACES,
                "the name of an interface",
                interface,
                &mut problems,
            ),
        };
        if problems.is_empty() { Ok(exclusions) } else { Err(problems) }
    }

    /// Reads the arguments that the injector gave to a pod's capture container, `--exclude-inbound-ports 80,81` or with
    /// `=`. Unlike annotations nobody can change them while the pod lives, so they are what was really excluded.
    ///
    /// # Errors
    /// Everything that is malformed in them; with such arguments the container does not start.
    pub fn from_arguments<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<Self, Vec<Problem>> {
        let mut said: BTreeMap<String, String> = BTreeMap::new();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let (name, value) = match argument.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (argument, None),
            };
            let Some(annotation) = FLAGS.iter().find(|(flag, _)| *flag == name).map(|(_, annotation)| annotation)
            else {
                continue;
            };
            let value = value.or_else(|| arguments.next()).unwrap_or_default();
            let values = said.entry((*annotation).to_owned()).or_default();
            if !values.is_empty() {
                values.push(',');
            }
            values.push_str(value);
        }
        Self::from_annotations(&said)
    }

    /// Whether connections to this port of the pod reach the proxy.
    pub fn captures_inbound(&self, port: u16) -> bool {
        !self.inbound_ports.iter().any(|excluded| excluded.get() == port)
    }
}

/// Options of `capture apply`, and the annotations that say the same.
const FLAGS: [(&str, &str); 5] = [
    ("--exclude-inbound-ports", labels::EXCLUDE_INBOUND_PORTS),
    ("--exclude-outbound-ports", labels::EXCLUDE_OUTBOUND_PORTS),
    ("--exclude-outbound-cidrs", labels::EXCLUDE_OUTBOUND_CIDRS),
    ("--exclude-uids", labels::EXCLUDE_UIDS),
    ("--exclude-interfaces", labels::EXCLUDE_INTERFACES),
];

fn list<T>(
    annotations: &BTreeMap<String, String>,
    annotation: &str,
    expected: &str,
    parse: impl Fn(&str) -> Option<T>,
    problems: &mut Vec<Problem>,
) -> Vec<T> {
    let text = annotations.get(annotation).map_or("", |text| text.trim());
    if text.is_empty() {
        return Vec::new();
    }
    let mut values = Vec::new();
    for (index, item) in text.split(',').map(str::trim).enumerate() {
        match parse(item) {
            Some(value) => values.push(value),
            None => {
                let path = format!("metadata.annotations[{annotation}][{index}]");
                problems.push(Problem::new(path, expected, quote(item)));
            }
        }
    }
    values
}

/// As the kernel's `dev_valid_name`, without what would mean something in a rule.
fn interface(name: &str) -> Option<String> {
    const LONGEST: usize = 15;
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
    let named = !name.is_empty() && name != "." && name != "..";
    (named && name.len() <= LONGEST && name.bytes().all(good)).then(|| name.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<CaptureExclusions, Vec<Problem>> {
        let annotations = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        CaptureExclusions::from_annotations(&annotations)
    }

    #[test]
    fn a_pod_that_says_nothing_is_captured_whole() {
        let exclusions = read(&[]).unwrap();
        assert_eq!(exclusions, CaptureExclusions::default());
        assert!(exclusions.captures_inbound(80));
    }

    #[test]
    fn lists_are_separated_by_commas() {
        let exclusions = read(&[
            (labels::EXCLUDE_INBOUND_PORTS, "9090, 9091"),
            (labels::EXCLUDE_OUTBOUND_PORTS, "53"),
            (labels::EXCLUDE_OUTBOUND_CIDRS, "203.0.113.0/24,2001:db8::/32"),
            (labels::EXCLUDE_UIDS, "0,1001"),
            (labels::EXCLUDE_INTERFACES, "eth1"),
        ])
        .unwrap();
        assert!(!exclusions.captures_inbound(9_091));
        assert!(exclusions.captures_inbound(80));
        assert_eq!(exclusions.outbound_cidrs.len(), 2);
        assert_eq!(exclusions.uids, [0, 1001]);
        assert_eq!(exclusions.interfaces, ["eth1"]);
    }

    #[test]
    fn arguments_of_the_capture_container_say_the_same() {
        let arguments = [
            "/byrnie-proxy",
            "capture",
            "apply",
            "--exempt",
            "uid:1500",
            "--exclude-inbound-ports",
            "9090,9091",
            "--exclude-inbound-ports=80",
            "--exclude-uids=0",
            "--exclude-outbound-cidrs",
            "203.0.113.0/24",
        ];
        let exclusions = CaptureExclusions::from_arguments(arguments).unwrap();
        assert_eq!([9090, 9091, 80, 81].map(|port| exclusions.captures_inbound(port)), [false, false, false, true]);
        assert_eq!((exclusions.uids, exclusions.outbound_cidrs.len()), (vec![0], 1));
        assert!(CaptureExclusions::from_arguments(["--exclude-inbound-ports=http"]).is_err());
        let cut_short = CaptureExclusions::from_arguments(["--exclude-inbound-ports"]).unwrap();
        assert_eq!(cut_short, CaptureExclusions::default());
    }

    #[test]
    fn everything_malformed_is_told_at_once() {
        let problems = read(&[
            (labels::EXCLUDE_INBOUND_PORTS, "80,http,0,70000,"),
            (labels::EXCLUDE_INTERFACES, "eth0; flush ruleset"),
        ])
        .unwrap_err();
        let places: Vec<&str> = problems.iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(places.len(), 5);
        assert_eq!(places[0], "metadata.annotations[byrnie.dev/exclude-inbound-ports][1]");
        assert_eq!(places[4], "metadata.annotations[byrnie.dev/exclude-interfaces][0]");
    }
}
