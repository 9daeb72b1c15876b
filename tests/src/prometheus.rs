//! A real Prometheus, to ask what a dashboard asks.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::process::{Process, stdout};
use crate::wait;

/// A running Prometheus. Dropping it ends it.
pub struct Prometheus<'c> {
    command: Place<'c>,
    _process: Process,
}

/// Makes a command that runs where Prometheus shall.
pub type Place<'c> = Box<dyn Fn(&[&str]) -> Result<Command> + 'c>;

impl<'c> Prometheus<'c> {
    /// Scrapes `targets` (`<address>:<port>`) once a second, and waits until it has. What it stores goes into `directory`.
    ///
    /// # Errors
    /// It is not installed, or a target did not answer in time; carries what it says of them.
    pub fn start(directory: &Path, command: Place<'c>, targets: &[String]) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let file = directory.join("prometheus.json");
        let job = json!({"job_name": "signet", "static_configs": [{"targets": targets}]});
        let config = json!({"global": {"scrape_interval": "1s"}, "scrape_configs": [job]});
        fs::write(&file, config.to_string())?;
        let options = [
            format!("--config.file={}", file.display()),
            format!("--storage.tsdb.path={}", directory.join("data").display()),
            format!("--web.listen-address={ADDRESS}"),
        ];
        let argv: Vec<&str> = ["prometheus"].into_iter().chain(options.iter().map(String::as_str)).collect();
        let process = Process::start(command(&argv)?, &directory.join("prometheus.log"))?;
        let prometheus = Self { command, _process: process };
        wait::until("Prometheus has scraped everything", WITHIN, || {
            let up = prometheus.query("up == 1")?;
            ensure!(up.len() == targets.len(), "{up:?} of {targets:?}");
            Ok(())
        })?;
        Ok(prometheus)
    }

    /// The series that an expression has now.
    ///
    /// # Errors
    /// Prometheus does not take it; carries why.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let answer = self.ask("query", &[("query", expression)])?;
        Ok(answer["result"].as_array().context("a vector")?.clone())
    }

    /// The names of all metrics that a target has told of, with or without samples; of an OpenMetrics counter without its
    /// `_total`.
    ///
    /// # Errors
    /// Prometheus does not answer.
    pub fn metrics(&self) -> Result<Vec<String>> {
        let metadata = self.ask("metadata", &[])?;
        Ok(metadata.as_object().context("metadata by name")?.keys().cloned().collect())
    }

    fn ask(&self, what: &str, parameters: &[(&str, &str)]) -> Result<Value> {
        let url = format!("http://{ADDRESS}/api/v1/{what}");
        let parameters: Vec<String> =
            parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut argv = vec!["curl", "--silent", "--show-error", "--get", "--max-time", "10", &url];
        argv.extend(parameters.iter().flat_map(|parameter| ["--data-urlencode", parameter]));
        let said = stdout(&(self.command)(&argv)?.output()?)?;
        let mut said: Value =
            serde_json::from_str(&said).with_context(|| format!("Prometheus said {said}"))?;
        ensure!(said["status"] == "success", "Prometheus said {said}");
        Ok(said["data"].take())
    }
}

const ADDRESS: &str = "127.0.0.1:9090";
const WITHIN: Duration = Duration::from_secs(60);
