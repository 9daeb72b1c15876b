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
/// Memory is given back when the process is idle and has grown since the last time. What it needs to go on comes back then, and
/// looks like growth: it is given back once more, since what was needed once only may hide in it, and left alone from the
/// moment that as much has come back as before.
#[derive(Debug, Default)]
pub struct Footprint {
    /// CPU time, user and kernel, that the process had used at the last heartbeat.
    used: Duration,
    /// Heartbeats without work until now.
    idle: u32,
    /// Bytes in memory before and after it was last given back.
    before: u64,
    left: u64,
    /// Bytes of anonymous memory when it was last put into huge pages.
    consolidated: u64,
}

impl Footprint {
    /// Gives back what loading and working took, once nothing was done for two heartbeats; and puts the heap into huge pages
    /// when it has become large, or half as large again.
    pub fn heartbeat(&mut self) {
        let worked = cpu_time().saturating_sub(std::mem::replace(&mut self.used, cpu_time()));
        self.idle = if worked < MUCH_TIME { self.idle + 1 } else { 0 };
        let Some(now) = Memory::now() else { return };
        if self.idle >= 2 && self.has_grown(now.resident) {
            settle();
            self.before = now.resident;
            self.left = Memory::now().map_or(0, |left| left.resident);
        }
        if now.anonymous >= LARGE.max(self.consolidated + self.consolidated / 2) {
            huge::consolidate();
            self.consolidated = now.anonymous;
        }
    }

    /// By as much as is worth to be given back, and not to where it was before that.
    fn has_grown(&self, resident: u64) -> bool {
        resident >= self.left + MUCH && resident.abs_diff(self.before) >= MUCH
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
    fn what_grows_is_given_back_until_the_same_has_come_back() {
        let mut footprint = Footprint::default();
        let mut is_given_back = |resident: u64, left: u64| {
            let has_grown = footprint.has_grown(resident);
            if has_grown {
                (footprint.before, footprint.left) = (resident, left);
            }
            has_grown
        };
        assert!(is_given_back(24 * MUCH, 9 * MUCH), "what starting took");
        assert!(!is_given_back(10 * MUCH - 1, 0), "not worth it");
        assert!(is_given_back(15 * MUCH, 9 * MUCH), "what came back, and something in it");
        assert!(is_given_back(12 * MUCH, 9 * MUCH), "what came back");
        assert!(!is_given_back(12 * MUCH + 1, 0), "it is needed");
        assert!(is_given_back(16 * MUCH, 10 * MUCH), "a load");
    }

    #[test]
    fn only_an_idle_process_gives_back() {
        let mut footprint = Footprint::default();
        while cpu_time() < MUCH_TIME {}
        footprint.heartbeat();
        assert_eq!((footprint.idle, footprint.left), (0, 0), "it has worked until now");
        footprint.used += MUCH_TIME * 1000;
        footprint.idle = 1;
        footprint.heartbeat();
        assert!(footprint.left > 0, "nothing was done since");
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
