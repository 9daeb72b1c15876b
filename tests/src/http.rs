//! The little HTTP a test asks of a daemon: one GET, from inside its network namespace; and Prometheus text, read.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::netns::Netns;

/// GETs `path` and returns the body.
///
/// # Errors
/// No answer, or another status than 200.
pub fn get(netns: &Netns, address: SocketAddr, path: &str) -> Result<String> {
    let answer = netns.enter(|| exchange(address, path))?.with_context(|| format!("GET {address}{path}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is no HTTP")?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.contains(" 200"), "GET {address}{path}: {status}");
    Ok(body.to_owned())
}

fn exchange(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // HTTP/1.0: the answer ends with the connection and is never chunked.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// One sample of a Prometheus exposition.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The metric's name, with its suffix.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// A whole exposition.
#[derive(Clone, Debug, Default)]
pub struct Metrics(pub Vec<Sample>);

impl Metrics {
    /// Parses the text format; lines that are no sample are left out.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(sample).collect())
    }

    /// The sum of the samples of that name that carry all those labels; 0 where there is none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let carries = |s: &&Sample| {
            s.name == name && labels.iter().all(|(k, v)| s.labels.get(*k).map(String::as_str) == Some(*v))
        };
        self.0.iter().filter(carries).map(|s| s.value).sum()
    }
}

fn sample(line: &str) -> Option<Sample> {
    if line.starts_with('#') {
        return None;
    }
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let labels = labels.trim_end_matches('}');
    Some(Sample { name: name.to_owned(), labels: parse_labels(labels), value: value.parse().ok()? })
}

/// `a="b",c="d"`; no label value of ours holds a quote.
fn parse_labels(text: &str) -> BTreeMap<String, String> {
    let mut parts = text.split('"');
    let mut labels = BTreeMap::new();
    while let (Some(name), Some(value)) = (parts.next(), parts.next()) {
        labels.insert(name.trim_matches([',', '=']).to_owned(), value.to_owned());
    }
    labels
}

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_by_their_labels() {
        let text =
            "# HELP a b\na_total{x=\"1\",y=\"p,q\"} 2\na_total{x=\"1\",y=\"r\"} 3\na_total{x=\"2\"} 5\nb 7\n";
        let metrics = Metrics::parse(text);
        assert_eq!(metrics.sum("a_total", &[("x", "1")]), 5.0);
        assert_eq!(metrics.sum("a_total", &[("y", "p,q")]), 2.0);
        assert_eq!(metrics.sum("b", &[]), 7.0);
    }
}
