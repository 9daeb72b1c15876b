//! What the process holds of the machine's memory, and how.
//!
//! Loading the programs takes several times the heap that the engine goes on with, and code (parsers, the loader, the command
//! line) that it does not run again. glibc would keep the one, and the kernel has mapped the other, with what lies around it,
//! for as long as the process lives: both are given back. So is what a load has left, once the engine has gone idle: after
//! thousands of connections the heap, after the first one the code of handshakes. What is needed again after all costs a page
//! fault that finds its page in memory.
//!
//! A large inventory is looked up all over, and on small pages most of a look-up is the processor's search for where a page
//! is. So once the heap is large it is put into huge pages, those parts of it that are full already: that costs no memory.

mod huge;
mod memory;

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

pub use memory::Memory;
#[cfg(target_env = "gnu")]
use memory::PAGE;

/// Gives back and puts in order; whoever has a heartbeat asks it to at each.
///
/// Memory is given back when the process is idle, after work and where it has grown without. What it needs to go on comes back
/// at once, and looks like growth: the lower of what had come back a heartbeat after each of the last two times is taken for
/// that, since work may have fallen into one of them. A process that does a little now and then is trimmed now and then: it
/// costs a millisecond, and the page faults of what it does next.
#[derive(Debug, Default)]
pub struct Footprint {
    /// CPU time, user and kernel, that the process had used at the last heartbeat.
    used: Duration,
    /// Heartbeats without work until now.
    idle: u32,
    /// There was work since memory was last given back: what it has freed is in memory still, and shows as no growth.
    has_worked: bool,
    given_back: GivenBack,
    /// Bytes of anonymous memory when it was last put into huge pages.
    consolidated: u64,
}

/// Bytes in memory after it was given back.
#[derive(Debug, Default)]
struct GivenBack {
    /// At once.
    left: u64,
    /// A heartbeat after the last time, and the time before.
    needed: [u64; 2],
    /// That heartbeat has not been yet.
    is_fresh: bool,
}

impl Footprint {
    /// Gives back what loading and working took, once next to nothing was done for two heartbeats; and puts the heap into huge
    /// pages when it has become large, or half as large again.
    pub fn heartbeat(&mut self) {
        let used = cpu_time();
        let worked = used.saturating_sub(std::mem::replace(&mut self.used, used));
        self.idle = if worked < MUCH_TIME { self.idle.saturating_add(1) } else { 0 };
        self.has_worked |= worked >= MUCH_TIME;
        let Some(now) = Memory::now() else { return };
        let is_worth_it = self.given_back.is_worth_it(now.resident) || self.has_worked;
        if is_worth_it && self.idle >= 2 {
            settle();
            self.has_worked = false;
            self.given_back.again(Memory::now().map_or(0, |left| left.resident));
        }
        if now.anonymous >= LARGE.max(self.consolidated + self.consolidated / 2) {
            huge::consolidate();
            self.consolidated = now.anonymous;
        }
    }
}

impl GivenBack {
    /// There is more than what cannot be given back, and more than what is needed. Asked at each heartbeat.
    fn is_worth_it(&mut self, resident: u64) -> bool {
        if std::mem::take(&mut self.is_fresh) {
            self.needed = [resident, self.needed[0]];
        }
        // What has shrunk by itself was not needed.
        self.left = self.left.min(resident);
        self.needed = self.needed.map(|needed| needed.min(resident));
        let [last, before] = self.needed;
        resident >= self.left.max(last.min(before)) + MUCH
    }

    fn again(&mut self, left: u64) {
        (self.left, self.is_fresh) = (left, true);
    }
}

/// Of this process, user and kernel (getrusage(2)). Where the kernel does not say, none, and so it looks idle.
fn cpu_time() -> Duration {
    let time = |time: TimeVal| {
        Duration::from_micros(u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap_or(0))
    };
    getrusage(UsageWho::RUSAGE_SELF)
        .map_or(Duration::ZERO, |usage| time(usage.user_time()) + time(usage.system_time()))
}

/// Hands free heap and clean code pages back to the kernel.
fn settle() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it touches free memory alone, under the allocator's own locks.
        unsafe { libc::malloc_trim(0) };
        // SAFETY: the callback keeps to what `dl_iterate_phdr` promises of its arguments.
        unsafe { libc::dl_iterate_phdr(Some(unmap_clean), std::ptr::null_mut()) };
    }
}

/// Of the program itself, which is the first object and the only one looked at, the segments that nobody can have written to.
/// Relocated data lies in segments that are writable at first, so it is not among them.
#[cfg(target_env = "gnu")]
extern "C" fn unmap_clean(
    object: *mut libc::dl_phdr_info,
    _: usize,
    _: *mut std::ffi::c_void,
) -> std::ffi::c_int {
    // SAFETY: `dl_iterate_phdr` passes a valid object, whose headers are an array of that length.
    let (base, headers) = unsafe {
        (
            (*object).dlpi_addr,
            std::slice::from_raw_parts((*object).dlpi_phdr, usize::from((*object).dlpi_phnum)),
        )
    };
    for segment in headers.iter().filter(|header| header.p_type == libc::PT_LOAD) {
        if segment.p_flags & libc::PF_W == 0 {
            let start = (base + segment.p_vaddr) & !(PAGE - 1);
            let length = base + segment.p_vaddr + segment.p_memsz - start;
            // SAFETY: a private mapping of a file without a page that differs from it reads the same when it is mapped again.
            unsafe { libc::madvise(start as *mut _, length as usize, libc::MADV_DONTNEED) };
        }
    }
    1
}

/// Bytes that are worth to be given back.
const MUCH: u64 = 1 << 20;
/// Of the heartbeat's 1.7 s: at 3 % nobody waits for what giving back takes.
const MUCH_TIME: Duration = Duration::from_millis(50);
/// Bytes of anonymous memory from which on look-ups feel it; a node without many connections and peers stays below.
const LARGE: u64 = 32 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_is_given_back_and_what_comes_back_twice_is_needed() {
        let mut given_back = GivenBack::default();
        let mut is_worth_it = |resident: u64, left: u64| {
            let is_worth_it = given_back.is_worth_it(resident * MUCH);
            if is_worth_it {
                given_back.again(left * MUCH);
            }
            is_worth_it
        };
        assert!(is_worth_it(24, 9), "what starting took");
        assert!(is_worth_it(24, 9), "the same again at once: no proof that it is needed");
        assert!(!is_worth_it(12, 0), "less came back this time");
        assert!(is_worth_it(15, 9), "a load");
        assert!(!is_worth_it(12, 0), "it is over");
        assert!(is_worth_it(15, 9), "the next");
        assert!(is_worth_it(15, 9), "and it goes on");
        assert!(!is_worth_it(15, 0), "so it is needed");
        assert!(is_worth_it(20, 20), "a heap that is in use");
        assert!(!is_worth_it(20, 0), "nothing of it could be given back");
        assert!(!is_worth_it(11, 0), "it has shrunk by itself");
        assert!(is_worth_it(12, 11), "so what comes after that is growth");
    }

    #[test]
    fn only_an_idle_process_gives_back() {
        let mut footprint = Footprint::default();
        while cpu_time() < MUCH_TIME {}
        footprint.heartbeat();
        assert_eq!((footprint.idle, footprint.given_back.left), (0, 0), "it has worked until now");
        footprint.used += MUCH_TIME * 1000;
        footprint.idle = 1;
        footprint.given_back = GivenBack { left: u64::MAX / 2, needed: [u64::MAX / 2; 2], is_fresh: false };
        assert!(footprint.has_worked);
        footprint.heartbeat();
        assert!(!footprint.has_worked && footprint.given_back.is_fresh, "idle after work, without growth");
    }

    /// Nothing to see from inside but that everything is as it was: code, constants, and what was relocated or written.
    #[test]
    fn the_program_goes_on_as_it_was() {
        static TEXTS: [&str; 2] = ["relocated", "constants"];
        static WRITTEN: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        WRITTEN.store(2, std::sync::atomic::Ordering::SeqCst);
        settle();
        assert_eq!(TEXTS.concat(), "relocatedconstants");
        assert_eq!(WRITTEN.load(std::sync::atomic::Ordering::SeqCst), 2);
    }
}
