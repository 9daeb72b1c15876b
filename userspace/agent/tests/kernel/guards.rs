//! A node, pods and their processes, made for one test and gone with it.
//!
//! A process enters a cgroup and a network namespace between `fork` and its work, so it is the kernel's own view of a
//! pod's process; its result comes back through a pipe. Threads of the test process enter namespaces to play the engine.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{ForkResult, Pid, fork, pipe};
use signet_agent::addr::{CgroupId, NetnsCookie};
use signet_agent::config::{UnknownPods, Unprotected};
use signet_agent::kernel::{
    CaptureOptions, CaptureState, CapturedWorkload, Kernel, KernelEvent, SteeredListeners, cgroup2_mount,
    netns_cookie,
};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::Receiver;
use tokio::sync::{Mutex, MutexGuard};

/// Says why a kernel test cannot run here; `None` where it can.
pub(crate) fn obstacle() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".into());
    }
    let options = options("preflight", UnknownPods::Pass, Unprotected::Pass);
    let findings = signet_agent::kernel::preflight(&options);
    let missing: Vec<_> = findings
        .iter()
        .filter(|finding| !finding.ok && !matches!(&*finding.name, "cgroup root" | "kubelet"))
        .map(|finding| format!("{}: {}", finding.name, finding.detail))
        .collect();
    (!missing.is_empty()).then(|| missing.join("; "))
}

/// Ends the test where it cannot run: with a failure, or, if `SIGNET_TEST_ALLOW_SKIP=1`, with a line that is counted.
#[macro_export]
macro_rules! require_root_and_ebpf {
    () => {
        if let Some(reason) = $crate::guards::obstacle() {
            let test = std::thread::current().name().unwrap_or("a kernel test").to_owned();
            assert!(std::env::var("SIGNET_TEST_ALLOW_SKIP").is_ok_and(|v| v == "1"), "{test}: {reason}");
            use std::io::Write as _;
            // Past libtest's capture, so that the runner sees it.
            writeln!(std::io::stdout(), "SKIP {test}: {reason}").expect("stdout is open");
            return;
        }
    };
}

/// One engine's kernel side below a cgroup root of its own.
pub(crate) struct Node {
    pub(crate) kernel: Kernel,
    pub(crate) events: Receiver<KernelEvent>,
    pub(crate) options: CaptureOptions,
    pub(crate) runtime: Runtime,
    _traces: Traces,
    /// Dropped last.
    _alone: MutexGuard<'static, ()>,
}

/// What a node leaves in the kernel: taken away whatever happens to the node.
struct Traces {
    options: CaptureOptions,
}

/// One test at a time: a process that another test forks holds copies of this one's listeners, so they would not close.
static ALONE: Mutex<()> = Mutex::const_new(());

impl Node {
    pub(crate) fn start() -> Self {
        Self::start_with(UnknownPods::Pass, Unprotected::Pass)
    }

    /// A node whose own network namespace is `netns`.
    pub(crate) fn start_in(netns: &Netns) -> Self {
        netns.enter(Self::start)
    }

    pub(crate) fn start_with(unknown: UnknownPods, unprotected: Unprotected) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Self::start_as(options(&format!("{}-{number}", std::process::id()), unknown, unprotected))
    }

    /// One whose engine is taken for gone soon.
    pub(crate) fn start_impatient() -> Self {
        let name = format!("{}-impatient", std::process::id());
        let options = options(&name, UnknownPods::Pass, Unprotected::Pass);
        Self::start_as(CaptureOptions { engine_timeout: Duration::from_millis(500), ..options })
    }

    fn start_as(options: CaptureOptions) -> Self {
        let alone = ALONE.blocking_lock();
        let traces = Traces { options: options.clone() };
        fs::create_dir_all(options.cgroup_root.join("pods")).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (mut kernel, events) = load(&runtime, &options);
        kernel.attach().unwrap();
        Self { kernel, events, options, runtime, _traces: traces, _alone: alone }
    }

    /// Lets the engine die and starts another one over the same pins.
    pub(crate) fn restart(&mut self) {
        let (mut kernel, events) = load(&self.runtime, &self.options);
        kernel.attach().unwrap();
        (self.kernel, self.events) = (kernel, events);
    }

    /// A pod with its own network namespace and the address 10.77.0.1/24, fd77::1/64 on a device of its own.
    pub(crate) fn pod(&self, name: &str) -> Pod {
        let cgroup = self.options.cgroup_root.join("pods").join(name);
        fs::create_dir(&cgroup).unwrap();
        Pod { cgroup, netns: Netns::new() }
    }

    /// A cgroup of the node, outside of the pods' root.
    pub(crate) fn cgroup(&self, name: &str) -> PathBuf {
        let cgroup = self.options.cgroup_root.join(name);
        fs::create_dir_all(&cgroup).unwrap();
        cgroup
    }

    /// As the engine does, with listeners that are open already.
    pub(crate) fn steer(&mut self, netns: &Netns, host: bool, to: SteeredListeners<'_>) {
        let steering = self.kernel.steering(netns.cookie, host).unwrap();
        self.kernel.steer(netns.fd.as_fd(), netns.cookie, steering, to).unwrap();
    }

    /// With an engine that lives.
    pub(crate) fn enrol(&mut self, pod: &Pod) {
        self.kernel.heartbeat().unwrap();
        self.put(pod, CaptureState::Redirect);
    }

    pub(crate) fn put(&mut self, pod: &Pod, capture: CaptureState) {
        let addresses = vec![POD_V4.parse().unwrap(), POD_V6.parse().unwrap()];
        let workload = CapturedWorkload { cgroup: pod.id(), addresses, host_network: false, capture };
        self.kernel.put_workload(&workload).unwrap();
    }

    /// The next event that `wanted` accepts.
    pub(crate) fn event(&mut self, wanted: impl Fn(&KernelEvent) -> bool) -> KernelEvent {
        let events = &mut self.events;
        self.runtime.block_on(async {
            let next = async {
                loop {
                    let event = events.recv().await.expect("the kernel side lives");
                    if wanted(&event) {
                        return event;
                    }
                }
            };
            tokio::time::timeout(DEADLINE, next).await.expect("the event comes")
        })
    }

    /// The counter or gauge whose sample line begins with `name`, as Prometheus sees it.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let mut registry = signet_agent::telemetry::Registry::default();
        self.kernel.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let sample = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        sample.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        signet_agent::kernel::uninstall(&self.options.pin_root).unwrap();
        remove_cgroups(&self.options.cgroup_root);
    }
}

fn load(runtime: &Runtime, options: &CaptureOptions) -> (Kernel, Receiver<KernelEvent>) {
    runtime.block_on(async {
        let (mut kernel, events) = Kernel::load(options).unwrap_or_else(|e| panic!("{e}"));
        kernel.forget_flows().unwrap();
        (kernel, events)
    })
}

fn options(name: &str, unknown_pods: UnknownPods, unprotected: Unprotected) -> CaptureOptions {
    let name = format!("signet-kernel-test-{name}");
    CaptureOptions {
        cgroup_root: cgroup2_mount().unwrap_or_default().join(&name),
        pods_root: Some("pods".into()),
        kubelet_cgroup: Some("kubelet".into()),
        pin_root: Path::new("/sys/fs/bpf").join(&name),
        mount_bpffs: true,
        unknown_pods,
        unprotected,
        engine_timeout: Duration::from_secs(60),
    }
}

/// Removes from the leaves up. A cgroup stays busy until its last process has been reaped, which its test has done.
fn remove_cgroups(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    eventually("the cgroup is empty", || fs::remove_dir(directory).is_ok() || !directory.exists());
}

/// A cgroup and a network namespace.
pub(crate) struct Pod {
    pub(crate) cgroup: PathBuf,
    pub(crate) netns: Netns,
}

impl Pod {
    pub(crate) fn id(&self) -> CgroupId {
        use std::os::unix::fs::MetadataExt;
        CgroupId(fs::metadata(&self.cgroup).unwrap().ino())
    }

    /// Runs `work` in a process of this pod and returns what it returns.
    pub(crate) fn run(&self, work: impl FnOnce() -> io::Result<String>) -> io::Result<String> {
        Process::start(&self.cgroup, &self.netns, || work().map(|text| ((), text))).said()
    }
}

/// A process of a pod that keeps what it has opened until it is dropped.
pub(crate) struct Process {
    child: Pid,
    release: File,
    said: File,
}

impl Process {
    /// Forks, enters the cgroup and the namespace, and lets `work` open something and say a line about it.
    pub(crate) fn start<T>(
        cgroup: &Path,
        netns: &Netns,
        work: impl FnOnce() -> io::Result<(T, String)>,
    ) -> Self {
        let (said, say) = pipe().unwrap();
        let (released, release) = pipe().unwrap();
        // SAFETY: the child only makes system calls and allocates (glibc's allocator is consistent after fork), and ends
        // in `_exit` without returning to the test harness.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let result = fs::write(cgroup.join("cgroup.procs"), "0")
                    .and_then(|()| Ok(setns(netns.fd.as_fd(), CloneFlags::CLONE_NEWNET)?))
                    .and_then(|()| work());
                let line = match &result {
                    Ok((_, text)) => format!("+{text}\n"),
                    Err(e) => format!("-{}\n", e.raw_os_error().unwrap_or(0)),
                };
                let _ = File::from(say).write_all(line.as_bytes());
                let _ = File::from(released).read(&mut [0]);
                drop(result);
                // SAFETY: ends the process at once.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => Self { child, release: release.into(), said: said.into() },
        }
    }

    /// A process of that cgroup in this process's own namespace.
    pub(crate) fn start_here(cgroup: &Path) -> Self {
        let here = OwnedFd::from(File::open("/proc/self/ns/net").unwrap());
        let process =
            Self::start(cgroup, &Netns { fd: here, cookie: NetnsCookie(0) }, || Ok(((), String::new())));
        process.said().unwrap();
        process
    }

    /// What it said, once it has.
    pub(crate) fn said(&self) -> io::Result<String> {
        // Not until the end of the file: a process that another test forked meanwhile has a copy of the pipe's end.
        let mut line = String::new();
        BufReader::new(&self.said).read_line(&mut line).unwrap();
        match line.trim_end().split_at_checked(1) {
            Some(("+", text)) => Ok(text.to_owned()),
            Some((_, errno)) => Err(io::Error::from_raw_os_error(errno.parse().unwrap())),
            None => panic!("the pod's process died"),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.release.write_all(b".");
        nix::sys::wait::waitpid(self.child, None).unwrap();
    }
}

/// A network namespace, held open.
pub(crate) struct Netns {
    pub(crate) fd: OwnedFd,
    pub(crate) cookie: NetnsCookie,
}

impl Netns {
    /// A namespace with loopback, and a device `pod0` with one address per family and a route to everywhere.
    pub(crate) fn new() -> Self {
        let netns = Self::bare();
        netns.enter(|| SET_UP.iter().for_each(|arguments| ip(arguments)));
        netns
    }

    fn bare() -> Self {
        let fd = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap())
        });
        let fd = fd.join().unwrap();
        let cookie = netns_cookie(fd.as_fd()).unwrap();
        Self { fd, cookie }
    }

    /// A namespace at the other end of `pod0`'s wire: 10.77.0.2, fd77::2.
    pub(crate) fn wire(&self) -> Self {
        let outside = Self::bare();
        let path = format!("/proc/{}/fd/{}", std::process::id(), outside.fd.as_raw_fd());
        self.enter(|| ip(&format!("link set wire0 netns {path}")));
        outside.enter(|| OUTSIDE.iter().for_each(|arguments| ip(arguments)));
        outside
    }

    /// Runs `work` on a thread inside.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(self.fd.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside.join().unwrap()
        })
    }

    /// A listener inside.
    pub(crate) fn listen(&self, on: &str) -> TcpListener {
        self.enter(|| TcpListener::bind(on).unwrap())
    }
}

/// Runs `ip` in the calling thread's namespace.
pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// Waits for a condition, at most [`DEADLINE`].
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The pod's own addresses.
pub(crate) const POD_V4: &str = "10.77.0.1";
pub(crate) const POD_V6: &str = "fd77::1";

const DEADLINE: Duration = Duration::from_secs(20);
const OUTSIDE: [&str; 4] = [
    "link set wire0 up",
    "link set lo up",
    "addr add 10.77.0.2/24 dev wire0",
    "-6 addr add fd77::2/64 dev wire0 nodad",
];
const SET_UP: [&str; 8] = [
    "link set lo up",
    "link add pod0 type veth peer name wire0",
    "link set wire0 up",
    "link set pod0 up",
    "addr add 10.77.0.1/24 dev pod0",
    "-6 addr add fd77::1/64 dev pod0 nodad",
    "route add default dev pod0",
    "-6 route add default dev pod0",
];
