//! The real demo, with real proxies and a real control plane: `cargo build` has to make their binaries first.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The names that scripts rely on.
const CHECKS: [&str; 15] = [
    "plaintext-visible-before",
    "no-plaintext-after",
    "edge-identities",
    "unmeshed-client-refused",
    "foreign-trust-domain-refused",
    "expired-certificate-refused",
    "wrong-identity-refused",
    "policy-allowed",
    "policy-denied",
    "ingress-mtls",
    "egress-allowed",
    "egress-denied",
    "handshake-reuse",
    "renewal-no-failure",
    "control-plane-down",
];

/// One demo at a time: two on two cores would measure each other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn byrnie(runtime: &Path) -> Command {
    let path = PathBuf::from(env!("CARGO_BIN_EXE_byrnie"));
    for name in ["byrnie-proxy", "byrnie-control-plane"] {
        assert!(path.with_file_name(name).exists(), "{name} is missing: run `cargo build` first");
    }
    let mut command = Command::new(path);
    command.env("XDG_RUNTIME_DIR", runtime);
    command
}

fn succeeds(output: Output) -> String {
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}\n{text}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    text
}

fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).unwrap().next().is_none()
}

#[test]
fn every_check_passes_and_the_json_stands_alone_on_standard_output() {
    let _alone = alone();
    let runtime = tempfile::tempdir().unwrap();
    let packets = tempfile::tempdir().unwrap();
    let capture = packets.path().join("packets");
    let mut command = byrnie(runtime.path());
    command.args(["demo", "--once", "--json", "--capture"]).arg(&capture);
    let report: Value = serde_json::from_str(&succeeds(command.output().unwrap())).unwrap();

    assert_eq!(report["schema"], 1);
    assert_eq!(report["passed"], true, "{report:#}");
    let checks = report["checks"].as_array().unwrap();
    let names: BTreeSet<_> = checks.iter().map(|check| check["name"].as_str().unwrap()).collect();
    assert!(names.is_superset(&CHECKS.into()), "{names:?}");
    assert!(report["wire"]["before"]["plaintext_seen"].as_u64().unwrap() > 0);
    assert_eq!(report["wire"]["after"]["plaintext_seen"], 0);
    let mut edges = report["edges"].as_array().unwrap().iter();
    let story = edges.find(|edge| edge["source"] == "shop/web" && edge["destination"] == "shop/orders").unwrap();
    assert_eq!(story["source_id"], "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(story["destination_id"], "spiffe://cluster.local/ns/shop/sa/orders");
    assert_eq!((&story["secured"], &story["tls_version"]), (&Value::Bool(true), &Value::from("TLSv1.3")));
    assert_eq!(report["egress"][0]["seen_destination"], report["egress"][0]["dialled"]);
    let marker = report["wire"]["before"]["marker"].as_str().unwrap();
    assert!(holds(&capture.join("before.pcap"), marker), "the packets from before hold the marker");
    assert!(!holds(&capture.join("after.pcap"), marker), "the packets from after do not");
    assert!(is_empty(runtime.path()), "the demo left something behind");
}

fn holds(file: &Path, text: &str) -> bool {
    std::fs::read(file).unwrap().windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn a_demo_that_stays_up_can_be_asked_and_leaves_nothing_behind() {
    let _alone = alone();
    let runtime = tempfile::tempdir().unwrap();
    let ask = |args: &[&str]| byrnie(runtime.path()).args(args).output().unwrap();
    let mut demo = Demo::start(runtime.path());
    demo.wait_for("It stays up");

    let identities: Value = serde_json::from_str(&succeeds(ask(&["identity", "list", "-o", "json"]))).unwrap();
    let mut identities = identities.as_array().unwrap().iter();
    let web = identities.find(|identity| identity["workload"] == "shop/web").unwrap();
    assert_eq!(web["spiffe_id"], "spiffe://cluster.local/ns/shop/sa/web");
    let serial = web["serial"].as_str().unwrap();
    assert!(serial.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')), "{serial}");

    succeeds(ask(&["edges", "--require-mtls"]));
    assert!(succeeds(ask(&["proxy", "status"])).contains("shop/orders"));
    succeeds(ask(&["proxy", "renew", "shop/web"]));
    let renewed = succeeds(ask(&["identity", "show", "shop/web", "-o", "json"]));
    assert!(!renewed.contains(serial), "the serial is still {serial}: {renewed}");
    assert!(succeeds(ask(&["identity", "verify", "shop/web"])).contains("verified"));
    assert!(succeeds(ask(&["identity", "show", "shop/web", "-o", "pem"])).starts_with("-----BEGIN CERTIFICATE-----"));
    assert!(succeeds(ask(&["demo", "exec", "shop/web", "--", "cat", "/etc/hosts"])).contains("orders.shop"));
    assert_eq!(ask(&["identity", "show", "shop/nobody"]).status.code(), Some(1));
    assert_eq!(ask(&["demo", "--once"]).status.code(), Some(2), "a second demo of the same name");

    demo.end();
    assert!(is_empty(runtime.path()), "the demo left something behind");
}

#[test]
fn what_a_killed_demo_left_does_not_hinder_the_next() {
    let _alone = alone();
    let runtime = tempfile::tempdir().unwrap();
    let mut demo = Demo::start(runtime.path());
    demo.wait_for("every proxy is ready");
    demo.0.kill().unwrap();
    demo.0.wait().unwrap();
    let gone = Instant::now() + Duration::from_secs(10);
    let control = runtime.path().join("byrnie/demo/control.sock");
    while std::os::unix::net::UnixStream::connect(&control).is_ok() {
        assert!(Instant::now() < gone, "the control plane outlived the demo");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut next = Demo::start(runtime.path());
    next.wait_for("every proxy is ready");
    next.end();
    assert!(is_empty(runtime.path()), "the demo left something behind");
}

/// A running demo; killed when dropped.
struct Demo(Child);

impl Demo {
    fn start(runtime: &Path) -> Self {
        Self(byrnie(runtime).arg("demo").stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Reads what it says until `text` comes; it must not fail a check before.
    fn wait_for(&mut self, text: &str) {
        let mut said = String::new();
        let mut lines = BufReader::new(self.0.stdout.as_mut().unwrap());
        while lines.read_line(&mut said).unwrap() > 0 {
            assert!(!said.contains("FAIL"), "{said}");
            if said.contains(text) {
                // What it says afterwards nobody reads: the pipe holds it.
                return;
            }
        }
        panic!("it ended before it said `{text}`:\n{said}");
    }

    /// Ctrl-C, and the wait for its end.
    fn end(mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
