//! Links of programs to cgroups, network namespaces and devices: made, pinned, and replaced in place.
//!
//! aya has no `BPF_LINK_UPDATE` for these program types, and a replacement without it is a gap in which connects pass.
//! So the four commands of bpf(2) that a link's life needs are here, and are the only ones this crate issues itself. A
//! link whose cgroup or namespace is gone refuses the update; its pin is then replaced by a new link's.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::error::KernelError;

/// Where a program attaches (`enum bpf_attach_type`, include/uapi/linux/bpf.h).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttachType {
    Egress = 1,
    SockCreate = 2,
    SockOps = 3,
    Connect4 = 10,
    Connect6 = 11,
    PostBind4 = 12,
    PostBind6 = 13,
    SendMsg4 = 14,
    SendMsg6 = 15,
    GetPeerName4 = 29,
    GetPeerName6 = 30,
    SkLookup = 36,
    /// On a device of the calling thread's namespace; from Linux 6.6 on.
    TcxIngress = 46,
}

/// What a program is attached to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target<'a> {
    /// A cgroup or a network namespace.
    Open(BorrowedFd<'a>),
    /// A device, by its index in the calling thread's namespace.
    Device(u32),
}

/// Puts `program` behind the pin: replaces the program of the link there, or makes a link where there is none.
///
/// Where a new link has to be made although a pin exists (its target is gone), the new one is attached and pinned before
/// the old pin goes.
///
/// # Errors
/// The link could not be made or pinned.
pub(super) fn put(
    pin: &Path,
    program: BorrowedFd<'_>,
    target: Target<'_>,
    attach: AttachType,
) -> Result<(), KernelError> {
    if let Ok(link) = open(pin)
        && is_on(&link, target, attach)
        && update(&link, program).is_ok()
    {
        return Ok(());
    }
    let error = |action| move |source| KernelError::Link { action, path: pin.to_owned(), source };
    let link = create(program, target, attach).map_err(error("attach"))?;
    let fresh = beside(pin);
    let _ = std::fs::remove_file(&fresh);
    pin_link(&link, &fresh).map_err(error("pin"))?;
    std::fs::rename(&fresh, pin).map_err(error("pin"))
}

/// Takes the program off its target and removes the pin; nothing where there is no pin.
///
/// Detaching comes first: removing the pin alone detaches only some time later, when the kernel's workqueue gets to it.
///
/// # Errors
/// The link could not be detached or its pin not removed.
pub(super) fn remove(pin: &Path) -> Result<(), KernelError> {
    let error = |action| move |source| KernelError::Link { action, path: pin.to_owned(), source };
    let link = match open(pin) {
        Ok(link) => link,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(error("open")(e)),
    };
    detach(&link).map_err(error("detach"))?;
    std::fs::remove_file(pin).map_err(error("remove"))
}

fn beside(pin: &Path) -> PathBuf {
    let mut name = pin.file_name().unwrap_or_default().to_owned();
    name.push("-new");
    pin.with_file_name(name)
}

/// Whether the link is attached to `target`: a cgroup that was removed and made again has the same path and another id.
fn is_on(link: &OwnedFd, target: Target<'_>, attach: AttachType) -> bool {
    let Ok(info) = info(link) else { return false };
    match target {
        Target::Open(fd) => nix::sys::stat::fstat(fd).is_ok_and(|stat| stat.st_ino == info.target(attach)),
        Target::Device(index) => u64::from(index) == info.target(attach),
    }
}

fn open(pin: &Path) -> io::Result<OwnedFd> {
    let path = c_path(pin)?;
    let mut attr = Attributes::default();
    attr.set_u64(0, path.as_ptr() as u64);
    bpf_fd(BPF_OBJ_GET, &attr)
}

/// Attaches a program until the link's descriptor is closed.
pub(super) fn create(program: BorrowedFd<'_>, target: Target<'_>, attach: AttachType) -> io::Result<OwnedFd> {
    let mut attr = Attributes::default();
    attr.set_fd(0, program.as_raw_fd());
    match target {
        Target::Open(fd) => attr.set_fd(4, fd.as_raw_fd()),
        Target::Device(index) => attr.set_u32(4, index),
    }
    attr.set_u32(8, attach as u32);
    bpf_fd(BPF_LINK_CREATE, &attr)
}

fn update(link: &OwnedFd, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = Attributes::default();
    attr.set_fd(0, link.as_raw_fd());
    attr.set_fd(4, program.as_raw_fd());
    bpf(BPF_LINK_UPDATE, &attr).map(drop)
}

/// A link whose target is gone is detached already.
fn detach(link: &OwnedFd) -> io::Result<()> {
    let mut attr = Attributes::default();
    attr.set_fd(0, link.as_raw_fd());
    bpf(BPF_LINK_DETACH, &attr).map(drop)
}

fn pin_link(link: &OwnedFd, pin: &Path) -> io::Result<()> {
    let path = c_path(pin)?;
    let mut attr = Attributes::default();
    attr.set_u64(0, path.as_ptr() as u64);
    attr.set_fd(8, link.as_raw_fd());
    bpf(BPF_OBJ_PIN, &attr).map(drop)
}

/// The part of `struct bpf_link_info` that says what a link is attached to.
#[repr(C)]
#[derive(Default)]
struct Info {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    /// A cgroup's id as one u64, or a namespace's inode number or a device's index as the first u32; 0 once it is gone.
    target: [u32; 2],
    rest: [u64; 5],
}

impl Info {
    /// The inode number of what the link is attached to, of which a cgroup's id is one too, or the device's index.
    fn target(&self, attach: AttachType) -> u64 {
        let [first, second] = self.target.map(u32::to_ne_bytes);
        if matches!(attach, AttachType::SkLookup | AttachType::TcxIngress) {
            return u64::from(self.target[0]);
        }
        let mut id = [0; 8];
        id[..4].copy_from_slice(&first);
        id[4..].copy_from_slice(&second);
        u64::from_ne_bytes(id)
    }
}

fn info(link: &OwnedFd) -> io::Result<Info> {
    let mut info = Info::default();
    let mut attr = Attributes::default();
    attr.set_fd(0, link.as_raw_fd());
    attr.set_u32(4, size_of::<Info>() as u32);
    attr.set_u64(8, (&raw mut info) as u64);
    bpf(BPF_OBJ_GET_INFO_BY_FD, &attr)?;
    Ok(info)
}

/// `union bpf_attr`, as far as these commands use it; the kernel takes a shorter one, and wants the rest to be zero.
#[repr(C, align(8))]
#[derive(Default)]
struct Attributes {
    words: [u32; 16],
}

impl Attributes {
    fn set_u32(&mut self, offset: usize, value: u32) {
        self.words[offset / 4] = value;
    }

    fn set_u64(&mut self, offset: usize, value: u64) {
        let bytes = value.to_ne_bytes();
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        self.words[offset / 4] = word(0);
        self.words[offset / 4 + 1] = word(4);
    }

    fn set_fd(&mut self, offset: usize, fd: RawFd) {
        self.set_u32(offset, fd.cast_unsigned());
    }
}

fn bpf_fd(command: libc::c_int, attr: &Attributes) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the command returned a new descriptor that nobody else owns; the kernel sets O_CLOEXEC on it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf(command: libc::c_int, attr: &Attributes) -> io::Result<RawFd> {
    // SAFETY: `attr` is readable for the size given, and every pointer in it outlives the call (its owner is a local of
    // the caller).
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<Attributes>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

// `enum bpf_cmd`, include/uapi/linux/bpf.h.
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;
