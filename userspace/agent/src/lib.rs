//! The node engine: everything `signetd` is made of, floor by floor.
//!
//! A module imports lower floors only; inside a floor only the edges named here. `cargo xtask check` reads this list
//! against the `use crate::` lines.
//!
//! | floor | modules |
//! |---|---|
//! | 0 | [`block`], [`drain`], [`footprint`], [`telemetry`], [`workers`] |
//! | 1 | [`addr`], [`config`] |
//! | 2 | [`policy`], [`state`] (`state -> policy`) |
//! | 3 | [`kernel`], [`discovery`], [`svid`], [`mtls`], [`net`] |
//! | 4 | [`proxy`], [`reconcile`] |
//! | 5 | [`admin`], [`app`] (`app -> admin`) |

pub mod addr;
pub mod admin;
pub mod app;
pub mod block;
pub mod config;
pub mod discovery;
pub mod drain;
pub mod footprint;
pub mod kernel;
pub mod mtls;
pub mod net;
pub mod policy;
pub mod proxy;
pub mod reconcile;
pub mod state;
pub mod svid;
pub mod telemetry;
pub mod workers;
