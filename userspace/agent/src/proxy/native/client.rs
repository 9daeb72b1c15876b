//! The client's side of one application connection: OPEN, and what the application has said already, in one flight.
//!
//! The server may have to be asked twice, or another one, so nothing may go to an application that could go to a second
//! one later: until the server has answered, at most one record's worth of the application's bytes is sent, as they come,
//! and a copy is kept. An application that waits for its server's first words is not waited for.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use super::frame::{FrameError, Mark, Open, Status};
use super::tunnel::{Frame, Tunnel, invalid};
use crate::block::Block;
use crate::mtls::RECORD;

/// The application's first bytes, for whoever will serve it.
#[derive(Debug, Default)]
pub(crate) struct Early {
    bytes: Vec<u8>,
    /// Nothing more is read: there are [`RECORD`] bytes, or no more will come.
    complete: bool,
    /// They were sent, and no server has said that it did nothing with them.
    at_risk: bool,
}

/// How an attempt failed, and what that means.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// Nothing of the application has left this node: another connection may be tried.
    Unsent(io::Error),
    /// The server may have acted.
    Broken(io::Error),
}

impl Early {
    /// A server may have acted on them: no other may be asked.
    pub(crate) fn are_at_risk(&self) -> bool {
        self.at_risk
    }

    /// What has been read.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same, to be sent.
    pub(crate) fn block(&self) -> Block {
        let mut block = Block::default();
        if !self.bytes.is_empty() {
            block = Block::borrow();
            block.append(&self.bytes);
        }
        block
    }

    /// Reads what is there.
    fn poll_read(&mut self, cx: &mut Context<'_>, application: &mut TcpStream) -> Poll<()> {
        while !self.complete {
            let mut block = Block::borrow();
            let mut room = ReadBuf::new(&mut block.room()[..RECORD - self.bytes.len()]);
            // Its end, or its failure, is for the relay to find again.
            let _ = ready!(Pin::new(&mut *application).poll_read(cx, &mut room));
            self.complete = room.filled().is_empty() || room.remaining() == 0;
            self.bytes.extend_from_slice(room.filled());
        }
        Poll::Ready(())
    }
}

/// Asks the server at the other end of a tunnel at rest, and returns its answer. With 200 the tunnel carries the
/// connection; with any other it is at rest again.
///
/// # Errors
/// There was no answer.
pub(crate) async fn open(
    tunnel: &mut Tunnel,
    request: &Open,
    early: &mut Early,
    application: &mut TcpStream,
) -> Result<Status, Attempt> {
    let answer = ask(tunnel, request, early, application).await;
    if answer.as_ref().is_ok_and(|status| !status.code.is_success()) {
        early.at_risk = false;
    }
    answer.map_err(|error| if early.at_risk { Attempt::Broken(error) } else { Attempt::Unsent(error) })
}

async fn ask(
    tunnel: &mut Tunnel,
    request: &Open,
    early: &mut Early,
    application: &mut TcpStream,
) -> io::Result<Status> {
    tunnel.begin();
    tunnel.put(Mark::Open, &request.encode())?;
    let mut said = 0;
    poll_fn(|cx| {
        let _ = early.poll_read(cx, application);
        loop {
            let unsaid = &early.bytes[said..];
            if !unsaid.is_empty() && tunnel.has_room(unsaid.len()) {
                tunnel.put(Mark::Data, unsaid)?;
                (early.at_risk, said) = (true, early.bytes.len());
            }
            if tunnel.poll_sent(cx)?.is_pending() || said == early.bytes.len() {
                return poll_status(tunnel, cx);
            }
        }
    })
    .await
}

fn poll_status(tunnel: &mut Tunnel, cx: &mut Context<'_>) -> Poll<io::Result<Status>> {
    loop {
        match ready!(tunnel.poll_frame(cx))? {
            Frame::Of(Mark::Status, content) => {
                let status = Status::parse(&content).map_err(invalid)?;
                if !status.code.is_success() {
                    tunnel.rest();
                }
                return Poll::Ready(Ok(status));
            }
            // It crossed our OPEN, which is served all the same.
            Frame::Of(Mark::Leaving, _) => tunnel.note_leaving(),
            Frame::Of(..) => return Poll::Ready(Err(invalid(FrameError::OutOfPlace))),
            Frame::Closed => return Poll::Ready(Err(ErrorKind::UnexpectedEof.into())),
        }
    }
}
