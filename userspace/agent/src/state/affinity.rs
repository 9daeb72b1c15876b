//! `sessionAffinity: ClientIP`: which endpoint is a client's. The kernel answers with the same function.

use std::net::{IpAddr, SocketAddr};

use signet_common::abi::Address;
use signet_common::direct::affinity;

/// The endpoint that a client gets each time, as long as it is among `backends`.
#[must_use]
pub fn belonging(client: IpAddr, backends: &[SocketAddr]) -> Option<SocketAddr> {
    let client = Address::from(client);
    // Of two with the same weight the last counts, here and there.
    backends.iter().copied().max_by_key(|to| affinity(&client, &Address::from(to.ip()), to.port()))
}
