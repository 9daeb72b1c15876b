//! Sockets: listen, dial, network namespaces, transparent source addresses, and the byte relay.
//!
//! Everything that touches another namespace goes through [`Netns::run`]. [`prepare`] opens the listeners of one
//! namespace and makes it ready for [`dial_transparent`]; [`relay()`] joins two [`Leg`]s until both directions have ended.
//! Nothing here knows whom a connection belongs to, or whether it is allowed: that is decided before it is called.

mod addresses;
mod descriptors;
mod device;
mod dial;
mod leg;
mod listen;
mod netns;
mod relay;
mod routing;
mod settings;

use std::io;
use std::net::SocketAddr;

use nix::errno::Errno;

pub use addresses::own_addresses;
pub use descriptors::raise_open_files;
pub use device::keep_to_device;
pub use dial::{dial, dial_transparent};
pub use leg::{Leg, Received, arm, disarm, reset};
pub use listen::{Listeners, ignore_newcomers, prepare, restore};
pub use netns::Netns;
pub use relay::{Action, RelayError, Relaying, Side, Traffic, relay, relay_after};
pub use settings::open as open_settings;

/// Why a socket could not be had, sorted by who is to blame.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The peer's machine answered, and nothing listens there.
    #[error("{0} refused the connection: nothing listens there")]
    Refused(SocketAddr),
    /// The network has no way to the peer.
    #[error("{to} is unreachable: {source}; check the node's routes and network policies")]
    Unreachable {
        /// Who was dialled.
        to: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The peer did not answer in the time that was given.
    #[error(
        "{0} did not answer in time: it is down, or packets to it are dropped, as by a NetworkPolicy without this port"
    )]
    TimedOut(SocketAddr),
    /// This machine would not dial: descriptors, ports, or the source address.
    #[error("cannot dial {to} from this node: {source}")]
    Local {
        /// Who was to be dialled.
        to: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// A listener of the engine could not be opened in a namespace.
    #[error(
        "cannot listen on {address} in the workload's network namespace: {source}; is `lo` up and the port free?"
    )]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// A namespace could not be entered.
    #[error("cannot enter a network namespace: {0}; signetd needs CAP_SYS_ADMIN and /proc")]
    Netns(#[source] io::Error),
    /// Routing in a namespace could not be changed.
    #[error(
        "cannot {step} in the workload's network namespace: {source}; signetd needs CAP_NET_ADMIN and a writable /proc/sys/net"
    )]
    Routing {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl NetError {
    /// Sorts what `connect` said.
    fn connect(to: SocketAddr, source: io::Error) -> Self {
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ECONNREFUSED) => Self::Refused(to),
            Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EHOSTDOWN | Errno::ENETDOWN) => {
                Self::Unreachable { to, source }
            }
            Some(Errno::ETIMEDOUT) => Self::TimedOut(to),
            _ => Self::Local { to, source },
        }
    }

    /// The source address and port are in use: another port may do.
    fn is_taken_tuple(&self) -> bool {
        let Self::Local { source, .. } = self else { return false };
        matches!(source.raw_os_error().map(Errno::from_raw), Some(Errno::EADDRINUSE | Errno::EADDRNOTAVAIL))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(errno: Errno) -> NetError {
        NetError::connect(([10, 0, 0, 1], 80).into(), io::Error::from_raw_os_error(errno as i32))
    }

    #[test]
    fn a_failed_connect_is_blamed_on_who_caused_it() {
        assert!(matches!(sorted(Errno::ECONNREFUSED), NetError::Refused(_)));
        assert!(matches!(sorted(Errno::EHOSTUNREACH), NetError::Unreachable { .. }));
        assert!(matches!(sorted(Errno::ETIMEDOUT), NetError::TimedOut(_)));
        assert!(matches!(sorted(Errno::EMFILE), NetError::Local { .. }));
    }

    #[test]
    fn only_a_tuple_in_use_is_worth_another_port() {
        assert!(sorted(Errno::EADDRNOTAVAIL).is_taken_tuple());
        assert!(!sorted(Errno::EMFILE).is_taken_tuple());
        assert!(!sorted(Errno::ECONNREFUSED).is_taken_tuple());
    }
}
