//! The kernel programs' own log lines, by aya-log: what went wrong with one socket, at debug level.
//!
//! Counters and events tell what operators need; the lines are for whoever looks for the reason of a fault that is
//! counted. A program whose level is not logged writes nothing, since the level is a constant when it is loaded. The ring
//! is pinned with the other maps, so that programs which outlive their loader go on writing where somebody reads.

use std::io;

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;
use tracing::level_filters::LevelFilter;
use tracing::warn;

/// The level up to which the programs log, as aya-log numbers them: 1 is error, 5 is trace, 0 is nothing.
pub(super) fn level() -> &'static u8 {
    match LevelFilter::current() {
        LevelFilter::OFF => &0,
        LevelFilter::ERROR => &1,
        LevelFilter::WARN => &2,
        LevelFilter::INFO => &3,
        LevelFilter::DEBUG => &4,
        _ => &5,
    }
}

/// Passes the programs' lines on to the log, in a task that ends when its handle is aborted. Without it nothing is lost
/// but the lines.
pub(super) fn forward(ebpf: &mut Ebpf) -> JoinHandle<()> {
    let logger = EbpfLogger::init(ebpf).map_err(|error| error.to_string()).and_then(|logger| {
        // SAFETY: the logger keeps its map's descriptor until it is dropped, and the `AsyncFd` owns the logger.
        unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }
            .map_err(|error| io::Error::from(error).to_string())
    });
    tokio::spawn(async move {
        let mut logger = match logger {
            Ok(logger) => logger,
            Err(error) => return warn!(%error, "the kernel programs' log lines are not shown"),
        };
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    })
}
