//! Roots on disk: made once, kept private, refused where peers would refuse them.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use signet_identity::testing::{TestCa, from_now, pem};

use super::*;
use crate::tests::fixture::{plug, set_mode};

fn own(directory: &Path) -> Result<Issuer, RootError> {
    let td = TrustDomain::parse("cluster.local").unwrap();
    generated::open(directory, &td, Lifetimes::default())
}

fn plugged(root: &Root) -> Result<Issuer, RootError> {
    let Root::Plugged { chain, key, root } = root else { panic!("not plugged") };
    let issuer = plugged::open(chain, key, root, Lifetimes::default())?;
    let place = |path: &PathBuf| Place::file(path);
    prove(&issuer, &TrustDomain::parse("cluster.local").unwrap(), &place(root), &place(chain))?;
    Ok(issuer)
}

#[test]
fn a_root_is_made_once_and_its_key_is_private() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("a/root");
    let first = own(&root).unwrap().roots().to_vec();
    assert_eq!(own(&root).unwrap().roots(), first);
    let mode = |name: &str| std::fs::metadata(root.join(name)).unwrap().mode() & 0o777;
    assert_eq!((mode(generated::KEY), mode(generated::CERTIFICATE)), (0o600, 0o644));
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 2, "nothing is left aside");
}

#[test]
fn a_key_that_others_can_read_is_refused_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    own(directory.path()).unwrap();
    let key = directory.path().join(generated::KEY);
    for mode in [0o640, 0o604, 0o620] {
        set_mode(&key, mode);
        let error = own(directory.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("chmod 600 {}", key.display())), "{error}");
    }
    set_mode(&key, 0o400);
    own(directory.path()).unwrap();
}

#[test]
fn a_start_that_was_interrupted_goes_on_with_the_same_key() {
    let directory = tempfile::tempdir().unwrap();
    own(directory.path()).unwrap();
    let key = std::fs::read(directory.path().join(generated::KEY)).unwrap();
    std::fs::remove_file(directory.path().join(generated::CERTIFICATE)).unwrap();
    own(directory.path()).unwrap();
    assert_eq!(std::fs::read(directory.path().join(generated::KEY)).unwrap(), key);
}

#[test]
fn a_certificate_without_its_key_is_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    own(directory.path()).unwrap();
    std::fs::remove_file(directory.path().join(generated::KEY)).unwrap();
    assert!(matches!(own(directory.path()), Err(RootError::KeyMissing { .. })));
}

#[test]
fn the_key_of_another_root_is_refused() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    own(one.path()).unwrap();
    own(other.path()).unwrap();
    std::fs::copy(other.path().join(generated::KEY), one.path().join(generated::KEY)).unwrap();
    assert!(matches!(own(one.path()), Err(RootError::Mismatch { .. })));
}

#[test]
fn a_plugged_chain_signs() {
    let directory = tempfile::tempdir().unwrap();
    let issuer = plugged(&plug(directory.path())).unwrap();
    assert_eq!((issuer.intermediates().len(), issuer.roots().len()), (2, 1));
}

#[test]
fn a_root_at_the_end_of_the_chain_is_left_out() {
    let directory = tempfile::tempdir().unwrap();
    let root = plug(directory.path());
    let chain = directory.path().join("ca-chain.pem");
    let both = std::fs::read_to_string(&chain).unwrap()
        + &std::fs::read_to_string(directory.path().join("plugged-root.pem")).unwrap();
    std::fs::write(&chain, both).unwrap();
    assert_eq!(plugged(&root).unwrap().intermediates().len(), 2);
}

#[test]
fn a_plugged_chain_that_peers_would_refuse_is_refused_at_start() {
    let directory = tempfile::tempdir().unwrap();
    let root = plug(directory.path());
    std::fs::write(directory.path().join("plugged-root.pem"), TestCa::new("cluster.local").root_pem())
        .unwrap();
    assert!(matches!(plugged(&root), Err(RootError::Rejected { .. })));
}

#[test]
fn an_issuing_certificate_that_is_expired_or_no_ca_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let root = plug(directory.path());
    let chain = directory.path().join("ca-chain.pem");
    let test_ca = TestCa::new("cluster.local");
    let expired = test_ca.intermediate(|params| {
        params.not_before = from_now(-7200);
        params.not_after = from_now(-3600);
    });
    let issued = expired.issue("spiffe://cluster.local/x", |_| ());
    std::fs::write(&chain, pem(&issued.chain[1..])).unwrap();
    assert!(matches!(plugged(&root), Err(RootError::OutOfDate { position: 1, .. })));
    std::fs::write(&chain, pem(&issued.chain[..1])).unwrap();
    assert!(matches!(plugged(&root), Err(RootError::NoCa { position: 1, .. })));
    std::fs::write(&chain, "").unwrap();
    assert!(matches!(plugged(&root), Err(RootError::Certificates { .. })));
}
