//! Network namespaces: their cookies, and a visit to one.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::cgroup::OWN_NETNS;
use super::error::KernelError;
use crate::addr::NetnsCookie;

/// The cookie of a network namespace (`SO_NETNS_COOKIE` of a socket made in it).
///
/// # Errors
/// The system call that failed.
pub fn netns_cookie(netns: BorrowedFd<'_>) -> io::Result<NetnsCookie> {
    inside(netns, cookie_here)?
}

/// Runs `f` in another network namespace.
///
/// # Errors
/// The namespace could not be entered; `f` did not run, or panicked.
pub(super) fn inside<T: Send>(netns: BorrowedFd<'_>, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    let enter = || {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        Ok(f())
    };
    // A thread of its own enters the namespace and ends there: the caller's threads stay where they are.
    std::thread::scope(|scope| scope.spawn(enter).join())
        .map_err(|_| io::Error::other("the thread that entered the network namespace panicked"))?
}

/// The cookie of this process's own namespace.
pub(super) fn own_cookie() -> Result<NetnsCookie, KernelError> {
    File::open(OWN_NETNS)
        .and_then(|netns| netns_cookie(std::os::fd::AsFd::as_fd(&netns)))
        .map_err(KernelError::file("take the cookie of", OWN_NETNS))
}

/// The cookie of the calling thread's namespace; needs no privilege.
fn cookie_here() -> io::Result<NetnsCookie> {
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option's value is one u64, which `cookie` has room for, as `length` says.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(NetnsCookie(cookie)) } else { Err(io::Error::last_os_error()) }
}

/// include/uapi/asm-generic/socket.h.
const SO_NETNS_COOKIE: libc::c_int = 71;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_keeps_its_cookie() {
        let first = cookie_here().unwrap();
        assert_ne!(first, NetnsCookie(0));
        assert_eq!(cookie_here().unwrap(), first);
    }
}
