//! A failed call, sorted: did the CA say no, or did nothing come back?
//!
//! tonic tells both by a `Status`. One that has an error as its source was made on this side; one without came from the
//! CA, and its message is a stranger's text.

use std::error::Error;
use std::iter;
use std::sync::Arc;

use signet_identity::SpiffeId;
use tonic::{Code, Status};

use super::connection::ConnectError;
use crate::svid::FetchError;
use crate::svid::skew::Skew;

pub(super) fn sort(status: &Status, address: &Arc<str>, id: &SpiffeId) -> FetchError {
    let address = address.clone();
    match connect_error(status) {
        Some(ConnectError::Untrusted(error)) => {
            return match Skew::of_server(error) {
                Some(skew) => FetchError::Clock { address, skew },
                None => FetchError::UntrustedCa { address, reason: error.to_string() },
            };
        }
        Some(error) => return FetchError::Unreachable { address, reason: error.to_string() },
        None => {}
    }
    let (id, message) = (id.clone(), bounded(status.message()));
    match status.code() {
        Code::Unauthenticated => FetchError::Unauthenticated { address, id, message },
        Code::OutOfRange => FetchError::Malformed { address, reason: message },
        Code::Unavailable => FetchError::Unreachable { address, reason: message },
        _ if status.source().is_some() => {
            FetchError::Unreachable { address, reason: bounded(&with_sources(status)) }
        }
        code => FetchError::Refused { address, id, code: format!("{code:?}"), message },
    }
}

fn connect_error(status: &Status) -> Option<&ConnectError> {
    sources(status).find_map(|error| error.downcast_ref())
}

fn sources(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    iter::successors(status.source(), |error| (*error).source())
}

fn with_sources(status: &Status) -> String {
    let texts: Vec<_> =
        iter::once(status.message().to_owned()).chain(sources(status).map(ToString::to_string)).collect();
    texts.join(": ")
}

/// One printable line of a length that a log can bear.
fn bounded(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_MESSAGE_CHARS).collect()
}

const MAX_MESSAGE_CHARS: usize = 400;

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(status: &Status) -> FetchError {
        sort(status, &"https://ca:1".into(), &SpiffeId::parse("spiffe://td/ns/a/sa/b").unwrap())
    }

    #[test]
    fn the_cas_no_is_told_from_its_absence() {
        assert_eq!(sorted(&Status::unauthenticated("no")).label(), "unauthenticated");
        assert_eq!(sorted(&Status::permission_denied("no")).label(), "refused");
        assert_eq!(sorted(&Status::unavailable("starting")).label(), "unreachable");
        assert_eq!(sorted(&Status::internal("oops")).label(), "refused");
        let broken = Status::from_error(Box::new(std::io::Error::other("reset")));
        assert_eq!(sorted(&broken).label(), "unreachable");
    }

    #[test]
    fn a_strangers_message_is_one_bounded_line() {
        let text = sorted(&Status::internal("a\nb".repeat(10_000))).to_string();
        assert!(text.len() < 600 && !text.contains('\n'), "{text}");
    }
}
