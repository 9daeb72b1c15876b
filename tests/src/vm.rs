//! A virtual machine with a kernel of its own, for what a namespace of this machine's kernel cannot show: what Signet does
//! on the oldest kernel that it supports, and what it says on an older one.
//!
//! QEMU interprets the processor, so nothing has to be virtualised: a boot takes ten seconds. The machine has a kernel of
//! Debian's, no disk and no network: an archive in memory holds busybox, the programs under test and a script. What the
//! script writes comes out of the serial line, and the machine ends with it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::{Process, stdout};
use crate::{binaries, live};

/// Boots a kernel (`6.1`), runs a shell script with these programs of the workspace in its PATH, and returns what was written.
///
/// # Errors
/// QEMU or the kernel is missing, or the script did not end in time; carries what was written so far.
pub fn run(kernel: &str, programs: &[&str], script: &str) -> Result<String> {
    live::proceed();
    let folder = tempfile::tempdir()?;
    let root = folder.path().join("root");
    put_busybox(&root)?;
    programs.iter().try_for_each(|program| put_program(&root, &binaries::path(program)?))?;
    let init = root.join("init");
    fs::write(&init, format!("{PRELUDE}\n{script}\n{END}"))?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    let archive = pack(&root)?;
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(QEMU).arg("-kernel").arg(binaries::tool(&format!("vmlinuz-{kernel}"))?);
    qemu.arg("-initrd").arg(&archive).args(["-append", COMMAND_LINE]).stdin(Stdio::null());
    let mut running = Process::start(qemu, &folder.path().join("serial.log"))?;
    let ended = running.wait(WITHIN);
    let written = running.log()?.replace('\r', "");
    ensure!(ended.is_ok() && written.contains(OVER), "the machine did not end by itself: {written}");
    Ok(written)
}

fn put_busybox(root: &Path) -> Result<()> {
    for folder in ["bin", "dev", "etc", "proc", "run", "sys", "tmp", "usr/bin"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let busybox = stdout(&Command::new("sh").args(["-c", "command -v busybox"]).output()?)?;
    fs::copy(&busybox, root.join("bin/busybox")).with_context(|| format!("cannot copy {busybox}"))?;
    Ok(())
}

/// Without its debug information, which would not fit into the machine's memory, and with the libraries that it names.
fn put_program(root: &Path, program: &Path) -> Result<()> {
    let name = program.file_name().context("a program has a name")?;
    let stripped = root.join("usr/bin").join(name);
    let mut strip = Command::new("strip");
    stdout(&strip.arg("--strip-debug").arg("-o").arg(&stripped).arg(program).output()?)?;
    let libraries = stdout(&Command::new("ldd").arg(program).output()?)?;
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().context("a library lies in a folder")?)?;
        fs::copy(library, &to).with_context(|| format!("cannot copy {library}"))?;
    }
    Ok(())
}

/// The format that kernels unpack (Documentation/driver-api/early-userspace/buffer-format.rst).
fn pack(root: &Path) -> Result<PathBuf> {
    let archive = root.with_extension("cpio");
    let mut pack = Command::new("sh");
    pack.args(["-c", "cd \"$0\" && find . | busybox cpio -o -H newc >\"$1\""]).arg(root).arg(&archive);
    stdout(&pack.output()?).map(|_| archive)
}

const PRELUDE: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t cgroup2 none /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ip link set lo up";
const END: &str = "echo the script is over
poweroff -f";
const OVER: &str = "the script is over";
/// QEMU's five levels of page tables stop some kernels before their first line.
const QEMU: [&str; 11] = [
    "-accel",
    "tcg",
    "-cpu",
    "max,la57=off",
    "-m",
    "768",
    "-display",
    "none",
    "-serial",
    "stdio",
    "-no-reboot",
];
/// The kernel is silent, so that lines of the script are whole.
const COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=0 panic=-1 nokaslr";
/// For a machine that is busy with a build.
const WITHIN: Duration = Duration::from_secs(300);
