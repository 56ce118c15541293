#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use clap::CommandFactory;

use super::*;

fn parse(arguments: &[&str]) -> Result<Config, ConfigErrors> {
    let line = CommandLine::try_parse_from([&["byrnie-proxy"], arguments].concat()).unwrap();
    Config::try_from(line.options)
}

fn files() -> (tempfile::TempDir, String, String, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(path("bundle.pem"), "x").unwrap();
    std::fs::write(path("token"), "x").unwrap();
    let (bundle, token, state) = (path("bundle.pem"), path("token"), path("state"));
    (directory, bundle, token, state)
}

fn with(more: &[&str]) -> Result<Config, ConfigErrors> {
    let (_directory, bundle, token, state) = files();
    let base = [
        "--control-plane",
        "10.0.0.2:15128",
        "--trust-bundle",
        &bundle,
        "--join-token-file",
        &token,
        "--state",
        &state,
    ];
    parse(&[&base, more].concat())
}

fn places(result: Result<Config, ConfigErrors>) -> Vec<&'static str> {
    result.unwrap_err().0.iter().map(|error| error.option).collect()
}

#[test]
fn the_command_line_is_well_formed() {
    CommandLine::command().debug_assert();
}

#[test]
fn the_defaults_are_the_designs() {
    let config = with(&[]).unwrap();
    assert_eq!(config.trust_domain.as_str(), "cluster.local");
    assert_eq!(config.exempt, Exempt::Uid(1500));
    assert_eq!(config.workers.get(), 1);
    assert_eq!(config.admin_socket, config.state.join("admin.sock"));
    assert_eq!(config.listen.admin, "127.0.0.1:15000".parse().unwrap());
    assert_eq!(config.listen.outbound()[1], "[::1]:15001".parse().unwrap());
    assert_eq!(config.listen.inbound()[1], "[::]:15003".parse().unwrap());
    assert_eq!(config.listen.metrics[0], "0.0.0.0:15010".parse().unwrap());
    assert_eq!(config.listen.health[0].port(), 15021);
    assert_eq!(config.drain_timeout, Duration::from_secs(30));
    assert_eq!(config.access_log, AccessLog::StandardOutput);
    assert!(config.require_capture_proof && !config.require_application_proof);
    for port in [15000, 15001, 15003, 15010, 15021] {
        assert!(config.listen.is_own_port(port));
    }
    assert!(!config.listen.is_own_port(8080));
}

#[test]
fn every_mistake_is_reported_at_once_with_its_place() {
    let found = places(parse(&[
        "--control-plane=nowhere",
        "--trust-domain=Not A Domain",
        "--trust-bundle=/does/not/exist",
        "--join-token-file=/does/not/exist/either",
        "--state=/does/not/exist/state",
        "--exempt=gid",
        "--workers=0",
        "--admin-listen=0.0.0.0:15000",
        "--outbound-port=0",
        "--inbound-port=70000",
        "--metrics-listen=x",
        "--health-listen=",
        "--log-level==",
        "--require-capture-proof=maybe",
        "--require-application-proof=1",
        "--drain-timeout=soon",
    ]));
    for option in [
        "--control-plane",
        "--trust-domain",
        "--trust-bundle",
        "--join-token-file",
        "--exempt",
        "--workers",
        "--admin-listen",
        "--outbound-port",
        "--inbound-port",
        "--metrics-listen",
        "--health-listen",
        "--log-level",
        "--require-capture-proof",
        "--require-application-proof",
        "--drain-timeout",
    ] {
        assert!(found.contains(&option), "{option} is missing in {found:?}");
    }
}

#[test]
fn what_is_required_is_named_when_it_is_missing() {
    let found = places(parse(&[]));
    assert_eq!(found, ["--state", "--control-plane", "--trust-bundle", "--join-token-file"]);
}

#[test]
fn the_message_says_what_to_do() {
    let message = with(&["--trust-bundle", "/does/not/exist"]);
    let text = match message {
        Err(errors) => errors.to_string(),
        Ok(_) => unreachable!("a missing bundle is a mistake"),
    };
    assert!(text.contains("--trust-bundle: expected a PEM file"), "{text}");
    assert!(text.contains("/does/not/exist: No such file"), "{text}");
    assert!(text.contains("byrnie identity bundle"), "{text}");
}

#[test]
fn two_listeners_can_not_share_a_port() {
    assert_eq!(places(with(&["--inbound-port=15001"])), ["--inbound-port"]);
    assert_eq!(places(with(&["--health-listen=127.0.0.1:15010"])), ["--health-listen"]);
}

#[test]
fn root_can_not_be_the_exempt_user() {
    assert_eq!(places(with(&["--exempt=uid:0"])), ["--exempt"]);
    assert_eq!(with(&["--exempt=mark"]).unwrap().exempt, Exempt::Mark(byrnie_redirect::PROXY_MARK));
}

#[test]
fn hosts_are_names_and_addresses_of_both_families() {
    for (text, shown) in
        [("cp.byrnie:15128", "cp.byrnie:15128"), ("[fd00::2]:1", "[fd00::2]:1"), ("1.2.3.4:5", "1.2.3.4:5")]
    {
        assert_eq!(text.parse::<HostPort>().unwrap().to_string(), shown);
    }
    for wrong in ["", "host", "host:", ":1", "host:0", "ho st:1", "host:65536", "fd00::2:x", "[fd00::2]:0"] {
        assert!(wrong.parse::<HostPort>().is_err(), "{wrong}");
    }
}

#[test]
fn times_have_units() {
    assert_eq!(with(&["--drain-timeout=1500ms"]).unwrap().drain_timeout, Duration::from_millis(1500));
    assert_eq!(with(&["--drain-timeout=2m"]).unwrap().drain_timeout, Duration::from_secs(120));
    for wrong in ["30", "-1s", "25h", "99999999999999999999h", "1d"] {
        assert_eq!(places(with(&[&format!("--drain-timeout={wrong}")])), ["--drain-timeout"]);
    }
}

#[test]
fn a_service_account_token_may_come_later_and_stands_alone() {
    let (_directory, bundle, token, state) = files();
    let base = ["--control-plane", "cp:15128", "--trust-bundle", &bundle, "--state", &state];
    let config = parse(&[&base[..], &["--service-account-token-file", "/does/not/exist/yet"]].concat()).unwrap();
    assert_eq!(config.credential, CredentialFile::ServiceAccountToken("/does/not/exist/yet".into()));
    let both = [&["byrnie-proxy"], &base[..], &["--service-account-token-file", "x", "--join-token-file", &token]];
    assert!(CommandLine::try_parse_from(both.concat()).is_err());
}

#[test]
fn a_state_directory_of_somebody_else_holds_one_of_the_proxys_own() {
    let (_directory, bundle, token, state) = files();
    let given = |state: &str| {
        let base = ["--control-plane", "cp:15128", "--trust-bundle", &bundle, "--join-token-file", &token];
        parse(&[&base[..], &["--state", state]].concat()).unwrap()
    };
    std::fs::create_dir(&state).unwrap();
    assert_eq!(given(&state).state, std::path::PathBuf::from(&state));
    // Only root may give a directory away; /proc/1 is always somebody's.
    let other = if nix::unistd::geteuid().is_root() {
        nix::unistd::chown(state.as_str(), Some(nix::unistd::Uid::from_raw(1)), None).unwrap();
        state
    } else {
        "/proc".to_owned()
    };
    let config = given(&other);
    assert_eq!(config.state, Path::new(&other).join("proxy"));
    assert_eq!(config.admin_socket, Path::new(&other).join("admin.sock"));
}
