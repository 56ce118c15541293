//! The program itself: its messages, its exit codes, its end.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_byrnie-control-plane");

fn command(home: &Path, listen: &str) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("--source").arg(home.join("source")).arg("--state").arg(home.join("state")).args(["--listen", listen]);
    command
}

fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("source")).unwrap();
    home
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Starts the program and waits until it is ready, or has ended.
fn ready(command: &mut Command) -> Child {
    let mut child = command.args(["--log-format", "json"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let told: Vec<String> =
        lines.by_ref().map(Result::unwrap).take_while(|line| !line.contains("control plane ready")).collect();
    for line in told {
        assert!(line.starts_with('{') && line.ends_with('}'), "a JSON object per line: {line}");
    }
    // Whoever closes the pipe would end the program at its next line.
    std::thread::spawn(move || lines.for_each(drop));
    child
}

fn terminate(mut child: Child) -> Option<i32> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    child.wait().unwrap().code()
}

#[test]
fn all_mistakes_are_told_at_once_with_what_to_do() {
    let home = home();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    std::fs::write(home.path().join("state"), "a file").unwrap();
    let config = "apiVersion: byrnie.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec: {trustDomain: 'Not A Domain'}\n";
    std::fs::write(home.path().join("source/mesh.yaml"), config).unwrap();
    let output = command(home.path(), &taken.local_addr().unwrap().to_string()).output().unwrap();
    let told = text(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    for part in ["already taken", "--listen", "state directory", "--state", "mesh.yaml:1", "spec.trustDomain"] {
        assert!(told.contains(part), "{part:?} is missing in:\n{told}");
    }
}

#[test]
fn a_file_that_may_hold_the_mesh_config_keeps_it_from_starting() {
    let home = home();
    std::fs::write(home.path().join("source/mesh.yaml"), b"kind: MeshConfig\nspec: \xff\n").unwrap();
    let output = command(home.path(), "127.0.0.1:0").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("mesh.yaml") && text(&output).contains("MeshConfig"), "{}", text(&output));
}

#[test]
fn an_unknown_option_is_a_usage_error() {
    let output = Command::new(PROGRAM).arg("--nonsense").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let output = Command::new(PROGRAM).args(["--source", "a", "--state", "b", "--listen", "here"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn two_control_planes_do_not_share_a_state_directory() {
    let home = home();
    let first = ready(&mut command(home.path(), "127.0.0.1:0"));
    let output = command(home.path(), "127.0.0.1:0").output().unwrap();
    let told = text(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("in use by another control plane") && told.contains(&first.id().to_string()), "{told}");
    assert_eq!(terminate(first), Some(0));
}

#[test]
fn sigterm_ends_it_cleanly_and_it_starts_again() {
    let home = home();
    let socket = home.path().join("state/control.sock");
    for _ in 0..2 {
        let child = ready(&mut command(home.path(), "127.0.0.1:0"));
        assert!(socket.exists());
        assert_eq!(terminate(child), Some(0));
        assert!(!socket.exists());
    }
}

#[test]
fn what_a_killed_control_plane_left_behind_is_no_obstacle() {
    let home = home();
    let mut child = ready(&mut command(home.path(), "127.0.0.1:0"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(home.path().join("state/control.sock").exists());
    assert_eq!(terminate(ready(&mut command(home.path(), "127.0.0.1:0"))), Some(0));
}
