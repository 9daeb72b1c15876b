//! `connect` by io_uring: the kernel calls it on the application's behalf, past every seam of the C library.

use std::io::{Error, Result};
use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, types};
use socket2::{SockAddr, Socket};

/// Connects and waits for the completion.
pub(super) fn connect(socket: &Socket, to: &SockAddr) -> Result<()> {
    let mut ring = IoUring::new(2)?;
    let entry = opcode::Connect::new(types::Fd(socket.as_raw_fd()), to.as_ptr().cast(), to.len()).build();
    // SAFETY: the socket and the address outlive the operation, since its completion is waited for below.
    unsafe { ring.submission().push(&entry) }.map_err(Error::other)?;
    ring.submit_and_wait(1)?;
    let completion = ring.completion().next().expect("one was waited for");
    if completion.result() < 0 { Err(Error::from_raw_os_error(-completion.result())) } else { Ok(()) }
}
