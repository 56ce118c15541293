//! What is on the wire between the pods, seen from the node.
//!
//! A packet socket sees a frame twice, coming in through one port of the
//! bridge and going out through another. Only frames that come *in* through a
//! port count: every frame that a pod sends does so exactly once.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::links::{self, Port};
use crate::namespace::NetNs;

mod collect;
mod frame;
mod pcap;

use collect::Collector;

/// What the tap looks for.
pub struct TapOptions {
    /// The bytes whose appearance in a TCP payload is counted; none when
    /// empty.
    pub marker: Vec<u8>,
    /// Which frames count, by source and destination. [`TapOptions::new`]
    /// counts them all.
    pub counts: Box<dyn Fn(IpAddr, IpAddr) -> bool + Send>,
    /// Where the counted frames are written (classic pcap, Ethernet); what is
    /// there is overwritten.
    pub pcap: Option<PathBuf>,
}

impl TapOptions {
    /// Counts every IP packet and looks for `marker`.
    pub fn new(marker: impl Into<Vec<u8>>) -> Self {
        Self { marker: marker.into(), counts: Box::new(|_, _| true), pcap: None }
    }

    /// Counts only what goes from one of these addresses to another.
    #[must_use]
    pub fn between(mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let known: std::collections::HashSet<IpAddr> = addresses.into_iter().collect();
        self.counts = Box::new(move |from, to| known.contains(&from) && known.contains(&to));
        self
    }

    /// Writes the counted frames to a file.
    #[must_use]
    pub fn pcap(mut self, path: impl Into<PathBuf>) -> Self {
        self.pcap = Some(path.into());
        self
    }
}

impl fmt::Debug for TapOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TapOptions")
            .field("marker", &String::from_utf8_lossy(&self.marker))
            .field("pcap", &self.pcap)
            .finish_non_exhaustive()
    }
}

/// A running tap. Dropping it stops it and forgets what it saw.
#[derive(Debug)]
pub struct Tap {
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<io::Result<TapReport>>>,
}

impl Tap {
    pub(crate) fn start(node: Arc<NetNs>, options: TapOptions) -> io::Result<Self> {
        let socket = node.run(collect::packet_socket)??;
        let pcap = match &options.pcap {
            Some(path) => Some(pcap::Writer::new(BufWriter::new(File::create(path)?))?),
            None => None,
        };
        let mut collector = Collector::new(options, links::bridge_ports(&node)?, pcap);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let reader = std::thread::Builder::new().name("netlab-tap".into()).spawn(move || {
            collector.read_until(&socket, &node, &stopped)?;
            // The counters before the rest of the queue: a frame that
            // comes between the two was read and not counted, never the
            // other way round.
            let ports = links::bridge_ports(&node)?;
            collector.read_until(&socket, &node, &stopped)?;
            collector.report(&ports)
        })?;
        Ok(Self { stop, reader: Some(reader) })
    }

    /// Reads what is still queued and says what was seen.
    ///
    /// # Errors
    /// When the packet socket or the pcap file failed meanwhile.
    pub fn stop(mut self) -> io::Result<TapReport> {
        self.finish().unwrap_or_else(|| Err(io::Error::other("the tap was stopped already")))
    }

    fn finish(&mut self) -> Option<io::Result<TapReport>> {
        self.stop.store(true, Ordering::Relaxed);
        let report = self.reader.take()?.join();
        Some(report.unwrap_or_else(|_| Err(io::Error::other("the tap's thread panicked"))))
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.finish();
    }
}

/// What was on the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TapReport {
    /// The ports of the bridge, by name, with what came in through each.
    pub interfaces: Vec<InterfaceCount>,
    /// Counted frames. The kernel may hand several TCP segments over as one.
    pub packets: u64,
    /// Bytes of them, with all headers.
    pub bytes: u64,
    /// How often the marker was seen in a TCP payload, also across the
    /// boundary of two segments that came in order.
    pub marker_hits: u64,
    /// TLS records whose header was seen.
    pub tls_records: u64,
    /// Bytes of TCP payloads that are in no TLS record. Only directions that
    /// were followed from their first byte without a gap can tell.
    pub outside_tls: u64,
    /// Bytes of TCP payloads of all other directions: of them nothing is known.
    pub unfollowed: u64,
    /// Frames that went through while this program was too slow to read them,
    /// as far as the ports' own counters tell. Where it is not 0, "not seen"
    /// does not mean "was not there".
    pub missed: u64,
    /// Where the marker was first seen, if it was.
    pub first_hit: Option<Excerpt>,
}

/// What came in through one port of the bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceCount {
    /// Name of the port: its pod's.
    pub name: String,
    /// Counted frames.
    pub packets: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// A piece of a TCP payload that held the marker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    /// Who sent it.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
    /// The first bytes of the segment, at most 512; what is not printable
    /// ASCII is a dot, line ends are kept.
    pub text: String,
}

/// How long a read waits before it looks whether it should stop.
const PATIENCE: Duration = Duration::from_millis(20);

impl Port {
    fn counted(&self) -> InterfaceCount {
        InterfaceCount { name: self.name.clone(), packets: 0, bytes: 0 }
    }
}
