//! Rules that somebody has changed behind our back.

use std::process::Command;

use byrnie_netlab::Entered;
use byrnie_netlab::harness::Verdict;
use byrnie_redirect::{Applied, BackEnd, NfTables};
use nlink::netlink::nftables::{Family, Rule};
use nlink::netlink::{Connection, Nftables};

use crate::captured::canaries;
use crate::rig::{APP, Rig, chosen};

pub(crate) fn a_missing_rule_and_a_foreign_one_are_noticed(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    let config = rig.config();
    rig.apply(&config);
    match chosen() {
        BackEnd::NfTables => tamper_with_nf_tables(&rig),
        _ => {
            let last =
                rig.back_end(|it| it.show()).unwrap().rules().iter().filter(|rule| rule.chain == "output").count();
            // Half of them are IPv6's; one network of each family.
            let last = (last / 2).to_string();
            iptables(&rig, &["-t", "nat", "-D", "BYRNIE-OUTPUT", &last]);
            iptables(&rig, &["-t", "nat", "-A", "BYRNIE-OUTPUT", "-p", "tcp", "--dport", "80", "-j", "RETURN"]);
        }
    }
    let state = rig.back_end(|it| it.show()).unwrap();
    assert!(state.is_present() && !state.is_complete(), "{state}");
    assert!(state.to_string().contains("NOT COMPLETE"));
    let error = rig.back_end(|it| it.verify(&config)).unwrap_err().to_string();
    let missing = error.lines().find(|line| line.contains("missing in chain output"));
    assert!(missing.unwrap().contains("meta l4proto tcp redirect"), "{error}");
    assert!(error.contains("dport 80"), "{error}");
    assert_eq!(rig.apply(&config), Applied::Changed);
    rig.back_end(|it| it.verify(&config)).unwrap();
    Verdict::Passed
}

pub(crate) fn rules_that_somebody_flushed_are_noticed_and_put_back(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    let config = rig.config();
    rig.apply(&config);
    match chosen() {
        BackEnd::NfTables => {
            use byrnie_redirect::Capture;
            rig.pod.run(|| NfTables.remove()).unwrap().unwrap();
        }
        // Of one table and one family only: the rest is still there.
        _ => iptables(&rig, &["-t", "nat", "-F"]),
    }
    let [application, _] = canaries()[0];
    assert!(rig.ask_as(APP, application).starts_with("error"), "the canary was answered");
    let state = rig.back_end(|it| it.show()).unwrap();
    assert!(!state.is_complete(), "{state}");
    let error = rig.back_end(|it| it.verify(&config)).unwrap_err().to_string();
    if chosen() != BackEnd::NfTables {
        assert!(error.contains("chain OUTPUT of table nat does not ask BYRNIE-OUTPUT (IPv4)"), "{error}");
        assert!(!error.contains("IPv6"), "{error}");
    }
    assert_eq!(rig.apply(&config), Applied::Changed);
    assert_eq!(rig.ask_as(APP, application), format!("outbound {application}"));
    Verdict::Passed
}

/// As somebody's own use of the IPv4 program of the scenario's variant.
pub(crate) fn iptables(rig: &Rig, args: &[&str]) {
    let program = format!("/usr/sbin/{}", chosen());
    let output = rig.back_end(|_| Command::new(program).args(args).output()).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn tamper_with_nf_tables(rig: &Rig) {
    let tamper = || async {
        let connection = Connection::<Nftables>::new().unwrap();
        let rules = connection.list_rules("byrnie", Family::Inet).await.unwrap();
        let capture = rules.iter().rfind(|rule| rule.chain == "output").unwrap();
        connection.del_rule("byrnie", "output", Family::Inet, capture.handle).await.unwrap();
        let foreign = Rule::new("byrnie", "output").family(Family::Inet);
        connection.add_rule(foreign.match_tcp_dport(80).drop()).await.unwrap();
    };
    rig.pod
        .run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(tamper());
        })
        .unwrap();
}
