//! Huge pages for the full parts of a large heap (madvise(2), `MADV_COLLAPSE`, since Linux 6.1).
//!
//! Only whole huge pages of which nearly every small one is in memory already are collapsed: a hole would be filled. A kernel
//! or an administrator that gives none leaves everything as it was, and look-ups as slow.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::ops::Range;

use super::memory::PAGE;

/// Collapses what is full. Whatever fails stays on small pages.
pub(super) fn consolidate() {
    let Ok(maps) = fs::read_to_string("/proc/self/maps") else { return };
    let Ok(mut pagemap) = File::open("/proc/self/pagemap") else { return };
    for part in maps.lines().filter_map(heap).flat_map(|heap| huge_pages(&heap)) {
        if is_full(&mut pagemap, part).unwrap_or(false) {
            // SAFETY: it moves the same bytes to other pages, while whoever touches them waits in the kernel.
            unsafe { libc::madvise(part as *mut _, HUGE as usize, libc::MADV_COLLAPSE) };
        }
    }
}

/// The range of a line of proc_pid_maps(5) that is private, writable and of no file: `[heap]`, or an arena's.
fn heap(line: &str) -> Option<Range<u64>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let (is_private, inode) = (fields.next()? == "rw-p", fields.nth(2)?);
    let name = fields.next().unwrap_or("[heap]");
    let hex = |text| u64::from_str_radix(text, 16).ok();
    (is_private && inode == "0" && name == "[heap]").then_some(hex(start)?..hex(end)?)
}

/// Where whole huge pages of a range begin.
fn huge_pages(range: &Range<u64>) -> impl Iterator<Item = u64> + use<> {
    let (first, end) = (range.start.next_multiple_of(HUGE), range.end);
    (first..end).step_by(HUGE as usize).take_while(move |start| start + HUGE <= end)
}

/// Nearly all of a huge page is in memory: proc_pid_pagemap(5), bit 63.
fn is_full(pagemap: &mut File, start: u64) -> io::Result<bool> {
    let mut entries = [0; (HUGE / PAGE) as usize * 8];
    pagemap.seek(SeekFrom::Start(start / PAGE * 8))?;
    pagemap.read_exact(&mut entries)?;
    // Little endian, as every architecture that Signet runs on: the highest bit is the last byte's.
    let present = entries.chunks_exact(8).filter(|entry| entry[7] & 0x80 != 0).count() as u64;
    Ok(present >= HUGE / PAGE * 15 / 16)
}

/// Bytes of a huge page. Where it is larger, nothing is collapsed: `madvise` refuses.
const HUGE: u64 = 2 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_private_memory_of_no_file_is_heap() {
        let heap_line = "55d0c0a00000-55d0c4e21000 rw-p 00000000 00:00 0                          [heap]";
        assert_eq!(heap(heap_line), Some(0x55d0_c0a0_0000..0x55d0_c4e2_1000));
        assert_eq!(
            heap("7f0000000000-7f0000021000 rw-p 00000000 00:00 0 "),
            Some(0x7f00_0000_0000..0x7f00_0002_1000)
        );
        for other in [
            "7f0000000000-7f0000021000 r--p 00000000 00:00 0 ",
            "7f0000000000-7f0000021000 rw-s 00000000 00:0f 1050 anon_inode:bpf-map",
            "7f0000000000-7f0000021000 rw-p 00020000 fe:00 1234 /usr/lib/libc.so.6",
            "7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]",
            "nonsense",
        ] {
            assert_eq!(heap(other), None, "{other}");
        }
    }

    #[test]
    fn a_huge_page_is_whole_or_none() {
        let of = |start, end| huge_pages(&(start..end)).collect::<Vec<_>>();
        assert_eq!(of(HUGE - 1, 3 * HUGE), [HUGE, 2 * HUGE]);
        assert_eq!(of(HUGE, 3 * HUGE - 1), [HUGE]);
        assert!(of(1, HUGE).is_empty());
    }

    /// What it holds stays as it was, and so does how much of it there is, holes too.
    #[test]
    fn collapsed_memory_reads_the_same_and_is_no_larger() {
        let mut bytes = vec![0_u8; 16 * HUGE as usize];
        bytes.chunks_exact_mut(PAGE as usize).step_by(2).for_each(|page| page[0] = 1);
        let half = bytes.len() / 2;
        bytes[..half]
            .chunks_exact_mut(PAGE as usize)
            .zip(0_u32..)
            .for_each(|(page, at)| page[..4].copy_from_slice(&at.to_le_bytes()));
        let resident = || {
            bytes
                .chunks_exact(HUGE as usize)
                .filter(|part| {
                    is_full(
                        &mut File::open("/proc/self/pagemap").unwrap(),
                        part.as_ptr() as u64 & !(PAGE - 1),
                    )
                    .unwrap()
                })
                .count()
        };
        let before = resident();
        consolidate();
        assert_eq!(resident(), before);
        let pages = bytes[..half].chunks_exact(PAGE as usize).zip(0_u32..);
        assert!(pages.into_iter().all(|(page, at)| page[..4] == at.to_le_bytes()));
    }
}
