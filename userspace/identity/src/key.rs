//! Private keys: in memory only, overwritten when dropped, never printed.
//!
//! The bytes are held once and never copied by this crate; whoever needs a signer borrows them. It cannot vouch for the
//! copies a TLS library makes of them inside its own key objects.

use std::fmt;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA512_ASN1_SIGNING,
    EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair,
};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use zeroize::Zeroize;

/// A private key as PKCS#8 DER (RFC 5958). Zeroized on drop; `Debug` prints nothing of it.
pub struct PrivateKey(PrivatePkcs8KeyDer<'static>);

/// Why there is no private key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not one PEM section `PRIVATE KEY`.
    #[error(
        "no unencrypted PKCS#8 key in the PEM ({reason}): convert it with `openssl pkcs8 -topk8 -nocrypt`"
    )]
    Pem {
        /// What the PEM parser said.
        reason: String,
    },
}

impl PrivateKey {
    /// Takes over a PKCS#8 key. That it is one shows when it is used.
    #[must_use]
    pub fn new(pkcs8: PrivatePkcs8KeyDer<'static>) -> Self {
        Self(pkcs8)
    }

    /// Reads the first `PRIVATE KEY` section. The caller zeroizes the text.
    ///
    /// # Errors
    /// There is none, or the PEM is broken.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        match PrivatePkcs8KeyDer::from_pem_slice(pem) {
            Ok(key) => Ok(Self(key)),
            // The parser's own text may quote the line it stumbled on, which may be the key.
            Err(rustls_pki_types::pem::Error::NoItemsFound) => {
                Err(KeyError::Pem { reason: "no PRIVATE KEY section".into() })
            }
            Err(_) => Err(KeyError::Pem { reason: "malformed".into() }),
        }
    }

    /// The key, borrowed for a signer.
    #[must_use]
    pub fn pkcs8(&self) -> PrivatePkcs8KeyDer<'_> {
        PrivatePkcs8KeyDer::from(self.0.secret_pkcs8_der())
    }

    /// The public half as the bits of a SubjectPublicKeyInfo (RFC 5280 §4.1.2.7); `None` where the key is of no kind
    /// that we can sign with.
    pub(crate) fn public_bits(&self) -> Option<Vec<u8>> {
        let pkcs8 = self.0.secret_pkcs8_der();
        let ecdsa = [
            &ECDSA_P256_SHA256_ASN1_SIGNING,
            &ECDSA_P384_SHA384_ASN1_SIGNING,
            &ECDSA_P521_SHA512_ASN1_SIGNING,
        ]
        .into_iter()
        .find_map(|curve| EcdsaKeyPair::from_pkcs8(curve, pkcs8).ok());
        if let Some(pair) = ecdsa {
            return Some(pair.public_key().as_ref().to_vec());
        }
        if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8) {
            return Some(pair.public_key().as_ref().to_vec());
        }
        RsaKeyPair::from_pkcs8(pkcs8).ok().map(|pair| pair.public_key().as_ref().to_vec())
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(secret)")
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PublicKeyData};

    use super::*;

    #[test]
    fn the_public_half_is_found_for_every_kind_of_key() {
        for kind in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
            let pair = KeyPair::generate_for(kind).unwrap();
            let key = PrivateKey::from_pem(pair.serialize_pem().as_bytes()).unwrap();
            assert_eq!(key.public_bits().as_deref(), Some(pair.der_bytes()), "{kind:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_key_have_no_public_half() {
        assert_eq!(PrivateKey::new(vec![0x30; 64].into()).public_bits(), None);
    }

    #[test]
    fn nothing_of_a_key_is_printed_nor_of_a_broken_pem() {
        let pem = KeyPair::generate().unwrap().serialize_pem();
        let key = PrivateKey::from_pem(pem.as_bytes()).unwrap();
        assert_eq!(format!("{key:?}"), "PrivateKey(secret)");
        let broken = pem.replace("-----END", "SECRET!");
        assert_eq!(
            PrivateKey::from_pem(broken.as_bytes()).unwrap_err(),
            KeyError::Pem { reason: "malformed".into() }
        );
    }

    #[test]
    fn a_key_in_another_encoding_is_named() {
        let sec1 = "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n";
        let error = PrivateKey::from_pem(sec1.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("openssl pkcs8"), "{error}");
    }
}
