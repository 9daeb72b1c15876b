//! `capture`: where the kernel programs look, and what they do where nothing is known.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::Mistake;

/// `capture`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Capture {
    /// Everything of this engine is below it; the cgroup2 mount where absent.
    pub cgroup_root: Option<PathBuf>,
    /// The pods' root below it.
    pub pods_root: Option<PathBuf>,
    /// The kubelet's cgroup below it; looked for where absent.
    pub kubelet_cgroup: Option<PathBuf>,
    /// `/sys/fs/bpf/signet` where absent; the instance's name is appended.
    pub pin_root: PathBuf,
    /// Mount bpffs there, if there is none. A mount in a container would end with it.
    pub mount_bpffs: bool,
    /// What a pod nobody knows may do without an engine.
    pub unknown_pods: UnknownPods,
    /// What UDP, SCTP and raw sockets of enrolled workloads may do.
    pub unprotected: Unprotected,
    /// The heartbeat's age after which the kernel takes the engine for gone.
    #[serde(with = "super::duration")]
    pub engine_timeout: Duration,
}

/// `capture.unknownPods`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownPods {
    /// Let them connect, count them.
    Pass,
    /// Refuse.
    Deny,
}

/// `capture.unprotected`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unprotected {
    /// Let it pass, count it.
    Pass,
    /// Refuse it, loopback excepted, and count it.
    Deny,
}

impl Capture {
    /// Both cgroups lie below the root.
    pub(super) fn check(&self) -> Result<(), Mistake> {
        for (field, path) in
            [("capture.podsRoot", &self.pods_root), ("capture.kubeletCgroup", &self.kubelet_cgroup)]
        {
            if let Some(path) = path
                && (path.is_absolute() || path.components().any(|c| c.as_os_str() == ".."))
            {
                let reason = format!("{}: give it relative to capture.cgroupRoot", path.display());
                return Err(Mistake::new(field, reason));
            }
        }
        Ok(())
    }
}

impl Default for Capture {
    fn default() -> Self {
        Self {
            cgroup_root: None,
            pods_root: None,
            kubelet_cgroup: None,
            pin_root: "/sys/fs/bpf/signet".into(),
            mount_bpffs: true,
            unknown_pods: UnknownPods::Pass,
            unprotected: Unprotected::Pass,
            engine_timeout: Duration::from_secs(5),
        }
    }
}
