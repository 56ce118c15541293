//! Capture as the pod's first container sets it up: applied, and seen to work.

use std::net::SocketAddr;

use byrnie_netlab::harness::Verdict;
use byrnie_netlab::{Entered, Host, Lab, Privileges, RunAs};
use byrnie_redirect::{Capture, CaptureConfig, Exempt, NfTables, PROXY_MARK, PROXY_UID, ProofError, prove};

use crate::rig::serve;

fn pod(entered: &Entered) -> (Lab, Host, Exempt) {
    let lab = Lab::new(entered, "proof").unwrap();
    let pod = lab.pod("pod", &lab.networks().pod(11), &[]).unwrap();
    let exempt = match entered.privileges() {
        Privileges::Root => Exempt::Uid(PROXY_UID),
        Privileges::SingleUid => Exempt::Mark(PROXY_MARK),
    };
    (lab, pod, exempt)
}

/// What `byrnie-capture` says in this pod, with its exit code.
fn says(pod: &Host, arguments: &[&str]) -> (Option<i32>, String) {
    let program = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("byrnie-capture");
    let output = pod.command(&program).args(arguments).user(RunAs::Operator).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

pub(crate) fn capture_that_was_just_applied_is_seen_to_work_and_leaves_the_port_free(entered: &Entered) -> Verdict {
    // The canary is captured whatever is excluded.
    const APPLY: &str = "apply --prove --backend nftables --exclude-inbound-ports 9090 --exclude-outbound-ports 1 \
                         --exclude-outbound-cidrs 192.0.2.0/24 --exclude-uids 0 --exempt";
    for times in [1, 2] {
        // Each time a pod of its own, and a program of its own: what another test starts has, for a moment, a copy of every
        // socket of this process.
        let (_lab, pod, exempt) = pod(entered);
        let exempt = exempt.to_string();
        let arguments: Vec<_> = APPLY.split_whitespace().chain([exempt.as_str()]).collect();
        for begins in
            ["capture is in place, and was seen to work", "capture was in place already"].into_iter().take(times)
        {
            let (code, text) = says(&pod, &arguments);
            assert!(code == Some(0) && text.starts_with(begins), "{code:?} {text}");
            assert!(text.contains("192.0.2.100:1 and [100::b:1]:1"), "{text}");
        }
        // As a proxy listens that starts in the next moment.
        pod.listen("127.0.0.1:15001".parse().unwrap()).unwrap();
    }
    Verdict::Passed
}

pub(crate) fn the_program_of_the_first_container_applies_shows_removes_and_refuses(entered: &Entered) -> Verdict {
    let (_lab, pod, exempt) = pod(entered);
    let exempt = exempt.to_string();
    let steps: [(&[&str], i32, &str); 6] = [
        (&["apply", "--prove", "--exempt", &exempt], 0, "capture is in place, and was seen to work"),
        (&["show"], 0, "redirect to :15001 comment \"capture\""),
        (&["remove"], 0, "capture is gone"),
        (&["remove"], 0, "there was no capture"),
        (&["apply", "--outbound-port", "15003"], 2, "byrnie-capture: "),
        (&["apply", "--exempt", "gid"], 2, "--exempt"),
    ];
    for (arguments, code, words) in steps {
        let (found, text) = says(&pod, arguments);
        assert!(found == Some(code) && text.contains(words), "{arguments:?}: {found:?} {text}");
    }
    Verdict::Passed
}

pub(crate) fn without_rules_or_with_others_the_proof_fails_and_says_what_was_seen(entered: &Entered) -> Verdict {
    let (_lab, pod, exempt) = pod(entered);
    let config = CaptureConfig::new(exempt);
    let failed = pod.run(|| prove(&config)).unwrap().unwrap_err();
    assert!(matches!(failed, ProofError::NotCaptured { .. }), "{failed}");
    let other = CaptureConfig { outbound_port: 16001, ..config.clone() };
    pod.run(|| NfTables.apply(&other)).unwrap().unwrap();
    let failed = pod.run(|| prove(&config)).unwrap().unwrap_err();
    assert!(failed.to_string().starts_with("a connection to 192.0.2.100:1 did not arrive"), "{failed}");
    let own = Exempt::Uid(nix::unistd::geteuid().as_raw());
    let failed = pod.run(|| prove(&CaptureConfig { exempt: own, ..config })).unwrap().unwrap_err();
    assert!(matches!(failed, ProofError::Exempt(_)), "{failed}");
    Verdict::Passed
}

pub(crate) fn a_port_that_somebody_has_proves_capture_only_if_it_is_a_proxy(entered: &Entered) -> Verdict {
    let (_lab, pod, exempt) = pod(entered);
    let config = CaptureConfig::new(exempt);
    pod.run(|| NfTables.apply(&config)).unwrap().unwrap();
    let addresses: [SocketAddr; 2] = ["127.0.0.1:15001".parse().unwrap(), "[::1]:15001".parse().unwrap()];
    for at in addresses {
        serve("byrnie-canary of a proxy", pod.listen(at).unwrap());
    }
    pod.run(|| prove(&config)).unwrap().unwrap();
    let other = CaptureConfig { outbound_port: 16001, ..config };
    pod.run(|| NfTables.apply(&other)).unwrap().unwrap();
    serve("another program", pod.listen("127.0.0.1:16001".parse().unwrap()).unwrap());
    let failed = pod.run(|| prove(&other)).unwrap().unwrap_err();
    assert!(failed.to_string().contains("no proxy"), "{failed}");
    Verdict::Passed
}
