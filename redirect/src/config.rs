//! What a user may say about capture, and what is wrong with it, all at once.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;

/// UID of the proxy where it has one of its own.
pub const PROXY_UID: u32 = 1500;

/// Socket mark of the proxy's own connections where it has no UID of its own:
/// `byR` and a zero byte, so that it is recognised in a packet trace and
/// leaves the low byte, which other tools like to use, alone.
pub const PROXY_MARK: u32 = 0x6279_5200;

/// How the proxy's own connections are told from the application's. It is the
/// only thing in which two rule sets of otherwise equal configuration differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Exempt {
    /// Sockets owned by this UID: in a pod, where the proxy has its own.
    Uid(u32),
    /// Sockets with this mark (`SO_MARK`): where only one UID exists, as in an
    /// unprivileged user namespace. No boundary against an application that
    /// holds `CAP_NET_ADMIN`.
    Mark(u32),
}

impl fmt::Display for Exempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid(uid) => write!(f, "uid:{uid}"),
            Self::Mark(mark) => write!(f, "mark:{mark:#010x}"),
        }
    }
}

impl FromStr for Exempt {
    type Err = UnknownExempt;

    /// `uid:1500`, `mark:0x62795200` or `mark:1652118016`; `uid` and `mark`
    /// alone take [`PROXY_UID`] and [`PROXY_MARK`].
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownExempt(text.to_owned());
        let number = |digits: &str| match digits.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16),
            None => digits.parse(),
        };
        match text.split_once(':') {
            None if text == "uid" => Ok(Self::Uid(PROXY_UID)),
            None if text == "mark" => Ok(Self::Mark(PROXY_MARK)),
            Some(("uid", digits)) => number(digits).map(Self::Uid).map_err(|_| unknown()),
            Some(("mark", digits)) => number(digits).map(Self::Mark).map_err(|_| unknown()),
            _ => Err(unknown()),
        }
    }
}

/// A text that names neither a UID nor a mark.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected `uid`, `uid:NUMBER`, `mark` or `mark:NUMBER`, found `{0}`")]
pub struct UnknownExempt(pub String);

/// What to capture in a network namespace. Order and repetition in the lists
/// do not matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureConfig {
    /// Whose connections pass by.
    pub exempt: Exempt,
    /// Where connections that leave the pod are sent, on loopback.
    pub outbound_port: u16,
    /// Where connections that enter the pod are sent.
    pub inbound_port: u16,
    /// Ports of the pod that stay reachable without the proxy.
    pub exclude_inbound_ports: Vec<u16>,
    /// Ports of others that are dialled without the proxy.
    pub exclude_outbound_ports: Vec<u16>,
    /// Addresses of others that are dialled without the proxy.
    pub exclude_outbound_cidrs: Vec<IpNet>,
    /// UIDs whose connections go out without the proxy.
    pub exclude_uids: Vec<u32>,
    /// Interfaces on which nothing is captured, in either direction.
    pub exclude_interfaces: Vec<String>,
}

impl CaptureConfig {
    /// The defaults: ports 15001 and 15003, nothing excluded.
    pub fn new(exempt: Exempt) -> Self {
        Self {
            exempt,
            outbound_port: 15001,
            inbound_port: 15003,
            exclude_inbound_ports: Vec::new(),
            exclude_outbound_ports: Vec::new(),
            exclude_outbound_cidrs: Vec::new(),
            exclude_uids: Vec::new(),
            exclude_interfaces: Vec::new(),
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// Every problem there is, not only the first.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        let mut problems = Vec::new();
        self.check_exempt(&mut problems);
        self.check_ports(&mut problems);
        self.check_cidrs(&mut problems);
        self.check_interfaces(&mut problems);
        for uid in &self.exclude_uids {
            if *uid == u32::MAX {
                let expected = "a UID; 4294967295 means \"no UID\" to the kernel";
                problems.push(Problem::new("exclude_uids", uid, expected));
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(InvalidConfig { problems }) }
    }

    fn check_exempt(&self, problems: &mut Vec<Problem>) {
        let expected = match self.exempt {
            Exempt::Uid(0) => {
                "a UID that only the proxy has; 0 would let every process of root past the mesh \
                 (use `mark` where there is only one UID)"
            }
            Exempt::Uid(u32::MAX) => "a UID; 4294967295 means \"no UID\" to the kernel",
            Exempt::Mark(0) => "a mark other than 0, which every unmarked connection has",
            _ => return,
        };
        problems.push(Problem::new("exempt", self.exempt, expected));
    }

    fn check_ports(&self, problems: &mut Vec<Problem>) {
        let reserved = [crate::METRICS_PORT, crate::HEALTH_PORT];
        for (field, port) in [("outbound_port", self.outbound_port), ("inbound_port", self.inbound_port)] {
            if port == 0 {
                problems.push(Problem::new(field, port, "a port from 1 to 65535"));
            } else if reserved.contains(&port) {
                let expected = "another port; metrics (15010) and health (15021) have this one";
                problems.push(Problem::new(field, port, expected));
            }
        }
        if self.outbound_port == self.inbound_port {
            let expected = "a port other than outbound_port";
            problems.push(Problem::new("inbound_port", self.inbound_port, expected));
        }
        for (field, ports) in [
            ("exclude_inbound_ports", &self.exclude_inbound_ports),
            ("exclude_outbound_ports", &self.exclude_outbound_ports),
        ] {
            if ports.contains(&0) {
                problems.push(Problem::new(field, 0, "ports from 1 to 65535"));
            }
        }
    }

    fn check_cidrs(&self, problems: &mut Vec<Problem>) {
        for cidr in &self.exclude_outbound_cidrs {
            if crate::rules::canonical(cidr).prefix_len() == 0 {
                let expected = "a network smaller than the whole address family; to stop \
                                capturing, remove the rules";
                problems.push(Problem::new("exclude_outbound_cidrs", cidr, expected));
            }
        }
    }

    fn check_interfaces(&self, problems: &mut Vec<Problem>) {
        // IFNAMSIZ is 16 with the closing NUL; dev_valid_name() in the kernel
        // takes more. But `*` is a pattern to nft and `+` one to iptables, and
        // the text of iptables-restore has words and quotes.
        for name in &self.exclude_interfaces {
            let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
            let length_fits = (1..=15).contains(&name.len());
            if !length_fits || name == "." || name == ".." || name.starts_with('-') || !name.bytes().all(good) {
                let expected = "the exact name of an interface: 1 to 15 letters, digits, `-` (not as the first), \
                                `_`, `.` and `@`";
                problems.push(Problem::new("exclude_interfaces", name, expected));
            }
        }
    }
}

/// One thing wrong with a [`CaptureConfig`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The field.
    pub field: &'static str,
    /// The value that was found.
    pub found: String,
    /// What would do.
    pub expected: &'static str,
}

impl Problem {
    fn new(field: &'static str, found: impl fmt::Display, expected: &'static str) -> Self {
        let found = found.to_string();
        Self { field, found, expected }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, found, expected } = self;
        write!(f, "{field}: found `{found}`, expected {expected}")
    }
}

/// Everything wrong with a [`CaptureConfig`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the capture configuration is not usable:{}", list(.problems))]
pub struct InvalidConfig {
    /// The problems, in the order of the fields; never empty.
    pub problems: Vec<Problem>,
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(|p| format!("\n  {p}")).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        for exempt in [Exempt::Uid(PROXY_UID), Exempt::Mark(PROXY_MARK)] {
            CaptureConfig::new(exempt).validate().unwrap();
        }
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let config = CaptureConfig {
            exempt: Exempt::Mark(0),
            outbound_port: 0,
            inbound_port: 15021,
            exclude_inbound_ports: vec![80, 0],
            exclude_outbound_ports: vec![0],
            exclude_outbound_cidrs: ["10.0.0.0/8", "::/0", "::ffff:0:0/96"].map(|net| net.parse().unwrap()).into(),
            exclude_uids: vec![7, u32::MAX],
            exclude_interfaces: ["eth0", "eth*", "eth+", "-j", "a\nb", "a\"b", "a b", "a-name-of-16-byt"]
                .map(str::to_owned)
                .into(),
        };
        insta::assert_snapshot!(config.validate().unwrap_err());
    }

    #[test]
    fn the_two_ports_must_differ() {
        let mut config = CaptureConfig::new(Exempt::Uid(PROXY_UID));
        config.inbound_port = config.outbound_port;
        let problems = config.validate().unwrap_err().problems;
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].field, "inbound_port");
    }

    #[test]
    fn root_is_never_exempt_by_uid() {
        assert!(CaptureConfig::new(Exempt::Uid(0)).validate().is_err());
    }

    #[test]
    fn exempt_reads_what_it_writes() {
        for exempt in [Exempt::Uid(1500), Exempt::Mark(PROXY_MARK), Exempt::Mark(7)] {
            assert_eq!(exempt.to_string().parse(), Ok(exempt));
        }
        assert_eq!("uid".parse(), Ok(Exempt::Uid(PROXY_UID)));
        assert_eq!("mark".parse(), Ok(Exempt::Mark(PROXY_MARK)));
        for wrong in ["", "uid:", "uid:x", "gid:3", "mark:0x1ffffffff", "1500"] {
            assert!(wrong.parse::<Exempt>().is_err(), "{wrong}");
        }
    }
}
