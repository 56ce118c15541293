//! TCP's congestion control: which one the pods may have.
//!
//! A namespace takes as its default only what the machine allows everyone: `reno` and the machine's own default, unless it
//! was told more (`tcp_allowed_congestion_control` of the kernel's ip-sysctl).

use std::fs;

use crate::failure::{Failure, Result, doing};

const AVAILABLE: &str = "/proc/sys/net/ipv4/tcp_available_congestion_control";
const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";

/// Allows `name` on this machine where it is available and not allowed yet, and says so with what takes it back.
///
/// # Errors
/// The kernel does not have it, or the machine is not this program's to change: in a container it may be read only.
pub(crate) fn allow(name: &str) -> Result<()> {
    let read = |path| fs::read_to_string(path).map_err(doing(path));
    let (available, allowed) = (read(AVAILABLE)?, read(ALLOWED)?);
    if !has(&available, name) {
        return Err(Failure::new(format!(
            "--congestion-control: expected one that this kernel has ({}), found {name:?}; one that is a module has to be \
             loaded (modprobe tcp_{name})",
            available.trim()
        )));
    }
    if has(&allowed, name) {
        return Ok(());
    }
    let (before, after) = (allowed.trim(), format!("{} {name}", allowed.trim()));
    fs::write(ALLOWED, &after).map_err(|error| {
        Failure::new(format!(
            "this machine does not allow {name} in a namespace, and this program may not change that ({error}); as root of \
             the machine itself: sysctl -w net.ipv4.tcp_allowed_congestion_control=\"{after}\", or choose one of {before} \
             by --congestion-control"
        ))
    })?;
    eprintln!(
        "{name} is allowed on this machine now; to take that back: \
         sysctl -w net.ipv4.tcp_allowed_congestion_control=\"{before}\""
    );
    Ok(())
}

fn has(list: &str, name: &str) -> bool {
    list.split_ascii_whitespace().any(|one| one == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_does_not_have_is_refused_with_what_it_has() {
        let refused = allow("carrier-pigeon").expect_err("no kernel has it").to_string();
        assert!(refused.contains("--congestion-control") && refused.contains("carrier-pigeon"), "{refused}");
        assert!(refused.contains("reno"), "every kernel has reno: {refused}");
    }

    #[test]
    fn what_everyone_may_have_needs_nothing() {
        allow("reno").expect("every machine allows reno");
    }
}
