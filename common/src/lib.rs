//! What the kernel programs and signetd must agree on: the maps' layouts, the counters, and every decision.
//!
//! One crate for both sides, so that a layout is written once and a decision that runs in the kernel is tested on the
//! host in microseconds. It is `no_std` and allocates nothing; the decisions are pure functions of plain values, marked
//! `#[inline(always)]` because the verifier sees one program, not a call graph. It does not know aya (only behind the
//! feature `user`, for the marker that a type may cross the border), maps or sockets.
//!
//! | module | what |
//! |---|---|
//! | [`abi`] | keys and values of the maps, with explicit padding and size asserts; [`ABI_VERSION`] |
//! | [`decision`] | who may connect where, where a SYN goes, and what each fault means |
//! | [`direct`] | the same for connections that stay on the node and go past the engine |
//! | [`counter`] | which slot of the per-CPU counter array says what |
#![no_std]

pub mod abi;
pub mod counter;
pub mod decision;
pub mod direct;

/// Changes with every layout in [`abi`] and [`direct`] and every index in [`counter`]. It names the directory the maps are pinned in,
/// so programs and maps of two versions never meet.
pub const ABI_VERSION: u32 = 5;
