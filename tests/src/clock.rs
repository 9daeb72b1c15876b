//! Another clock for one process, by libfaketime: it takes the place of the C library's calls that ask for the time of day.
//! The machine's clock is everybody's, and time namespaces do not have that one.
//!
//! How far it is off is read from a file at every call, so that it can be put right while the process runs. Time that only
//! passes (`CLOCK_MONOTONIC`) is left alone, as it is where a clock is stepped.

use std::fs;
use std::io::Write;
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::NamedTempFile;

use crate::process::stdout;

/// A clock that can be set. Dropping it takes the file away, and the clock is right again.
#[derive(Debug)]
pub struct Clock {
    file: NamedTempFile,
    library: String,
}

impl Clock {
    /// One that is off by so much: `-1h`, `+30s`.
    ///
    /// # Errors
    /// libfaketime is not installed.
    pub fn off_by(offset: &str) -> Result<Self> {
        let find = "ls /usr/lib/*/faketime/libfaketimeMT.so.1";
        let library = stdout(&Command::new("sh").args(["-c", find]).output()?);
        let library = library.context("libfaketime is not installed: run `cargo xtask setup`")?;
        let clock = Self { file: NamedTempFile::new()?, library };
        clock.set(offset)?;
        Ok(clock)
    }

    /// Sets it, in one step.
    ///
    /// # Errors
    /// The disk is full.
    pub fn set(&self, offset: &str) -> Result<()> {
        let mut next = NamedTempFile::new()?;
        next.write_all(offset.as_bytes())?;
        fs::rename(next.into_temp_path().keep()?, self.file.path()).context("cannot set the clock")
    }

    /// What a process that goes by it has in its environment.
    ///
    /// # Errors
    /// Its path is no text.
    pub fn variables(&self) -> Result<[String; 4]> {
        let file = self.file.path().to_str().context("a path in UTF-8")?;
        Ok([
            format!("LD_PRELOAD={}", self.library),
            format!("FAKETIME_TIMESTAMP_FILE={file}"),
            "FAKETIME_NO_CACHE=1".to_owned(),
            "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        ])
    }
}
