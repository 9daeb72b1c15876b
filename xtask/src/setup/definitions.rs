//! Custom resource definitions of others, for a cluster that has what theirs has: Istio's policies, and the kinds that the
//! chart renders where somebody serves them. Each comes out of the Go module that its project publishes it with, pinned by the
//! `go.mod` and `go.sum` of a folder below `tests/cluster`, into `target/tools/bin`, where the test kit looks.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::gotools;
use crate::{step, workspace};

/// A file of definitions, and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Definitions {
    /// Below `tests/cluster`.
    folder: &'static str,
    module: &'static str,
    file: &'static str,
    /// Beside the programs.
    name: &'static str,
}

impl Definitions {
    /// They are there, and no older than the pin.
    pub(super) fn is_met(self) -> bool {
        let modified = |path: &Path| fs::metadata(path).and_then(|file| file.modified()).ok();
        let pin = modified(&gotools::source_folder(self.folder).join("go.mod"));
        modified(&self.copied()).is_some_and(|copied| pin.is_some_and(|pin| pin <= copied))
    }

    /// Copies them out of their module.
    ///
    /// # Errors
    /// There is no Go and none to be had, or its module proxy lacks the module.
    pub(super) fn install(self) -> Result<()> {
        let mut ask = gotools::go_in(self.folder)?;
        let said = step::output(ask.args(["mod", "download", "-json", self.module]));
        let said = said.with_context(|| format!("Go cannot download {}", self.module))?;
        let module: serde_json::Value = serde_json::from_str(&said)?;
        let folder = module["Dir"].as_str().with_context(|| format!("Go said of {}: {said}", self.module))?;
        let (from, to) = (Path::new(folder).join(self.file), self.copied());
        let text = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
        fs::create_dir_all(gotools::links())?;
        // Renamed when it is whole: what is there counts as done.
        let part = to.with_extension("part");
        fs::write(&part, text)
            .and_then(|()| fs::rename(&part, &to))
            .with_context(|| format!("cannot write {}", to.display()))
    }

    /// In words, for the plan.
    pub(super) fn describe(self) -> String {
        format!("{} of {} (Go's module proxy, into {})", self.name, self.module, workspace::tools().display())
    }

    fn copied(self) -> PathBuf {
        gotools::links().join(self.name)
    }
}

/// The policies that Signet reads, as the istiod has them that is built.
pub(super) const ISTIO: Definitions = Definitions {
    folder: gotools::ISTIOD,
    module: "istio.io/api",
    file: "kubernetes/customresourcedefinitions.gen.yaml",
    name: "istio-definitions.yaml",
};

/// What the chart renders where it is served.
pub(super) const OF_THE_CHART: [Definitions; 2] = [
    Definitions {
        folder: "definitions",
        module: "github.com/prometheus-operator/prometheus-operator",
        file: "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
        name: "prometheus-definitions.yaml",
    },
    Definitions {
        folder: "definitions",
        module: "github.com/cilium/cilium",
        file: "pkg/k8s/apis/cilium.io/client/crds/v2/ciliumnetworkpolicies.yaml",
        name: "cilium-definitions.yaml",
    },
];
