//! The key of one direction of a TLS 1.3 connection: seals or opens one record after the other (RFC 8446 §5.2, §5.3).
//!
//! The sequence number is part of the key, so that no nonce can be used twice and a record that was left out, repeated or
//! moved does not open. Neither way copies: bytes go from where they were read to where they are written from, and the
//! cipher is all that touches them in between.

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use rustls::{ConnectionTrafficSecrets, ContentType, Error, InvalidMessage};
use zeroize::Zeroizing;

use super::secret::TrafficSecret;
use super::warm::Warm;

/// One direction's key, initialisation vector and sequence number.
pub(super) struct Key {
    algorithm: &'static Algorithm,
    key: Zeroizing<[u8; MAX_KEY]>,
    cipher: Warm,
    iv: [u8; NONCE],
    sequence: u64,
    /// Records that may be sealed under it.
    limit: u64,
}

impl Key {
    /// The key of `secrets`, whose next record is number `sequence`.
    ///
    /// # Errors
    /// An algorithm that this record layer does not know.
    pub(super) fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(Error::General("an unknown kind of traffic secrets".into())),
        };
        let iv = iv.as_ref().try_into().map_err(|_| Error::EncryptError)?;
        let mut bytes = Zeroizing::new([0; MAX_KEY]);
        let room = bytes.get_mut(..key.as_ref().len()).ok_or(Error::EncryptError)?;
        room.copy_from_slice(key.as_ref());
        Ok(Self::with(algorithm, bytes, iv, sequence))
    }

    fn with(
        algorithm: &'static Algorithm,
        key: Zeroizing<[u8; MAX_KEY]>,
        iv: [u8; NONCE],
        sequence: u64,
    ) -> Self {
        let limit = if *algorithm == CHACHA20_POLY1305 { u64::MAX } else { GCM_LIMIT };
        Self { algorithm, key, cipher: Warm::default(), iv, sequence, limit }
    }

    /// Goes on to the next key, and its secret to the next secret (RFC 8446 §7.2).
    ///
    /// # Errors
    /// The hash fails, which it does not.
    pub(super) fn update(&mut self, secret: &mut TrafficSecret) -> Result<(), Error> {
        let (mut key, mut iv) = (Zeroizing::new([0; MAX_KEY]), [0; NONCE]);
        secret.update()?;
        secret.key(&mut key[..self.algorithm.key_len()])?;
        secret.iv(&mut iv)?;
        *self = Self::with(self.algorithm, key, iv, 0);
        Ok(())
    }

    /// Acts with the cipher under the next record's nonce; `None` where the key or the numbers do not allow it.
    fn act<R>(&mut self, act: impl FnOnce(&LessSafeKey, Nonce) -> Option<R>) -> Option<R> {
        let nonce = self.next_nonce()?;
        let Self { algorithm, key, cipher, .. } = self;
        let make = || UnboundKey::new(algorithm, &key[..algorithm.key_len()]).map(LessSafeKey::new);
        cipher.with(make, |cipher| act(cipher, nonce)).ok()?
    }

    /// Seals `content` and `trailer` (whose last byte is the content type) as the next record, into the front of `wire`.
    /// Returns the length of the record.
    ///
    /// # Errors
    /// Too little room, or too long a content: a mistake of the caller. Or the sequence numbers are used up.
    pub(super) fn seal(&mut self, content: &[u8], trailer: &[u8], wire: &mut [u8]) -> Result<usize, Error> {
        let inner = content.len() + trailer.len();
        let length = HEADER + inner + TAG;
        if inner > MAX_INNER || wire.len() < length {
            return Err(Error::EncryptError);
        }
        let (header, payload) = wire[..length].split_at_mut(HEADER);
        header.copy_from_slice(&self::header(inner + TAG));
        let (sealed, rest) = payload.split_at_mut(content.len());
        let seal = |cipher: &LessSafeKey, nonce| {
            cipher.seal_out_of_place_scatter(nonce, Aad::from(&*header), content, sealed, trailer, rest).ok()
        };
        self.act(seal).map(|()| length).ok_or(Error::EncryptError)
    }

    /// Opens a whole record into the front of `plain`. Returns its content type and the length of its content.
    ///
    /// # Errors
    /// It is damaged, forged, out of order or malformed.
    pub(super) fn open(&mut self, record: &[u8], plain: &mut [u8]) -> Result<(u8, usize), Error> {
        let (header, payload) = record.split_at_checked(HEADER).ok_or(Error::DecryptError)?;
        let inner = payload.len().checked_sub(TAG).ok_or(Error::DecryptError)?;
        let (sealed, tag) = payload.split_at(inner);
        let plain = plain.get_mut(..inner).ok_or(Error::PeerSentOversizedRecord)?;
        let open = |cipher: &LessSafeKey, nonce| {
            cipher.open_separate_gather(nonce, Aad::from(header), sealed, tag, plain).ok()
        };
        self.act(open).ok_or(Error::DecryptError)?;
        // Zeros behind the content type are padding (RFC 8446 §5.4); a record of nothing else is an error.
        let end = plain.iter().rposition(|byte| *byte != 0).ok_or(Error::DecryptError)?;
        if end > MAX_CONTENT {
            return Err(Error::PeerSentOversizedRecord);
        }
        Ok((plain[end], end))
    }

    /// It has sealed nearly as much as it may (RFC 8446 §5.5).
    pub(super) fn is_worn(&self) -> bool {
        self.sequence >= self.limit
    }

    fn next_nonce(&mut self) -> Option<Nonce> {
        let mut nonce = self.iv;
        let following = self.sequence.checked_add(1)?;
        for (byte, number) in nonce[NONCE - 8..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        self.sequence = following;
        Some(Nonce::assume_unique_for_key(nonce))
    }

    #[cfg(test)]
    pub(super) fn wear_out(&mut self) {
        self.limit = self.sequence;
    }
}

/// The length of the whole record at the front of `wire`; `None` while that is not there yet.
///
/// # Errors
/// What is there begins no record that may follow a handshake.
pub(super) fn record_length(wire: &[u8]) -> Result<Option<usize>, Error> {
    let Some(header) = wire.first_chunk::<HEADER>() else { return Ok(None) };
    // The version is a relic and means nothing (RFC 8446 §5.1).
    let [kind, _, _, high, low] = *header;
    if kind != u8::from(ContentType::ApplicationData) {
        return Err(Error::InvalidMessage(InvalidMessage::InvalidContentType));
    }
    let payload = usize::from(u16::from_be_bytes([high, low]));
    if payload > MAX_PAYLOAD {
        return Err(Error::PeerSentOversizedRecord);
    }
    if payload <= TAG {
        return Err(Error::DecryptError);
    }
    Ok((wire.len() >= HEADER + payload).then_some(HEADER + payload))
}

fn header(payload: usize) -> [u8; HEADER] {
    let [high, low] = u16::try_from(payload).expect("seal has bounded it").to_be_bytes();
    [ContentType::ApplicationData.into(), 3, 3, high, low]
}

/// Bytes before a record's payload (RFC 8446 §5.1).
pub(super) const HEADER: usize = 5;

/// Bytes of the tag of all three algorithms.
pub(super) const TAG: usize = 16;

/// Bytes of the nonce of all three algorithms.
const NONCE: usize = 12;

/// Bytes of the longest key of all three algorithms.
const MAX_KEY: usize = 32;

/// Bytes of content that a record may have (RFC 8446 §5.1).
pub(super) const MAX_CONTENT: usize = 1 << 14;

/// The same with the content type.
const MAX_INNER: usize = MAX_CONTENT + 1;

/// Bytes of a payload that a peer may send (RFC 8446 §5.2).
const MAX_PAYLOAD: usize = MAX_CONTENT + 256;

/// Records of full size under one AES-GCM key: 2^24.5 by RFC 8446 §5.5, with a margin for those that are under way.
const GCM_LIMIT: u64 = 1 << 24;
