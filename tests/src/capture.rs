//! What went over a link: `tcpdump` records it, and this module reads the file itself, so that a test can ask for the
//! absence of bytes without trusting a tool's printing.
//!
//! A capture that dropped a packet, or has not yet caught up with the link, would prove nothing by its silence: both are
//! failures. It reads classic pcap, Ethernet, IPv4 and IPv6 (without extension headers), TCP. It does not put a stream in order:
//! the segments of one direction are joined as they were seen, which is what they are on a link without loss.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::process::Process;
use crate::testbed::{GATEWAY, Host};
use crate::{netns, wait};

/// A running capture; dropping it ends it.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
    netns: PathBuf,
}

impl Capture {
    /// Captures on one of a host's interfaces, from when this returns.
    ///
    /// # Errors
    /// `tcpdump` is missing or refused.
    pub fn start(host: &Host, interface: &str, name: &str) -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        // Files of its own: an earlier capture's log says "listening on" already.
        let name = format!("{name}-{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        let file = host.directory().join(format!("{name}.pcap"));
        let log = host.directory().join(format!("{name}.tcpdump.log"));
        let path = file.to_str().context("the testbed's directory is no UTF-8")?;
        let argv = [
            "tcpdump",
            "-i",
            interface,
            "-U",
            "-n",
            "-s",
            "0",
            "-B",
            BUFFER_KIB,
            "-Z",
            "root",
            "--immediate-mode",
            "-w",
            path,
        ];
        let process = host.place("tcpdump")?.spawn(&argv, &log)?;
        process.wait_for_line(&["listening on"], Duration::from_secs(10))?;
        Ok(Self { process, file, netns: host.netns().path() })
    }

    /// Ends the capture and reads what it saw.
    ///
    /// # Errors
    /// It missed something, or the file is no pcap.
    pub fn stop(self) -> Result<Packets> {
        self.wait_until_caught_up()?;
        let Self { process, file, .. } = self;
        process.signal(Signal::SIGINT)?;
        let dropped = process.wait_for_line(&["dropped by kernel"], Duration::from_secs(10))?;
        ensure!(dropped.starts_with("0 "), "the capture is not whole: {dropped}");
        Packets::parse(&read(&file)?)
    }

    /// Sends datagrams over the link until one is in the file: what crossed the link before is then there too. Again and
    /// again, since a datagram may be lost, to a neighbour that is being asked for its address for one.
    fn wait_until_caught_up(&self) -> Result<()> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let last =
            format!("end of capture {} {}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let socket = netns::enter(&self.netns, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
        wait::until("the capture has caught up", Duration::from_secs(30), || {
            // An earlier one may have come back as an ICMP error, which the next call reports.
            let sent = socket.send_to(last.as_bytes(), (GATEWAY, DISCARD));
            ensure!(
                contains(&read(&self.file)?, last.as_bytes()),
                "its last packet is not there (last sent: {sent:?})"
            );
            Ok(())
        })
    }
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// What was captured, by direction of each TCP connection.
#[derive(Debug, Default)]
pub struct Packets {
    /// Payload as seen, by (source, destination).
    pub streams: BTreeMap<(SocketAddr, SocketAddr), Vec<u8>>,
    /// TCP segments seen, with or without payload.
    pub segments: usize,
    tls_records: BTreeMap<(SocketAddr, SocketAddr), usize>,
}

impl Packets {
    /// Reads a pcap file. Frames that are not TCP are left out.
    ///
    /// # Errors
    /// It is no pcap of Ethernet frames, or cut off in its header.
    pub fn parse(file: &[u8]) -> Result<Self> {
        let (header, mut rest) = file.split_at_checked(24).context("the pcap has no header")?;
        ensure!(little(header, 0) == Some(PCAP_MAGIC), "not a little-endian pcap file");
        ensure!(little(header, 20) == Some(ETHERNET), "not a capture of Ethernet frames");
        let mut packets = Self::default();
        while let Some(length) = little(rest, 8)
            && let Some(frame) = rest.get(16..16 + length as usize)
        {
            packets.add(frame);
            rest = &rest[16 + length as usize..];
        }
        Ok(packets)
    }

    /// Some direction of some connection carried these bytes.
    #[must_use]
    pub fn contain(&self, bytes: &[u8]) -> bool {
        self.streams.values().any(|stream| contains(stream, bytes))
    }

    /// How many segments begin with a TLS record header (RFC 8446 §5.1).
    #[must_use]
    pub fn tls_records(&self) -> usize {
        self.tls_records.values().sum()
    }

    /// The same to or from a port.
    #[must_use]
    pub fn tls_records_of_port(&self, port: u16) -> usize {
        let of_port = |(from, to): &&(SocketAddr, SocketAddr)| from.port() == port || to.port() == port;
        self.tls_records.iter().filter(|(key, _)| of_port(key)).map(|(_, count)| count).sum()
    }

    /// Payload bytes to or from a port.
    #[must_use]
    pub fn bytes_of_port(&self, port: u16) -> usize {
        let of_port = |(from, to): &&(SocketAddr, SocketAddr)| from.port() == port || to.port() == port;
        self.streams.iter().filter(|(key, _)| of_port(key)).map(|(_, stream)| stream.len()).sum()
    }

    fn add(&mut self, frame: &[u8]) {
        let Some((from, to, payload)) = tcp(frame) else { return };
        self.segments += 1;
        *self.tls_records.entry((from, to)).or_default() += usize::from(is_tls_record(payload));
        self.streams.entry((from, to)).or_default().extend_from_slice(payload);
    }
}

fn is_tls_record(payload: &[u8]) -> bool {
    matches!(payload, [20..=23, 3, 1 | 3, high, _, ..] if *high <= 0x41)
}

/// Source, destination and payload of a TCP segment in an Ethernet frame.
fn tcp(frame: &[u8]) -> Option<(SocketAddr, SocketAddr, &[u8])> {
    let packet = frame.get(14..)?;
    let (from, to, segment) = match big(frame, 12)? {
        0x0800 => ipv4(packet)?,
        0x86dd => ipv6(packet)?,
        _ => return None,
    };
    let offset = usize::from(segment.get(12)? >> 4) * 4;
    let ports = (big(segment, 0)?, big(segment, 2)?);
    Some((SocketAddr::new(from, ports.0), SocketAddr::new(to, ports.1), segment.get(offset..)?))
}

fn ipv4(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let end = usize::from(big(packet, 2)?);
    let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?).into());
    (*packet.get(9)? == TCP).then_some(())?;
    Some((address(12)?, address(16)?, packet.get(header..end)?))
}

fn ipv6(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let end = 40 + usize::from(big(packet, 4)?);
    let address =
        |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?).into());
    (*packet.get(6)? == TCP).then_some(())?;
    Some((address(8)?, address(24)?, packet.get(40..end)?))
}

fn little(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn big(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Room for what arrives while the machine is busy elsewhere, so that nothing is dropped.
const BUFFER_KIB: &str = "16384";
/// Nobody listens there (RFC 863).
const DISCARD: u16 = 9;
/// Microsecond pcap, as a little-endian machine writes it (pcap-savefile(5)).
const PCAP_MAGIC: u32 = 0xa1b2_c3d4;
/// LINKTYPE_ETHERNET.
const ETHERNET: u32 = 1;
/// IPPROTO_TCP.
const TCP: u8 = 6;

#[cfg(test)]
mod tests {
    use super::*;

    fn pcap(payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet.extend([0x1f, 0x90, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0]);
        packet.extend(payload);
        let length = u16::try_from(packet.len()).unwrap();
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        let mut frame = [vec![0; 12], vec![8, 0], packet].concat();
        frame.extend([0; 3]); // Ethernet padding is no payload
        let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
        let header = [&PCAP_MAGIC.to_le_bytes()[..], &[0; 16], &ETHERNET.to_le_bytes()].concat();
        [header, vec![0; 8], length.to_vec(), length.to_vec(), frame].concat()
    }

    #[test]
    fn a_payload_is_found_and_what_was_not_sent_is_not() {
        let packets = Packets::parse(&pcap(b"hello")).unwrap();
        assert!(packets.contain(b"hello"));
        assert!(!packets.contain(b"hello\0"));
        assert_eq!(packets.bytes_of_port(8080), 5);
        assert_eq!(packets.tls_records(), 0);
    }

    #[test]
    fn a_record_header_is_counted() {
        assert_eq!(Packets::parse(&pcap(&[23, 3, 3, 0, 1, 9])).unwrap().tls_records(), 1);
    }

    #[test]
    fn a_file_that_was_cut_off_ends_with_the_last_whole_frame() {
        let mut file = pcap(b"hello");
        file.truncate(file.len() - 1);
        assert_eq!(Packets::parse(&file).unwrap().segments, 0);
    }
}
