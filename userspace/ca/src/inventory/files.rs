//! The `files` source: a watched directory of manifests.
//!
//! A broken document keeps what was last known of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use signet_manifests::{Directory, DocumentError, ObjectKey, OpenError, Snapshot, Watch, WatchError};
use tokio::sync::watch;
use tracing::{error, info};

use super::{Inventory, Placement, Reader, placement};

/// Reads the directory and publishes inventories. Owned by its task; ends with the watch.
#[derive(Debug)]
pub(crate) struct Files {
    watch: Watch,
    known: BTreeMap<ObjectKey, Placement>,
    /// What the log has been told.
    logged: BTreeSet<String>,
    /// Written here alone; the service reads.
    published: watch::Sender<Inventory>,
}

impl Files {
    /// Opens the directory and reads it for the first time.
    pub(crate) async fn open(directory: PathBuf) -> Result<(Self, Reader), InventoryError> {
        let mut watch = Directory::open(directory)?.watch()?;
        let first = watch.next().await?;
        let (published, reader) = watch::channel(Inventory::default());
        let mut source = Self { watch, known: BTreeMap::new(), logged: BTreeSet::new(), published };
        source.update(&first);
        Ok((source, Reader::of(reader, None)))
    }

    /// Follows the directory until its watch breaks.
    pub(crate) async fn run(mut self) -> Result<(), WatchError> {
        loop {
            let snapshot = self.watch.next().await?;
            self.update(&snapshot);
        }
    }

    fn update(&mut self, snapshot: &Snapshot) {
        let faults = update(&mut self.known, snapshot);
        let files = snapshot.faults.iter().map(|fault| fault.error.to_string());
        let faults: BTreeSet<String> = files.chain(faults.iter().map(ToString::to_string)).collect();
        for fault in faults.difference(&self.logged) {
            error!(fault, "manifest not taken");
        }
        for fault in self.logged.difference(&faults) {
            info!(fault, "manifest fault ended");
        }
        self.logged = faults;
        self.published.send_replace(inventory(&self.known));
    }
}

/// Why there is no inventory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InventoryError {
    /// The directory.
    #[error("inventory.files.directory: {0}")]
    Open(#[from] OpenError),
    /// Its watch.
    #[error("inventory.files.directory: {0}")]
    Watch(#[from] WatchError),
}

fn update(known: &mut BTreeMap<ObjectKey, Placement>, snapshot: &Snapshot) -> Vec<DocumentError> {
    let mut before = std::mem::take(known);
    let mut faults = Vec::new();
    for document in &snapshot.documents {
        let placement = placement(document).unwrap_or_else(|fault| {
            faults.push(fault);
            before.remove(document.key())
        });
        if let Some(placement) = placement {
            known.insert(document.key().clone(), placement);
        }
    }
    faults
}

fn inventory(known: &BTreeMap<ObjectKey, Placement>) -> Inventory {
    let mut inventory = Inventory::default();
    for (key, placement) in known {
        inventory.put(key.clone(), placement.clone());
    }
    inventory
}

#[cfg(test)]
mod tests;
