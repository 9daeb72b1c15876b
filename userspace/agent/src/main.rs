//! signetd: the node engine.
fn main() {}
