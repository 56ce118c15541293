//! Reading frames off the packet socket, and what is looked for in them.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufWriter};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use memchr::memmem::Finder;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{LinkAddr, recvfrom, setsockopt, sockopt};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::frame::{self, Segment};
use super::{Excerpt, InterfaceCount, PATIENCE, TapOptions, TapReport, pcap};
use crate::NetNs;
use crate::links::{self, Port};

/// Flow directions whose state is kept; more than any test opens at once.
/// Beyond it, a marker across a segment boundary may be missed, no frame is.
const MAX_FLOWS: usize = 65_536;

/// Large enough for the largest packet that a veth hands over uncut.
const FRAME: usize = 256 * 1024;

/// Asked for as the socket's queue. Only root may have more than
/// `net.core.rmem_max`.
const QUEUE: usize = 64 * 1024 * 1024;

/// Bytes of the header of a TLS record.
const RECORD_HEADER: usize = 5;

/// No sender has more under way (RFC 7323, 2.3).
const MAX_WINDOW: u32 = 1 << 30;

/// Segments of a flow that may wait for one in front of them; the kernel makes none longer than 64 KiB.
const MAX_EARLY: usize = 256;

/// A filter in classic BPF (socket(7), packet(7)): what goes out through a port came in through another, and needs no place
/// in the queue.
fn not_outgoing() -> [SockFilter; 4] {
    let kind = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE).cast_unsigned();
    let code = |code: u32| u16::try_from(code).unwrap_or_default();
    [
        SockFilter::new(code(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS), 0, 0, kind),
        SockFilter::new(code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K), 0, 1, u32::from(libc::PACKET_OUTGOING)),
        SockFilter::new(code(libc::BPF_RET | libc::BPF_K), 0, 0, 0),
        SockFilter::new(code(libc::BPF_RET | libc::BPF_K), 0, 0, u32::MAX),
    ]
}

/// A packet socket for all protocols and all interfaces of the namespace of
/// the calling thread.
pub(super) fn packet_socket() -> io::Result<Socket> {
    // ETH_P_ALL, in network order as packet(7) wants it.
    let all = i32::from(3_u16.to_be());
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(all)))?;
    if setsockopt(&socket, sockopt::RcvBufForce, &QUEUE).is_err() {
        socket.set_recv_buffer_size(QUEUE)?;
    }
    socket.attach_filter(&not_outgoing())?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

#[derive(Debug)]
pub(super) struct Collector {
    options: TapOptions,
    ports: HashMap<u32, Port>,
    others: HashSet<u32>,
    interfaces: HashMap<u32, InterfaceCount>,
    flows: HashMap<Ends, Flow>,
    seen: u64,
    report: TapReport,
    pcap: Option<pcap::Writer<BufWriter<File>>>,
}

/// Where a direction of a connection begins and ends.
type Ends = (SocketAddr, SocketAddr);

/// One direction of a connection.
#[derive(Debug, Default)]
struct Flow {
    /// Sequence number of the next byte, if the last segment was in order.
    next: u32,
    /// The last bytes, one fewer than the marker has.
    tail: Vec<u8>,
    /// Bytes of a TLS record that are still to come.
    record_left: usize,
    /// What has come of the header of a TLS record.
    header: Vec<u8>,
    /// Whether every byte since the first was seen.
    followed: bool,
    /// Segments that came before one that goes in front of them, with their sequence numbers: a sender that changes
    /// processors overtakes itself.
    early: Vec<(u32, Vec<u8>)>,
}

impl Collector {
    pub(super) fn new(options: TapOptions, ports: Vec<Port>, pcap: Option<pcap::Writer<BufWriter<File>>>) -> Self {
        Self {
            options,
            ports: ports.into_iter().map(|port| (port.index, port)).collect(),
            others: HashSet::new(),
            interfaces: HashMap::new(),
            flows: HashMap::new(),
            seen: 0,
            report: TapReport::default(),
            pcap,
        }
    }

    /// Reads until `stop` is set and the queue is empty.
    pub(super) fn read_until(&mut self, socket: &Socket, node: &NetNs, stop: &AtomicBool) -> io::Result<()> {
        let mut buffer = vec![0; FRAME];
        loop {
            // Looked at before the read: what was queued by then is read.
            let stopping = stop.load(Ordering::Relaxed);
            match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
                Ok((length, Some(from))) => {
                    let index = u32::try_from(from.ifindex()).unwrap_or(0);
                    let incoming = from.pkttype() != libc::PACKET_OUTGOING;
                    let frame = buffer.get(..length).unwrap_or_default();
                    if incoming && self.is_port(index, node)? {
                        self.frame(index, frame)?;
                    }
                }
                Ok((_, None)) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if stopping => return Ok(()),
                // ENETDOWN: one interface went away; the others go on.
                Err(Errno::EAGAIN | Errno::ENETDOWN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Whether an interface is a port of the pods' bridge. Pods may have come
    /// since the tap was started; their ports are on the bridge before they
    /// carry anything, so that an answer holds for good.
    fn is_port(&mut self, index: u32, node: &NetNs) -> io::Result<bool> {
        if !self.ports.contains_key(&index) && !self.others.contains(&index) {
            for mut port in links::bridge_ports(node)? {
                // Its packets are all from after the start.
                port.received = 0;
                self.ports.entry(port.index).or_insert(port);
            }
            if !self.ports.contains_key(&index) {
                self.others.insert(index);
            }
        }
        Ok(self.ports.contains_key(&index))
    }

    fn frame(&mut self, index: u32, bytes: &[u8]) -> io::Result<()> {
        self.seen += 1;
        let Some(packet) = frame::parse(bytes) else {
            return Ok(());
        };
        if !(self.options.counts)(packet.source, packet.destination) {
            return Ok(());
        }
        let size = u64::try_from(bytes.len()).unwrap_or(0);
        self.report.packets += 1;
        self.report.bytes += size;
        if let Some(port) = self.ports.get(&index) {
            let count = self.interfaces.entry(index).or_insert(port.counted());
            count.packets += 1;
            count.bytes += size;
        }
        if let Some(segment) = packet.tcp {
            let source = SocketAddr::new(packet.source, segment.source_port);
            let destination = SocketAddr::new(packet.destination, segment.destination_port);
            self.segment(source, destination, &segment);
        }
        match &mut self.pcap {
            Some(pcap) => pcap.write(SystemTime::now(), bytes),
            None => Ok(()),
        }
    }

    fn segment(&mut self, source: SocketAddr, destination: SocketAddr, segment: &Segment) {
        if self.flows.len() >= MAX_FLOWS {
            self.forget();
        }
        let ends = (source, destination);
        let flow = self.flows.entry(ends).or_default();
        let (seen, marker) = (&mut self.report, self.options.marker.as_slice());
        if segment.payload.is_empty() && !segment.syn {
            return;
        }
        if segment.syn {
            flow.abandon(seen, marker, ends);
            *flow = Flow { next: segment.sequence.wrapping_add(1), followed: true, ..Flow::default() };
        } else if flow.is_early(segment.sequence) && flow.early.len() < MAX_EARLY {
            flow.early.push((segment.sequence, segment.payload.to_vec()));
        } else {
            flow.look(seen, marker, ends, segment.sequence, segment.payload);
            flow.look_at_due(seen, marker, ends);
        }
    }

    /// Follows nothing any longer.
    fn forget(&mut self) {
        for (ends, mut flow) in self.flows.drain() {
            flow.abandon(&mut self.report, &self.options.marker, ends);
        }
    }

    /// The report, given the ports' counters now.
    pub(super) fn report(mut self, ports: &[Port]) -> io::Result<TapReport> {
        self.forget();
        let mut report = self.report;
        let passed: u64 = ports
            .iter()
            .map(|port| {
                let before = self.ports.get(&port.index).map_or(0, |p| p.received);
                port.received.saturating_sub(before)
            })
            .sum();
        report.missed = passed.saturating_sub(self.seen);
        for port in ports {
            let counted = self.interfaces.remove(&port.index);
            report.interfaces.push(counted.unwrap_or_else(|| port.counted()));
        }
        report.interfaces.extend(self.interfaces.into_values());
        report.interfaces.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(mut pcap) = self.pcap {
            pcap.finish()?;
        }
        Ok(report)
    }
}

impl Flow {
    /// Whether a segment waits for one that goes in front of it.
    fn is_early(&self, sequence: u32) -> bool {
        self.followed && (1..MAX_WINDOW).contains(&sequence.wrapping_sub(self.next))
    }

    /// Looks at the segments that wait no longer: all of them, one after the other, where the flow is no longer followed.
    fn look_at_due(&mut self, seen: &mut TapReport, marker: &[u8], ends: Ends) {
        while let Some(at) = self.early.iter().position(|(sequence, _)| !self.is_early(*sequence)) {
            let (sequence, payload) = self.early.swap_remove(at);
            self.look(seen, marker, ends, sequence, &payload);
        }
    }

    /// Looks at what still waits: what should come in front of it will not.
    fn abandon(&mut self, seen: &mut TapReport, marker: &[u8], ends: Ends) {
        self.followed = false;
        self.look_at_due(seen, marker, ends);
    }

    /// Looks at bytes that go on where the flow is, begin within what is known of it, or begin it anew.
    fn look(&mut self, seen: &mut TapReport, marker: &[u8], ends: Ends, sequence: u32, mut payload: &[u8]) {
        let known = self.next.wrapping_sub(sequence);
        if self.followed && known < MAX_WINDOW {
            // What was sent again was looked at.
            payload = payload.get(usize::try_from(known).unwrap_or(usize::MAX)..).unwrap_or_default();
        } else if known != 0 {
            *self = Self { next: sequence, early: std::mem::take(&mut self.early), ..Self::default() };
        }
        if payload.is_empty() {
            return;
        }
        let length = u32::try_from(payload.len()).unwrap_or(0);
        let hits = self.search(payload, marker);
        let (records, outside) = self.records(payload);
        seen.tls_records += records;
        if self.followed {
            seen.outside_tls += outside;
        } else {
            seen.unfollowed += u64::from(length);
        }
        self.next = self.next.wrapping_add(length);
        seen.marker_hits += hits;
        if hits > 0 && seen.first_hit.is_none() {
            seen.first_hit = Some(Excerpt { source: ends.0, destination: ends.1, text: printable(payload) });
        }
    }

    /// How often the marker ends in this payload.
    fn search(&mut self, payload: &[u8], marker: &[u8]) -> u64 {
        if marker.is_empty() {
            return 0;
        }
        let overlap = marker.len() - 1;
        let mut across = std::mem::take(&mut self.tail);
        let head = payload.get(..overlap.min(payload.len()));
        across.extend(head.unwrap_or_default());
        let finder = Finder::new(marker);
        let hits = count(&across, &finder) + count(payload, &finder);
        let keep_from = payload.len().saturating_sub(overlap);
        self.tail = if payload.len() >= overlap {
            payload.get(keep_from..).unwrap_or_default().to_vec()
        } else {
            let from = across.len().saturating_sub(overlap);
            across.split_off(from)
        };
        // What lies within the head alone was counted in both.
        hits - count(head.unwrap_or_default(), &finder)
    }

    /// How many TLS records (RFC 8446, 5.1) begin in this payload, and how many of its bytes are in none.
    fn records(&mut self, payload: &[u8]) -> (u64, u64) {
        let with_header = [std::mem::take(&mut self.header).as_slice(), payload].concat();
        let mut rest = with_header.get(self.record_left..).unwrap_or_default();
        self.record_left = self.record_left.saturating_sub(with_header.len());
        let mut found = 0;
        while let Some(length) = record_length(rest) {
            found += 1;
            match rest.get(length..) {
                Some(after) => rest = after,
                None => {
                    self.record_left = length - rest.len();
                    rest = &[];
                }
            }
        }
        if rest.len() < RECORD_HEADER && matches!(rest, [0x14..=0x17, 0x03, ..] | [0x14..=0x17] | []) {
            self.header = rest.to_vec();
            return (found, 0);
        }
        (found, u64::try_from(rest.len()).unwrap_or(u64::MAX))
    }
}

/// The whole length of the TLS record that begins here.
fn record_length(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [0x14..=0x17, 0x03, 0x00..=0x04, high, low, ..] => {
            Some(RECORD_HEADER + usize::from(u16::from_be_bytes([*high, *low])))
        }
        _ => None,
    }
}

/// How often it occurs, also where one begins within another. Faster than a link, or the queue behind it overflows.
fn count(haystack: &[u8], needle: &Finder<'_>) -> u64 {
    let (mut hits, mut from) = (0, 0);
    while let Some(at) = haystack.get(from..).and_then(|rest| needle.find(rest)) {
        hits += 1;
        from += at + 1;
    }
    hits
}

fn printable(payload: &[u8]) -> String {
    payload
        .iter()
        .take(512)
        .map(|byte| match byte {
            b'\n' | b' '..=b'~' => char::from(*byte),
            b'\r' => '\0',
            _ => '.',
        })
        .filter(|c| *c != '\0')
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn hits(segments: &[&[u8]], marker: &[u8]) -> u64 {
        let mut flow = Flow::default();
        segments.iter().map(|s| flow.search(s, marker)).sum()
    }

    #[test]
    fn the_marker_is_found_once_wherever_segments_end() {
        let text = b"xxsecretyyy";
        for first in 0..text.len() {
            for second in first..text.len() {
                let parts = [&text[..first], &text[first..second], &text[second..]];
                assert_eq!(hits(&parts, b"secret"), 1, "{first} {second}");
            }
        }
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(hits(&bytes, b"secret"), 1);
    }

    #[test]
    fn every_occurrence_of_the_marker_counts() {
        assert_eq!(hits(&[b"aXaX", b"aX", b"X"], b"aX"), 3);
        assert_eq!(hits(&[b"aaaa"], b"aa"), 3);
        assert_eq!(hits(&[b"aaaa"], b"aaa"), 2);
        assert_eq!(hits(&[b"nothing here"], b""), 0);
    }

    /// The report of a direction that brought these parts of `stream` in this order. Its numbers wrap around.
    fn report(stream: &[u8], parts: &[std::ops::Range<usize>]) -> TapReport {
        let ends = ["10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap()];
        let mut collector = Collector::new(TapOptions::new("secret"), Vec::new(), None);
        let segment = |sequence, syn, payload| Segment { source_port: 1, destination_port: 2, sequence, syn, payload };
        let begin = u32::MAX - 3;
        collector.segment(ends[0], ends[1], &segment(begin, true, &[]));
        for part in parts {
            let sequence = begin.wrapping_add(1 + u32::try_from(part.start).unwrap());
            collector.segment(ends[0], ends[1], &segment(sequence, false, &stream[part.clone()]));
        }
        collector.report(&[]).unwrap()
    }

    #[test]
    fn segments_that_overtake_each_other_are_followed_and_a_gap_that_stays_is_not() {
        let stream = [&[0x17, 3, 3, 0, 9][..], b"no-secret", &[0x17, 3, 3, 0, 2, 1, 2]].concat();
        let facts = |parts| {
            let seen = report(&stream, parts);
            (seen.tls_records, seen.outside_tls, seen.unfollowed, seen.marker_hits)
        };
        let whole = (2, 0, 0, 1);
        assert_eq!(facts(&[0..10, 10..16, 16..21]), whole);
        assert_eq!(facts(&[10..12, 16..21, 0..10, 12..16]), whole);
        assert_eq!(facts(&[0..10, 0..10, 4..16, 10..12, 16..21, 16..21]), whole, "sent again, whole and in part");
        let (_, outside, unfollowed, _) = facts(&[0..10, 16..21]);
        assert_eq!((outside, unfollowed), (0, 5));
        assert_eq!(report(b"a secret that waits", &[2..5, 5..19]).marker_hits, 1);
    }

    #[test]
    fn tls_records_are_counted_by_their_headers_across_segments() {
        let mut stream = vec![0x16, 3, 1, 0, 4, 1, 2, 3, 4];
        stream.extend([0x17, 3, 3, 0, 10]);
        stream.extend([0x17; 10]);
        stream.extend([0x17, 3, 3, 0, 1, 9]);
        for size in 1..=stream.len() {
            let mut flow = Flow::default();
            let parts = stream.chunks(size).map(|part| flow.records(part));
            let (records, outside) = parts.fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
            assert_eq!((records, outside), (3, 0), "in segments of {size}");
        }
        assert_eq!(Flow::default().records(b"GET / HTTP/1.1\r\n"), (0, 16));
        stream.extend(b"220 ready");
        assert_eq!(Flow::default().records(&stream), (3, 9));
    }
}
