//! Cgroup directories: ids, processes, and the network namespace those are in.
//!
//! Paths come from manifests and from the kernel; they are resolved below the cgroup2 mount without following links
//! (`openat2`), and from then on the directory is held open, so a cgroup that is removed and made again under the same
//! name is another one. Population is watched by `poll` on `cgroup.events`, which needs no inotify instance per pod.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sched::CloneFlags;
use nix::sys::stat::{Mode, fstat};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::debug;

use super::error::KernelError;
use super::pods;
use crate::addr::CgroupId;

/// The id of the cgroup at a path; 0, which none has, where there is none.
pub(super) fn id(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |meta| meta.ino())
}

/// A cgroup directory: its id, its processes, its network namespace.
#[derive(Debug)]
pub struct Cgroup {
    directory: OwnedFd,
    path: PathBuf,
    id: CgroupId,
    /// Registered with the runtime at the first wait. A registration needs a Tokio context, opening does not.
    events: tokio::sync::OnceCell<AsyncFd<File>>,
}

impl Cgroup {
    /// Opens by path relative to `mount`. Never follows a link out of it.
    ///
    /// # Errors
    /// Which path, and why.
    pub fn open(mount: &Path, relative: &Path) -> Result<Self, KernelError> {
        let path = mount.join(relative);
        let open = || -> io::Result<(OwnedFd, CgroupId)> {
            let root = File::open(mount)?;
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let inside = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
            let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
            let directory = openat2(root.as_fd(), relative, OpenHow::new().flags(flags).resolve(inside))?;
            let id = CgroupId(fstat(&directory)?.st_ino);
            Ok((directory, id))
        };
        let (directory, id) = open().map_err(KernelError::file("open the cgroup", &path))?;
        Ok(Self { directory, path, id, events: tokio::sync::OnceCell::new() })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> CgroupId {
        self.id
    }

    /// The network namespace of its processes: of the first one found, depth first, that is not in this process's own
    /// namespace, or the first of all where the workload is on the host network. `None` while there is no such process.
    ///
    /// # Errors
    /// Which file could not be read.
    pub fn netns(&self, host_network: bool) -> Result<Option<OwnedFd>, KernelError> {
        let own = std::fs::metadata(OWN_NETNS).map_err(KernelError::file("look at", OWN_NETNS))?.ino();
        let fits = |netns: &File| netns.metadata().is_ok_and(|meta| host_network || meta.ino() != own);
        find_netns(&self.directory, &fits, MAX_DEPTH)
            .map_err(KernelError::file("read the processes of", &self.path))
    }

    /// Resolves when `cgroup.events` changes: it got its first process or lost its last, or the cgroup went away. What
    /// happened between two calls resolves the second at once.
    pub async fn changed(&self) {
        // A cgroup that cannot be watched never tells; `reconcile` retries what waits.
        match self.events.get_or_try_init(|| async { self.register() }).await {
            Ok(events) => wait(events).await,
            Err(error) => {
                debug!(cgroup = %self.path.display(), %error, "cannot watch");
                std::future::pending().await
            }
        }
    }

    fn register(&self) -> io::Result<AsyncFd<File>> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let file = File::from(openat(&self.directory, "cgroup.events", flags, Mode::empty())?);
        // SAFETY: the file keeps its descriptor until it is dropped, and the `AsyncFd` owns the file.
        unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) }.map_err(io::Error::from)
    }
}

/// kernfs raises `EPOLLPRI` when the file's content is not what this descriptor has read last (fs/kernfs/file.c
/// `kernfs_generic_poll`).
async fn wait(events: &AsyncFd<File>) {
    let Ok(mut ready) = events.ready(Interest::PRIORITY).await else { return };
    ready.clear_ready();
    let mut file = events.get_ref();
    let mut content = String::new();
    // An error means that the cgroup is gone, which is a change too.
    let _ = file.rewind().and_then(|()| file.read_to_string(&mut content));
}

/// The processes of this cgroup first, then those of its children.
fn find_netns(
    directory: &OwnedFd,
    fits: &dyn Fn(&File) -> bool,
    depth: usize,
) -> io::Result<Option<OwnedFd>> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let mut processes = String::new();
    let read = openat(directory, "cgroup.procs", flags, Mode::empty())
        .map_err(io::Error::from)
        .and_then(|file| File::from(file).read_to_string(&mut processes));
    match read {
        // A threaded cgroup lists its processes in its parent only; a cgroup that went away has none.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENODEV | libc::ENOENT)) => {}
        other => drop(other?),
    }
    for pid in processes.lines() {
        match File::open(format!("/proc/{pid}/ns/net")) {
            Ok(netns) if fits(&netns) => return Ok(Some(netns.into())),
            // A process of another namespace, or one that has ended meanwhile.
            Ok(_) | Err(_) => {}
        }
    }
    if depth == 0 {
        return Ok(None);
    }
    for child in children(directory)? {
        if let Some(found) = find_netns(&child, fits, depth - 1)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The child cgroups, opened; those that went away meanwhile are left out.
pub(super) fn children(directory: &OwnedFd) -> io::Result<Vec<OwnedFd>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut found = Vec::new();
    // Opened anew: a duplicate would go on reading where the last reader stopped.
    for entry in Dir::openat(directory, ".", flags, Mode::empty())?.iter() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(nix::Error::ENOENT | nix::Error::ENODEV) => break,
            Err(e) => return Err(e.into()),
        };
        let name = entry.file_name();
        let is_child = entry.file_type() == Some(nix::dir::Type::Directory);
        if is_child
            && name != c"."
            && name != c".."
            && let Ok(child) = openat(directory, name, flags, Mode::empty())
        {
            found.push(child);
        }
    }
    Ok(found)
}

/// The ids of a cgroup and of all below it; empty where it is gone.
pub(super) fn subtree(mount: &Path, cgroup: CgroupId) -> io::Result<HashSet<u64>> {
    let mut ids = HashSet::new();
    let mut open = match open_by_id(mount, cgroup) {
        Ok(directory) => vec![directory],
        Err(e) if e.raw_os_error() == Some(libc::ESTALE) => return Ok(ids),
        Err(e) => return Err(e),
    };
    while let Some(directory) = open.pop() {
        ids.insert(fstat(&directory)?.st_ino);
        open.extend(children(&directory)?);
    }
    Ok(ids)
}

/// A cgroup's id is its kernfs handle (fs/kernfs/mount.c `kernfs_encode_fh`).
fn open_by_id(mount: &Path, cgroup: CgroupId) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        id: [u8; 8],
    }
    let mut handle = Handle { bytes: 8, kind: FILEID_KERNFS, id: cgroup.0.to_ne_bytes() };
    let mount = File::open(mount)?;
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: `handle` is laid out as `struct file_handle` with the 8 bytes that `bytes` announces.
    let fd = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut handle).cast(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The cgroup2 mount point from `/proc/self/mounts`; `None` where there is none, or another mount lies over it.
#[must_use]
pub fn cgroup2_mount() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let is_seen = |path: &PathBuf| {
        nix::sys::statfs::statfs(path)
            .is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::CGROUP2_SUPER_MAGIC)
    };
    parse_mounts(&mounts).find(is_seen)
}

/// Fields are separated by one space; blanks inside are written in octal (fs/proc_namespace.c `mangle`).
fn parse_mounts(mounts: &str) -> impl Iterator<Item = PathBuf> {
    mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (_, at, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(at.replace("\\040", " ").replace("\\134", "\\")))
    })
}

/// The cgroup2 directory this process itself is in; `None` where it is in none.
pub(super) fn own(mount: &Path) -> Option<PathBuf> {
    // A thread of its own, since it does not come back from where it looks.
    let lines = std::thread::scope(|scope| scope.spawn(own_cgroups).join()).ok()?.ok()?;
    let path = lines.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(mount.join(path))
}

/// As the machine's first process sees them: a container runtime may give a container a cgroup namespace of its own, in
/// which its cgroup is the root, while the mount is the machine's.
fn own_cgroups() -> io::Result<String> {
    // Without the right, or the machine's processes in sight, there is no container around either.
    let _ = File::open("/proc/1/ns/cgroup")
        .and_then(|namespace| Ok(nix::sched::setns(namespace, CloneFlags::CLONE_NEWCGROUP)?));
    std::fs::read_to_string("/proc/thread-self/cgroup")
}

/// The cgroup root of the node whose kubelet has started this process: the mount, unless kubelet has a root of its own,
/// as where several nodes share a kernel. `None` where this is no pod.
#[must_use]
pub fn own_node_root(mount: &Path) -> Option<PathBuf> {
    pods::node_root(&own(mount)?).filter(|root| root.starts_with(mount))
}

/// The calling thread's network namespace: the process's own, since no thread stays in another.
pub(super) const OWN_NETNS: &str = "/proc/thread-self/ns/net";
/// How deep below a workload's cgroup its processes are looked for. Kubelet's containers are one level below the pod.
const MAX_DEPTH: usize = 16;
/// include/linux/exportfs.h.
const FILEID_KERNFS: i32 = 0xfe;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_among_the_old_hierarchies() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
            cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\n\
            cgroup2 /sys/fs/cgroup/uni\\040fied cgroup2 rw 0 0\n";
        assert!(parse_mounts(mounts).eq([PathBuf::from("/sys/fs/cgroup/uni fied")]));
        assert_eq!(parse_mounts("tmpfs / tmpfs rw 0 0\n").count(), 0);
    }

    #[test]
    fn a_cgroup_namespace_does_not_hide_where_this_process_is() {
        let mount = cgroup2_mount().expect("a machine for these tests has cgroup2");
        let here = own(&mount);
        let inside = std::thread::spawn(move || {
            // Without the right to make one, there is none.
            let _ = nix::sched::unshare(CloneFlags::CLONE_NEWCGROUP);
            own(&mount)
        });
        assert_eq!(inside.join().unwrap(), here);
    }

    #[test]
    fn a_path_that_climbs_out_of_the_mount_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("inside")).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("link")).unwrap();
        for escape in ["..", "inside/../..", "link", "/"] {
            let error = Cgroup::open(dir.path(), Path::new(escape)).unwrap_err();
            assert!(error.to_string().contains("open the cgroup"), "{escape}: {error}");
        }
        assert!(Cgroup::open(dir.path(), Path::new("inside")).is_ok());
    }
}
