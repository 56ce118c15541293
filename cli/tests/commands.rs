//! The command line as scripts use it: exit codes, what goes to which stream, and errors that name the next step.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

use std::path::Path;
use std::process::Output;

use assert_cmd::Command;

/// `byrnie` with a runtime directory of its own, and no cluster.
fn byrnie(runtime: &Path, args: &[&str]) -> Output {
    let mut command = Command::cargo_bin("byrnie").unwrap();
    command.env("XDG_RUNTIME_DIR", runtime).env("HOME", runtime);
    command.env_remove("KUBECONFIG").env_remove("KUBERNETES_SERVICE_HOST");
    command.args(args).output().unwrap()
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
        &["--mesh", "demo", "--context", "x", "edges"],
        &["install", "-o", "json"],
        &["install", "--timeout", "0s"],
        &["install", "--control-plane-replicas", "0"],
        &["install", "--ingress-secret", "*"],
        &["uninstall", "--crds", "--keep-crds"],
        &["check", "--min-cert-days", "0"],
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
fn without_a_cluster_exits_with_4_and_says_how_to_name_one() {
    let runtime = tempfile::tempdir().unwrap();
    let missing = runtime.path().join("none");
    let file = missing.to_str().unwrap();
    for args in [
        &["install"][..],
        &["upgrade"],
        &["uninstall"],
        &["--kubeconfig", file, "install"],
        &["--kubeconfig", file, "edges"],
        &["--context", "x", "identity", "list"],
    ] {
        let (code, error) = code_and_error(runtime.path(), args);
        assert_eq!(code, 4, "{args:?}: {error}");
        for part in ["expected", "found", "--kubeconfig PATH"] {
            assert!(error.contains(part), "{args:?}: {part} is missing in:\n{error}");
        }
    }
}

#[test]
fn what_works_on_one_machine_only_says_so_in_a_cluster() {
    let runtime = tempfile::tempdir().unwrap();
    for args in [&["token", "create", "shop/web"][..], &["proxy", "renew", "shop/web"]] {
        let args: Vec<&str> = ["--context", "x"].into_iter().chain(args.iter().copied()).collect();
        let (code, error) = code_and_error(runtime.path(), &args);
        assert_eq!(code, 2, "{args:?}: {error}");
        assert!(error.contains("is for a mesh on this machine"), "{error}");
    }
}

#[test]
fn an_api_server_that_is_away_exits_with_4() {
    let runtime = tempfile::tempdir().unwrap();
    let file = runtime.path().join("kubeconfig");
    // A port that was free a moment ago.
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port();
    drop(held);
    let text = format!(
        "apiVersion: v1\nkind: Config\nclusters: [{{name: x, cluster: {{server: \"http://127.0.0.1:{port}\"}}}}]\n\
         contexts: [{{name: x, context: {{cluster: x, user: x}}}}]\nusers: [{{name: x, user: {{}}}}]\ncurrent-context: x\n"
    );
    std::fs::write(&file, text).unwrap();
    let (code, error) = code_and_error(runtime.path(), &["--kubeconfig", file.to_str().unwrap(), "install"]);
    assert_eq!(code, 4, "{error}");
    assert!(error.contains(&format!("an API server at http://127.0.0.1:{port}")), "{error}");
}

/// What is printed is what a person would apply: nothing in it asks a cluster.
#[test]
fn a_dry_run_prints_every_object_and_asks_nobody() {
    let runtime = tempfile::tempdir().unwrap();
    let yaml = byrnie(runtime.path(), &["install", "--dry-run"]);
    assert!(yaml.status.success());
    let text = String::from_utf8(yaml.stdout).unwrap();
    assert_eq!(text.matches("\nkind: Deployment\n").count(), 2);
    assert!(text.contains("image: byrnie/control-plane:"), "{text}");
    let json = byrnie(runtime.path(), &["install", "--dry-run", "-o", "json", "--image-prefix", "r.example/b"]);
    let list: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(list["kind"], "List");
    assert_eq!(list["items"].as_array().unwrap().len(), text.matches("---\n").count());
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
