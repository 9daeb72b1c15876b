//! Other kernels than this machine's: the oldest that is supported, and one that is too old, each in a machine of its own.

use anyhow::{Context, Result, ensure};
use signet_testkit::need::Need;
use signet_testkit::vm;

pub(crate) const TESTS: &[crate::Test] = crate::tests!(
    &[
        Need::Engine,
        Need::Program("qemu-system-x86_64"),
        Need::Program("busybox"),
        Need::Tool("vmlinuz-6.1"),
        Need::Tool("vmlinuz-5.10"),
    ] =>
    the_oldest_supported_kernel_has_all_and_an_engine_on_it_is_ready,
    a_kernel_that_is_too_old_is_named_in_readiness_and_in_the_last_words,
);

fn the_oldest_supported_kernel_has_all_and_an_engine_on_it_is_ready() -> Result<()> {
    let script = "mkdir -p /etc/signet /manifests
echo 'node: {name: n1}
source: {files: {directory: /manifests}}
ca: {file: {directory: /manifests}}' >/etc/signet/signetd.yaml
signetd --check
echo \"the check ended with $?\"
signetd >/tmp/log &
tries=0
until wget -q -O - http://127.0.0.1:15021/healthz/ready || [ $tries = 200 ]; do sleep 1; tries=$((tries+1)); done
cat /tmp/log
signet check";
    let written = vm::run("6.1", &["signetd", "signet"], script)?;
    ensure!(written.contains("ok      kernel                6.1.0"), "{written}");
    ensure!(written.contains("\nthe check ended with 0"), "{written}");
    ensure!(written.contains("\"ready\":true") && written.contains("capture attached"), "{written}");
    ensure!(!written.contains("FAILED"), "{written}");
    Ok(())
}

/// Where kubelet takes the last words from is a file; it keeps 4 KiB of it.
fn a_kernel_that_is_too_old_is_named_in_readiness_and_in_the_last_words() -> Result<()> {
    let script = "mkdir -p /etc/signet /sys/fs/cgroup/kubepods
echo 'node: {name: n1}
source: {kubernetes: {kubeconfig: /etc/kubeconfig}}
ca: {file: {directory: /etc}}
capture: {mountBpffs: false}' >/etc/signet/signetd.yaml
touch /dev/termination-log
signetd >/tmp/log 2>&1 &
engine=$!
ask() { printf 'GET /healthz/ready HTTP/1.0\\r\\n\\r\\n' | nc 127.0.0.1 15021; }
tries=0
until ask >/tmp/said || [ $tries = 200 ]; do sleep 1; tries=$((tries+1)); done
until grep -q lacks /tmp/said || [ $tries = 200 ]; do sleep 1; ask >/tmp/said; tries=$((tries+1)); done
echo \"readiness: $(tail -n 1 /tmp/said)\"
kill $engine
wait $engine
echo \"ended with $?\"
echo \"last words: $(cat /dev/termination-log)\"";
    let written = vm::run("5.10", &["signetd"], script)?;
    let line = |begin: &str| {
        let line = written.lines().find(|line| line.starts_with(begin));
        line.with_context(|| format!("no {begin:?} in {written}"))
    };
    let readiness = line("readiness: ")?;
    ensure!(readiness.contains("\"ready\":false"), "{readiness}");
    let last_words = line("last words: ")?;
    for said in [readiness, last_words] {
        ensure!(said.contains("Signet needs Linux 6.1 or newer"), "{said}");
        ensure!(said.contains("signet_sock_ops: unknown func bpf_get_netns_cookie"), "{said}");
        ensure!(said.len() < LAST_WORDS, "{} bytes: {said}", said.len());
    }
    ensure!(line("ended with ")? == "ended with 1", "{written}");
    Ok(())
}

/// `MaxContainerTerminationMessageLength` of kubelet.
const LAST_WORDS: usize = 4096;
