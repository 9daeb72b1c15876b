//! Log and registry set-up (H6).

/// The process-wide metrics registry; each module registers its own families at construction, prefix-free names.
pub type Registry = prometheus_client::registry::Registry;
