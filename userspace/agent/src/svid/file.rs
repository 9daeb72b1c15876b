//! SVIDs from PEM files, for static set-ups: `<directory>/<namespace>/<service account>/{cert-chain,key,root-cert}.pem`,
//! the names Istio uses (istio/istio `pkg/security/security.go`).
//!
//! Files are read anew at each rotation, so whoever writes them need tell nobody. They are judged like a CA's answer.
//! Two pods of one service account share what is in the files: keys of their own need a CA.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use signet_identity::{
    BundleSet, MAX_CHAIN_CERTIFICATES, PrivateKey, SpiffeId, TrustBundle, TrustDomain, X509Svid,
};

use super::{Authority, FetchError, bounded};
use crate::addr::WorkloadUid;

/// SVIDs from a directory.
#[derive(Clone, Debug)]
pub struct FileAuthority {
    directory: PathBuf,
}

impl FileAuthority {
    /// Reads below `directory`, which need not exist yet.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// SPIFFE path segments are letters, digits, `.`, `-` and `_`, and never `.` or `..`: they cannot leave the
    /// directory.
    fn directory_of(&self, id: &SpiffeId) -> Result<PathBuf, FetchError> {
        match id.service_account() {
            Some((namespace, service_account)) => Ok(self.directory.join(namespace).join(service_account)),
            None => Err(FetchError::NoServiceAccount { id: id.clone(), reason: "files are found by it" }),
        }
    }
}

impl Authority for FileAuthority {
    async fn fetch(&self, _: &WorkloadUid, id: &SpiffeId) -> Result<X509Svid, FetchError> {
        let directory = self.directory_of(id)?;
        let chain = chain(&directory.join("cert-chain.pem")).await?;
        let key = key(&directory.join("key.pem")).await?;
        let bundle = bundle(&directory.join("root-cert.pem"), id.trust_domain()).await?;
        let bundles = Arc::new(BundleSet::of(bundle));
        X509Svid::new(id, chain, key, bundles, UnixTime::now()).map_err(|error| FetchError::Lying {
            source_of_it: directory.display().to_string().into(),
            id: id.clone(),
            error,
        })
    }
}

async fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, FetchError> {
    let pem = bounded::read(path, MAX_PEM_BYTES).await?;
    CertificateDer::pem_slice_iter(&pem)
        .take(MAX_CHAIN_CERTIFICATES + 1)
        .collect::<Result<_, _>>()
        .map_err(|e| FetchError::File { path: path.to_owned(), reason: format!("no PEM certificates: {e}") })
}

async fn key(path: &Path) -> Result<PrivateKey, FetchError> {
    let pem = bounded::read(path, MAX_KEY_BYTES).await?;
    PrivateKey::from_pem(&pem).map_err(|e| FetchError::File { path: path.to_owned(), reason: e.to_string() })
}

async fn bundle(path: &Path, trust_domain: &TrustDomain) -> Result<TrustBundle, FetchError> {
    let pem = bounded::read(path, MAX_PEM_BYTES).await?;
    TrustBundle::from_pem(trust_domain.clone(), &pem)
        .map_err(|e| FetchError::File { path: path.to_owned(), reason: e.to_string() })
}

const MAX_PEM_BYTES: usize = 256 * 1024;
const MAX_KEY_BYTES: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use signet_identity::SvidError;
    use signet_identity::testing::TestCa;

    use super::*;

    /// A directory with the files of `spiffe://td/ns/a/sa/b`, changed as the test likes, and what is made of them.
    async fn fetch(change: impl FnOnce(&Path)) -> Result<X509Svid, FetchError> {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("a/b");
        std::fs::create_dir_all(&directory).unwrap();
        let ca = TestCa::new("td").intermediate(|_| {});
        let issued = ca.issue("spiffe://td/ns/a/sa/b", |_| {});
        std::fs::write(directory.join("cert-chain.pem"), issued.chain_pem()).unwrap();
        std::fs::write(directory.join("key.pem"), issued.key_pem()).unwrap();
        std::fs::write(directory.join("root-cert.pem"), ca.root_pem()).unwrap();
        change(&directory);
        let authority = FileAuthority::new(root.path().to_owned());
        authority.fetch(&WorkloadUid::new("1"), &ca.id("a", "b")).await
    }

    #[tokio::test]
    async fn good_files_are_an_svid() {
        assert_eq!(fetch(|_| {}).await.unwrap().chain().len(), 2);
    }

    #[tokio::test]
    async fn a_missing_or_broken_file_is_named() {
        for name in ["cert-chain.pem", "key.pem", "root-cert.pem"] {
            let error = fetch(|d| std::fs::remove_file(d.join(name)).unwrap()).await.unwrap_err();
            assert!(matches!(&error, FetchError::File { path, .. } if path.ends_with(name)), "{error}");
            let large = "x".repeat(MAX_PEM_BYTES + 1);
            let error = fetch(|d| std::fs::write(d.join(name), &large).unwrap()).await.unwrap_err();
            assert!(matches!(&error, FetchError::File { path, .. } if path.ends_with(name)), "{error}");
        }
    }

    #[tokio::test]
    async fn files_that_do_not_belong_together_are_told_apart() {
        let other = TestCa::new("td").issue("spiffe://td/ns/a/sa/b", |_| {});
        let error = fetch(|d| std::fs::write(d.join("key.pem"), other.key_pem()).unwrap()).await.unwrap_err();
        assert!(matches!(error, FetchError::Lying { error: SvidError::WrongKey { .. }, .. }), "{error}");
        let error = fetch(|d| std::fs::write(d.join("cert-chain.pem"), other.chain_pem()).unwrap())
            .await
            .unwrap_err();
        assert!(matches!(error, FetchError::Lying { error: SvidError::Untrusted { .. }, .. }), "{error}");
        let error =
            fetch(|d| std::fs::write(d.join("cert-chain.pem"), "nothing").unwrap()).await.unwrap_err();
        assert!(matches!(error, FetchError::Lying { error: SvidError::NoCertificate, .. }), "{error}");
    }

    #[tokio::test]
    async fn an_identity_of_another_shape_has_no_files() {
        let authority = FileAuthority::new("/nowhere".into());
        let id = SpiffeId::parse("spiffe://td/db").unwrap();
        let error = authority.fetch(&WorkloadUid::new("1"), &id).await.unwrap_err();
        assert!(matches!(error, FetchError::NoServiceAccount { .. }), "{error}");
    }
}
