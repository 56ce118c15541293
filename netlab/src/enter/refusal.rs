//! Why the kernel does not let us in, in words that help.

use std::fmt;
use std::fs;
use std::io;

/// The kernel, or the policy it was given, does not let this program make its
/// namespaces.
#[derive(Debug)]
pub struct CannotRun {
    step: &'static str,
    error: String,
    sysctls: Vec<Sysctl>,
}

#[derive(Debug)]
struct Sysctl {
    name: &'static str,
    found: String,
    set: &'static str,
}

/// The switches that keep users from user namespaces: on Debian, everywhere,
/// and on Ubuntu since 23.10.
const SWITCHES: [(&str, &str, &str); 3] = [
    ("kernel.unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
    ("user.max_user_namespaces", "0", "user.max_user_namespaces=15000"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
];

impl CannotRun {
    pub(super) fn new(step: &'static str, error: &io::Error) -> Self {
        Self { step, error: error.to_string(), sysctls: refusing(read_sysctl) }
    }

    /// The refusing sysctls and their values; empty when none of those we
    /// know is the reason.
    pub fn sysctls(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.sysctls.iter().map(|sysctl| (sysctl.name, sysctl.found.as_str()))
    }
}

impl fmt::Display for CannotRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, error, .. } = self;
        write!(f, "this kernel does not let the program {step}: {error}.")?;
        for Sysctl { name, found, set } in &self.sysctls {
            write!(f, "\n  {name} is {found}: an administrator can allow it with `sysctl -w {set}`")?;
        }
        if self.sysctls.is_empty() {
            write!(
                f,
                "\n  No sysctl we know forbids it; a container runtime or a security module may \
                 (seccomp, SELinux)."
            )?;
        }
        let program = std::env::args().next().unwrap_or_default();
        write!(
            f,
            "\n  Or run it with root, for instance `sudo {program}`; in a container it needs \
             CAP_SYS_ADMIN and CAP_NET_ADMIN."
        )
    }
}

impl std::error::Error for CannotRun {}

fn refusing(read: impl Fn(&str) -> Option<String>) -> Vec<Sysctl> {
    SWITCHES
        .into_iter()
        .filter_map(|(name, refusing, set)| {
            let found = read(name)?;
            (found == refusing).then_some(Sysctl { name, found, set })
        })
        .collect()
}

fn read_sysctl(name: &str) -> Option<String> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn the_refusing_sysctl_is_named_with_its_remedy() {
        let found = refusing(|name| match name {
            "kernel.unprivileged_userns_clone" => Some("0".into()),
            "user.max_user_namespaces" => Some("1000".into()),
            _ => None,
        });
        let reason = CannotRun {
            step: "make a user and a PID namespace",
            error: "Operation not permitted (os error 1)".into(),
            sysctls: found,
        };
        assert_eq!(reason.sysctls().collect::<Vec<_>>(), [("kernel.unprivileged_userns_clone", "0")]);
        let text = reason.to_string();
        assert!(text.contains("sysctl -w kernel.unprivileged_userns_clone=1"));
        assert!(text.contains("with root"));
    }

    #[test]
    fn an_unknown_reason_is_not_blamed_on_a_sysctl() {
        let reason = CannotRun {
            step: "make a PID namespace",
            error: "Operation not permitted (os error 1)".into(),
            sysctls: refusing(|_| None),
        };
        assert!(reason.to_string().contains("No sysctl we know"));
    }
}
