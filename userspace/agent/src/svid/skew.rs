//! Two clocks that differ, told from certificates: one that the CA has made a moment ago, or serves with, must be valid now.
//!
//! Certificates are made a little older than they are (signet-ca: a minute), which lets small differences pass; so what is
//! told here is at least the difference. Pure.

use std::fmt;
use std::time::Duration;

use rustls::CertificateError;
use rustls::pki_types::UnixTime;
use signet_identity::SvidError;

/// How far this node's clock is from the CA's, at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skew {
    /// The CA is later.
    Behind(Duration),
    /// The CA is earlier.
    Ahead(Duration),
}

impl Skew {
    /// From the verdict on the certificate that the CA serves with. One that has expired is the CA's own trouble: it may not
    /// have been renewed.
    pub(super) fn of_server(error: &rustls::Error) -> Option<Self> {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { time, not_before }) => {
                Some(Self::Behind(between(*time, *not_before)))
            }
            _ => None,
        }
    }

    /// From the verdict on an SVID that was just made.
    pub(super) fn of_fresh(error: &SvidError, now: UnixTime) -> Option<Self> {
        let at = |seconds: u64| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        match error {
            SvidError::NotYetValid { not_before, .. } => Some(Self::Behind(between(now, at(*not_before)))),
            SvidError::Expired { not_after, .. } => Some(Self::Ahead(between(at(*not_after), now))),
            _ => None,
        }
    }
}

fn between(from: UnixTime, to: UnixTime) -> Duration {
    Duration::from_secs(to.as_secs().saturating_sub(from.as_secs()))
}

impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (apart, side) = match self {
            Self::Behind(apart) => (apart, "behind"),
            Self::Ahead(apart) => (apart, "ahead of"),
        };
        write!(f, "at least {} {side}", humantime::format_duration(*apart))
    }
}

#[cfg(test)]
mod tests {
    use signet_identity::SpiffeId;

    use super::*;

    fn id() -> SpiffeId {
        SpiffeId::parse("spiffe://td/ns/a/sa/b").unwrap()
    }

    #[test]
    fn a_fresh_svid_of_the_future_or_the_past_tells_the_side_and_how_far() {
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
        let early = SvidError::NotYetValid { id: id(), not_before: now.as_secs() + 3540 };
        assert_eq!(Skew::of_fresh(&early, now).unwrap().to_string(), "at least 59m behind");
        let late = SvidError::Expired { id: id(), not_after: now.as_secs() - 90 };
        assert_eq!(Skew::of_fresh(&late, now).unwrap().to_string(), "at least 1m 30s ahead of");
        assert_eq!(Skew::of_fresh(&SvidError::NoCertificate, now), None);
    }

    #[test]
    fn a_server_that_is_not_valid_yet_is_later_and_an_expired_one_tells_nothing() {
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
        let later = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_060));
        let error = rustls::Error::InvalidCertificate;
        let early = error(CertificateError::NotValidYetContext { time: now, not_before: later });
        assert_eq!(Skew::of_server(&early), Some(Skew::Behind(Duration::from_secs(60))));
        let expired = error(CertificateError::ExpiredContext { time: later, not_after: now });
        assert_eq!(Skew::of_server(&expired), None);
    }
}
