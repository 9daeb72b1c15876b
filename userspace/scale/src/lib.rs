//! What a large mesh costs an engine, measured in its own tables without kernel, network or CA.
//!
//! The program `signet-scale` prints the figures, for the benchmark; `benches/` has the microbenchmarks of what runs for each
//! connection or byte. It has a process to itself, since pages of anything else would count too.

pub mod figures;
pub mod mesh;
