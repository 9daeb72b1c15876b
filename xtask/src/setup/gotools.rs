//! The programs of a Kubernetes cluster, which neither apt nor crates.io has: kube-apiserver, kubelet and the others, kubectl,
//! CoreDNS and helm.
//!
//! Where they come from, in this order: `KUBEBUILDER_ASSETS`, for whoever has them already; `PATH`, where the version is the
//! pinned one but for the last number; or built by Go from the modules below `tests/cluster`, whose `go.mod` and `go.sum`
//! pin every source. `target/tools/bin` has a link to each, and that is where the test kit looks. A build takes minutes
//! once, and seconds while Go's cache has its parts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::go;
use super::tools::link;
use crate::{search_path, step, workspace};

/// Go modules that pin the programs of a cluster as tools.
pub(super) const MODULES: [&str; 3] = ["kubernetes", "coredns", "helm"];
/// The one that pins Istio's control plane.
pub(super) const ISTIOD: &str = "istiod";

/// Every program of a module is there, as the version that is wanted.
pub(super) fn is_met(module: &str) -> bool {
    Module::read(module).is_ok_and(|module| module.programs().all(|program| module.is_linked(program)))
}

/// Links the programs that this machine has, and builds the others.
///
/// # Errors
/// There is no Go and none to be had, or a program does not build.
pub(super) fn install(module: &str) -> Result<()> {
    let module = Module::read(module)?;
    let missing: Vec<&str> =
        module.tools.iter().map(String::as_str).filter(|tool| !module.is_there(tool)).collect();
    if !missing.is_empty() {
        module.build(&missing)?;
    }
    module.programs().try_for_each(|program| link(&module.source(program), &linked(program)))
}

/// In words, for the plan.
pub(super) fn describe(module: &str) -> String {
    match Module::read(module) {
        Ok(module) => {
            let programs = module.programs().collect::<Vec<_>>().join(", ");
            let go = go::find().map_or_else(|| format!(", with {}", go::describe()), |_| String::new());
            let folder = module.folder();
            format!("{programs} {} (Go's module proxy, into {}{go})", module.version, folder.display())
        }
        Err(error) => format!("{module}: {error:#}"),
    }
}

/// A Go module below `tests/cluster`.
struct Module {
    name: String,
    /// The packages of its programs.
    tools: Vec<String>,
    /// The version of the module that has them.
    version: String,
}

impl Module {
    fn read(name: &str) -> Result<Self> {
        let path = source_folder(name).join("go.mod");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let tools = tools(&text);
        let first = tools.first().with_context(|| format!("{} has no tool", path.display()))?;
        let version = version(&text, first)
            .or_else(|| direct_version(&text))
            .with_context(|| format!("{} requires no {first}", path.display()))?;
        Ok(Self { name: name.to_owned(), version, tools })
    }

    fn programs(&self) -> impl Iterator<Item = &str> {
        self.tools.iter().map(|tool| program(tool))
    }

    /// Where it builds, by version so that a new one asks for a build.
    fn folder(&self) -> PathBuf {
        workspace::tools().join(format!("{}-{}", self.name, self.version))
    }

    /// Where a program is, or will be.
    fn source(&self, program: &str) -> PathBuf {
        self.provided(program).unwrap_or_else(|| self.folder().join(program))
    }

    fn provided(&self, program: &str) -> Option<PathBuf> {
        let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(|folder| Path::new(&folder).join(program));
        // `cluster up` tells people to put our own folder of links first.
        let usable =
            |found: &PathBuf| !found.starts_with(workspace::tools()) && is_version(found, &self.version);
        assets
            .filter(|asset| search_path::is_executable(asset))
            .or_else(|| search_path::find(program).filter(usable))
    }

    fn is_there(&self, tool: &str) -> bool {
        search_path::is_executable(&self.source(program(tool)))
    }

    fn is_linked(&self, program: &str) -> bool {
        let is_this = fs::read_link(linked(program)).is_ok_and(|target| target == self.source(program));
        is_this && search_path::is_executable(&linked(program))
    }

    fn build(&self, tools: &[&str]) -> Result<()> {
        let folder = self.folder();
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut command = go_in(&self.name)?;
        command
            .args([
                "build",
                "-trimpath",
                "-buildvcs=false",
                "-mod=readonly",
                "-ldflags",
                &self.linker_flags(),
                "-o",
            ])
            .arg(folder.join(""))
            .args(tools)
            // Static: they run in pods and on nodes too.
            .env("CGO_ENABLED", "0");
        step::run(&format!("go build {} {}", self.name, self.version), &mut command)
    }

    /// Without debug information, which is half of their size; with the version that Kubernetes' own build writes in.
    fn linker_flags(&self) -> String {
        let mut numbers = self.version.trim_start_matches('v').split('.');
        let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
        let set = |name: &str, value: &str| format!("-X k8s.io/component-base/version.{name}={value}");
        match self.name.as_str() {
            "kubernetes" => [
                "-s -w".to_owned(),
                set("gitVersion", &self.version),
                set("gitMajor", major),
                set("gitMinor", minor),
            ]
            .join(" "),
            _ => "-s -w".to_owned(),
        }
    }
}

/// Go in a folder below `tests/cluster`, installed first where there is none.
///
/// # Errors
/// There is none to be had.
pub(super) fn go_in(folder: &str) -> Result<Command> {
    let mut command = Command::new(go::find().map_or_else(go::install, Ok)?);
    command.current_dir(source_folder(folder)).env("GOTOOLCHAIN", "local").env_remove("GOFLAGS");
    Ok(command)
}

/// The folder of links to all programs, where the test kit looks.
pub(super) fn links() -> PathBuf {
    workspace::tools().join("bin")
}

/// A folder below `tests/cluster`, with a `go.mod` that pins.
pub(super) fn source_folder(module: &str) -> PathBuf {
    workspace::root().join("tests/cluster").join(module)
}

fn linked(program: &str) -> PathBuf {
    links().join(program)
}

fn program(tool: &str) -> &str {
    tool.rsplit('/').next().unwrap_or(tool)
}

/// The packages of `tool a/b` and of `tool ( … )`.
fn tools(go_mod: &str) -> Vec<String> {
    let mut in_block = false;
    let mut tools = Vec::new();
    for line in go_mod.lines().map(str::trim) {
        match line.strip_prefix("tool ") {
            Some("(") => in_block = true,
            Some(tool) => tools.push(tool.to_owned()),
            None if line == ")" => in_block = false,
            None if in_block && !line.is_empty() => tools.push(line.to_owned()),
            None => (),
        }
    }
    tools
}

/// The required version of the module that a package is in.
fn version(go_mod: &str, package: &str) -> Option<String> {
    go_mod.lines().find_map(|line| {
        let mut words = line.trim().trim_start_matches("require ").split_whitespace();
        let (module, version) = (words.next()?, words.next()?);
        let holds = package == module || package.starts_with(&format!("{module}/"));
        (holds && version.starts_with('v')).then(|| version.to_owned())
    })
}

/// The version of the one module that a program of our own is made from.
fn direct_version(go_mod: &str) -> Option<String> {
    let line = go_mod.lines().find_map(|line| line.strip_prefix("require "))?;
    line.split_whitespace().find(|word| word.starts_with('v')).map(str::to_owned)
}

/// Programs disagree on how to ask for their version, and some would start without a known flag.
fn is_version(program: &Path, wanted: &str) -> bool {
    let Some((minor, _)) = wanted.trim_start_matches('v').rsplit_once('.') else { return false };
    let said = step::output(Command::new(program).arg("--version"))
        .or_else(|| step::output(Command::new(program).args(["version", "--client"])));
    said.is_some_and(|said| said.contains(&format!("{minor}.")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_of_every_module_are_known() {
        let programs = |name| Module::read(name).unwrap().programs().map(str::to_owned).collect::<Vec<_>>();
        assert!(programs("kubernetes").contains(&"kubelet".to_owned()));
        assert_eq!(programs("coredns"), ["coredns"]);
        assert_eq!(programs("helm"), ["helm"]);
        assert_eq!(programs(ISTIOD), ["pilot-discovery"]);
    }

    #[test]
    fn a_version_is_that_of_the_module_with_the_package() {
        let go_mod = "require k8s.io/kubernetes v1.36.3\nrequire (\n\tk8s.io/kube v0.1.0 // indirect\n)\n";
        assert_eq!(version(go_mod, "k8s.io/kubernetes/cmd/kubelet").as_deref(), Some("v1.36.3"));
        assert_eq!(version(go_mod, "k8s.io/other"), None);
        assert_eq!(direct_version("require a.b/c v1.2.0\n").as_deref(), Some("v1.2.0"));
    }

    #[test]
    fn tools_are_read_from_a_line_and_from_a_block() {
        assert_eq!(tools("tool a/b\n\ntool (\n\tc/d\n\te/f\n)\nrequire x v1\n"), ["a/b", "c/d", "e/f"]);
    }
}
