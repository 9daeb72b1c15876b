//! The process's log and its metrics registry: how both are set up, and what the process tells about itself.
//!
//! Log lines are tracing events with fields; the text form is `tracing-subscriber`'s own, which is also ztunnel's access
//! log (`<RFC 3339, microseconds>Z  INFO access: connection complete src.addr=...`). Metrics are collected where they
//! arise: this module only makes the registry and turns it into text. It knows none of the other modules, so it takes
//! plain values and not the configuration.

mod lines;
mod process;

use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tokio::runtime::Handle;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

pub use lines::{Held, hold};

/// The process-wide metrics registry; each module registers its own families at construction, prefix-free names.
pub type Registry = prometheus_client::registry::Registry;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One line for people, shaped like ztunnel's.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where log lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogOutput {
    /// Standard output: the daemon.
    Stdout,
    /// Standard error: command line tools whose output is data.
    Stderr,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `log.filter` is not a tracing filter.
    #[error("log.filter {filter:?} is no filter: {reason}; write for example info,access=debug")]
    Filter {
        /// As configured.
        filter: String,
        /// What the parser said.
        reason: String,
    },
    /// Called a second time in this process.
    #[error("the log has already been set up in this process")]
    Twice,
}

/// Sets up the process's log. Once, first thing in `main`.
///
/// # Errors
/// A filter that cannot be parsed, or a second call.
pub fn init_log(format: LogFormat, output: LogOutput, filter: &str) -> Result<(), LogError> {
    let filter = parse_filter(filter)?;
    let writer = match output {
        LogOutput::Stdout => BoxMakeWriter::new(lines::Lines),
        LogOutput::Stderr => BoxMakeWriter::new(std::io::stderr),
    };
    subscriber(format, filter, writer).try_init().map_err(|_| LogError::Twice)
}

/// A word alone must be a level: the parser takes any other for a target, and a misspelt level would silence everything.
fn parse_filter(filter: &str) -> Result<EnvFilter, LogError> {
    let refused = |reason| LogError::Filter { filter: filter.to_owned(), reason };
    let mut words = filter.split(',').map(str::trim).filter(|part| !part.contains(['=', '[']));
    if let Some(word) = words.find(|word| word.parse::<LevelFilter>().is_err()) {
        return Err(refused(format!("{word:?} is no level (off, error, warn, info, debug, trace)")));
    }
    // The source says itself, once, that its API server is away; its client says so at every attempt.
    EnvFilter::try_new(format!("kube_client=off,{filter}")).map_err(|e| refused(e.to_string()))
}

/// A registry that holds `istio_build{component, tag}`, and the metrics of the process and its tokio runtimes.
#[must_use]
pub fn registry<'a>(component: &str, tag: &str, runtimes: impl Iterator<Item = &'a Handle>) -> Registry {
    let mut registry = Registry::default();
    let build = Family::<[(&str, String); 2], Gauge>::default();
    build.get_or_create(&[("component", component.to_owned()), ("tag", tag.to_owned())]).set(1);
    registry.register("istio_build", "Istio component build info", build);
    registry.register_collector(Box::new(process::Process::of(runtimes)));
    registry
}

/// The registry in OpenMetrics text (`application/openmetrics-text; version=1.0.0; charset=utf-8`).
///
/// # Panics
/// When a collector reports an error of its own: writing to a `String` cannot fail.
#[must_use]
pub fn encode(registry: &Registry) -> String {
    /// Bytes of the last page: a text that grows leaves holes of all sizes in the heap.
    static LENGTH: AtomicUsize = AtomicUsize::new(0);
    let expected = LENGTH.load(Ordering::Relaxed);
    let mut text = String::with_capacity(expected + expected / 8);
    prometheus_client::encoding::text::encode(&mut text, registry)
        .expect("writing to a String cannot fail, and collectors have no other errors");
    LENGTH.store(text.len(), Ordering::Relaxed);
    text
}

fn subscriber<W>(format: LogFormat, filter: EnvFilter, writer: W) -> impl tracing::Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => {
            lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
        }
    };
    tracing_subscriber::registry().with(filter).with(lines)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, filter: &str) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber = subscriber(format, EnvFilter::new(filter), move || writer.clone());
        tracing::subscriber::with_default(subscriber, || {
            let absent: Option<&str> = None;
            tracing::event!(target: "access", tracing::Level::INFO, src.addr = %"10.0.0.1:4", dst.identity = absent, direction = "inbound", "connection complete");
        });
        let bytes = captured.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_text_line_has_ztunnels_shape() {
        let line = logged(LogFormat::Text, "info");
        let (time, rest) = line.split_once("Z ").unwrap();
        assert_eq!(time.len(), "2026-08-01T12:00:00.123456".len(), "{line}");
        assert_eq!(rest, " INFO access: connection complete src.addr=10.0.0.1:4 direction=\"inbound\"\n");
    }

    #[test]
    fn a_json_line_is_one_flat_object() {
        let line = logged(LogFormat::Json, "info");
        let object: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(object["message"], "connection complete");
        assert_eq!(object["src.addr"], "10.0.0.1:4");
        assert_eq!(object["target"], "access");
        assert!(object.get("dst.identity").is_none());
    }

    #[test]
    fn the_filter_silences_a_target() {
        assert_eq!(logged(LogFormat::Text, "info,access=off"), "");
    }

    #[test]
    fn a_misspelt_level_is_refused_and_not_taken_for_a_target() {
        for filter in ["info", "info,access=off", "warn,signet_agent[span]=debug"] {
            assert!(parse_filter(filter).is_ok(), "{filter}");
        }
        for filter in ["verbose", "access=off,inof", "info,=,,!"] {
            assert!(parse_filter(filter).is_err(), "{filter}");
        }
    }

    #[test]
    fn a_bad_filter_is_named() {
        let error = init_log(LogFormat::Text, LogOutput::Stderr, "access=loudly").unwrap_err();
        assert!(error.to_string().contains("access=loudly"), "{error}");
    }

    #[tokio::test]
    async fn the_registry_tells_about_build_process_and_runtime() {
        let text = encode(&registry("signetd", "1.2.3", std::iter::once(&Handle::current())));
        assert!(text.contains("istio_build{component=\"signetd\",tag=\"1.2.3\"} 1"), "{text}");
        for name in [
            "process_open_fds ",
            "process_max_fds ",
            "process_resident_memory_bytes ",
            "tokio_num_alive_tasks ",
        ] {
            assert!(text.lines().any(|line| line.starts_with(name)), "{name} is missing in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
