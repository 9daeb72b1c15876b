//! The Grafana dashboard of the chart, asked of a real Prometheus that scrapes real engines and a CA under traffic.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use signet_testkit::cluster::release;
use signet_testkit::need::Need;
use signet_testkit::prometheus::Prometheus;
use signet_testkit::wait;

use crate::mesh;
use crate::shared::WITHIN;

pub(crate) const TESTS: &[crate::Test] = crate::tests!(&[Need::Cluster, Need::Engine, Need::Program("prometheus")] =>
    every_query_of_the_dashboard_answers,
);

/// One query of one panel.
struct Query {
    panel: String,
    expression: String,
    /// Its panel says that there may be nothing to show.
    may_be_empty: bool,
}

fn every_query_of_the_dashboard_answers() -> Result<()> {
    let mesh = mesh::mesh()?;
    let directory = tempfile::tempdir()?;
    let outside = Box::new(|argv: &[&str]| mesh.cluster.outside(argv));
    let prometheus = Prometheus::start(directory.path(), outside, &mesh.targets())?;
    // Its pods come after the first scrape: what is done for them is an increase.
    let pair = mesh.pair("seen", true)?;
    let names = prometheus.metrics()?;
    for query in queries()? {
        let context = || format!("the panel {:?}: {}", query.panel, query.expression);
        let is_told = |metric: &str| names.iter().any(|name| metric.starts_with(name.as_str()));
        // What has never happened has no sample, and is not told of.
        let is_known =
            |metric: &&str| is_told(metric) || query.may_be_empty && DOCUMENTATION.contains(metric);
        let unknown = metrics(&query.expression).find(|metric| !is_known(metric));
        ensure!(unknown.is_none(), "nobody has {unknown:?} in {}", context());
        if query.may_be_empty {
            prometheus.query(&query.expression).with_context(context)?;
            continue;
        }
        wait::until("it shows something", WITHIN, || {
            // Rates want traffic between two scrapes.
            pair.by_address()?;
            let series = prometheus.query(&query.expression)?;
            let is_number = |one: &Value| one["value"][1].as_str().is_some_and(|value| value != "NaN");
            ensure!(series.iter().any(is_number), "it shows {series:?}");
            Ok(())
        })
        .with_context(context)?;
    }
    Ok(())
}

fn queries() -> Result<Vec<Query>> {
    let dashboard: Value =
        serde_json::from_str(&fs::read_to_string(release::chart("dashboards/signet.json"))?)?;
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().context("panels")? {
        let title = panel["title"].as_str().context("a panel has a title")?;
        let description = panel["description"].as_str().unwrap_or_default();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().context("a target has an expression")?;
            queries.push(Query {
                panel: title.to_owned(),
                expression: expression.replace("$__rate_interval", "10m").replace("$node", ".*"),
                may_be_empty: description.contains("mpty"),
            });
        }
    }
    ensure!(
        queries.len() > 25,
        "the dashboard has {} queries: the test looks at the wrong file",
        queries.len()
    );
    Ok(queries)
}

/// Its words that begin as metrics do.
fn metrics(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.filter(|word| ["istio_", "signet_", "process_"].iter().any(|prefix| word.starts_with(prefix)))
}

const DOCUMENTATION: &str = include_str!("../../../docs/operations.md");
