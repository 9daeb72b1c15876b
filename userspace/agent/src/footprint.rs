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
mod used;

pub use memory::Memory;
#[cfg(target_env = "gnu")]
use memory::PAGE;
use used::{Used, Work};

/// Gives back and puts in order; whoever has a heartbeat asks it to at each.
#[derive(Debug)]
pub struct Footprint {
    loads: Loads,
    /// What had been used at the last heartbeat.
    used: Used,
    /// Bytes of anonymous memory when it was last put into huge pages.
    consolidated: u64,
    /// Bytes of anonymous memory that were left when it was last given back, and up to which it is known to come back.
    kept: u64,
    tolerated: u64,
}

/// How long ago something was loaded or done, in heartbeats, and for the how many-th time it is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loads {
    /// Since the last one.
    Now(Turn),
    /// One ago: what follows a load (an SVID, the first look at maps) may still go on.
    Lately(Turn),
    /// What it took has just been given back: what is needed all the same comes back now.
    GivenBack(Turn),
    /// It has come back.
    Past,
}

/// What comes back after the first time looks like a little work, and such may hide in it: so there is a second, and no third
/// unless there was more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    First,
    Second,
}

impl Loads {
    /// After another heartbeat, and what the process has done in it.
    fn next(self, work: Work) -> Self {
        match (self, work) {
            (Self::GivenBack(_), Work::Much) => Self::Now(Turn::First),
            (Self::GivenBack(Turn::First), Work::Little) => Self::Now(Turn::Second),
            (Self::GivenBack(_), _) | (Self::Past, Work::None) => Self::Past,
            (Self::Past, _) => Self::Now(Turn::First),
            (Self::Now(turn), Work::None) => Self::Lately(turn),
            (Self::Lately(turn), Work::None) => Self::GivenBack(turn),
            (Self::Now(turn) | Self::Lately(turn), _) => Self::Now(turn),
        }
    }
}

/// That of a process which has just started.
impl Default for Footprint {
    fn default() -> Self {
        Self { loads: Loads::Now(Turn::First), used: Used::default(), consolidated: 0, kept: 0, tolerated: 0 }
    }
}

impl Footprint {
    /// Something was loaded that will not be needed again.
    pub fn loaded(&mut self) {
        self.loads = Loads::Now(Turn::First);
    }

    /// Gives back what loading and working took, once nothing was loaded or done for a whole heartbeat; and puts the heap into
    /// huge pages when it has become large, or half as large again.
    pub fn heartbeat(&mut self) {
        let used = Used::now();
        self.loads = self.loads.next(used.work_since(std::mem::replace(&mut self.used, used)));
        let anonymous = || Memory::now().map_or(0, |now| now.anonymous);
        if matches!(self.loads, Loads::GivenBack(_)) {
            settle();
            self.kept = anonymous();
        }
        let anonymous = anonymous();
        if self.loads == Loads::Past && self.has_grown(anonymous) {
            (self.loads, self.tolerated) = (Loads::Now(Turn::First), anonymous);
        }
        if anonymous >= LARGE.max(self.consolidated + self.consolidated / 2) {
            huge::consolidate();
            self.consolidated = anonymous;
        }
    }
}

impl Footprint {
    /// Heap that was taken in a heartbeat in which all looked like what comes back. Once: what comes back again is needed.
    fn has_grown(&self, anonymous: u64) -> bool {
        anonymous >= self.kept + MUCH && anonymous > self.tolerated
    }
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

/// Bytes of anonymous memory that are worth to be given back.
const MUCH: u64 = 1 << 20;
/// Bytes of anonymous memory from which on look-ups feel it; a node without many connections and peers stays below.
const LARGE: u64 = 32 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_heartbeat_without_work_must_pass() {
        use Loads::{GivenBack, Lately, Now, Past};
        use Turn::{First, Second};
        use Work::{Little, Much, None};
        let mut loads = Now(First);
        let mut after = |work| {
            loads = loads.next(work);
            loads
        };
        assert_eq!([None, Little, None].map(&mut after), [Lately(First), Now(First), Lately(First)]);
        assert_eq!([None, None].map(&mut after), [GivenBack(First), Past], "nothing has come back");
        assert_eq!([Little, None, None].map(&mut after), [Now(First), Lately(First), GivenBack(First)]);
        assert_eq!([Little, None, None].map(&mut after), [Now(Second), Lately(Second), GivenBack(Second)]);
        assert_eq!([Much, None, None].map(&mut after), [Now(First), Lately(First), GivenBack(First)]);
        assert_eq!([Little, None, None].map(&mut after), [Now(Second), Lately(Second), GivenBack(Second)]);
        assert_eq!([Little, None].map(&mut after), [Past; 2], "what it takes to go on is no work");
    }

    #[test]
    fn heap_that_was_taken_unseen_is_given_back_once() {
        let footprint = Footprint { kept: 6 * MUCH, ..Footprint::default() };
        assert!(!footprint.has_grown(7 * MUCH - 1));
        assert!(footprint.has_grown(7 * MUCH));
        let footprint = Footprint { tolerated: 10 * MUCH, ..footprint };
        assert!(!footprint.has_grown(10 * MUCH), "it has come back");
        assert!(footprint.has_grown(10 * MUCH + 1));
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
