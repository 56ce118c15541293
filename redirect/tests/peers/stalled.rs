//! What `stalled_peers` finds, and what it leaves alone.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use byrnie_netlab::Entered;
use byrnie_netlab::harness::Verdict;

use crate::rig::{BOUND, PATIENCE, Rig, fill};

/// Pieces in which data is written: bulk, and bytes one by one, which take
/// far more of the peer's memory than of its window.
const PIECES: [usize; 2] = [64 * 1024, 1];

pub(crate) fn a_peer_that_vanishes_with_data_under_way_is_found(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    assert_eq!(rig.stalled(), []);
    rig.peer_vanishes();
    for (near, _) in &rig.connections {
        let mut near = near;
        near.write_all(b"is anybody there?").unwrap();
    }
    rig.wait_until_all_stalled();
    Verdict::Passed
}

pub(crate) fn a_peer_that_vanishes_with_its_window_closed_is_found(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    for (near, _) in &rig.connections {
        fill(near, PIECES[0]);
    }
    rig.peer_vanishes();
    rig.wait_until_all_stalled();
    Verdict::Passed
}

pub(crate) fn a_peer_that_does_not_read_is_left_alone_for_ever(entered: &Entered) -> Verdict {
    let rigs = PIECES.map(|piece| {
        let rig = Rig::new(entered);
        for (near, _) in &rig.connections {
            fill(near, piece);
        }
        rig
    });
    let begun = Instant::now();
    // Long enough that the kernel's probes, ever further apart, come more rarely than the bound.
    while begun.elapsed() < 8 * BOUND {
        for (rig, piece) in rigs.iter().zip(PIECES) {
            assert_eq!(rig.stalled(), [], "after {:?}, with pieces of {piece}", begun.elapsed());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Verdict::Passed
}

pub(crate) fn a_peer_that_reads_again_gets_all_that_waited(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    let taken: Vec<usize> = rig.connections.iter().map(|(near, _)| fill(near, PIECES[0])).collect();
    let begun = Instant::now();
    for ((_, far), taken) in rig.connections.iter().zip(taken) {
        let mut far = far;
        far.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut left = vec![0; taken];
        for piece in left.chunks_mut(256 * 1024) {
            far.read_exact(piece).unwrap();
            assert_eq!(rig.stalled(), [], "after {:?}", begun.elapsed());
        }
    }
    Verdict::Passed
}

pub(crate) fn a_program_with_no_privilege_sees_the_same(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    assert_eq!(rig.seen_without_privileges(), "");
    rig.peer_vanishes();
    for (near, _) in &rig.connections {
        let mut near = near;
        near.write_all(b"is anybody there?").unwrap();
    }
    rig.wait_until_all_stalled();
    let seen = rig.seen_without_privileges();
    let mut lines: Vec<&str> = seen.lines().collect();
    let mut expected: Vec<String> = rig.legs().iter().map(|leg| format!("{} {}", leg.local, leg.remote)).collect();
    lines.sort_unstable();
    expected.sort_unstable();
    assert_eq!(lines, expected);
    Verdict::Passed
}
