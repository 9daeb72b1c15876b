//! The limit of open files. Every connection needs a descriptor or two, and the soft limit that a process is started with
//! (1024 in many containers, for the sake of select(2), which is not used here) is less than one busy pod needs.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the limit of open files to the most that the kernel gives anybody, or without the privilege for that to the hard
/// limit; returns it. Once, at start-up. A connection between nodes takes two at each end.
///
/// # Errors
/// The kernel said no; the old limit stays.
pub fn raise_open_files() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let told = std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    let most = hard.max(told.unwrap_or(hard));
    if setrlimit(Resource::RLIMIT_NOFILE, most, most).is_ok() {
        return Ok(most);
    }
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_the_hard_one_afterwards() {
        let raised = raise_open_files().unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (raised, raised));
    }
}
