//! Who else on this node captures pods' connections: Istio's ztunnel and its CNI plugin, for `signet check`.
//!
//! By the names of processes, which any process may take: a hint for an operator, never a decision.

use std::fs;
use std::path::Path;

use super::preflight::Finding;

/// One line: nobody, or who, and what to do.
pub(super) fn conflicts() -> Finding {
    let found = find(Path::new("/proc"));
    Finding::of(
        "conflicts",
        if found.is_empty() {
            Ok("no ztunnel and no istio-cni runs here".into())
        } else {
            Err(format!(
                "{} on this node: pods with istio.io/dataplane-mode=ambient are captured twice; keep it off this node, \
                 and start its pods anew (docs/moving.md)",
                found.join(" and ")
            ))
        },
    )
}

fn find(proc: &Path) -> Vec<String> {
    let processes = fs::read_dir(proc).into_iter().flatten().flatten();
    let mut found: Vec<String> = processes
        .filter_map(|process| {
            let name = fs::read_to_string(process.path().join("comm")).ok()?;
            let (_, who) = NAMES.into_iter().find(|(comm, _)| *comm == name.trim_end())?;
            Some(format!("{who} runs (pid {})", process.file_name().display()))
        })
        .collect();
    found.sort();
    found
}

/// `/proc/<pid>/comm`, and who that is (istio/istio `cni/deployments/kubernetes/Dockerfile.install-cni`).
const NAMES: [(&str, &str); 2] = [("ztunnel", "ztunnel"), ("install-cni", "istio-cni")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_runs_is_named_with_its_process() {
        let proc = tempfile::tempdir().unwrap();
        for (pid, comm) in
            [("17", "ztunnel\n"), ("4", "install-cni\n"), ("1", "systemd\n"), ("9", "ztunnel-exporte\n")]
        {
            fs::create_dir(proc.path().join(pid)).unwrap();
            fs::write(proc.path().join(pid).join("comm"), comm).unwrap();
        }
        fs::create_dir(proc.path().join("sys")).unwrap();
        assert_eq!(find(proc.path()), ["istio-cni runs (pid 4)", "ztunnel runs (pid 17)"]);
    }
}
