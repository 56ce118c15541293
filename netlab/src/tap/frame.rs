//! The headers of a frame, as far as the tap needs them: Ethernet (with one
//! 802.1Q tag), IPv4 (RFC 791), IPv6 (RFC 8200) and TCP (RFC 9293).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IP packet in a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packet<'a> {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) tcp: Option<Segment<'a>>,
}

/// A TCP segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment<'a> {
    pub(super) source_port: u16,
    pub(super) destination_port: u16,
    pub(super) sequence: u32,
    pub(super) syn: bool,
    pub(super) payload: &'a [u8],
}

const TCP: u8 = 6;

/// The packet in an Ethernet frame; `None` for anything that is not IP, or is
/// cut short.
pub(super) fn parse(frame: &[u8]) -> Option<Packet<'_>> {
    let (ethertype, rest) = (be16(frame, 12)?, frame.get(14..)?);
    match ethertype {
        0x8100 => network(be16(rest, 2)?, rest.get(4..)?),
        other => network(other, rest),
    }
}

fn network(ethertype: u16, packet: &[u8]) -> Option<Packet<'_>> {
    match ethertype {
        0x0800 => ipv4(packet),
        0x86dd => ipv6(packet),
        _ => None,
    }
}

fn ipv4(packet: &[u8]) -> Option<Packet<'_>> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let total = usize::from(be16(packet, 2)?);
    let address = |at: usize| {
        let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(IpAddr::from(Ipv4Addr::from(bytes)))
    };
    // Of a later fragment the port numbers are elsewhere.
    let first_fragment = be16(packet, 6)? & 0x1fff == 0;
    let is_tcp = *packet.get(9)? == TCP && first_fragment;
    let body = cut(packet, header, total);
    Some(Packet { source: address(12)?, destination: address(16)?, tcp: is_tcp.then(|| segment(body?)).flatten() })
}

fn ipv6(packet: &[u8]) -> Option<Packet<'_>> {
    let length = usize::from(be16(packet, 4)?);
    let address = |at: usize| {
        let bytes: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
        Some(IpAddr::from(Ipv6Addr::from(bytes)))
    };
    let total = if length == 0 { 0 } else { 40 + length };
    let body = cut(packet, 40, total);
    // Extension headers are not followed: no host of a lab sends any.
    let is_tcp = *packet.get(6)? == TCP;
    Some(Packet { source: address(8)?, destination: address(24)?, tcp: is_tcp.then(|| segment(body?)).flatten() })
}

/// The packet's body without the padding of a short frame. A total of 0 is a
/// large packet that the kernel has not cut into segments yet.
fn cut(packet: &[u8], from: usize, total: usize) -> Option<&[u8]> {
    let end = if total == 0 { packet.len() } else { total.min(packet.len()) };
    packet.get(from..end)
}

fn segment(body: &[u8]) -> Option<Segment<'_>> {
    let header = usize::from(body.get(12)? >> 4) * 4;
    let sequence: [u8; 4] = body.get(4..8)?.try_into().ok()?;
    Some(Segment {
        source_port: be16(body, 0)?,
        destination_port: be16(body, 2)?,
        sequence: u32::from_be_bytes(sequence),
        syn: body.get(13)? & 0x02 != 0,
        payload: body.get(header..)?,
    })
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let pair: [u8; 2] = bytes.get(at..at + 2)?.try_into().ok()?;
    Some(u16::from_be_bytes(pair))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
pub(super) mod tests {
    use super::*;

    pub(in crate::tap) fn tcp_frame(source: Ipv4Addr, destination: Ipv4Addr, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let total = u16::try_from(40 + payload.len()).unwrap();
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0]);
        frame.extend(total.to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, TCP, 0, 0]);
        frame.extend(source.octets());
        frame.extend(destination.octets());
        frame.extend(4000_u16.to_be_bytes());
        frame.extend(80_u16.to_be_bytes());
        frame.extend(sequence.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0x50, 0x18, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        frame
    }

    #[test]
    fn a_tcp_segment_is_found_without_the_padding() {
        let (a, b) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let mut frame = tcp_frame(a, b, 7, b"hi");
        frame.extend([0; 4]);
        let packet = parse(&frame).unwrap();
        assert_eq!((packet.source, packet.destination), (a.into(), b.into()));
        let tcp = packet.tcp.unwrap();
        assert_eq!((tcp.source_port, tcp.destination_port), (4000, 80));
        assert_eq!((tcp.sequence, tcp.payload), (7, &b"hi"[..]));
    }

    #[test]
    fn no_prefix_of_a_frame_panics() {
        let (a, b) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let frame = tcp_frame(a, b, 7, b"hello");
        for end in 0..frame.len() {
            let _ = parse(&frame[..end]);
        }
        let mut v6 = vec![0; 12];
        v6.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 30, TCP, 64]);
        v6.extend([0xff; 80]);
        for end in 0..v6.len() {
            let _ = parse(&v6[..end]);
        }
    }
}
