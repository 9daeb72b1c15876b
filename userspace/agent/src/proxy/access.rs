//! The access log: one line for each connection when it ends, in ztunnel's shape (target `access`); its opening at debug.
//!
//! Text that a peer chose is logged as a quoted field, never as part of the message. Identities are those of the
//! handshake, so a line in clear has none. A direct connection has one line for both sides, with the identities that the
//! kernel vouches for.

use std::time::Duration;

use signet_identity::SpiffeId;
use tracing::{Level, event};

use super::failure::Failure;
use super::meter::Bytes;
use super::parties::{Direction, Parties, Path};
use crate::policy::Shadow;

/// A connection was established.
pub(crate) fn opened(parties: &Parties) {
    event!(
        target: "access",
        parent: None,
        Level::DEBUG,
        src.addr = %parties.source.address,
        src.workload = parties.source.name(),
        dst.addr = %parties.destination.address,
        dst.workload = parties.destination.name(),
        direction = direction(parties),
        "connection opened"
    );
}

/// A connection has ended, or did not come about. `bytes_sent` and `bytes_recv` are the local workload's.
pub(crate) fn complete(parties: &Parties, bytes: Bytes, duration: Duration, failure: Option<&Failure>) {
    let (sent, received) = match parties.direction {
        Direction::Outbound => (bytes.sent, bytes.received),
        Direction::Inbound => (bytes.received, bytes.sent),
    };
    let tunnelled = parties.application.filter(|_| parties.path.is_some_and(Path::is_tunnel));
    event!(
        target: "access",
        parent: None,
        Level::INFO,
        src.addr = %parties.source.address,
        src.workload = parties.source.name(),
        src.namespace = parties.source.namespace(),
        src.identity = parties.source.identity.as_ref().map(SpiffeId::as_str),
        src.cluster = parties.source.cluster(),
        dst.addr = %parties.destination.address,
        dst.hbone_addr = tunnelled.map(tracing::field::display),
        dst.service = parties.service.as_ref().map(|service| &*service.hostname),
        dst.workload = parties.destination.name(),
        dst.namespace = parties.destination.namespace(),
        dst.identity = parties.destination.identity.as_ref().map(SpiffeId::as_str),
        dst.cluster = parties.destination.cluster(),
        direction = direction(parties),
        bytes_sent = sent,
        bytes_recv = received,
        duration = format!("{}ms", duration.as_millis()),
        dry_run = dry_run(parties),
        error = failure.map(ToString::to_string),
        "connection complete"
    );
}

fn dry_run(parties: &Parties) -> Option<String> {
    match &parties.shadow {
        Shadow::Silent => None,
        Shadow::WouldAllow => Some("would be allowed".into()),
        Shadow::WouldDeny(denial) => Some(format!("would be denied: {denial}")),
    }
}

fn direction(parties: &Parties) -> &'static str {
    match (parties.path, parties.direction) {
        (Some(Path::Direct), _) => "direct",
        (_, Direction::Outbound) => "outbound",
        (_, Direction::Inbound) => "inbound",
    }
}
