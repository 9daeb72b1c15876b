//! The mesh that every test may use that does not hurt its neighbours: its pods live in a namespace of their own, and it
//! leaves engines and CA alone.

use std::sync::{Arc, Mutex};

use anyhow::{Result, anyhow};
use signet_testkit::mesh::Mesh;

/// The shared mesh; started by the first test that asks for it.
///
/// # Errors
/// It could not be started; asked again, it says the same at once.
pub(crate) fn mesh() -> Result<Arc<Mesh>> {
    let mut shared = SHARED.lock().map_err(|_| anyhow!("the shared mesh panicked while it started"))?;
    let start = || Mesh::start().map(Arc::new).map_err(|error| format!("{error:#}"));
    shared.get_or_insert_with(start).clone().map_err(|error| anyhow!("no shared mesh: {error}"))
}

/// Takes it down. Called once, after the last test.
pub(crate) fn end() {
    if let Ok(mut shared) = SHARED.lock() {
        shared.take();
    }
}

/// Written by the first test that asks and by [`end`]; read by every test.
static SHARED: Mutex<Option<Result<Arc<Mesh>, String>>> = Mutex::new(None);
