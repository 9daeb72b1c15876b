//! What a test or the demo needs of the machine, and whether it is there.

use std::path::Path;

use nix::unistd::Uid;

use crate::{binaries, cgroup};

/// Something a machine may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Root, cgroup2 and network namespaces: nodes and pods.
    Nodes,
    /// The built daemons, and a kernel that can load their programs.
    Engine,
    /// A program of the distribution.
    Program(&'static str),
    /// A program that `cargo xtask setup` installs below `target/`.
    Tool(&'static str),
}

impl Need {
    /// Why it is not met; `None` where it is.
    #[must_use]
    pub fn unmet(self) -> Option<String> {
        match self {
            Self::Nodes => no_nodes(),
            Self::Engine => no_nodes().or_else(no_engine),
            Self::Program(name) => {
                (!on_path(name)).then(|| format!("{name} is not installed: run `cargo xtask setup`"))
            }
            Self::Tool(name) => binaries::tool(name).err().map(|error| error.to_string()),
        }
    }
}

fn no_nodes() -> Option<String> {
    if !Uid::effective().is_root() {
        return Some("needs root, for network namespaces and cgroups".to_owned());
    }
    let missing = ["ip", "nsenter"].into_iter().find(|name| !on_path(name));
    missing
        .map(|name| format!("{name} is not installed: run `cargo xtask setup`"))
        .or_else(|| cgroup::mount().err().map(|error| error.to_string()))
}

fn no_engine() -> Option<String> {
    let btf = Path::new("/sys/kernel/btf/vmlinux").exists();
    let built = ["signetd", "signet-ca", "signet", "signet-probe"].map(binaries::path);
    (!btf)
        .then(|| "the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)".to_owned())
        .or_else(|| built.into_iter().find_map(Result::err).map(|error| error.to_string()))
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}
