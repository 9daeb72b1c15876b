//! Which device a connection keeps to.
//!
//! A socket without a device gets whatever has its four numbers. Within a workload's namespace two connections may have the
//! same: one that the engine has dialled in a client's name, and one of that client's own, or of another that an address
//! translator gives its address. What the first one's end at the application gets, loopback, is the kernel programs' work;
//! this is for the second.

use std::io;

use nix::net::if_::if_nameindex;
use socket2::SockRef;
use tokio::net::TcpStream;

use super::Netns;

/// Keeps an accepted connection to the device that its client's SYN came by: it hears of no other packet from then on. Packets
/// that take another way, where routes are not symmetric, are lost to it.
///
/// # Errors
/// The kernel does not say which device that was (the listener was no IPv6 socket), or it is gone.
pub fn keep_to_device(netns: &Netns, accepted: &TcpStream) -> io::Result<()> {
    // Of an accepted socket it is the device that the SYN came by (net/ipv6/tcp_ipv6.c `tcp_v6_syn_recv_sock`).
    let index = SockRef::from(accepted).multicast_if_v6()?;
    let keep = || {
        let devices = if_nameindex()?;
        let device = devices.iter().find(|device| device.index() == index);
        let name = device.ok_or_else(|| io::Error::other(format!("no device has the index {index}")))?;
        SockRef::from(accepted).bind_device(Some(name.name().to_bytes()))
    };
    netns.run(keep)?
}
