//! A directory of Kubernetes manifests, read and watched.
//!
//! The node engine and the CA both take a directory of ordinary manifests for their view of the cluster where there is
//! no API server. A [`Directory`] turns it into [`Document`]s: several documents a file, `List`s unpacked, the same
//! object in two files refused. A [`Watch`] says when the content has changed.
//!
//! Whatever is in the files is taken as hostile: sizes, nesting, nodes and aliases are bounded ([`limits`]). A broken
//! file is a [`Fault`] that names file, line and field, and what was last good of that file stays in force, because a
//! typing mistake in one file must not take the others' pods out of the mesh.
//!
//! It knows nothing of what the kinds mean: [`Document::parse`] gives the caller's type, and the caller judges.

mod directory;
mod document;
pub mod limits;
mod scan;
mod settle;
mod watch;
mod yaml;

pub use directory::{Directory, Fault, FileError, OpenError, Snapshot};
pub use document::{Document, DocumentError, ObjectKey};
pub use watch::{Watch, WatchError};
