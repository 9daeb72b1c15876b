//! How much a directory of manifests may hold. What exceeds a limit is a fault of its file, never a cut-off reading.

/// Bytes of one file.
pub const FILE_BYTES: usize = 8 * 1024 * 1024;
/// Files of one directory.
pub const FILES: usize = 20_000;
/// Bytes of all files of one directory together.
pub const DIRECTORY_BYTES: usize = 256 * 1024 * 1024;
/// Documents of one file, and items of one `List`.
pub const DOCUMENTS: usize = 50_000;
/// Nesting of mappings and sequences; the deepest built-in Kubernetes object needs about 20.
pub const DEPTH: usize = 64;
/// Scalars, mappings and sequences of one file: what its bytes can swell to in memory is this times about 100 bytes.
pub const NODES: usize = 2_000_000;
/// Nodes that YAML aliases may repeat in one file.
pub const ALIASED_NODES: usize = 100_000;
/// Bytes of `metadata.name` or `metadata.namespace` (a DNS subdomain, RFC 1123).
pub const NAME_BYTES: usize = 253;
