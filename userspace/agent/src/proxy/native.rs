//! The native tunnel, between two Signets (docs/native.md): one TLS connection for one application connection at a time.
//!
//! HTTP/2 gives every application connection a stream, and for that takes a second flow control, a second framing, and a
//! hand-over between the task that copies and the task that drives the connection. Here a TLS connection belongs to one
//! application connection from its first to its last byte, and one task moves both; when both directions have ended in
//! order it serves the next, so that a new application connection finds its handshake made. What a tunnel is allowed to
//! do, and whom it leads to, is decided by the proxies as it is for HBONE.

mod client;
mod frame;
mod pool;
mod server;
#[cfg(test)]
mod tests;
mod tunnel;

pub(crate) use client::{Attempt, Early, open};
pub(crate) use frame::{ANOTHER_CONNECTION, Open};
pub use pool::Pool;
pub(crate) use pool::{ABANDONED, Proven, Slot};
pub(crate) use tunnel::Tunnel;
