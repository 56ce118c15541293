//! What Byrnie, go-spiffe and the `spiffe` crate say of every chain of the corpus, against the table in
//! `docs/certificates.md`: a row that says something else than what is measured fails, and so does a difference that is
//! not explained there.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use byrnie_chains::{Judged, NOW, Presented, corpus};
use byrnie_identity::{Clock, SvidVerifier, TrustBundle, TrustBundles};
use spiffe::X509Svid;
use tempfile::TempDir;

/// A row of the table: what is said of a chain there, column by column.
#[derive(Debug)]
struct Row {
    byrnie: String,
    go_spiffe: String,
    spiffe_crate: String,
    /// Letters of the explanations.
    because: String,
}

const TAKEN: &str = "taken";
const REFUSED: &str = "refused";

#[test]
fn the_table_has_a_row_for_every_chain_and_says_what_byrnie_says() {
    let table = table();
    let names: BTreeSet<_> = corpus().map(|case| case.name.to_owned()).collect();
    assert_eq!(table.keys().cloned().collect::<BTreeSet<_>>(), names);
    compare(
        |row| &row.byrnie,
        |presented, judged| {
            let bundle =
                |(name, roots): &(String, Vec<_>)| TrustBundle::new(name.parse().unwrap(), 1, roots.clone()).unwrap();
            let bundles: TrustBundles = presented.bundles.iter().map(bundle).collect();
            let (clock, _) = Clock::manual(UNIX_EPOCH + Duration::from_secs(NOW));
            let verdict = SvidVerifier::new(bundles.shared(), clock).verify(&presented.chain);
            match (verdict, judged) {
                (Err(error), _) => error.cause.to_string(),
                (Ok(_), Judged::RefusedInHandshake(cause)) => format!("{cause} (handshake)"),
                (Ok(_), _) => TAKEN.to_owned(),
            }
        },
    );
}

#[test]
fn the_table_says_what_the_spiffe_crate_says() {
    compare(
        |row| &row.spiffe_crate,
        |presented, _| {
            let chain: Vec<u8> = presented.chain.iter().flat_map(|der| der.to_vec()).collect();
            match X509Svid::parse_from_der(&chain, presented.key_der().secret_pkcs8_der()) {
                Ok(_) => TAKEN.to_owned(),
                Err(_) => REFUSED.to_owned(),
            }
        },
    );
}

#[test]
#[cfg_attr(not(has_go), ignore = "not run: Go is not here")]
fn the_table_says_what_go_spiffe_says() {
    let directory = TempDir::new().unwrap();
    for case in corpus() {
        write(&directory.path().join(case.name), &case.make());
    }
    let (table, said) = (table(), go_spiffe(directory.path()));
    let mut wrong = Vec::new();
    for case in corpus() {
        let (written, found) = (table.get(case.name).map(|row| row.go_spiffe.as_str()), &said[case.name]);
        if written != Some(found.0.as_str()) {
            wrong.push(format!("{}: the table says {written:?}, found {}: {}", case.name, found.0, found.1));
        }
    }
    assert!(wrong.is_empty(), "docs/certificates.md: {wrong:#?}");
}

#[test]
fn every_difference_in_the_table_is_explained_below_it() {
    let explained: BTreeSet<String> = document()
        .lines()
        .filter_map(|line| line.strip_prefix("* **")?.split_once("** "))
        .map(|(letter, _)| letter.to_owned())
        .collect();
    let mut used = BTreeSet::new();
    for (name, row) in table() {
        // Who owns the key is seen in a handshake, and the others are asked without one.
        let taken = row.byrnie == TAKEN || row.byrnie.ends_with("(handshake)");
        let differs = [&row.go_spiffe, &row.spiffe_crate].into_iter().any(|word| (word == TAKEN) != taken);
        let letters: Vec<String> = row.because.split_whitespace().map(str::to_owned).collect();
        assert_eq!(differs, !letters.is_empty(), "{name}: {row:?}");
        for letter in &letters {
            assert!(explained.contains(letter), "{name}: docs/certificates.md does not explain {letter}");
        }
        used.extend(letters);
    }
    assert_eq!(used, explained, "an explanation that no row needs");
}

/// Compares a column with what `judge` says.
fn compare(column: fn(&Row) -> &str, judge: fn(&Presented, Judged) -> String) {
    let table = table();
    let mut wrong = Vec::new();
    for case in corpus() {
        let found = judge(&case.make(), case.judged);
        let written = table.get(case.name).map(column);
        if written != Some(&found) {
            wrong.push(format!("{}: the table says {written:?}, found {found}", case.name));
        }
    }
    assert!(wrong.is_empty(), "docs/certificates.md: {wrong:#?}");
}

fn document() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/certificates.md");
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The rows whose first column is the name of a chain: those with five columns.
fn table() -> BTreeMap<String, Row> {
    let text = document();
    let mut rows = BTreeMap::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        if let [name, byrnie, go_spiffe, spiffe_crate, because] = cells[..]
            && let Some(name) = name.strip_prefix('`').and_then(|name| name.strip_suffix('`'))
        {
            let text = |cell: &str| cell.trim_matches('`').to_owned();
            let row = Row {
                byrnie: byrnie.replace('`', ""),
                go_spiffe: text(go_spiffe),
                spiffe_crate: text(spiffe_crate),
                because: text(because),
            };
            assert!(rows.insert(name.to_owned(), row).is_none(), "{name} has two rows");
        }
    }
    rows
}

fn write(directory: &Path, presented: &Presented) {
    let files = |directory: PathBuf, certificates: &[byrnie_chains::CertificateDer<'static>]| {
        std::fs::create_dir_all(&directory).unwrap();
        for (index, der) in certificates.iter().enumerate() {
            std::fs::write(directory.join(format!("{index}.der")), der).unwrap();
        }
    };
    files(directory.join("chain"), &presented.chain);
    for (trust_domain, roots) in &presented.bundles {
        files(directory.join("bundles").join(trust_domain), roots);
    }
}

/// By case: what go-spiffe says, and its words.
fn go_spiffe(corpus: &Path) -> BTreeMap<String, (String, String)> {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("go-spiffe");
    let output = Command::new("go")
        .args(["run", "-mod=readonly", "-trimpath", "."])
        .args([corpus.to_str().unwrap(), &NOW.to_string()])
        .current_dir(&module)
        .output()
        .unwrap_or_else(|error| panic!("go: {error}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|line| {
            let [name, said, words] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let word = if said == REFUSED { REFUSED } else { TAKEN };
            (name.to_owned(), (word.to_owned(), words.to_owned()))
        })
        .collect()
}
