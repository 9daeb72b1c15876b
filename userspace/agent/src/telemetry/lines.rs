//! Where log lines are written: to standard output, one system call each, or many together while a thread holds them.
//!
//! Whoever writes many lines at once, as at the end of thousands of short connections, would otherwise pay more for the system
//! calls than for the lines. Held lines are written when the hold ends, which is before anything else is waited for.

use std::cell::RefCell;
use std::io::{self, Write};
use std::marker::PhantomData;

use tracing_subscriber::fmt::MakeWriter;

/// Writes to standard output.
pub(super) struct Lines;

/// While it lives, this thread's lines are collected; dropped, it writes them.
#[must_use = "lines are held for as long as it lives"]
pub struct Held(PhantomData<*const ()>);

/// Collects this thread's lines until the value is dropped. Hold them for a piece of work without an await.
pub fn hold() -> Held {
    HELD.with_borrow_mut(|held| {
        held.get_or_insert_default();
    });
    Held(PhantomData)
}

impl Drop for Held {
    fn drop(&mut self) {
        let lines = HELD.take().unwrap_or_default();
        // As with a line alone: where the log cannot be written, nobody can be told.
        let _ = io::stdout().write_all(&lines);
        let _ = io::stdout().flush();
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        HELD.with_borrow_mut(|held| match held {
            Some(lines) if lines.len() + line.len() <= MAX_HELD => lines.write(line),
            Some(lines) => {
                io::stdout().write_all(&std::mem::take(lines))?;
                io::stdout().write(line)
            }
            None => io::stdout().write(line),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}

thread_local! {
    /// Lines that a [`Held`] of this thread waits to write.
    static HELD: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// Bytes: more are written at once.
const MAX_HELD: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_wait_for_the_end_of_the_hold_and_no_longer() {
        let held = hold();
        Lines.write_all(b"one\n").unwrap();
        Lines.write_all(b"two\n").unwrap();
        assert_eq!(HELD.with_borrow(Clone::clone).unwrap(), b"one\ntwo\n");
        Lines.write_all(&vec![b'.'; MAX_HELD]).unwrap();
        assert_eq!(HELD.with_borrow(Clone::clone).unwrap(), b"");
        drop(held);
        assert!(HELD.with_borrow(Option::is_none));
    }
}
