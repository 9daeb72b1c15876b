//! Finds the compiler for the eBPF crate, which needs `-Zbuild-std=core` and so the standard library's sources.
//!
//! Two routes: a rustup nightly with `rust-src`, or Debian's own packages, whose compiler stands in `/usr/bin` behind
//! rustup's in `PATH` and is therefore always addressed by its absolute path. `bpf-linker` must be linked against the
//! LLVM major version that the compiler writes. This module looks and installs nothing; `setup` does.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{search_path, step, workspace};

/// A compiler that can build the eBPF crate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Compiler {
    /// Where it comes from.
    pub(crate) route: Route,
    /// The LLVM major version that it writes, which `bpf-linker` must be able to read.
    pub(crate) llvm: u32,
}

/// Where a compiler with the standard library's sources comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// `rustup run nightly`, with the component `rust-src`.
    Rustup,
    /// `/usr/bin/cargo` and `/usr/bin/rustc` with `RUSTC_BOOTSTRAP`, sources from `rust-web-src`.
    Debian,
}

impl Route {
    /// In the order of preference.
    pub(crate) const ALL: [Self; 2] = [Self::Rustup, Self::Debian];

    /// In words, for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rustup => "rustup's nightly with rust-src",
            Self::Debian => "Debian's rustc with rust-web-src",
        }
    }
}

impl Compiler {
    /// The first route that is whole, with a linker for its LLVM; otherwise the first that has a compiler. A nightly may be
    /// ahead of every LLVM that this machine can get.
    pub(crate) fn detect() -> Option<Self> {
        let mut found = Route::ALL.into_iter().filter_map(Self::of).collect::<Vec<_>>();
        let whole = found.iter().position(|compiler| compiler.linker().is_some());
        (!found.is_empty()).then(|| found.swap_remove(whole.unwrap_or(0)))
    }

    /// The compiler of one route, where it is installed with its sources.
    pub(crate) fn of(route: Route) -> Option<Self> {
        let library = sysroot(route)?.join("lib/rustlib/src/rust/library/core");
        let llvm = llvm_major(&version(route)?)?;
        library.is_dir().then_some(Self { route, llvm })
    }

    /// `bpf-linker` for this compiler: the one that `setup` built, or one in `PATH` that is linked to the same LLVM.
    pub(crate) fn linker(&self) -> Option<PathBuf> {
        let own = self.linker_root().join("bin/bpf-linker");
        if search_path::is_executable(&own) {
            return Some(own);
        }
        search_path::find("bpf-linker").filter(|found| is_linked_to_llvm(found, self.llvm))
    }

    /// Where `setup` installs `bpf-linker`, by LLVM version so that a compiler's upgrade asks for a new one.
    pub(crate) fn linker_root(&self) -> PathBuf {
        workspace::tools().join(format!("bpf-linker-llvm-{}", self.llvm))
    }

    /// This compiler's cargo with a subcommand, free of what the outer `cargo xtask` left in the environment.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let mut command = match self.route {
            Route::Rustup => rustup_run("cargo"),
            Route::Debian => debian(DEBIAN_CARGO),
        };
        without_outer_cargo(&mut command);
        command.arg(subcommand);
        command
    }

    /// This compiler's clippy; `None` where it is not installed.
    pub(crate) fn clippy(&self) -> Option<Command> {
        match self.route {
            Route::Rustup => step::output(rustup_run("cargo-clippy").arg("-V")).map(|_| self.cargo("clippy")),
            // Debian's cargo would look for its subcommand in `~/.cargo/bin` first, and find rustup's.
            Route::Debian if search_path::is_executable(Path::new(DEBIAN_CLIPPY)) => {
                let mut command = debian(DEBIAN_CLIPPY);
                without_outer_cargo(&mut command);
                command.env("CARGO", DEBIAN_CARGO).arg("clippy");
                Some(command)
            }
            Route::Debian => None,
        }
    }

    /// `objcopy` for what it writes: rustup's own, or that of the LLVM that `bpf-linker` is linked against.
    pub(crate) fn objcopy(&self) -> Option<Command> {
        let root = sysroot(self.route)?;
        let host = format!("lib/rustlib/{}-unknown-linux-gnu/bin/rust-objcopy", std::env::consts::ARCH);
        let llvm = PathBuf::from(format!("/usr/lib/llvm-{}/bin/llvm-objcopy", self.llvm));
        let program = [root.join(host), llvm].into_iter().find(|path| search_path::is_executable(path))?;
        let mut command = Command::new(program);
        command.env("LD_LIBRARY_PATH", root.join("lib"));
        Some(command)
    }

    /// In words, for people.
    pub(crate) fn description(&self) -> String {
        format!("{}, LLVM {}", self.route.name(), self.llvm)
    }
}

/// Debian's cargo; rustup's comes first in `PATH`.
pub(crate) const DEBIAN_CARGO: &str = "/usr/bin/cargo";
/// Debian's rustc; rustup's comes first in `PATH`.
pub(crate) const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// Debian's clippy.
const DEBIAN_CLIPPY: &str = "/usr/bin/cargo-clippy";

fn debian(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
    command
}

fn rustup_run(program: &str) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", program]);
    command
}

fn rustc(route: Route) -> Command {
    let mut command = match route {
        Route::Rustup => rustup_run("rustc"),
        Route::Debian => Command::new(DEBIAN_RUSTC),
    };
    without_outer_cargo(&mut command);
    command
}

/// `cargo xtask` runs under rustup's proxy, which names its own toolchain to every child.
fn without_outer_cargo(command: &mut Command) {
    for name in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC_WRAPPER", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"] {
        if command.get_envs().all(|(set, _)| set != name) {
            command.env_remove(name);
        }
    }
}

fn sysroot(route: Route) -> Option<PathBuf> {
    let path = step::output(rustc(route).args(["--print", "sysroot"]))?;
    Some(PathBuf::from(path.trim()))
}

fn version(route: Route) -> Option<String> {
    step::output(rustc(route).arg("-vV"))
}

/// Reads `LLVM version: 22.1.4` of `rustc -vV`.
fn llvm_major(version: &str) -> Option<u32> {
    let line = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.trim().parse().ok()
}

fn is_linked_to_llvm(linker: &Path, major: u32) -> bool {
    let libraries = step::output(Command::new("ldd").arg(linker)).unwrap_or_default();
    libraries.contains(&format!("libLLVM.so.{major}")) || libraries.contains(&format!("libLLVM-{major}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_version_is_read_from_rustc() {
        let version = "rustc 1.96.0 (ac68faa20 2026-05-25)\nhost: x86_64\nLLVM version: 22.1.8\n";
        assert_eq!(llvm_major(version), Some(22));
    }

    #[test]
    fn a_compiler_that_tells_no_llvm_version_is_not_used() {
        assert_eq!(llvm_major("rustc 1.96.0\n"), None);
    }

    #[test]
    fn debians_cargo_is_called_by_its_absolute_path() {
        let cargo = Compiler { route: Route::Debian, llvm: 22 }.cargo("build");
        assert_eq!(cargo.get_program(), DEBIAN_CARGO);
    }
}
