//! What is particular to a back end that is other people's programs.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use byrnie_netlab::Entered;
use byrnie_netlab::harness::Verdict;
use byrnie_redirect::{Applied, BackEnd, Capture, CaptureError, Choice, IpTables, Removed, Variant, backend};
use tempfile::TempDir;

use crate::captured::canaries;
use crate::rig::{APP, Rig, with};
use crate::tampered::iptables;

pub(crate) fn a_back_end_that_takes_over_leaves_nothing_of_the_other(entered: &Entered) -> Verdict {
    with(BackEnd::IptablesLegacy, entered, |entered| {
        let rig = Rig::new(entered);
        let config = rig.config();
        // Whoever runs it, in a place where iptables-legacy can have its lock.
        let in_pod = |choice| rig.back_end(|_| backend::apply(choice, &config)).unwrap();
        rig.apply(&config);
        assert_eq!(in_pod(Choice::Auto), (Applied::Changed, BackEnd::NfTables));
        assert_eq!(in_pod(Choice::Auto), (Applied::Unchanged, BackEnd::NfTables));
        assert_eq!(in_pod(Choice::Iptables), (Applied::Changed, BackEnd::IptablesNft));
        let shown = rig.back_end(|_| backend::show()).unwrap();
        let found: Vec<_> = shown.iter().map(|state| (state.back_end(), state.is_complete())).collect();
        assert_eq!(found, [(BackEnd::IptablesNft, true)]);
        let [application, _] = canaries()[1];
        assert_eq!(rig.ask_as(APP, application), format!("outbound {application}"));
        assert_eq!(rig.back_end(|_| backend::remove()).unwrap(), Removed::Removed);
        assert_eq!(rig.back_end(|_| backend::remove()).unwrap(), Removed::NothingThere);
        assert!(!rig.back_end(|_| backend::show()).unwrap()[0].is_present());
        assert_eq!(rig.ask(rig.targets(443)[1]), "peer");
        Verdict::Passed
    })
}

pub(crate) fn what_somebody_else_has_in_iptables_stays(entered: &Entered) -> Verdict {
    with(BackEnd::IptablesLegacy, entered, |entered| {
        let rig = Rig::new(entered);
        let config = rig.config();
        iptables(&rig, &["-t", "nat", "-N", "OTHERS"]);
        iptables(&rig, &["-t", "nat", "-A", "OUTPUT", "-p", "tcp", "--dport", "443", "-j", "OTHERS"]);
        rig.apply(&config);
        // Before ours, and by another way into ours: both are put right.
        iptables(&rig, &["-t", "nat", "-I", "OUTPUT", "1", "-p", "tcp", "--dport", "444", "-j", "ACCEPT"]);
        iptables(&rig, &["-t", "nat", "-A", "OTHERS", "-d", "10.0.0.1", "-j", "BYRNIE-OUTPUT"]);
        let refused = rig.back_end(|it| it.verify(&config)).unwrap_err().to_string();
        assert!(
            refused.contains("expected chain OUTPUT of table nat to ask BYRNIE-OUTPUT first and once"),
            "{refused}"
        );
        assert_eq!(rig.apply(&config), Applied::Changed);
        rig.back_end(|it| it.verify(&config)).unwrap();
        assert_eq!(rig.back_end(|it| it.remove()).unwrap(), Removed::Removed);
        iptables(&rig, &["-t", "nat", "-C", "OUTPUT", "-p", "tcp", "--dport", "443", "-j", "OTHERS"]);
        iptables(&rig, &["-t", "nat", "-C", "OUTPUT", "-p", "tcp", "--dport", "444", "-j", "ACCEPT"]);
        Verdict::Passed
    })
}

pub(crate) fn where_ipv6_fails_ipv4_is_as_it_was(entered: &Entered) -> Verdict {
    with(BackEnd::IptablesNft, entered, |entered| {
        let rig = Rig::new(entered);
        let programs = Programs::with("ip6tables-nft-restore", "echo the lock is taken >&2; exit 4");
        let half = IpTables::find_in(Variant::Nft, programs.search()).unwrap();
        // From nothing to nothing, and from one configuration to the same.
        let refused = rig.back_end(|_| half.apply(&rig.config())).unwrap_err();
        assert!(matches!(&refused, CaptureError::Program { said, .. } if said == "the lock is taken"), "{refused}");
        assert!(!rig.back_end(|it| it.show()).unwrap().is_present());
        rig.apply(&rig.config());
        let mut other = rig.config();
        other.exclude_outbound_ports = vec![443];
        rig.back_end(|_| half.apply(&other)).unwrap_err();
        rig.back_end(|it| it.verify(&rig.config())).unwrap();
        for target in rig.targets(443) {
            assert_eq!(rig.ask(target), format!("outbound {target}"));
        }
        Verdict::Passed
    })
}

pub(crate) fn where_it_cant_be_undone_it_is_said(entered: &Entered) -> Verdict {
    with(BackEnd::IptablesNft, entered, |entered| {
        let rig = Rig::new(entered);
        let programs = Programs::with("ip6tables-nft-restore", "exit 4");
        let once = programs.path("once");
        let real = real("iptables-nft-restore");
        let (once, real) = (once.display(), real.display());
        programs.write("iptables-nft-restore", &format!("[ ! -e {once} ] || exit 3; : > {once}; exec {real} \"$@\""));
        let half = IpTables::find_in(Variant::Nft, programs.search()).unwrap();
        let refused = rig.back_end(|_| half.apply(&rig.config())).unwrap_err();
        assert!(matches!(refused, CaptureError::HalfApplied { .. }), "{refused}");
        assert!(refused.to_string().contains("Do not start applications here"), "{refused}");
        let state = rig.back_end(|it| it.show()).unwrap();
        assert!(state.is_present() && !state.is_complete(), "{state}");
        assert_eq!(rig.apply(&rig.config()), Applied::Changed);
        Verdict::Passed
    })
}

pub(crate) fn a_program_that_says_nothing_wrong_and_does_nothing_is_found_out(entered: &Entered) -> Verdict {
    with(BackEnd::IptablesNft, entered, |entered| {
        let rig = Rig::new(entered);
        let programs = Programs::with("ip6tables-nft-restore", "exit 0");
        let idle = IpTables::find_in(Variant::Nft, programs.search()).unwrap();
        let refused = rig.back_end(|_| idle.apply(&rig.config())).unwrap_err();
        assert!(matches!(refused, CaptureError::Differs { .. }), "{refused}");
        Verdict::Passed
    })
}

/// A directory with the real programs, but for one.
struct Programs(TempDir);

impl Programs {
    fn with(name: &str, script: &str) -> Self {
        let programs = Self(tempfile::tempdir().unwrap());
        for real_name in ["iptables-nft-save", "ip6tables-nft-save", "iptables-nft-restore", "ip6tables-nft-restore"] {
            symlink(real(real_name), programs.path(real_name)).unwrap();
        }
        programs.write(name, script);
        programs
    }

    fn write(&self, name: &str, script: &str) {
        let path = self.path(name);
        let _ = fs::remove_file(&path);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn search(&self) -> &str {
        self.0.path().to_str().unwrap()
    }
}

fn real(name: &str) -> PathBuf {
    Path::new("/usr/sbin").join(name)
}
