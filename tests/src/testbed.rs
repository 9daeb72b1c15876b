//! A testbed: one name under which everything it makes can be found and removed, and the link that joins its nodes.
//!
//! Everything carries the testbed's name, `signet-<pid>-<n>`: network namespaces, cgroups, pins, its directory. So
//! [`remove`] can take all of it down knowing the name alone, and that one function serves the end of a test, a panic,
//! Ctrl-C and the [`sweep`] of what a killed run has left. Several testbeds, of several processes, share a kernel.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use crate::cgroup::{self, Cgroup};
use crate::live::{self, report};
use crate::manifests::Manifests;
use crate::netns::{self, Netns};
use crate::process::Place;

/// One isolated world of nodes, pods and a CA. Dropping it leaves nothing behind.
#[derive(Debug)]
pub struct Testbed {
    name: String,
    directory: PathBuf,
    cgroup: Cgroup,
    fabric: Netns,
    manifests: Manifests,
    hosts: AtomicU16,
}

impl Testbed {
    /// Makes an empty testbed, after sweeping what dead runs have left.
    ///
    /// # Errors
    /// Not root, no cgroup2 mount, or no iproute2.
    pub fn new() -> Result<Self> {
        SWEPT.call_once(sweep);
        let name = format!("{PREFIX}{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        live::register(&name, remove);
        let directory = std::env::temp_dir().join(&name);
        let cgroup = Cgroup::add(&name)?;
        let fabric = Netns::add(&format!("{name}-fabric"))?;
        // A bridge without an address of its own takes its ports' lowest: with each host that comes or goes, the others'
        // neighbour entries for it could become wrong.
        fabric.ip("link add br0 address 02:00:00:00:00:01 type bridge\naddr add 10.0.0.254/16 dev br0\n\
             addr add fd00::fe/64 dev br0 nodad\nlink set br0 up")?;
        fabric.enter(route_packets)??;
        let manifests = Manifests::add(directory.join("manifests"))?;
        Ok(Self { name, directory, cgroup, fabric, manifests, hosts: AtomicU16::new(0) })
    }

    /// The prefix of everything it makes.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory: configuration, logs, manifests.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The manifests that all its nodes and its CA read.
    #[must_use]
    pub fn manifests(&self) -> &Manifests {
        &self.manifests
    }

    /// Leaves everything up after this process has ended, until [`take_down_kept`].
    ///
    /// # Errors
    /// The mark cannot be written.
    pub fn keep(self) -> Result<()> {
        fs::write(self.directory.join(KEPT), "").context("cannot mark the testbed as kept")?;
        live::forget(&self.name);
        std::mem::forget(self);
        Ok(())
    }

    /// Copies the logs to where `SIGNET_TEST_LOGS` says, if it does.
    fn save_logs(&self) -> Result<()> {
        let Some(directory) = std::env::var_os("SIGNET_TEST_LOGS") else { return Ok(()) };
        let directory = Path::new(&directory).join(&self.name);
        for path in logs_below(&self.directory)? {
            let to = directory.join(path.strip_prefix(&self.directory)?);
            fs::create_dir_all(to.parent().context("a log lies in a directory")?)?;
            fs::copy(&path, &to).with_context(|| format!("cannot save {}", to.display()))?;
        }
        Ok(())
    }

    /// Joins a new host to the link, with addresses of both families.
    ///
    /// # Errors
    /// The namespace or its link could not be made.
    pub(crate) fn host(&self, name: &str) -> Result<Host> {
        let index = self.hosts.fetch_add(1, Ordering::Relaxed) + 1;
        ensure!(
            index < 190,
            "a testbed has room for 189 hosts: the second byte of their pods' addresses ends"
        );
        let directory = self.directory.join(name);
        fs::create_dir_all(&directory)?;
        let netns = Netns::add(&format!("{}-{name}", self.name))?;
        let fabric = self.fabric.name();
        netns.ip(&format!(
            "link add eth0 type veth peer name h{index} netns {fabric}\n\
             addr add 10.0.0.{index}/16 dev eth0\naddr add fd00::{index:x}/64 dev eth0 nodad\nlink set eth0 up\n\
             route add default via 10.0.0.254\nroute add default via fd00::fe"
        ))?;
        self.fabric.ip(&format!(
            "link set h{index} master br0\nlink set h{index} up\n\
             route add 10.{}.0.0/16 via 10.0.0.{index}\nroute add fd42:{index:x}::/32 via fd00::{index:x}",
            64 + index
        ))?;
        netns.enter(route_packets)??;
        Ok(Host { name: name.to_owned(), index, netns, cgroup: self.cgroup.child(name)?, directory })
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        report(self.save_logs());
        report(remove(&self.name));
        live::forget(&self.name);
    }
}

/// A network namespace on the testbed's link, with a cgroup and a directory: a node, the CA's machine, a stranger.
#[derive(Debug)]
pub struct Host {
    name: String,
    index: u16,
    netns: Netns,
    cgroup: Cgroup,
    directory: PathBuf,
}

impl Host {
    /// Its name within the testbed.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its place on the link, from 1.
    #[must_use]
    pub(crate) fn index(&self) -> u16 {
        self.index
    }

    /// Its IPv4 address on the link.
    #[must_use]
    pub fn ipv4(&self) -> String {
        format!("10.0.0.{}", self.index)
    }

    /// Its IPv6 address on the link.
    #[must_use]
    pub fn ipv6(&self) -> String {
        format!("fd00::{:x}", self.index)
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The cgroup that everything of this host is below.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The place of a system process on this host: its namespace, a cgroup `system/<unit>`.
    ///
    /// # Errors
    /// The cgroup could not be made.
    pub fn place(&self, unit: &str) -> Result<Place> {
        live::proceed();
        let cgroup = self.cgroup.path().join("system").join(unit);
        fs::create_dir_all(&cgroup).with_context(|| format!("cannot make cgroup {}", cgroup.display()))?;
        Ok(Place { netns: self.netns.path(), cgroup })
    }
}

/// Removes what testbeds of dead processes have left; kept ones stay.
pub fn sweep() {
    for name in names().into_iter().filter(|name| !alive(name) && !kept(name)) {
        report(remove(&name));
    }
}

/// Takes down every testbed that was kept, and returns their names.
pub fn take_down_kept() -> Vec<String> {
    let kept: Vec<String> = names().into_iter().filter(|name| kept(name)).collect();
    kept.iter().for_each(|name| report(remove(name)));
    kept
}

/// Removes everything that carries a testbed's name: processes, network namespaces, pins, cgroups, its directory.
///
/// # Errors
/// The first thing that could not be removed, after trying the rest.
fn remove(name: &str) -> Result<()> {
    let cgroup = cgroup::remove(&cgroup::mount()?.join(name));
    let netns = remove_netns(name);
    let pins = remove_prefixed(Path::new(PINS), &format!("{name}-"));
    let directory = remove_prefixed(&std::env::temp_dir(), name);
    cgroup.and(netns).and(pins).and(directory)
}

fn remove_netns(name: &str) -> Result<()> {
    let prefix = format!("{name}-");
    let lines: Vec<String> = entries(Path::new(netns::DIRECTORY))
        .filter(|entry| entry.starts_with(&prefix))
        .map(|entry| format!("netns del {entry}"))
        .collect();
    if lines.is_empty() { Ok(()) } else { netns::ip(None, &lines.join("\n")) }
}

fn remove_prefixed(directory: &Path, prefix: &str) -> Result<()> {
    let exactly = |entry: &String| entry == prefix || prefix.ends_with('-') && entry.starts_with(prefix);
    entries(directory).filter(exactly).try_for_each(|entry| {
        let path = directory.join(entry);
        fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))
    })
}

/// Makes the calling thread's network namespace a router. Reno, because BBR's pacing makes short flows on veth links slow.
pub(crate) fn route_packets() -> Result<()> {
    for (setting, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        ("ipv4/tcp_congestion_control", "reno"),
    ] {
        let path = Path::new("/proc/sys/net").join(setting);
        fs::write(&path, value).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Every testbed that has anything left on this machine.
fn names() -> Vec<String> {
    let cgroups = cgroup::mount().unwrap_or_default();
    let places = [Path::new(netns::DIRECTORY), Path::new(PINS), &std::env::temp_dir(), &cgroups];
    let mut names: Vec<String> =
        places.iter().flat_map(|place| entries(place)).filter_map(|entry| testbed_of(&entry)).collect();
    names.sort();
    names.dedup();
    names
}

/// `signet-<pid>-<n>` of `signet-<pid>-<n>[-anything]`.
fn testbed_of(entry: &str) -> Option<String> {
    let mut parts = entry.strip_prefix(PREFIX)?.split('-');
    let pid: u32 = parts.next()?.parse().ok()?;
    let n: u32 = parts.next()?.parse().ok()?;
    Some(format!("{PREFIX}{pid}-{n}"))
}

fn alive(name: &str) -> bool {
    let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()).unwrap_or_default();
    Path::new("/proc").join(pid).exists()
}

fn kept(name: &str) -> bool {
    std::env::temp_dir().join(name).join(KEPT).exists()
}

fn entries(directory: &Path) -> impl Iterator<Item = String> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok())
}

fn logs_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut logs = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            logs.extend(logs_below(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "log") {
            logs.push(path);
        }
    }
    Ok(logs)
}

static COUNTER: AtomicU32 = AtomicU32::new(0);
static SWEPT: Once = Once::new();

/// The router between the hosts, and so an address that every host reaches over its link.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
const PREFIX: &str = "signet-";
const KEPT: &str = "kept";
/// The default of `capture.pinRoot`.
pub(crate) const PINS: &str = "/sys/fs/bpf/signet";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_with_a_pid_and_a_counter_are_taken_for_testbeds() {
        assert_eq!(testbed_of("signet-12-3-node1").as_deref(), Some("signet-12-3"));
        assert_eq!(testbed_of("signet-12-3").as_deref(), Some("signet-12-3"));
        assert_eq!(testbed_of("signet-ca"), None);
        assert_eq!(testbed_of("signet-12"), None);
    }

    #[test]
    fn a_testbed_is_not_removed_with_another_whose_name_it_begins() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("signet-1-1")).unwrap();
        fs::create_dir(directory.path().join("signet-1-10")).unwrap();
        remove_prefixed(directory.path(), "signet-1-1").unwrap();
        assert_eq!(entries(directory.path()).collect::<Vec<_>>(), ["signet-1-10"]);
    }
}
