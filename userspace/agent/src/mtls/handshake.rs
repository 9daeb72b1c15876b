//! Drives rustls through a handshake over any byte stream, and takes the keys out at its end.
//!
//! rustls is shown one record at a time, so that it never opens what follows the handshake: bytes of the application that
//! came with the peer's last flight stay where they are, sealed, and are opened by the session like all others. Whoever
//! calls bounds the time; the bytes are bounded here.

use std::io;
use std::ops::RangeInclusive;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{Error, InvalidMessage};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::HandshakeError;
use super::key::HEADER;

/// Either side's state machine.
pub(super) trait Handshake {
    /// What rustls keeps for this side.
    type Data;

    /// Goes on with the bytes at the front of what was received.
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Handshake for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

impl Handshake for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

/// Received bytes that rustls has not used yet.
#[derive(Default)]
pub(super) struct Incoming {
    bytes: Vec<u8>,
    /// How many of them rustls has been shown.
    shown: usize,
}

impl Incoming {
    /// Everything that is there, shown or not.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What followed the handshake.
    pub(super) fn into_rest(self) -> Vec<u8> {
        self.bytes
    }

    /// Receives more.
    ///
    /// # Errors
    /// The peer closed, or has sent more than a handshake can have.
    pub(super) async fn receive(&mut self, io: &mut (impl AsyncRead + Unpin)) -> Result<(), HandshakeError> {
        if self.bytes.len() > MAX_INCOMING {
            return Err(Error::from(InvalidMessage::HandshakePayloadTooLarge).into());
        }
        let before = self.bytes.len();
        self.bytes.resize(before + FLIGHT, 0);
        let received = io.read(&mut self.bytes[before..]).await;
        self.bytes.truncate(before + received.as_ref().copied().unwrap_or(0));
        match received? {
            0 => Err(HandshakeError::Closed),
            _ => Ok(()),
        }
    }

    /// Shows one more record; false where there is no whole one.
    fn show_next(&mut self) -> Result<bool, Error> {
        let rest = &self.bytes[self.shown..];
        let Some([kind, _, _, high, low]) = rest.first_chunk() else { return Ok(false) };
        if !KINDS.contains(kind) {
            return Err(InvalidMessage::InvalidContentType.into());
        }
        let record = HEADER + usize::from(u16::from_be_bytes([*high, *low]));
        let whole = rest.len() >= record;
        self.shown += if whole { record } else { 0 };
        Ok(whole)
    }

    fn discard(&mut self, count: usize) {
        self.bytes.drain(..count);
        self.shown -= count;
    }
}

/// Shakes hands. What is left in `incoming` came after the handshake.
///
/// # Errors
/// Why not; the peer has been told.
pub(super) async fn shake<IO, H>(
    io: &mut IO,
    side: &mut H,
    incoming: &mut Incoming,
) -> Result<(), HandshakeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    H: Handshake,
{
    let (mut outgoing, mut broken) = (Vec::new(), None);
    loop {
        match step(side, incoming, &mut outgoing) {
            Ok(Step::Again) => {}
            Ok(Step::Transmit) => {
                // A peer that refuses us may be gone already: what it said first is why.
                broken = send(io, &outgoing).await.err().or(broken);
                outgoing.clear();
            }
            Ok(Step::Receive) => {
                if !incoming.show_next()? {
                    let received = incoming.receive(io).await;
                    received.map_err(|error| broken.take().map_or(error, Into::into))?;
                }
            }
            Ok(Step::Complete) => return broken.map_or(Ok(()), |error| Err(error.into())),
            Err(error) => {
                tell(io, side, incoming).await;
                return Err(error.into());
            }
        }
    }
}

async fn send(io: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    io.write_all(bytes).await?;
    io.flush().await
}

/// What is to be done next.
enum Step {
    Again,
    Transmit,
    Receive,
    Complete,
}

fn step<H: Handshake>(side: &mut H, incoming: &mut Incoming, outgoing: &mut Vec<u8>) -> Result<Step, Error> {
    let UnbufferedStatus { discard, state } = side.process(&mut incoming.bytes[..incoming.shown]);
    let step = match state {
        Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, outgoing).map(|()| Step::Again),
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Ok(Step::Transmit)
        }
        Ok(ConnectionState::BlockedHandshake) => Ok(Step::Receive),
        Ok(ConnectionState::WriteTraffic(_)) => Ok(Step::Complete),
        Ok(_) => Err(Error::HandshakeNotComplete),
        Err(error) => Err(error),
    };
    incoming.discard(discard);
    step
}

fn encode<D>(data: &mut EncodeTlsData<'_, D>, outgoing: &mut Vec<u8>) -> Result<(), Error> {
    let (start, mut room) = (outgoing.len(), FLIGHT);
    loop {
        outgoing.resize(start + room, 0);
        match data.encode(&mut outgoing[start..]) {
            Ok(written) => {
                outgoing.truncate(start + written);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(needed)) => room = needed.required_size,
            Err(EncodeError::AlreadyEncoded) => return Err(Error::EncryptError),
        }
    }
}

/// Sends the alert that belongs to a failure, if the peer still takes it.
async fn tell<H: Handshake>(io: &mut (impl AsyncWrite + Unpin), side: &mut H, incoming: &mut Incoming) {
    let mut alert = Vec::new();
    while let Ok(Step::Again) = step(side, incoming, &mut alert) {}
    let _ = send(io, &alert).await;
}

/// `ContentType`: change_cipher_spec to application_data (RFC 8446 §5.1).
const KINDS: RangeInclusive<u8> = 20..=23;

/// Bytes to receive at once: a flight with a hybrid key share and two certificates is about as long.
const FLIGHT: usize = 4096;

/// Bytes that may wait: rustls takes a message of 64 KiB, in records of which the last may bring others with it.
const MAX_INCOMING: usize = 96 * 1024;
