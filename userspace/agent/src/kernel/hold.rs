//! SYNs from outside that wait for an engine: one program behind a pinned `tcx/ingress` link on each device of a namespace.
//!
//! It spares clients without an engine of their own a refusal while this one is replaced, and protects nothing: where it
//! is missing (Linux before 6.6, a device that came after its namespace was steered), `sk_lookup` refuses them.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use nix::net::if_::if_nameindex;

use super::error::KernelError;
use super::link::{self, AttachType, Target};
use super::netns::inside;
use super::object::{Pins, list};
use crate::addr::NetnsCookie;

/// Puts the program on every device of the namespace but loopback.
///
/// # Errors
/// The kernel has no such links, or one of them could not be made.
pub(super) fn put(
    pins: &Pins,
    program: BorrowedFd<'_>,
    netns: BorrowedFd<'_>,
    cookie: NetnsCookie,
) -> Result<(), KernelError> {
    let lost = |source| KernelError::Devices { netns: cookie, source };
    let put_here = || {
        let on = |device: u32| {
            let pin = pins.links().join(format!("{}{device}", prefix(cookie)));
            link::put(&pin, program, Target::Device(device), AttachType::TcxIngress)
        };
        // One may go meanwhile, and the others are as good without it.
        let results: Vec<_> = devices().map_err(lost)?.into_iter().map(on).collect();
        results.into_iter().collect()
    };
    inside(netns, put_here).map_err(lost)?
}

/// Removes the links of a namespace, which may be gone.
///
/// # Errors
/// A link could not be detached or its pin not removed.
pub(super) fn remove(pins: &Pins, cookie: NetnsCookie) -> Result<(), KernelError> {
    let prefix = prefix(cookie);
    let is_its = |pin: &PathBuf| {
        pin.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
    };
    list(&pins.links())?.into_iter().filter(is_its).try_for_each(|pin| link::remove(&pin))
}

/// The indices of the calling thread's namespace's devices, without loopback.
fn devices() -> io::Result<Vec<u32>> {
    let all = if_nameindex()?;
    Ok(all.iter().filter(|device| device.name().to_bytes() != b"lo").map(|device| device.index()).collect())
}

fn prefix(cookie: NetnsCookie) -> String {
    format!("{PREFIX}{cookie}-")
}

/// Begins the names of the pins.
pub(super) const PREFIX: &str = "hold-";
