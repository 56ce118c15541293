//! What the documentation says of the code is there.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

/// Every test that `docs/attacks.md` names.
#[test]
fn the_tests_that_stand_for_a_defence_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = std::fs::read_to_string(root.join("docs/attacks.md")).unwrap();
    // Names of tests stand in the last column, alone between backticks.
    let rows = page.lines().filter_map(|line| line.trim_end_matches(" |").rsplit_once(" | "));
    let named: BTreeSet<&str> = rows.flat_map(|(_, tests)| tests.split('`').skip(1).step_by(2)).collect();
    assert!(named.len() > 50, "only {} tests are named", named.len());
    let mut tests = BTreeSet::new();
    for member in root.read_dir().unwrap().map(|entry| entry.unwrap().path()) {
        let name = member.file_name().unwrap().to_string_lossy().into_owned();
        if member.is_dir() && name != "target" && !name.starts_with('.') {
            collect(&member, &mut tests);
        }
    }
    let missing: Vec<_> = named.iter().filter(|name| !tests.contains(**name)).collect();
    assert!(missing.is_empty(), "docs/attacks.md names tests that do not exist: {missing:#?}");
}

/// The functions of all Rust files and shell scripts below.
fn collect(directory: &Path, into: &mut BTreeSet<String>) {
    for entry in directory.read_dir().unwrap().map(|entry| entry.unwrap()) {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                collect(&path, into);
            }
            continue;
        }
        let function = match path.extension().and_then(|extension| extension.to_str()) {
            Some("rs") => |line: &str| Some(line.split_once("fn ")?.1.split_once('(')?.0.to_owned()),
            Some("sh") => |line: &str| Some(line.split_once("() {")?.0.to_owned()),
            _ => continue,
        };
        into.extend(std::fs::read_to_string(&path).unwrap().lines().filter_map(function));
    }
}
