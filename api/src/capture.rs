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
    /// Reads a pod's annotations, ours and those of Open Service Mesh; where both are there, both hold.
    ///
    /// # Errors
    /// Everything that is malformed in them. What to do then is the caller's to say; to exclude nothing is safe.
    pub fn from_annotations(annotations: &BTreeMap<String, String>) -> Result<Self, Vec<Problem>> {
        let mut read = Read { annotations, problems: Vec::new() };
        let mut exclusions = Self::default();
        exclusions.extend(Self {
            inbound_ports: read.lists([labels::EXCLUDE_INBOUND_PORTS, labels::OSM_EXCLUDE_INBOUND_PORTS], PORT, port),
            outbound_ports: read.lists(
                [labels::EXCLUDE_OUTBOUND_PORTS, labels::OSM_EXCLUDE_OUTBOUND_PORTS],
                PORT,
                port,
            ),
            outbound_cidrs: read.lists(
                [labels::EXCLUDE_OUTBOUND_CIDRS, labels::OSM_EXCLUDE_OUTBOUND_CIDRS],
                CIDR,
                cidr,
            ),
            uids: read.lists([labels::EXCLUDE_UIDS], UID, uid),
            interfaces: read.lists([labels::EXCLUDE_INTERFACES], INTERFACE, interface),
        });
        if read.problems.is_empty() { Ok(exclusions) } else { Err(read.problems) }
    }

    /// Adds what `others` leave out, each thing once and in one order, so that the same exclusions print the same.
    pub fn extend(&mut self, others: Self) {
        join(&mut self.inbound_ports, others.inbound_ports);
        join(&mut self.outbound_ports, others.outbound_ports);
        join(&mut self.outbound_cidrs, others.outbound_cidrs);
        join(&mut self.uids, others.uids);
        join(&mut self.interfaces, others.interfaces);
    }

    /// Whether a list, put together from the mesh's and a pod's, does not fit an argument.
    pub(crate) fn too_many(&self) -> Option<Problem> {
        let ports = self.inbound_ports.len().max(self.outbound_ports.len());
        let longest = ports.max(self.outbound_cidrs.len()).max(self.uids.len()).max(self.interfaces.len());
        (longest > MOST).then(|| {
            let expected =
                format!("at most {MOST} entries of each kind, with those of MeshConfig's spec.sidecar.exclude");
            Problem::new("metadata.annotations", expected, longest.to_string())
        })
    }

    /// The arguments of `byrnie-capture apply` that say them; [`Self::from_arguments`] reads them back.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        let mut say = |flag: &str, values: Vec<String>| {
            if !values.is_empty() {
                // In one word: the name of an interface may begin with a dash.
                arguments.push(format!("{flag}={}", values.join(",")));
            }
        };
        say(INBOUND_PORTS, self.inbound_ports.iter().map(ToString::to_string).collect());
        say(OUTBOUND_PORTS, self.outbound_ports.iter().map(ToString::to_string).collect());
        say(OUTBOUND_CIDRS, self.outbound_cidrs.iter().map(ToString::to_string).collect());
        say(UIDS, self.uids.iter().map(ToString::to_string).collect());
        say(INTERFACES, self.interfaces.clone());
        arguments
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

const INBOUND_PORTS: &str = "--exclude-inbound-ports";
const OUTBOUND_PORTS: &str = "--exclude-outbound-ports";
const OUTBOUND_CIDRS: &str = "--exclude-outbound-cidrs";
const UIDS: &str = "--exclude-uids";
const INTERFACES: &str = "--exclude-interfaces";

/// Options of `byrnie-capture apply`, and the annotations that say the same.
const FLAGS: [(&str, &str); 5] = [
    (INBOUND_PORTS, labels::EXCLUDE_INBOUND_PORTS),
    (OUTBOUND_PORTS, labels::EXCLUDE_OUTBOUND_PORTS),
    (OUTBOUND_CIDRS, labels::EXCLUDE_OUTBOUND_CIDRS),
    (UIDS, labels::EXCLUDE_UIDS),
    (INTERFACES, labels::EXCLUDE_INTERFACES),
];

/// Entries of one list. Each list is one argument of a command, of which Linux takes 128 KiB at most, and a rule set.
pub(crate) const MOST: usize = 256;

const PORT: &str = "a port from 1 to 65535";
pub(crate) const CIDR: &str =
    "a network such as 203.0.113.0/24, without host bits, smaller than the whole address family";
const UID: &str = "a user ID from 0 to 4294967294";
pub(crate) const INTERFACE: &str = "the name of an interface";

struct Read<'a> {
    annotations: &'a BTreeMap<String, String>,
    problems: Vec<Problem>,
}

impl Read<'_> {
    fn lists<T>(
        &mut self,
        annotations: impl IntoIterator<Item = &'static str>,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Vec<T> {
        let mut values = Vec::new();
        for annotation in annotations {
            let text = self.annotations.get(annotation).map_or("", String::as_str);
            let path = format!("metadata.annotations[{annotation}]");
            values.extend(list(&path, text, expected, &parse, &mut self.problems));
        }
        values
    }
}

fn list<T>(
    path: &str,
    text: &str,
    expected: &str,
    parse: impl Fn(&str) -> Option<T>,
    problems: &mut Vec<Problem>,
) -> Vec<T> {
    let text = text.trim();
    if text.is_empty() {
        return Vec::new();
    }
    let found = text.split(',').count();
    if found > MOST {
        problems.push(Problem::new(path, format!("at most {MOST} entries"), format!("{found}")));
        return Vec::new();
    }
    let mut values = Vec::new();
    for (index, item) in text.split(',').map(str::trim).enumerate() {
        match parse(item) {
            Some(value) => values.push(value),
            None => problems.push(Problem::new(format!("{path}[{index}]"), expected, quote(item))),
        }
    }
    values
}

fn join<T: Ord>(values: &mut Vec<T>, more: Vec<T>) {
    values.extend(more);
    values.sort();
    values.dedup();
}

fn port(text: &str) -> Option<NonZeroU16> {
    text.parse().ok()
}

/// Without a whole address family: that would switch capture off, which `byrnie.dev/inject` says plainly.
pub(crate) fn cidr(text: &str) -> Option<IpNet> {
    parse_cidr(text).ok().filter(|network| network.prefix_len() > 0)
}

fn uid(text: &str) -> Option<u32> {
    text.parse().ok().filter(is_uid)
}

/// The kernel takes 4294967295 for "no user".
pub(crate) fn is_uid(uid: &u32) -> bool {
    *uid != u32::MAX
}

/// As the kernel's `dev_valid_name`, without what would mean something in a rule.
pub(crate) fn interface(name: &str) -> Option<String> {
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
    #[test]
    fn open_service_meshs_annotations_are_read_beside_ours() {
        let exclusions = read(&[
            (labels::EXCLUDE_INBOUND_PORTS, "9090"),
            (labels::OSM_EXCLUDE_INBOUND_PORTS, "6379, 9090"),
            (labels::OSM_EXCLUDE_OUTBOUND_PORTS, "7070"),
            (labels::OSM_EXCLUDE_OUTBOUND_CIDRS, "10.244.0.0/16"),
        ])
        .unwrap();
        assert_eq!(exclusions.inbound_ports.iter().map(|port| port.get()).collect::<Vec<_>>(), [6379, 9090]);
        assert!(!exclusions.outbound_ports.is_empty() && !exclusions.outbound_cidrs.is_empty());
        let problems = read(&[(labels::OSM_EXCLUDE_OUTBOUND_CIDRS, "0.0.0.0/0")]).unwrap_err();
        assert!(problems[0].to_string().contains("smaller than the whole address family"), "{}", problems[0]);
    }

    #[test]
    fn a_list_that_would_not_fit_an_argument_is_refused() {
        let many = vec!["80"; MOST + 1].join(",");
        let problems = read(&[(labels::EXCLUDE_INBOUND_PORTS, &many)]).unwrap_err();
        assert_eq!(problems[0].expected, "at most 256 entries");
    }

    #[test]
    fn arguments_read_back_what_they_say() {
        let exclusions = read(&[
            (labels::EXCLUDE_INBOUND_PORTS, "9090,80"),
            (labels::EXCLUDE_OUTBOUND_PORTS, "53"),
            (labels::EXCLUDE_OUTBOUND_CIDRS, "203.0.113.0/24,2001:db8::/32"),
            (labels::EXCLUDE_UIDS, "0"),
            (labels::EXCLUDE_INTERFACES, "-eth1,eth2"),
        ])
        .unwrap();
        let mut arguments = vec!["--prove".to_owned(), "--exempt".to_owned(), "uid:1500".to_owned()];
        arguments.extend(exclusions.arguments());
        assert_eq!(arguments[3], "--exclude-inbound-ports=80,9090");
        assert_eq!(CaptureExclusions::from_arguments(arguments.iter().map(String::as_str)), Ok(exclusions));
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
}
