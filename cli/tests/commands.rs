//! The command line as scripts use it: exit codes, what goes to which stream, and errors that name the next step.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

use std::path::Path;
use std::process::Output;

use assert_cmd::Command;

/// `byrnie` with a runtime directory of its own.
fn byrnie(runtime: &Path, args: &[&str]) -> Output {
    let mut command = Command::cargo_bin("byrnie").unwrap();
    command.env("XDG_RUNTIME_DIR", runtime).args(args).output().unwrap()
}

fn code_and_error(runtime: &Path, args: &[&str]) -> (i32, String) {
    let output = byrnie(runtime, args);
    assert!(output.stdout.is_empty(), "{args:?} wrote to standard output");
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn help_documents_every_exit_code() {
    let runtime = tempfile::tempdir().unwrap();
    let output = byrnie(runtime.path(), &["--help"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    for code in 0..=5 {
        assert!(text.contains(&format!("\n  {code}  ")), "{code} is missing in:\n{text}");
    }
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    let runtime = tempfile::tempdir().unwrap();
    for args in [
        &["no-such-command"][..],
        &["edges", "-o", "xml"],
        &["identity", "show"],
        &["demo", "exec", "shop/web"],
        &["demo", "--once", "--twice"],
        &["--mesh", "../x", "edges"],
        &["--mesh", "", "demo", "--once"],
        &["token", "create", "web"],
        &["token", "create"],
        &["capture", "apply", "--exempt", "gid"],
        &["capture", "apply", "--exempt", "uid:0"],
        &["capture", "apply", "--outbound-port", "15003"],
    ] {
        assert_eq!(code_and_error(runtime.path(), args).0, 2, "{args:?}");
    }
}

#[test]
fn a_mesh_that_does_not_run_exits_with_4_and_says_how_to_start_one() {
    let runtime = tempfile::tempdir().unwrap();
    for args in [
        &["edges"][..],
        &["edges", "--require-mtls"],
        &["identity", "list"],
        &["identity", "bundle"],
        &["identity", "show", "shop/web"],
        &["proxy", "status"],
        &["proxy", "renew", "shop/web"],
        &["token", "create", "shop/web"],
        &["token", "revoke", "0123"],
        &["demo", "exec", "shop/web", "--", "true"],
    ] {
        let (code, error) = code_and_error(runtime.path(), args);
        assert_eq!(code, 4, "{args:?}: {error}");
        for part in ["expected", "found", "next", "byrnie demo"] {
            assert!(error.contains(part), "{args:?}: {part} is missing in:\n{error}");
        }
    }
}

#[test]
fn something_at_the_socket_that_is_no_control_plane_exits_with_4() {
    let runtime = tempfile::tempdir().unwrap();
    let path = runtime.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let deaf = std::thread::spawn(move || drop(listener.accept()));
    let (code, error) = code_and_error(runtime.path(), &["--socket", path.to_str().unwrap(), "edges"]);
    deaf.join().unwrap();
    assert_eq!(code, 4, "{error}");
}

#[test]
fn errors_have_no_colours_where_nobody_sees_them() {
    let runtime = tempfile::tempdir().unwrap();
    let (_, error) = code_and_error(runtime.path(), &["edges"]);
    assert!(!error.contains('\u{1b}'), "{error:?}");
}

#[test]
fn a_runtime_directory_that_others_may_write_to_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let runtime = tempfile::tempdir().unwrap();
    let meshes = runtime.path().join("byrnie");
    std::fs::create_dir(&meshes).unwrap();
    std::fs::set_permissions(&meshes, std::fs::Permissions::from_mode(0o777)).unwrap();
    let (code, error) = code_and_error(runtime.path(), &["edges"]);
    assert_eq!(code, 5, "{error}");
    assert!(error.contains("mode 0777"), "{error}");
}

#[test]
fn every_shell_gets_its_completions() {
    let runtime = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = byrnie(runtime.path(), &["completions", shell]);
        assert!(output.status.success(), "{shell}");
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(script.contains("require-mtls"), "{shell}");
    }
}
