//! What programs on a host may do, and what they see.

use byrnie_netlab::harness::Verdict;
use byrnie_netlab::{Entered, Lab, Privileges, RunAs};

use crate::support::{running, two_pods, wait_until};

pub(crate) fn an_application_has_no_capability_and_cannot_get_one(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "application").unwrap();
    let status = status_as(&lab, RunAs::Application { uid: 1234 });
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status.field(set), "0000000000000000", "{set}");
    }
    assert_eq!(status.field("NoNewPrivs"), "1");
    let uid = match lab.privileges() {
        Privileges::Root => "1234",
        Privileges::SingleUid => "0",
    };
    assert_eq!(status.field("Uid").split_whitespace().next(), Some(uid));
    assert_eq!(status.field("unshare"), "EPERM");
    assert_eq!(status.field("environment"), "");
    Verdict::Passed
}

pub(crate) fn a_proxy_has_its_own_uid_or_net_admin_alone(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "proxy").unwrap();
    let status = status_as(&lab, RunAs::Proxy);
    let (uid, caps) = match lab.privileges() {
        Privileges::Root => ("1500", "0000000000000000"),
        Privileges::SingleUid => ("0", NET_ADMIN),
    };
    assert_eq!(status.field("Uid").split_whitespace().next(), Some(uid));
    let marking = status_as(&lab, RunAs::MarkingProxy);
    assert_eq!(marking.field("Uid"), status.field("Uid"));
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(status.field(set), caps, "{set}");
        assert_eq!(marking.field(set), NET_ADMIN, "{set}");
    }
    assert_eq!(status.field("NoNewPrivs"), "1");
    Verdict::Passed
}

pub(crate) fn an_operator_may_change_the_network(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "operator").unwrap();
    let status = status_as(&lab, RunAs::Operator);
    let effective = u64::from_str_radix(status.field("CapEff"), 16).unwrap();
    assert_ne!(effective & (1 << 12), 0);
    Verdict::Passed
}

pub(crate) fn a_program_sees_the_hosts_file_it_was_given(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "files").unwrap();
    let (a, b) = two_pods(&lab);
    let before = std::fs::read_to_string("/etc/hosts").unwrap();
    let given = "10.77.0.12 orders.shop\n";
    let seen = a.command("/bin/cat").arg("/etc/hosts").hosts(given).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&seen.stdout), given);
    let other = b.command("/bin/cat").arg("/etc/hosts").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&other.stdout), before);
    assert_eq!(std::fs::read_to_string("/etc/hosts").unwrap(), before);
    Verdict::Passed
}

pub(crate) fn a_program_that_does_not_exist_says_so(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "missing").unwrap();
    let output = lab.node().command("/no/such/program").output().unwrap();
    assert_eq!(output.status.code(), Some(127));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/no/such/program"));
    Verdict::Passed
}

pub(crate) fn a_program_in_a_private_directory_can_be_run_by_another_uid(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "private").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("echo");
    std::fs::copy("/bin/echo", &program).unwrap();
    let output = lab.node().command(&program).arg("hello").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\n");
    Verdict::Passed
}

pub(crate) fn a_dropped_process_is_dead_with_its_children(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "dropped").unwrap();
    let mark = "3600.0001";
    let shell = format!("/bin/sleep {mark} & /bin/sleep {mark}");
    let process = lab.node().command("/bin/sh").args(["-c", &shell]).spawn().unwrap();
    wait_until("both have started", || running(mark).len() >= 3);
    drop(process);
    wait_until("none is left", || running(mark).is_empty());
    Verdict::Passed
}

/// `CAP_NET_ADMIN`, bit 12 (capabilities(7)), as `/proc` writes it.
pub(crate) const NET_ADMIN: &str = "0000000000001000";

pub(crate) struct Status(String);

impl Status {
    pub(crate) fn field(&self, name: &str) -> &str {
        let prefix = format!("{name}:");
        let line = self.0.lines().find_map(|line| line.strip_prefix(prefix.as_str()));
        line.unwrap_or_else(|| panic!("no {name} in {}", self.0)).trim()
    }
}

pub(crate) fn status_as(lab: &Lab, run_as: RunAs) -> Status {
    let output =
        lab.node().command(std::env::current_exe().unwrap()).args(["role", "status"]).user(run_as).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    Status(String::from_utf8(output.stdout).unwrap())
}
