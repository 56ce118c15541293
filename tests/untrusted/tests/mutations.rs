//! What `fuzz/` does, bounded and without a nightly compiler: the checked-in inputs, and random changes of them. `SEED`
//! repeats a run; what fails is printed in hexadecimal, for a new file in `fuzz/corpus`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use byrnie_scenarios::{Random, seed};
use byrnie_untrusted::TARGETS;

/// Of each target; how many changes that are depends on the machine.
const BOUND: Duration = Duration::from_millis(400);
/// So many at least, however slow it is.
const AT_LEAST: u64 = 500;

#[test]
fn every_checked_in_input_and_random_changes_of_it_are_taken_or_refused() {
    println!("SEED={}", seed());
    for (target, takes) in TARGETS {
        let inputs = inputs(target);
        assert!(inputs.len() >= 2, "fuzz/corpus/{target}: expected inputs, found {}", inputs.len());
        for input in &inputs {
            run(target, *takes, input);
        }
        let mut random = Random::of(target, 0);
        let begun = Instant::now();
        let mut count = 0;
        while count < AT_LEAST || begun.elapsed() < BOUND {
            run(target, *takes, &changed(&inputs, &mut random));
            count += 1;
        }
        println!("{target}: {} inputs, {count} changes of them", inputs.len());
    }
}

#[test]
fn every_target_is_a_file_of_the_fuzzer() {
    let directory = fuzz().join("fuzz_targets");
    let manifest = std::fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    for (target, _) in TARGETS {
        let text = std::fs::read_to_string(directory.join(format!("{target}.rs"))).unwrap();
        assert!(text.contains(&format!("byrnie_untrusted::{target}(")), "{target}");
        assert!(manifest.contains(&format!("name = \"{target}\"")), "fuzz/Cargo.toml has no {target}");
    }
    assert_eq!(std::fs::read_dir(directory).unwrap().count(), TARGETS.len());
}

fn run(target: &str, takes: fn(&[u8]), input: &[u8]) {
    if catch_unwind(|| takes(input)).is_err() {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        panic!("{target} (SEED={}) does not take {hex}", seed());
    }
}

/// One of the inputs with one to eight changes.
fn changed(inputs: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = pick(inputs, random).clone();
    for _ in 0..=random.below(8) {
        let at = random.below(bytes.len() as u64 + 1) as usize;
        let to = at + random.below(8.min((bytes.len() - at) as u64) + 1) as usize;
        match random.below(7) {
            0 => bytes.truncate(at),
            1 => bytes.drain(at..to).for_each(drop),
            2 => {
                let more = random.below(9) as usize;
                bytes.splice(at..at, random.bytes(more)).for_each(drop);
            }
            3 => bytes[at..to].fill([0, 1, 0x7f, 0x80, 0xff][random.below(5) as usize]),
            4 => {
                let (other, from) = (pick(inputs, random), random.next() as usize);
                let from = from % (other.len() + 1);
                bytes.splice(at..to, other[from..].iter().copied()).for_each(drop);
            }
            // The small changes are the likeliest to be read on.
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
        }
    }
    bytes.truncate(1 << 16);
    bytes
}

fn pick<'a>(inputs: &'a [Vec<u8>], random: &mut Random) -> &'a Vec<u8> {
    &inputs[random.below(inputs.len() as u64) as usize]
}

fn inputs(target: &str) -> Vec<Vec<u8>> {
    let directory = fuzz().join("corpus").join(target);
    let entries = std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}
