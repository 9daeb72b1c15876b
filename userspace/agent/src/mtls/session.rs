//! A TLS 1.3 connection after its handshake: application bytes to records and back, and the few messages that may still come.
//!
//! rustls makes the handshake; from there this is our own record layer, because it can do what a
//! general one cannot: seal from where a socket was read to, open to where a socket is written from, many records a system
//! call. No byte is copied, and a connection at rest holds no buffer. It does no I/O and knows no socket.
//!
//! After a handshake a peer may send application data, alerts, KeyUpdate, and to a client tickets, which nobody here uses.
//! `close_notify` is the orderly end; everything else is a failure, and nothing follows a failure.

use std::fmt;

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::{
    AlertDescription, ContentType, Error, ExtractedSecrets, HandshakeType, InvalidMessage, PeerMisbehaved,
};

use crate::block;

use super::key::{HEADER, Key, MAX_CONTENT, TAG, record_length};
use super::secret::{Told, TrafficSecret};

/// The keys of an authenticated connection.
pub struct Session {
    sealing: Key,
    opening: Key,
    /// What the key that seals is of, and the one after it.
    own: TrafficSecret,
    /// The same for what opens.
    peers: TrafficSecret,
    /// The peer has asked for a new key of ours.
    owes_update: bool,
    /// KeyUpdates of the peer since its last application data.
    updates: u8,
    /// The beginning of a message that goes on in the next record; empty at nearly all times.
    message: Vec<u8>,
}

/// What was at the front of some received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Not a whole record: more must be received.
    Incomplete,
    /// A record of `record` bytes, with `content` bytes of the application in it.
    Application {
        /// Of the received bytes.
        record: usize,
        /// Written to the front of the room.
        content: usize,
    },
    /// A record of `record` bytes for TLS itself.
    Control {
        /// Of the received bytes.
        record: usize,
    },
    /// The peer's orderly end: it sends nothing more.
    End,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl Session {
    /// A client's side of a finished handshake, with what was told during it.
    ///
    /// # Errors
    /// rustls negotiated what this record layer does not know.
    pub(super) fn of_client(client: UnbufferedClientConnection, told: &Told) -> Result<Self, Error> {
        // The second part is what rustls would go on with: all but the keys goes.
        let (keys, _) = client.dangerous_into_kernel_connection()?;
        let [client, server] = told.take(&keys.tx.1)?;
        Self::new(keys, [client, server])
    }

    /// A server's side of a finished handshake, with what was told during it.
    ///
    /// # Errors
    /// As [`Session::of_client`].
    pub(super) fn of_server(server: UnbufferedServerConnection, told: &Told) -> Result<Self, Error> {
        let (keys, _) = server.dangerous_into_kernel_connection()?;
        let [client, server] = told.take(&keys.tx.1)?;
        Self::new(keys, [server, client])
    }

    fn new(keys: ExtractedSecrets, [own, peers]: [TrafficSecret; 2]) -> Result<Self, Error> {
        let (sealing, opening) = (Key::new(keys.tx)?, Key::new(keys.rx)?);
        Ok(Self { sealing, opening, own, peers, owes_update: false, updates: 0, message: Vec::new() })
    }

    /// Seals one record of application data: `content`, and where a protocol has marks of its own in each record, `mark`
    /// behind it. Returns what it has written to the front of `wire`, at most [`sealed`] of the content, plus
    /// [`UPDATE_ROOM`] where our key had to be renewed first.
    ///
    /// # Errors
    /// Too little room, more bytes than a record of TLS has, or an end of the cipher's resources.
    pub fn seal(&mut self, content: &[u8], mark: Option<u8>, wire: &mut [u8]) -> Result<usize, Error> {
        let updated = if self.owes_update || self.sealing.is_worn() { self.update_sealing(wire)? } else { 0 };
        let application = u8::from(ContentType::ApplicationData);
        let wire = &mut wire[updated..];
        let length = match mark {
            Some(mark) => self.sealing.seal(content, &[mark, application], wire)?,
            None => self.sealing.seal(content, &[application], wire)?,
        };
        Ok(updated + length)
    }

    /// Seals the orderly end into the front of `wire`. Nothing may be sealed after it.
    ///
    /// # Errors
    /// As [`Session::seal`].
    pub fn seal_end(&mut self, wire: &mut [u8]) -> Result<usize, Error> {
        self.seal_alert(AlertDescription::CloseNotify, wire)
    }

    /// Seals an alert into the front of `wire`. Nothing may be sealed after it.
    ///
    /// # Errors
    /// As [`Session::seal`].
    pub fn seal_alert(&mut self, alert: AlertDescription, wire: &mut [u8]) -> Result<usize, Error> {
        self.sealing.seal(&[ALERT_LEVEL, alert.into()], &[ContentType::Alert.into()], wire)
    }

    /// Opens the record at the front of `wire` into the front of `plain`, which needs as much room as the record has bytes.
    ///
    /// # Errors
    /// The record is damaged, forged or out of place, or is an alert that is no orderly end. The connection is over.
    pub fn open(&mut self, wire: &[u8], plain: &mut [u8]) -> Result<Opened, Error> {
        let Some(record) = record_length(wire)? else { return Ok(Opened::Incomplete) };
        let (kind, content) = self.opening.open(&wire[..record], plain)?;
        let plain = &plain[..content];
        let kind = ContentType::from(kind);
        if !self.message.is_empty() && kind != ContentType::Handshake {
            return Err(PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into());
        }
        match kind {
            ContentType::ApplicationData => {
                self.updates = 0;
                Ok(Opened::Application { record, content })
            }
            ContentType::Handshake => self.handshake(plain).map(|()| Opened::Control { record }),
            ContentType::Alert => {
                alert(plain).map(|end| if end { Opened::End } else { Opened::Control { record } })
            }
            _ => Err(Error::InvalidMessage(InvalidMessage::InvalidContentType)),
        }
    }

    /// Sends KeyUpdate under the old key and goes on with the new one (RFC 8446 §4.6.3).
    fn update_sealing(&mut self, wire: &mut [u8]) -> Result<usize, Error> {
        let message = [HandshakeType::KeyUpdate.into(), 0, 0, 1, UPDATE_NOT_REQUESTED];
        let length = self.sealing.seal(&message, &[ContentType::Handshake.into()], wire)?;
        self.sealing.update(&mut self.own)?;
        self.owes_update = false;
        Ok(length)
    }

    /// Messages of the handshake protocol in a record, or parts of them.
    fn handshake(&mut self, content: &[u8]) -> Result<(), Error> {
        if content.is_empty() {
            return Err(InvalidMessage::InvalidEmptyPayload.into());
        }
        let mut message = std::mem::take(&mut self.message);
        message.extend_from_slice(content);
        let mut rest = message.as_slice();
        while let Some((kind, body, after)) = first_message(rest)? {
            rest = after;
            match kind {
                HandshakeType::KeyUpdate => self.update_opening(body, rest)?,
                HandshakeType::NewSessionTicket => {}
                _ => return Err(InvalidMessage::UnexpectedMessage("after the handshake").into()),
            }
        }
        self.message = rest.to_vec();
        Ok(())
    }

    fn update_opening(&mut self, body: &[u8], rest: &[u8]) -> Result<(), Error> {
        self.updates += 1;
        // What follows is under the next key, so nothing may follow in this record (RFC 8446 §5.1).
        if !rest.is_empty() {
            return Err(PeerMisbehaved::KeyEpochWithPendingFragment.into());
        }
        if self.updates > MAX_UPDATES {
            return Err(PeerMisbehaved::TooManyKeyUpdateRequests.into());
        }
        self.owes_update |= match body {
            [UPDATE_NOT_REQUESTED] => false,
            [UPDATE_REQUESTED] => true,
            _ => return Err(InvalidMessage::InvalidKeyUpdate.into()),
        };
        self.opening.update(&mut self.peers)?;
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn wear_out(&mut self) {
        self.sealing.wear_out();
    }
}

/// A message of the handshake protocol: its type, its body, and what is behind it.
type Message<'a> = (HandshakeType, &'a [u8], &'a [u8]);

/// The first message; `None` where it is not complete.
fn first_message(content: &[u8]) -> Result<Option<Message<'_>>, Error> {
    let Some(([kind, a, b, c], rest)) = content.split_first_chunk() else { return Ok(None) };
    let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
    if length > MAX_MESSAGE {
        return Err(InvalidMessage::HandshakePayloadTooLarge.into());
    }
    Ok(rest.split_at_checked(length).map(|(body, rest)| (HandshakeType::from(*kind), body, rest)))
}

/// True at the orderly end.
fn alert(content: &[u8]) -> Result<bool, Error> {
    let [_, description] = content else { return Err(InvalidMessage::MessageTooShort.into()) };
    match AlertDescription::from(*description) {
        AlertDescription::CloseNotify => Ok(true),
        // Tells that close_notify follows, and nothing else (RFC 8446 §6.1).
        AlertDescription::UserCanceled => Ok(false),
        failure => Err(Error::AlertReceived(failure)),
    }
}

/// Bytes on the wire of `content` bytes in one record, with a mark.
#[must_use]
pub const fn sealed(content: usize) -> usize {
    HEADER + content + 2 + TAG
}

/// Bytes of content that a record gets, with a mark or without: so that four records are as long as what the kernel sends as one
/// packet where the link's MTU is 1500 (45 segments of 1448 bytes), and their content fits into one packet of a pod's loopback
/// (65,483 bytes). Full records would leave a little over in both places, which travels as a packet of its own.
pub const RECORD: usize = 45 * 1448 / 4 - sealed(0);

const _: () = assert!(block::CONTENT == 8 * RECORD && RECORD < MAX_CONTENT, "a block is full records");

/// Bytes of a KeyUpdate on the wire.
pub const UPDATE_ROOM: usize = HEADER + 5 + 1 + TAG;

/// Bytes of the orderly end on the wire.
pub const END_ROOM: usize = HEADER + 2 + 1 + TAG;

/// `KeyUpdateRequest` (RFC 8446 §4.6.3).
const UPDATE_NOT_REQUESTED: u8 = 0;
const UPDATE_REQUESTED: u8 = 1;

/// `AlertLevel`, which means nothing in TLS 1.3 (RFC 8446 §6).
const ALERT_LEVEL: u8 = 2;

/// KeyUpdates without application data between them: each costs us a key derivation, and its sender nothing.
const MAX_UPDATES: u8 = 32;

/// Bytes of a message after the handshake: a ticket is the largest that is legal, and none is near it.
const MAX_MESSAGE: usize = 64 * 1024;
