//! Settings of an engine that a test changes: they take effect when it is started again.

use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Engine;

impl Engine {
    /// Changes its configuration file: the value at a pointer (`/timeouts/discovery`), made where it is not.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn set(&self, pointer: &str, value: Value) -> Result<()> {
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&self.config)?)?;
        let (parent, name) = pointer.rsplit_once('/').context("a pointer begins with /")?;
        let parent = parent.split('/').skip(1).fold(&mut config, |at, part| &mut at[part]);
        parent[name] = value;
        fs::write(&self.config, config.to_string()).context("cannot write the engine's configuration")
    }

    /// The value at a pointer of its configuration file.
    ///
    /// # Errors
    /// It cannot be read, or there is none.
    pub fn setting(&self, pointer: &str) -> Result<Value> {
        let config: Value = serde_json::from_str(&fs::read_to_string(&self.config)?)?;
        config.pointer(pointer).cloned().with_context(|| format!("no {pointer} in its configuration"))
    }
}
