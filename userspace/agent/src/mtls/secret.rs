//! The traffic secrets of a TLS 1.3 connection, from which the keys after a KeyUpdate follow (RFC 8446 §7.2, §7.3).
//!
//! rustls would derive them too, but only out of a state that holds the peer's certificates and the whole configuration, for
//! as long as the connection lives: three times the memory of all else here. So the two secrets are taken over when rustls
//! tells them, which it does through its key log, and the rest of that state goes. They are nowhere else, and zeroized.

use std::fmt;

use aws_lc_rs::hkdf::{Algorithm, HKDF_SHA256, HKDF_SHA384, KeyType, Prk};
use parking_lot::Mutex;
use rustls::{ConnectionTrafficSecrets, Error, KeyLog};
use zeroize::Zeroizing;

/// One direction's secret of now.
pub(super) struct TrafficSecret {
    hash: Algorithm,
    bytes: Bytes,
}

/// What rustls tells of one handshake: written by it, taken once when the handshake is over.
#[derive(Default)]
pub(super) struct Told {
    client: Mutex<Option<Bytes>>,
    server: Mutex<Option<Bytes>>,
}

type Bytes = Zeroizing<[u8; MAX_HASH]>;

impl Told {
    /// What the client seals with, and what the server seals with.
    ///
    /// # Errors
    /// rustls has not told them, or negotiated what this record layer does not know.
    pub(super) fn take(&self, suite: &ConnectionTrafficSecrets) -> Result<[TrafficSecret; 2], Error> {
        let hash = match suite {
            ConnectionTrafficSecrets::Aes256Gcm { .. } => HKDF_SHA384,
            ConnectionTrafficSecrets::Aes128Gcm { .. }
            | ConnectionTrafficSecrets::Chacha20Poly1305 { .. } => HKDF_SHA256,
            _ => return Err(Error::General("an unknown kind of traffic secrets".into())),
        };
        let secret = |told: &Mutex<Option<Bytes>>| -> Result<_, Error> {
            let bytes = told.lock().take().ok_or(Error::HandshakeNotComplete)?;
            Ok(TrafficSecret { hash, bytes })
        };
        Ok([secret(&self.client)?, secret(&self.server)?])
    }

    fn place(&self, label: &str) -> Option<&Mutex<Option<Bytes>>> {
        match label {
            "CLIENT_TRAFFIC_SECRET_0" => Some(&self.client),
            "SERVER_TRAFFIC_SECRET_0" => Some(&self.server),
            _ => None,
        }
    }
}

impl KeyLog for Told {
    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        let Some(place) = self.place(label) else { return };
        let mut bytes = Bytes::new([0; MAX_HASH]);
        // A longer one is of no suite that was offered: it is missed when the secrets are taken.
        let Some(room) = bytes.get_mut(..secret.len()) else { return };
        room.copy_from_slice(secret);
        *place.lock() = Some(bytes);
    }

    fn will_log(&self, label: &str) -> bool {
        self.place(label).is_some()
    }
}

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Told").finish_non_exhaustive()
    }
}

impl TrafficSecret {
    /// Goes on to the secret of the next key.
    ///
    /// # Errors
    /// The hash fails, which it does not.
    pub(super) fn update(&mut self) -> Result<(), Error> {
        let mut next = Bytes::new([0; MAX_HASH]);
        self.expand(b"traffic upd", &mut next[..self.hash.len()])?;
        self.bytes = next;
        Ok(())
    }

    /// The key of this secret.
    ///
    /// # Errors
    /// As [`TrafficSecret::update`].
    pub(super) fn key(&self, key: &mut [u8]) -> Result<(), Error> {
        self.expand(b"key", key)
    }

    /// The initialisation vector of this secret.
    ///
    /// # Errors
    /// As [`TrafficSecret::update`].
    pub(super) fn iv(&self, iv: &mut [u8]) -> Result<(), Error> {
        self.expand(b"iv", iv)
    }

    /// `HKDF-Expand-Label` without a context (RFC 8446 §7.1).
    fn expand(&self, label: &[u8], to: &mut [u8]) -> Result<(), Error> {
        let [high, low] = (to.len() as u16).to_be_bytes();
        let head = [high, low, (PREFIX.len() + label.len()) as u8];
        let info = [&head, PREFIX, label, &[0]];
        let secret = Prk::new_less_safe(self.hash, &self.bytes[..self.hash.len()]);
        let expanded = secret.expand(&info, Length(to.len())).and_then(|bytes| bytes.fill(to));
        expanded.map_err(|_| Error::EncryptError)
    }
}

/// Bytes that are asked for.
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// Begins each label (RFC 8446 §7.1).
const PREFIX: &[u8] = b"tls13 ";

/// Bytes of SHA-384, the longest hash of a suite that we know.
const MAX_HASH: usize = 48;

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8448 §3: the server's application traffic secret, and what it writes its data with.
    #[test]
    fn key_and_iv_are_those_of_rfc_8448() {
        let bytes = [
            0xa1, 0x1a, 0xf9, 0xf0, 0x55, 0x31, 0xf8, 0x56, 0xad, 0x47, 0x11, 0x6b, 0x45, 0xa9, 0x50, 0x32,
            0x82, 0x04, 0xb4, 0xf4, 0x4b, 0xfb, 0x6b, 0x3a, 0x4b, 0x4f, 0x1f, 0x3f, 0xcb, 0x63, 0x16, 0x43,
        ];
        let mut secret = TrafficSecret { hash: HKDF_SHA256, bytes: Bytes::new([0; MAX_HASH]) };
        secret.bytes[..32].copy_from_slice(&bytes);
        let (mut key, mut iv) = ([0; 16], [0; 12]);
        secret.key(&mut key).unwrap();
        secret.iv(&mut iv).unwrap();
        assert_eq!(
            key,
            [0x9f, 0x02, 0x28, 0x3b, 0x6c, 0x9c, 0x07, 0xef, 0xc2, 0x6b, 0xb9, 0xf2, 0xac, 0x92, 0xe3, 0x56]
        );
        assert_eq!(iv, [0xcf, 0x78, 0x2b, 0x88, 0xdd, 0x83, 0x54, 0x9a, 0xad, 0xf1, 0xe9, 0x84]);
    }

    #[test]
    fn secrets_are_told_once_and_never_shown() {
        let told = Told::default();
        let keys = || ConnectionTrafficSecrets::Aes128Gcm {
            key: [0; 32].into(),
            iv: rustls::crypto::cipher::Iv::new([0; 12]),
        };
        assert!(told.take(&keys()).is_err());
        told.log("CLIENT_TRAFFIC_SECRET_0", &[], &[7; 32]);
        told.log("SERVER_TRAFFIC_SECRET_0", &[], &[8; 32]);
        assert!(!told.will_log("EXPORTER_SECRET"));
        assert_eq!(format!("{told:?}"), "Told { .. }");
        let [client, server] = told.take(&keys()).unwrap();
        assert_eq!((client.bytes[0], server.bytes[0]), (7, 8));
        assert!(told.take(&keys()).is_err());
    }
}
