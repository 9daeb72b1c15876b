//! Debian's kernels for the tests' virtual machines: the oldest that Signet supports, and one that is older.
//!
//! Their packages are unpacked and never installed: this machine goes on with the kernel that it has. They may be of
//! another release of Debian than this machine's, so apt is told of that one alone, in folders of our own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{step, workspace};

/// A kernel, and the release of Debian that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    version: &'static str,
    release: &'static str,
}

/// What the tests boot.
pub(super) const KERNELS: [Kernel; 2] =
    [Kernel { version: "6.1", release: "bookworm" }, Kernel { version: "5.10", release: "bullseye" }];

impl Kernel {
    /// It is where the test kit looks.
    pub(super) fn is_met(self) -> bool {
        self.path().is_file()
    }

    /// Downloads and unpacks it.
    pub(super) fn install(self) -> Result<()> {
        let folder = workspace::tools().join(format!("linux-{}", self.version));
        fs::create_dir_all(folder.join("lists/partial"))?;
        let source = format!("deb [signed-by={KEYS}] {MIRROR} {} main\n", self.release);
        fs::write(folder.join("sources.list"), source)?;
        step::run(&format!("apt-get update for {}", self.release), apt(&folder, "apt-get").arg("update"))?;
        let package = newest(&folder).with_context(|| format!("{} has no {META}", self.release))?;
        let mut download = apt(&folder, "apt-get");
        step::run(&format!("apt-get download {package}"), download.args(["download", &package]))?;
        let unpack = "dpkg-deb --fsys-tarfile \"$0\"_*.deb | tar --extract --to-stdout --wildcards './boot/vmlinuz-*' >\"$1\"";
        let mut shell = Command::new("sh");
        shell.current_dir(&folder).args(["-c", unpack, &package]).arg(folder.join("vmlinuz"));
        step::run(&format!("unpack {package}"), &mut shell)?;
        super::tools::link(&folder.join("vmlinuz"), &self.path())
    }

    /// What it is for.
    pub(super) fn describe(self) -> String {
        let Self { version, release } = self;
        format!(
            "Linux {version} (Debian {release}, unpacked into {}), for a virtual machine",
            self.path().display()
        )
    }

    fn path(self) -> PathBuf {
        workspace::tools().join(format!("bin/vmlinuz-{}", self.version))
    }
}

/// A program of apt that knows that release alone, and leaves what it learns in `folder`.
fn apt(folder: &Path, program: &str) -> Command {
    let mut command = Command::new(program);
    let folder = folder.display();
    for option in [
        format!("Dir::Etc::SourceList={folder}/sources.list"),
        "Dir::Etc::SourceParts=-".to_owned(),
        format!("Dir::State::Lists={folder}/lists"),
        format!("Dir::Cache={folder}"),
        // Its own user cannot write to a build folder of root's.
        "APT::Sandbox::User=root".to_owned(),
    ] {
        command.arg("-o").arg(option);
    }
    command.current_dir(folder.to_string());
    command
}

/// The kernel that the release's package of the newest one depends on.
fn newest(folder: &Path) -> Option<String> {
    let depends = step::output(apt(folder, "apt-cache").args(["depends", META]))?;
    depends.lines().find_map(|line| line.trim().strip_prefix("Depends: ").map(str::to_owned))
}

/// Without drivers of real machines, which a virtual one has not.
const META: &str = "linux-image-cloud-amd64";
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const MIRROR: &str = "http://deb.debian.org/debian";
