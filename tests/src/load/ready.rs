//! Which sockets are ready: one epoll instance, level-triggered, the sockets known by numbers that the caller chooses.

use std::io::Result;
use std::os::fd::AsFd;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// What a socket is watched for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Interest {
    Read,
    Write,
    /// A listener that several threads watch: one of them is woken for a connection.
    Accept,
}

impl Interest {
    fn flags(self) -> EpollFlags {
        match self {
            Self::Read => EpollFlags::EPOLLIN,
            Self::Write => EpollFlags::EPOLLOUT,
            Self::Accept => EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE,
        }
    }
}

/// An epoll instance. A closed socket leaves it by itself.
#[derive(Debug)]
pub(super) struct Ready {
    epoll: Epoll,
}

/// Where one thread's events go.
pub(super) type Events = [EpollEvent; 64];

impl Ready {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)? })
    }

    pub(super) fn events() -> Events {
        [EpollEvent::empty(); 64]
    }

    pub(super) fn watch(&self, socket: &impl AsFd, interest: Interest, number: usize) -> Result<()> {
        Ok(self.epoll.add(socket, EpollEvent::new(interest.flags(), number as u64))?)
    }

    pub(super) fn change(&self, socket: &impl AsFd, interest: Interest, number: usize) -> Result<()> {
        Ok(self.epoll.modify(socket, &mut EpollEvent::new(interest.flags(), number as u64))?)
    }

    /// The numbers of those that are ready; none where `until` has come. Without `until` it waits as long as it takes.
    pub(super) fn wait<'e>(
        &self,
        events: &'e mut Events,
        until: Option<Instant>,
    ) -> Result<impl Iterator<Item = usize> + use<'e>> {
        let count = match self.epoll.wait(events, timeout(until)) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        Ok(events[..count].iter().map(|event| event.data() as usize))
    }
}

/// Whole milliseconds, rounded up.
fn timeout(until: Option<Instant>) -> EpollTimeout {
    let Some(until) = until else { return EpollTimeout::NONE };
    let left = until.saturating_duration_since(Instant::now()).as_micros().div_ceil(1_000);
    EpollTimeout::from(u16::try_from(left).unwrap_or(u16::MAX))
}
