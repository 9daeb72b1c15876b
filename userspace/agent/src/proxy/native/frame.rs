//! Frames: each is one TLS record, and the last byte of its content says which (docs/native.md).
//!
//! A mark behind the content, where TLS has its own, costs no length, no second parser and no copy: what a record of data
//! is opened to are the application's bytes, one record's behind the other's. The two frames with fields are parsed here,
//! once and within bounds; everything else has no content.

use http::StatusCode;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// A client asks for an application.
    Open,
    /// The server's answer.
    Status,
    /// Bytes of the application.
    Data,
    /// The application's FIN, passed on.
    End,
    /// The sender serves what it has been asked for, and nothing after that.
    Leaving,
}

impl Mark {
    /// The byte on the wire.
    pub(crate) const fn byte(self) -> u8 {
        match self {
            Self::Open => 1,
            Self::Status => 2,
            Self::Data => 3,
            Self::End => 4,
            Self::Leaving => 5,
        }
    }

    /// The mark that a byte is.
    pub(crate) fn of(byte: u8) -> Option<Self> {
        [Self::Open, Self::Status, Self::Data, Self::End, Self::Leaving]
            .into_iter()
            .find(|mark| mark.byte() == byte)
    }
}

/// What a client asks for: the same as HBONE's CONNECT.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Open {
    /// Which of the client's threads asks: what these send together arrives together, and may be served together.
    pub(crate) lane: u8,
    /// `<ip>:<port>` of the application.
    pub(crate) authority: String,
    /// `<ip>:<port>` of the client. Told, never trusted.
    pub(crate) client: String,
    /// What the client's node says of its workload.
    pub(crate) baggage: String,
    /// W3C Trace Context.
    pub(crate) traceparent: String,
}

/// The server's answer to an [`Open`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    /// HBONE's statuses, and [`ANOTHER_CONNECTION`].
    pub(crate) code: StatusCode,
    /// What the server's node says of its workload.
    pub(crate) baggage: String,
}

/// Why a frame cannot be read. Nothing follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// A field is longer than the frame, is no UTF-8, or something follows the last one.
    #[error("the peer sent a malformed frame")]
    Malformed,
    /// A frame that must not come now, or none that there is.
    #[error("the peer sent a frame out of place")]
    OutOfPlace,
}

impl Open {
    /// The frame's content.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let fields = [&self.authority, &self.client, &self.baggage, &self.traceparent];
        let mut content = Vec::with_capacity(9 + fields.iter().map(|field| field.len()).sum::<usize>());
        content.push(self.lane);
        fields.into_iter().for_each(|field| put(field, &mut content));
        content
    }

    /// Reads a frame's content.
    ///
    /// # Errors
    /// It is malformed.
    pub(crate) fn parse(content: &[u8]) -> Result<Self, FrameError> {
        let (&lane, mut rest) = content.split_first().ok_or(FrameError::Malformed)?;
        let mut field = || take(&mut rest).map(str::to_owned);
        let open =
            Self { lane, authority: field()?, client: field()?, baggage: field()?, traceparent: field()? };
        rest.is_empty().then_some(open).ok_or(FrameError::Malformed)
    }
}

impl Status {
    /// The frame's content.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut content = Vec::with_capacity(4 + self.baggage.len());
        content.extend_from_slice(&self.code.as_u16().to_be_bytes());
        put(&self.baggage, &mut content);
        content
    }

    /// Reads a frame's content.
    ///
    /// # Errors
    /// It is malformed.
    pub(crate) fn parse(content: &[u8]) -> Result<Self, FrameError> {
        let (code, mut rest) = content.split_first_chunk().ok_or(FrameError::Malformed)?;
        let code = StatusCode::from_u16(u16::from_be_bytes(*code)).map_err(|_| FrameError::Malformed)?;
        let baggage = take(&mut rest)?.to_owned();
        rest.is_empty().then_some(Self { code, baggage }).ok_or(FrameError::Malformed)
    }
}

/// Two bytes of length, then the text; what is longer than [`MAX_FIELD`] is left out, since all of it is told by courtesy
/// but the authority, which is an address and short.
fn put(field: &str, content: &mut Vec<u8>) {
    let field = if field.len() > MAX_FIELD { "" } else { field };
    let length = u16::try_from(field.len()).expect("MAX_FIELD fits");
    content.extend_from_slice(&length.to_be_bytes());
    content.extend_from_slice(field.as_bytes());
}

fn take<'a>(content: &mut &'a [u8]) -> Result<&'a str, FrameError> {
    let (length, rest) = content.split_first_chunk().ok_or(FrameError::Malformed)?;
    let length = usize::from(u16::from_be_bytes(*length));
    let (field, rest) = rest.split_at_checked(length).ok_or(FrameError::Malformed)?;
    *content = rest;
    std::str::from_utf8(field).map_err(|_| FrameError::Malformed)
}

/// This connection's proof has expired: nothing was done, ask again on another one (421, RFC 9110 §15.5.20).
pub(crate) const ANOTHER_CONNECTION: StatusCode = StatusCode::MISDIRECTED_REQUEST;

/// Bytes of one field: all four fit into one record.
const MAX_FIELD: usize = 4000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn field() -> impl Strategy<Value = String> {
        "\\PC{0,60}"
    }

    proptest! {
        #[test]
        fn every_open_reads_back(lane in any::<u8>(), authority in field(), client in field(), baggage in field(), traceparent in field()) {
            let open = Open { lane, authority, client, baggage, traceparent };
            prop_assert_eq!(Open::parse(&open.encode()), Ok(open));
        }

        #[test]
        fn every_status_reads_back(code in 100..1000_u16, baggage in field()) {
            let status = Status { code: StatusCode::from_u16(code).unwrap(), baggage };
            prop_assert_eq!(Status::parse(&status.encode()), Ok(status));
        }

        #[test]
        fn whatever_comes_is_read_to_what_it_encodes_to_or_refused(content in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(open) = Open::parse(&content) {
                prop_assert_eq!(open.encode(), content.clone());
            }
            if let Ok(status) = Status::parse(&content) {
                prop_assert_eq!(status.encode(), content);
            }
        }

        #[test]
        fn a_frame_that_is_cut_short_or_goes_on_is_refused(baggage in field(), cut in any::<prop::sample::Index>()) {
            let open = Open { baggage, ..Open::default() };
            let mut content = open.encode();
            prop_assert_eq!(Open::parse(&content[..cut.index(content.len())]), Err(FrameError::Malformed));
            content.push(0);
            prop_assert_eq!(Open::parse(&content), Err(FrameError::Malformed));
        }
    }

    #[test]
    fn a_mark_is_one_byte_and_no_other_is() {
        for byte in 0..=255 {
            assert!(Mark::of(byte).is_none_or(|mark| mark.byte() == byte));
        }
        assert_eq!((Mark::of(3), Mark::of(0), Mark::of(6)), (Some(Mark::Data), None, None));
    }

    #[test]
    fn the_longest_frame_fits_into_one_record() {
        let long = || "x".repeat(MAX_FIELD);
        let open = Open { lane: 0, authority: long(), client: long(), baggage: long(), traceparent: long() };
        assert!(open.encode().len() <= crate::mtls::RECORD);
        let longer = Open { baggage: "x".repeat(MAX_FIELD + 1), ..Open::default() };
        assert_eq!(Open::parse(&longer.encode()), Ok(Open::default()));
    }
}
