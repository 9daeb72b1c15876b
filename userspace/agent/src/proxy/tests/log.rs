//! The access log of one test.

use std::io::Write;
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::subscriber::DefaultGuard;

/// What was logged under the target `access` by this test's thread, at info.
pub(super) struct Log {
    bytes: Arc<Mutex<Vec<u8>>>,
    _guard: DefaultGuard,
}

impl Log {
    /// From now on, until dropped. The test's runtime must be of one thread, as `#[tokio::test]`'s is.
    pub(super) fn capture() -> Self {
        let bytes = Arc::<Mutex<Vec<u8>>>::default();
        let sink = Arc::clone(&bytes);
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_env_filter("access=info")
            .with_writer(move || Sink(Arc::clone(&sink)))
            .finish();
        Self { bytes, _guard: tracing::subscriber::set_default(subscriber) }
    }

    /// The lines that contain `text`.
    pub(super) fn lines(&self, text: &str) -> Vec<String> {
        let bytes = self.bytes.lock().clone();
        let all = String::from_utf8(bytes).expect("log lines are UTF-8");
        all.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }

    /// The one line of that direction.
    #[track_caller]
    pub(super) fn only(&self, direction: &str) -> String {
        let lines = self.lines(&format!("direction=\"{direction}\""));
        assert_eq!(lines.len(), 1, "{lines:#?}");
        lines[0].clone()
    }
}

struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
