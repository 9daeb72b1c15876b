//! One GET over the admin socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    /// No file there.
    #[error(
        "no admin socket at {}: is signetd running on this machine? Its configuration says where it is \
         (listen.admin); name it with --socket or SIGNET_ADMIN_SOCKET. Where it does not start, `signetd --check` \
         says what the machine lacks",
        .0.display()
    )]
    Missing(PathBuf),
    /// The socket is its owner's alone.
    #[error("may not open {}: it belongs to the user signetd runs as; try sudo", .0.display())]
    Forbidden(PathBuf),
    /// A file without a process.
    #[error("nobody listens on {}: signetd has ended without removing it; look at its log", .0.display())]
    Dead(PathBuf),
    /// Any other error of the socket.
    #[error("cannot connect to {}: {source}", path.display())]
    Connect {
        /// Which socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It connected, and the answer did not come.
    #[error("signetd did not answer {path}: {reason}")]
    Answer {
        /// What was asked for.
        path: &'static str,
        /// Why.
        reason: String,
    },
    /// The view is not there.
    #[error("signetd answered {path} with {status}: are signet and signetd of the same version?")]
    Status {
        /// What was asked for.
        path: &'static str,
        /// The answer.
        status: StatusCode,
    },
}

/// Asks for a view.
///
/// # Errors
/// Nobody answers, or not with JSON.
pub(crate) async fn get(socket: &Path, path: &'static str) -> Result<Value, AdminError> {
    let stream = UnixStream::connect(socket).await.map_err(|source| connect_error(socket, source))?;
    let late = |_| answer_error(path, format!("nothing within {} s", TIMEOUT.as_secs()));
    tokio::time::timeout(TIMEOUT, request(stream, path)).await.map_err(late)?
}

async fn request(stream: UnixStream, path: &'static str) -> Result<Value, AdminError> {
    let failed = |error: hyper::Error| answer_error(path, error);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    // Ends with the sender, at the end of this function.
    tokio::spawn(connection);
    let request = Request::get(path).header("host", "signet").body(Empty::<Bytes>::new());
    let request = request.expect("a constant path makes a legal request");
    let response = sender.send_request(request).await.map_err(failed)?;
    if response.status() != StatusCode::OK {
        return Err(AdminError::Status { path, status: response.status() });
    }
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|error| answer_error(path, error))?.to_bytes();
    serde_json::from_slice(&body).map_err(|error| answer_error(path, error))
}

fn connect_error(socket: &Path, source: io::Error) -> AdminError {
    let path = socket.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => AdminError::Missing(path),
        io::ErrorKind::PermissionDenied => AdminError::Forbidden(path),
        io::ErrorKind::ConnectionRefused => AdminError::Dead(path),
        _ => AdminError::Connect { path, source },
    }
}

fn answer_error(path: &'static str, reason: impl ToString) -> AdminError {
    AdminError::Answer { path, reason: reason.to_string() }
}

/// Connections are the longest list: 10,000 of them are about 8 MB.
const MAX_ANSWER: usize = 256 << 20;
/// `check` asks the kernel for some things that take a moment.
const TIMEOUT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    async fn answer_with(bytes: &'static [u8]) -> Result<Value, AdminError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            stream.write_all(bytes).await.unwrap();
        });
        get(&path, "/v1/status").await
    }

    #[tokio::test]
    async fn an_answer_is_its_json() {
        let answer = answer_with(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n{\"a\": 1}").await.unwrap();
        assert_eq!(answer["a"], 1);
    }

    #[tokio::test]
    async fn what_is_no_http_is_an_error_and_no_panic() {
        let error = answer_with(b"\x16\x03\x01nonsense\r\n\r\n").await.unwrap_err();
        assert!(matches!(error, AdminError::Answer { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_view_that_is_not_there_asks_for_the_versions() {
        let error = answer_with(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await.unwrap_err();
        assert!(error.to_string().contains("same version"), "{error}");
    }

    #[tokio::test]
    async fn a_missing_socket_is_named() {
        let error = get(Path::new("/nowhere/admin.sock"), "/v1/status").await.unwrap_err();
        assert!(error.to_string().contains("/nowhere/admin.sock"), "{error}");
    }

    #[tokio::test]
    async fn a_socket_that_nobody_serves_is_told_from_a_missing_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(matches!(get(&path, "/v1/status").await.unwrap_err(), AdminError::Dead(_)));
    }
}
