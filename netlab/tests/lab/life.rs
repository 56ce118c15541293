//! How a lab begins and ends, and how one gets into it.

use std::io::Read;
use std::process::{Command, Stdio};

use byrnie_netlab::harness::Verdict;
use byrnie_netlab::{Entered, Lab, Privileges, RunAs};

use crate::support::{nested, running, wait_until};

pub(crate) fn killing_the_outer_process_leaves_nothing(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "kill").unwrap();
    let word = "linger-for-the-kill-test";
    let mut outer = nested(&lab, &["linger", word]).spawn().unwrap();
    wait_until("its three processes are there", || running(word).len() >= 3);
    outer.child().kill().unwrap();
    wait_until("none of them is left", || running(word).is_empty());
    Verdict::Passed
}

pub(crate) fn the_exit_code_and_signals_pass_through(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "signals").unwrap();
    let code = nested(&lab, &["exit", "7"]).spawn().unwrap().wait().unwrap();
    assert_eq!(code, 7);
    let word = "linger-for-the-signal-test";
    let mut outer = nested(&lab, &["linger", word]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 6];
    outer.child().stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    outer.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(outer.wait().unwrap(), 128 + 15);
    assert!(running(word).is_empty());
    Verdict::Passed
}

pub(crate) fn the_enter_hint_enters(entered: &Entered) -> Verdict {
    if !std::path::Path::new("/usr/bin/nsenter").exists() {
        return Verdict::NotRun("there is no nsenter here (util-linux)".into());
    }
    let lab = Lab::new(entered, "hint").unwrap();
    let word = "linger-for-the-hint-test";
    let mut inner = nested(&lab, &["linger", word]).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = std::io::BufReader::new(inner.child().stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("nsenter") {
        line.clear();
        assert_ne!(std::io::BufRead::read_line(&mut stdout, &mut line).unwrap(), 0);
    }
    let (namespace, rest) = line.trim().split_once(' ').unwrap();
    let (_, hint) = rest.split_once(' ').unwrap();
    // The hint is for the outside of that lab, which this process is.
    let words: Vec<&str> = hint.split_whitespace().collect();
    let entered =
        Command::new(words[0]).args(&words[1..]).args(["/usr/bin/readlink", "/proc/self/ns/net"]).output().unwrap();
    let said = String::from_utf8_lossy(&entered.stderr).into_owned();
    assert_eq!(String::from_utf8_lossy(&entered.stdout).trim(), namespace, "{said}");
    Verdict::Passed
}

pub(crate) fn another_process_enters_through_the_entrance(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "entrance").unwrap();
    let word = "linger-for-the-entrance-test";
    let mut inner = nested(&lab, &["linger", word]).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = std::io::BufReader::new(inner.child().stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
    let (namespace, entrance) = (line.split(' ').next(), line.split(' ').nth(1));
    let seen =
        Command::new(std::env::current_exe().unwrap()).args(["role", "through", entrance.unwrap()]).output().unwrap();
    let text = String::from_utf8_lossy(&seen.stdout).into_owned();
    let said = String::from_utf8_lossy(&seen.stderr).into_owned();
    assert_eq!(text.lines().next(), namespace, "{said}");
    assert_eq!(text.lines().nth(1), Some("192.0.2.1 shown"), "{said}");

    let mut left = Command::new(std::env::current_exe().unwrap())
        .args(["role", "through", entrance.unwrap(), "3600.0002"])
        .spawn()
        .unwrap();
    wait_until("the command runs", || running("3600.0002").len() >= 2);
    inner.kill();
    wait_until("it is dead with the lab", || running("3600.0002").is_empty());
    left.wait().unwrap();
    Verdict::Passed
}

pub(crate) fn a_refusal_of_the_kernel_names_the_sysctl(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "refusal").unwrap();
    // A UID that is 0 outside may be mapped only with a capability (Linux 5.12),
    // which an application does not have.
    let run_as = match lab.privileges() {
        Privileges::Root => RunAs::Application { uid: 1000 },
        Privileges::SingleUid => RunAs::Operator,
    };
    let output =
        lab.node().command(std::env::current_exe().unwrap()).args(["role", "refused"]).user(run_as).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("make a user and a PID namespace"), "{said}");
    assert!(said.contains("sysctl -w user.max_user_namespaces="), "{said}");
    assert!(said.contains("with root"), "{said}");
    Verdict::Passed
}
