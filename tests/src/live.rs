//! What of this process is up and must come down: at the end of its guard, and when the process is asked to end.
//!
//! Whoever makes something that outlives a process registers it by a name under which all of it can be removed. On
//! Ctrl-C or SIGTERM one thread removes everything that is registered and ends the process; [`proceed`] keeps the other
//! threads from making more meanwhile. A killed process removes nothing: the next run sweeps.

use std::sync::{Mutex, Once};

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

/// Registers what `remove` takes down by its name.
pub(crate) fn register(name: &str, remove: fn(&str) -> Result<()>) {
    remove_on_signals();
    LIVE.lock().expect("no holder panics").push(Live { name: name.to_owned(), remove });
}

/// Forgets what has been taken down, or is to stay.
pub(crate) fn forget(name: &str) {
    LIVE.lock().expect("no holder panics").retain(|live| live.name != name);
}

/// Called before anything is made that would have to be removed: returns at once, or never, where this process is ending.
pub(crate) fn proceed() {
    drop(LIVE.lock().expect("no holder panics"));
}

/// Says what could not be taken down; there is nobody left to fail.
pub(crate) fn report(result: Result<()>) {
    if let Err(error) = result {
        eprintln!("testkit: {error:#}");
    }
}

/// One thing that is up.
struct Live {
    name: String,
    remove: fn(&str) -> Result<()>,
}

fn remove_on_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            report(runtime.context("no runtime for signals").and_then(|rt| rt.block_on(asked_to_end())));
            // Held until the end: the other threads stop at their next step, see `proceed`.
            let live = LIVE.lock().expect("no holder panics");
            // Twice, for what a thread was in the middle of making.
            live.iter().chain(live.iter()).for_each(|live| report((live.remove)(&live.name)));
            std::process::exit(128 + libc::SIGINT);
        });
    });
}

async fn asked_to_end() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        ctrl_c = tokio::signal::ctrl_c() => ctrl_c?,
        _ = terminate.recv() => (),
    }
    Ok(())
}

/// Written by the guards' constructors and drops; read, and then held, when a signal ends the process.
static LIVE: Mutex<Vec<Live>> = Mutex::new(Vec::new());
