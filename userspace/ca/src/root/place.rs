//! Where a key or a certificate is kept, for texts.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// A file, or a key of a Secret, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place(Arc<str>);

impl Place {
    /// A file.
    pub(crate) fn file(path: &Path) -> Self {
        Self(path.display().to_string().into())
    }

    /// One of a Secret's `data`.
    pub(crate) fn secret(namespace: &str, name: &str, key: &str) -> Self {
        Self(format!("{key} in Secret {namespace}/{name}").into())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
