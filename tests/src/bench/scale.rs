//! What a large mesh costs an engine: `signet-scale`, a program around the engine's own tables, in figures.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::measure::Figure;
use crate::{binaries, process};

/// Runs it once.
///
/// # Errors
/// It is not built, failed, or does not say everything.
pub(super) fn measure() -> Result<Vec<Figure>> {
    let text = process::stdout(&Command::new(binaries::path("signet-scale")?).output()?)?;
    figures(&serde_json::from_str(&text).with_context(|| format!("signet-scale printed {text}"))?)
}

fn figures(said: &Value) -> Result<Vec<Figure>> {
    let figure = |(measure, unit, pointer): &(&str, &'static str, &str)| {
        let value = said.pointer(pointer).and_then(Value::as_f64);
        let value = value.with_context(|| format!("signet-scale says nothing of {pointer}: {said}"))?;
        Ok(Figure { measure: (*measure).to_owned(), unit, value })
    };
    FIGURES.iter().map(figure).collect()
}

/// Measure, unit, and where `signet-scale` says it.
const FIGURES: [(&str, &str, &str); 8] = [
    ("inventory_100000_memory", "MiB", "/inventory/memory_mib"),
    ("lookup_address_p50", "µs", "/address/p50_us"),
    ("lookup_address_p99", "µs", "/address/p99_us"),
    ("lookup_vip_p50", "µs", "/vip/p50_us"),
    ("lookup_vip_p99", "µs", "/vip/p99_us"),
    ("policy_10000_p50", "µs", "/policy/p50_us"),
    ("policy_10000_p99", "µs", "/policy/p99_us"),
    ("policy_10000", "1/s", "/policy/per_second"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_that_is_not_said_is_named() {
        let error = figures(&serde_json::json!({"inventory": {"memory_mib": 1.0}})).unwrap_err();
        assert!(error.to_string().contains("/address/p50_us"), "{error}");
    }
}
