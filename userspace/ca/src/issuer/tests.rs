//! What a signed leaf promises: its lifetime, its serial, its chain.

use rcgen::{BasicConstraints, KeyPair};
use signet_identity::SpiffeId;

use super::*;

fn issuer(expires_in: Duration) -> Issuer {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let root = params.self_signed(&key).unwrap().der().clone();
    let signer = rcgen::Issuer::new(params, key);
    Issuer::new(signer, Vec::new(), vec![root], now + expires_in, Lifetimes::default())
}

fn svid(issuer: &Issuer, asked: Option<Duration>) -> Result<Duration, IssueError> {
    let identity = SpiffeId::parse("spiffe://cluster.local/ns/a/sa/b").unwrap();
    let now = OffsetDateTime::now_utc();
    let issued = issuer.svid(&Grant::for_self_check(identity), &KeyPair::generate().unwrap(), asked, now)?;
    Ok((issued.expires - now).try_into().unwrap())
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn a_leaf_never_outlives_the_certificates_above_it() {
    assert!(svid(&issuer(HOUR), None).unwrap() <= HOUR);
    assert_eq!(svid(&issuer(HOUR * 100), None).unwrap(), HOUR * 24);
}

#[test]
fn a_lifetime_too_short_to_use_is_not_signed() {
    assert!(matches!(svid(&issuer(Duration::from_secs(5)), None), Err(IssueError::IssuerExpires { .. })));
}

#[test]
fn the_asked_lifetime_is_clamped() {
    let issuer = issuer(HOUR * 1000);
    assert_eq!(svid(&issuer, Some(Duration::from_secs(1))).unwrap(), Duration::from_secs(10));
    assert_eq!(svid(&issuer, Some(Duration::from_secs(u64::MAX))).unwrap(), HOUR * 24);
    assert_eq!(svid(&issuer, Some(HOUR)).unwrap(), HOUR);
}

#[test]
fn serials_are_positive_full_length_and_do_not_repeat() {
    let serials: std::collections::BTreeSet<_> = (0..1000).map(|_| serial().unwrap()).collect();
    assert_eq!(serials.len(), 1000);
    assert!(serials.iter().all(|serial| serial[0] & 0xc0 == 0x40));
}
