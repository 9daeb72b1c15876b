//! Log and registry set-up (H6).

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
    #[error("log.filter {filter:?}: {reason}")]
    Filter {
        /// As configured.
        filter: String,
        /// What the parser said.
        reason: String,
    },
    /// Called a second time in this process.
    #[error("the log has already been set up")]
    Twice,
}

/// Sets up the process's log. Once, first thing in `main`.
///
/// # Errors
/// A filter that cannot be parsed, or a second call.
pub fn init_log(format: LogFormat, output: LogOutput, filter: &str) -> Result<(), LogError> {
    let _ = (format, output, filter);
    todo!("H6")
}

/// A registry that holds `istio_build{component, tag}`, and the metrics of the process and its tokio runtime. Call it
/// from within the runtime.
#[must_use]
pub fn registry(component: &str, tag: &str) -> Registry {
    let _ = (component, tag);
    todo!("H6")
}

/// The registry in OpenMetrics text (`application/openmetrics-text; version=1.0.0; charset=utf-8`).
#[must_use]
pub fn encode(registry: &Registry) -> String {
    let _ = registry;
    todo!("H6")
}
