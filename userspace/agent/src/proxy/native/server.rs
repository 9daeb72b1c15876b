//! The server's side: one OPEN after the other, each answered before the next.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use http::StatusCode;

use super::frame::{FrameError, Mark, Open, Status};
use super::tunnel::{Frame, Tunnel, invalid};
use crate::net::Leg;

impl Tunnel {
    /// The next OPEN; `None` when the client has closed. Can be cancelled without loss.
    ///
    /// # Errors
    /// The connection broke, or the client broke the protocol.
    pub(crate) async fn next_open(&mut self) -> io::Result<Option<Box<Open>>> {
        poll_fn(|cx| self.poll_open(cx)).await
    }

    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Box<Open>>>> {
        loop {
            match ready!(self.poll_frame(cx))? {
                Frame::Of(Mark::Open, content) => {
                    let open = Box::new(Open::parse(&content).map_err(invalid)?);
                    self.begin();
                    return Poll::Ready(Ok(Some(open)));
                }
                // It was sent together with an OPEN that was refused.
                Frame::Of(Mark::Data, _) => {}
                Frame::Of(..) => return Poll::Ready(Err(invalid(FrameError::OutOfPlace))),
                Frame::Closed => return Poll::Ready(Ok(None)),
            }
        }
    }

    /// Resolves when the client does not wait for the answer any more, and tells how.
    pub(crate) async fn abandoned(&mut self) -> io::Error {
        poll_fn(|cx| self.poll_broken(cx)).await
    }

    /// Answers 200, together with the application's first bytes where those come at once. Only after it is connected.
    ///
    /// # Errors
    /// The connection broke.
    pub(crate) fn accept(&mut self, baggage: String) -> io::Result<()> {
        self.put(Mark::Status, &Status { code: StatusCode::OK, baggage }.encode())
    }

    /// Answers with a failure status, and rests.
    ///
    /// # Errors
    /// The connection broke.
    pub(crate) async fn refuse(&mut self, code: StatusCode) -> io::Result<()> {
        self.put(Mark::Status, &Status { code, baggage: String::new() }.encode())?;
        poll_fn(|cx| self.poll_sent(cx)).await?;
        self.rest();
        Ok(())
    }

    /// Tells the client to open nothing new here. What has crossed this on its way is served.
    ///
    /// # Errors
    /// The connection broke.
    pub(crate) async fn leave(&mut self) -> io::Result<()> {
        self.put(Mark::Leaving, &[])?;
        poll_fn(|cx| self.poll_sent(cx)).await
    }
}
