//! The embedded object, the pins, and how the two come together.
//!
//! Maps are pinned under `<pin root>/abi-<N>`, links under `<pin root>/links`. Programs are not pinned: a restart loads
//! its own onto the pinned maps and replaces those behind the links. Another ABI version has another directory, filled
//! while the old programs go on with the old maps, and removes the old one after the links have changed hands.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData, MapError};
use aya::{Ebpf, EbpfLoader};
use nix::mount::MsFlags;
use signet_common::ABI_VERSION;
use tracing::info;

use super::error::KernelError;
use super::log;

/// Maps that the whole instance shares. `LISTENERS` and `NETNS` are not among them: each network namespace has its own.
pub(super) const SHARED_MAPS: [&str; 16] = [
    "AYA_LOGS",
    "BOUND",
    "CONFIG",
    "COUNTERS",
    "DIRECT",
    "DIRECT_EVENTS",
    "EPOCH",
    "EVENTS",
    "FLOWS",
    "HEARTBEAT",
    "PERMITS",
    "PORTS",
    "SERVICES",
    "SOCKETS",
    "TOLD",
    "WORKLOADS",
];

/// What aya-log's programs compare a message's level with; a constant to the verifier, which drops what is not logged.
const LOG_LEVEL: &str = "AYA_LOG_LEVEL";

/// Where one instance's pins are.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
}

impl Pins {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Makes the directories, mounting bpffs where there is none.
    pub(super) fn prepare(&self) -> Result<(), KernelError> {
        mount_bpffs(&self.root)?;
        for dir in [self.links(), self.namespaces()] {
            fs::create_dir_all(&dir).map_err(KernelError::file("make", &dir))?;
        }
        // Whoever may open it may lock it, and keep engines away (`claim`).
        let own = Permissions::from_mode(0o700);
        fs::set_permissions(&self.root, own).map_err(KernelError::file("protect", &self.root))
    }

    pub(super) fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.abi().join(name)
    }

    /// The sockmaps of the network namespaces, by cookie.
    pub(super) fn namespaces(&self) -> PathBuf {
        self.abi().join("netns")
    }

    fn abi(&self) -> PathBuf {
        self.root.join(format!("abi-{ABI_VERSION}"))
    }

    /// Removes the maps of other ABI versions. Programs that still use one keep it until they go.
    pub(super) fn remove_other_versions(&self) -> Result<(), KernelError> {
        for entry in list(&self.root)? {
            let stale = entry.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"abi-"));
            if stale && entry != self.abi() {
                fs::remove_dir_all(&entry).map_err(KernelError::file("remove", &entry))?;
            }
        }
        Ok(())
    }

    /// Opens a shared map.
    pub(super) fn open<M>(&self, name: &'static str) -> Result<M, KernelError>
    where
        M: TryFrom<Map, Error = MapError>,
    {
        let data = MapData::from_pin(self.map(name)).map_err(KernelError::map("open", name))?;
        Map::from_map_data(data).and_then(M::try_from).map_err(KernelError::map("open", name))
    }
}

/// Reads the object again for every network namespace. Never the kernel's type information: nothing in the object is
/// relocated by it, and parsed it is five times as large as everything else this process holds.
pub(super) struct Loader {
    aya: EbpfLoader<'static>,
}

impl Loader {
    pub(super) fn new(pins: &Pins) -> Result<Self, KernelError> {
        if OBJECT.is_empty() {
            return Err(KernelError::NoObject);
        }
        let mut aya = EbpfLoader::new();
        aya.btf(None);
        aya.override_global(LOG_LEVEL, log::level(), true);
        for name in SHARED_MAPS {
            aya.map_pin_path(name, pins.map(name));
        }
        Ok(Self { aya })
    }

    /// Makes the maps (pinned ones are adopted) and parses the programs; none is in the kernel yet.
    pub(super) fn load(&mut self) -> Result<Ebpf, KernelError> {
        self.aya.load(OBJECT).map_err(|e| KernelError::Load(Box::new(e)))
    }

    /// The same for one network namespace, with its own sockmap pinned at `sockmap`.
    pub(super) fn load_with(&mut self, sockmap: &Path) -> Result<Ebpf, KernelError> {
        self.aya.map_pin_path("LISTENERS", sockmap.to_owned());
        self.load()
    }
}

/// The object on maps of its own, to see whether it loads.
pub(super) fn load_unpinned() -> Result<Ebpf, KernelError> {
    if OBJECT.is_empty() {
        return Err(KernelError::NoObject);
    }
    EbpfLoader::new().load(OBJECT).map_err(|e| KernelError::Load(Box::new(e)))
}

/// The entries of a directory; none where it does not exist.
pub(super) fn list(dir: &Path) -> Result<Vec<PathBuf>, KernelError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(KernelError::file("list", dir)(e)),
    };
    entries
        .map(|entry| entry.map(|e| e.path()))
        .collect::<io::Result<_>>()
        .map_err(KernelError::file("list", dir))
}

/// Mounts bpffs on the nearest existing ancestor that systemd would use, `/sys/fs/bpf`, if `root` is not on one.
fn mount_bpffs(root: &Path) -> Result<(), KernelError> {
    if is_on_bpffs(root) {
        return Ok(());
    }
    let at = if root.starts_with(BPFFS) { Path::new(BPFFS) } else { root };
    fs::create_dir_all(at).map_err(KernelError::file("make", at))?;
    let none: Option<&str> = None;
    nix::mount::mount(Some("bpf"), at, Some("bpf"), MsFlags::empty(), none)
        .map_err(|errno| KernelError::MountBpffs { path: at.to_owned(), source: errno.into() })?;
    info!(path = %at.display(), "mounted bpffs");
    Ok(())
}

/// Whether `path`, or its nearest ancestor that exists, is on bpffs.
#[must_use]
pub fn is_on_bpffs(path: &Path) -> bool {
    let existing = path.ancestors().find_map(|a| nix::sys::statfs::statfs(a).ok());
    existing.is_some_and(|fs| fs.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC)
}

/// Where every distribution mounts bpffs.
const BPFFS: &str = "/sys/fs/bpf";

#[cfg(signet_bpf_object)]
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("SIGNET_BPF_OBJECT"));
#[cfg(not(signet_bpf_object))]
static OBJECT: &[u8] = &[];
