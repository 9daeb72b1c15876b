//! Small files that others write (tokens, roots, keys): read anew at each use, bounded, overwritten in memory after it.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use zeroize::Zeroizing;

use super::FetchError;

/// The whole file, if it has at most `limit` bytes.
pub(super) async fn read(path: &Path, limit: usize) -> Result<Zeroizing<Vec<u8>>, FetchError> {
    let of = path.to_owned();
    let read = tokio::task::spawn_blocking(move || read_now(&of, limit)).await;
    read.unwrap_or_else(|panic| Err(format!("cannot read it: {panic}")))
        .map_err(|reason| FetchError::File { path: path.to_owned(), reason })
}

fn read_now(path: &Path, limit: usize) -> Result<Zeroizing<Vec<u8>>, String> {
    let file = File::open(path).map_err(|e| format!("cannot open it: {e}"))?;
    let length = file.metadata().map_err(|e| format!("cannot look at it: {e}"))?.len();
    // A pipe has no length.
    let expected =
        usize::try_from(length).ok().filter(|length| (1..=limit).contains(length)).unwrap_or(limit);
    // Room for all of it from the start: a buffer that grows leaves copies of a key behind. And for no more, since all of it
    // is overwritten in the end.
    let mut bytes = Zeroizing::new(Vec::with_capacity(expected + 1));
    let most = u64::try_from(expected).unwrap_or(u64::MAX).saturating_add(1);
    file.take(most).read_to_end(&mut bytes).map_err(|e| format!("cannot read it: {e}"))?;
    match bytes.len() {
        0 => Err("it is empty".into()),
        length if length > limit => Err(format!("it has more than {limit} bytes")),
        length if length > expected => Err("it has grown while it was read".into()),
        _ => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_read_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(*read(&path, 5).await.unwrap(), b"12345");
        for (limit, text) in [(4, "more than 4 bytes"), (0, "more than 0 bytes")] {
            assert!(read(&path, limit).await.unwrap_err().to_string().contains(text));
        }
    }

    #[tokio::test]
    async fn a_file_that_is_missing_or_empty_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let error = read(&path, 5).await.unwrap_err().to_string();
        assert!(error.contains("token") && error.contains("cannot open"), "{error}");
        std::fs::write(&path, "").unwrap();
        assert!(read(&path, 5).await.unwrap_err().to_string().contains("empty"));
    }
}
