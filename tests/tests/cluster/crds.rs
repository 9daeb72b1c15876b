//! The chart's CRDs beside Istio's own: the same shape, and the same answer to every object of a corpus, so that policies
//! move between a cluster with Istio and one without.
//!
//! Istio's are installed with another group, since both have the same names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use signet_testkit::binaries;
use signet_testkit::cluster::{Cluster, Kubectl, release};
use signet_testkit::need::Need;

use crate::chart::objects;
use crate::corpus;
use crate::shared::{self, WITHIN};

pub(crate) const TESTS: &[crate::Test] = crate::tests!(
    &[Need::Cluster, Need::Tool("istio-definitions.yaml")] =>
    the_charts_crds_have_the_shape_of_istios,
    the_charts_crds_and_istios_answer_alike,
);

fn the_charts_crds_have_the_shape_of_istios() -> Result<()> {
    let Pairs(pairs) = Pairs::read(&*shared::cluster()?)?;
    for (name, (ours, istios)) in &pairs {
        let mut differences = Vec::new();
        compare(name, &shape(ours)?, &shape(istios)?, &mut differences);
        ensure!(differences.is_empty(), "{differences:#?}");
    }
    ensure!(pairs.len() == 5, "{} CRDs: the test looks at the wrong things", pairs.len());
    Ok(())
}

fn the_charts_crds_and_istios_answer_alike() -> Result<()> {
    let cluster = shared::cluster()?;
    let kubectl = cluster.kubectl();
    for (ours, istios) in Pairs::read(&cluster)?.0.values() {
        install(kubectl, ours)?;
        install(kubectl, &renamed(istios)?)?;
    }
    let expected: BTreeSet<String> = corpus::objects("")
        .iter()
        .filter(|object| object.is_legal)
        .map(|object| object.name.clone())
        .collect();
    let (ours, istios) = (taken(kubectl, "")?, taken(kubectl, ELSEWHERE)?);
    let differ: Vec<_> = ours.symmetric_difference(&istios).collect();
    ensure!(differ.is_empty(), "taken by one of them alone: {differ:?}");
    let wrong: Vec<_> = ours.symmetric_difference(&expected).collect();
    ensure!(wrong.is_empty(), "neither is as the corpus says: {wrong:?}");
    Ok(())
}

/// The chart's CRD and Istio's by their name.
struct Pairs(BTreeMap<String, (Value, Value)>);

impl Pairs {
    fn read(cluster: &Cluster) -> Result<Self> {
        let kubectl = cluster.kubectl();
        let named = |crd: Value| Some((crd["metadata"]["name"].as_str()?.to_owned(), crd));
        let istios =
            objects(kubectl, &fs::read_to_string(binaries::tool("istio-definitions.yaml")?)?, "client")?;
        let mut istios: BTreeMap<String, Value> = istios.into_iter().filter_map(named).collect();
        let mut pairs = BTreeMap::new();
        for file in fs::read_dir(release::chart("crds"))? {
            for ours in objects(kubectl, &fs::read_to_string(file?.path())?, "client")? {
                let (name, ours) = named(ours).context("a CRD has a name")?;
                let istios = istios.remove(&name).with_context(|| format!("Istio has no {name}"))?;
                pairs.insert(name, (ours, istios));
            }
        }
        Ok(Self(pairs))
    }
}

/// What clients and objects meet of a CRD. Of validation rules their number: what they say is for the corpus.
fn shape(crd: &Value) -> Result<Value> {
    let mut versions = BTreeMap::new();
    for version in crd["spec"]["versions"].as_array().context("versions")? {
        let mut version = version.clone();
        let schema = &mut version["schema"]["openAPIV3Schema"];
        // Istio lists what its controllers write; the chart's take whatever is written there.
        schema["properties"]["status"] = Value::Null;
        if let Some(spec) = schema["properties"]["spec"].as_object_mut() {
            // AuthorizationPolicy: with or without `provider`, which is no rule.
            spec.remove("oneOf");
        }
        let name = version["name"].as_str().context("a name")?.to_owned();
        versions.insert(name, plain(&version));
    }
    let spec = &crd["spec"];
    Ok(json!({
        "group": spec["group"], "scope": spec["scope"], "names": plain(&spec["names"]), "versions": versions,
    }))
}

/// Without prose, and lists of words in their order.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(name, value)| *name != "description" || !value.is_string());
            fields
                .map(|(name, value)| match name.as_str() {
                    "x-kubernetes-validations" => (name.clone(), json!(value.as_array().map(Vec::len))),
                    _ => (name.clone(), plain(value)),
                })
                .collect()
        }
        Value::Array(items) => {
            let mut items: Vec<Value> = items.iter().map(plain).collect();
            if items.iter().all(Value::is_string) {
                items.sort_by(|one, other| one.as_str().cmp(&other.as_str()));
            }
            Value::Array(items)
        }
        other => other.clone(),
    }
}

fn compare(path: &str, ours: &Value, istios: &Value, differences: &mut Vec<String>) {
    match (ours, istios) {
        (Value::Object(one), Value::Object(other)) => {
            for name in one.keys().chain(other.keys()).collect::<BTreeSet<_>>() {
                compare(&format!("{path}.{name}"), &ours[name], &istios[name], differences);
            }
        }
        _ if ours == istios => {}
        _ => differences.push(format!("{path}: {ours} here, {istios} in Istio's")),
    }
}

/// Istio's definition, for the same kind of another group.
fn renamed(crd: &Value) -> Result<Value> {
    let spec = &crd["spec"];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let (group, plural) =
        (text(&spec["group"]).context("a group")?, text(&spec["names"]["plural"]).context("a plural")?);
    let mut renamed = crd.clone();
    let group = format!("{ELSEWHERE}{group}");
    renamed["metadata"] = json!({"name": format!("{plural}.{group}")});
    renamed["spec"]["group"] = json!(group);
    Ok(renamed)
}

fn install(kubectl: &Kubectl, crd: &Value) -> Result<()> {
    kubectl.apply(&crd.to_string())?;
    let name = crd["metadata"]["name"].as_str().context("a name")?;
    kubectl.wait("default", &format!("customresourcedefinition/{name}"), "condition=Established", WITHIN)
}

/// The names of those objects that the API server would take.
fn taken(kubectl: &Kubectl, prefix: &str) -> Result<BTreeSet<String>> {
    let objects = corpus::objects(prefix);
    // One after the other, and no List: that one kubectl judges itself, all at once.
    let manifests: Vec<String> = objects.iter().map(|object| object.manifest.to_string()).collect();
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), manifests.join("\n"))?;
    let path = file.path().to_str().context("a path in UTF-8")?;
    let create = ["create", "--dry-run=server", "--validate=strict", "--output=name", "--filename", path];
    let output = kubectl.command(&create).output()?;
    let (names, said) =
        (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr).into_owned());
    let refused = objects.len() - names.lines().count();
    // One complaint for each, or kubectl has given up for another reason.
    let complaints = said.lines().filter(|line| line.starts_with("Error from server")).count();
    ensure!(complaints == refused && refused > 0, "{refused} refused, {complaints} complaints: {said}");
    Ok(names.lines().filter_map(|name| name.split_once('/')).map(|(_, name)| name.to_owned()).collect())
}

/// Begins the group of Istio's definitions here.
const ELSEWHERE: &str = "elsewhere.";
