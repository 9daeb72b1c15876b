//! Blocks of memory on loan from the thread: what bytes are received into, on their way from one socket to the other.
//!
//! A block belongs to whoever holds bytes in it, and goes back to a thread when it is dropped. So an idle connection
//! holds none, a busy one uses the same few over and over while they are in the cache, and one whose reader is slow keeps
//! those that are on their way. There is no lock and no count of references: a block has one owner.

use std::cell::RefCell;

use bytes::Buf;

/// Some bytes in a block, or none and no block.
#[derive(Default)]
pub struct Block {
    /// Empty, or [`CAPACITY`] long.
    memory: Vec<u8>,
    start: usize,
    end: usize,
}

impl Block {
    /// An empty block with room.
    #[must_use]
    pub fn borrow() -> Self {
        // Zeroed pages cost nothing until they are touched.
        let memory = SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; CAPACITY]);
        Self { memory, start: 0, end: 0 }
    }

    /// The room behind the bytes.
    #[must_use]
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.memory[self.end..]
    }

    /// `count` bytes of the room have been filled.
    ///
    /// # Panics
    /// There was less room.
    pub fn fill(&mut self, count: usize) {
        self.end += count;
        assert!(self.end <= self.memory.len(), "filled beyond the room");
    }

    /// Appends `bytes`.
    ///
    /// # Panics
    /// There is less room.
    pub fn append(&mut self, bytes: &[u8]) {
        self.room()[..bytes.len()].copy_from_slice(bytes);
        self.fill(bytes.len());
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Drops the bytes and keeps the room.
    pub fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Gives the memory back, whatever was in it.
    pub fn release(&mut self) {
        *self = Self::default();
    }
}

impl Buf for Block {
    fn remaining(&self) -> usize {
        self.end - self.start
    }

    fn chunk(&self) -> &[u8] {
        self.bytes()
    }

    fn advance(&mut self, count: usize) {
        self.start += count;
        assert!(self.start <= self.end, "advanced beyond the end");
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        if memory.is_empty() {
            return;
        }
        // Not while the thread ends, when its list is gone already: then the memory goes with it.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE_BLOCKS {
                spare.push(memory);
            }
        });
    }
}

thread_local! {
    /// Blocks nobody holds. Taken by [`Block::borrow`], given back when one is dropped; ends with the thread.
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes of one block: [`CONTENT`], and what TLS adds to it in eight records.
pub const CAPACITY: usize = 132 * 1024;

/// Bytes to receive of an application at once: eight records as `mtls` makes them. More gains nothing (128 KiB to 1 MiB
/// measured alike).
pub const CONTENT: usize = 8 * 16_267;

/// Blocks a thread keeps: one poll holds one that is received into and one that is sealed or opened to, each way.
const SPARE_BLOCKS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_filled_and_emptied_in_order() {
        let mut block = Block::borrow();
        block.append(b"hello, ");
        block.room()[..5].copy_from_slice(b"world");
        block.fill(5);
        block.advance(7);
        assert_eq!(block.bytes(), b"world");
        block.advance(5);
        assert!(block.is_empty());
    }

    #[test]
    fn a_thread_keeps_few_blocks_and_lends_them_again() {
        let blocks: Vec<Block> = (0..SPARE_BLOCKS + 3).map(|_| Block::borrow()).collect();
        drop(blocks);
        assert_eq!(SPARE.with_borrow(Vec::len), SPARE_BLOCKS);
        let held = Block::borrow();
        assert_eq!(SPARE.with_borrow(Vec::len), SPARE_BLOCKS - 1);
        drop(held);
        drop(Block::default());
        assert_eq!(SPARE.with_borrow(Vec::len), SPARE_BLOCKS);
    }

    #[test]
    fn what_holds_no_bytes_holds_no_memory() {
        let mut block = Block::borrow();
        block.append(b"x");
        block.release();
        assert!(block.is_empty() && block.memory.capacity() == 0);
    }
}
