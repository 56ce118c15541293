//! What the tap sees.

use byrnie_netlab::harness::Verdict;
use byrnie_netlab::{Entered, Lab, TapOptions};

use crate::support::{say, two_pods};

pub(crate) fn the_tap_counts_every_frame_once_and_finds_the_marker(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "tap").unwrap();
    let (a, b) = two_pods(&lab);
    let tap = lab.tap(TapOptions::new("the-marker")).unwrap();
    let c = lab.pod("late", &lab.networks().pod(13), &[]).unwrap();
    for address in b.addresses() {
        say(&a, &b, *address, &[b"xx the-mar", b"ker yy", b"the-marker"]);
        say(&c, &b, *address, &[b"\x16\x03\x01\x00\x02hi\x17\x03\x03\x00\x01!"]);
    }
    let report = tap.stop().unwrap();
    assert_eq!(report.marker_hits, 4);
    assert_eq!(report.tls_records, 4);
    assert_eq!(report.outside_tls, 2 * 26);
    assert_eq!((report.missed, report.unfollowed), (0, 0));
    let ports: Vec<_> = report.interfaces.iter().map(|port| port.name.as_str()).collect();
    assert_eq!(ports, ["a", "b", "late", "router"]);
    let sum: u64 = report.interfaces.iter().map(|port| port.packets).sum();
    assert_eq!(sum, report.packets);
    let bytes: u64 = report.interfaces.iter().map(|port| port.bytes).sum();
    assert_eq!(bytes, report.bytes);
    let hit = report.first_hit.unwrap();
    assert_eq!(hit.source.ip(), a.addresses()[0]);
    Verdict::Passed
}

pub(crate) fn the_tap_writes_what_it_counts_as_pcap(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "pcap").unwrap();
    let (a, b) = two_pods(&lab);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wire.pcap");
    let tap = lab.tap(TapOptions::new("").pcap(&path)).unwrap();
    say(&a, &b, b.addresses()[0], &[b"hello"]);
    let report = tap.stop().unwrap();
    let file = std::fs::read(&path).unwrap();
    let mut rest = &file[24..];
    let (mut packets, mut bytes) = (0, 0);
    while !rest.is_empty() {
        let length = u32::from_le_bytes(rest[8..12].try_into().unwrap());
        rest = &rest[16 + usize::try_from(length).unwrap()..];
        packets += 1;
        bytes += u64::from(length);
    }
    assert_eq!((packets, bytes), (report.packets, report.bytes));
    assert!(packets > 0);
    Verdict::Passed
}

pub(crate) fn the_tap_counts_only_the_chosen_addresses(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "chosen").unwrap();
    let (a, b) = two_pods(&lab);
    let c = lab.pod("c", &lab.networks().pod(13), &[]).unwrap();
    let options = TapOptions::new("x").between([a.addresses()[0], b.addresses()[0]]);
    let tap = lab.tap(options).unwrap();
    say(&a, &b, b.addresses()[0], &[b"x"]);
    say(&c, &b, b.addresses()[0], &[b"x"]);
    say(&a, &b, b.addresses()[1], &[b"x"]);
    let report = tap.stop().unwrap();
    assert_eq!(report.marker_hits, 1);
    let busy = |port: &&byrnie_netlab::InterfaceCount| port.packets > 0;
    let names: Vec<_> = report.interfaces.iter().filter(busy).map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    Verdict::Passed
}
