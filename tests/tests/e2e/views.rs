//! What an operator sees: metrics, access log, the `signet` commands.

use anyhow::{Context, Result, ensure};
use signet_testkit::mesh::rows;
use signet_testkit::need::Need;

use crate::connect::{Pair, allow};
use crate::{Test, shared};

pub(crate) const TESTS: &[Test] = crate::tests!(&[Need::Engine] =>
    istios_metrics_tell_of_a_connection_from_both_ends,
    signets_own_metrics_tell_of_the_kernel_and_the_svids,
    the_access_log_has_one_line_for_a_connection_on_each_side,
    the_signet_commands_show_what_is_there,
);

fn istios_metrics_tell_of_a_connection_from_both_ends() -> Result<()> {
    let mesh = shared::mesh()?;
    let pair = Pair::start(&mesh, "metrics")?;
    pair.client.dial(&pair.v4(), &["--text", "ten bytes!"])?.answered()?;
    mesh.n1.wait_for_log(&["dst.namespace=\"metrics\"", "outbound"])?;
    mesh.n2.wait_for_log(&["dst.namespace=\"metrics\"", "inbound"])?;
    for (node, reporter) in [(&mesh.n1, "source"), (&mesh.n2, "destination")] {
        let labels = [
            ("reporter", reporter),
            ("source_workload", "client"),
            ("source_principal", "spiffe://cluster.local/ns/metrics/sa/client"),
            ("destination_workload", "server"),
            ("destination_workload_namespace", "metrics"),
            ("destination_principal", "spiffe://cluster.local/ns/metrics/sa/server"),
            ("connection_security_policy", "mutual_tls"),
            ("response_flags", "-"),
        ];
        let metrics = node.metrics()?;
        for name in ["istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total"] {
            let count = metrics.sum(name, &labels);
            let seen = || metrics.0.iter().filter(|s| s.name == name).collect::<Vec<_>>();
            ensure!(count == 1.0, "{reporter}: {name} is {count}: {:?}", seen());
        }
        for name in ["istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total"] {
            ensure!(metrics.sum(name, &labels) >= 10.0, "{reporter}: {name}");
        }
    }
    Ok(())
}

fn signets_own_metrics_tell_of_the_kernel_and_the_svids() -> Result<()> {
    let mesh = shared::mesh()?;
    let pair = Pair::start(&mesh, "own-metrics")?;
    pair.client.dial(&pair.v4(), &[])?.answered()?;
    let metrics = mesh.n1.metrics()?;
    let named = |prefix: &str| metrics.0.iter().any(|sample| sample.name.starts_with(prefix));
    for prefix in ["signet_capture_verdicts_total", "signet_bpf_map_entries", "signet_svid_", "signet_ca_"] {
        ensure!(named(prefix), "no metric begins with {prefix}");
    }
    ensure!(metrics.sum("signet_capture_verdicts_total", &[]) > 0.0, "the kernel has decided nothing");
    Ok(())
}

fn the_access_log_has_one_line_for_a_connection_on_each_side() -> Result<()> {
    let mesh = shared::mesh()?;
    let pair = Pair::start(&mesh, "access")?;
    pair.client.dial(&pair.v4(), &[])?.answered()?;
    for (node, direction) in [(&mesh.n1, "direction=\"outbound\""), (&mesh.n2, "direction=\"inbound\"")] {
        let parts = ["connection complete", "src.namespace=\"access\"", direction];
        let line = node.wait_for_log(&parts)?;
        for field in
            ["src.addr=", "src.workload=\"client\"", "dst.workload=\"server\"", "bytes_sent=", "duration="]
        {
            ensure!(line.contains(field), "no {field} in {line}");
        }
        let log = node.engine_log()?;
        let lines = log.lines().filter(|line| parts.iter().all(|part| line.contains(part))).count();
        ensure!(lines == 1, "{lines} lines for one connection ({direction})");
    }
    Ok(())
}

fn the_signet_commands_show_what_is_there() -> Result<()> {
    let mesh = shared::mesh()?;
    let pair = Pair::start(&mesh, "commands")?;
    mesh.apply("commands", &allow("commands", "server", &pair.client.spiffe_id()))?;
    let _running = pair.client.hold(&pair.v4())?;
    let find = |command: &str, key: &str, value: &str| -> Result<serde_json::Value> {
        let view = mesh.n1.signet(&[command])?;
        let row = rows(&view).find(|row| row[key].as_str().is_some_and(|text| text.contains(value))).cloned();
        row.with_context(|| format!("signet {command} shows no {key} with {value}: {view}"))
    };
    let workload = find("workloads", "uid", pair.client.uid())?;
    ensure!(workload["state"] == "captured", "{workload}");
    let certificate = find("certificates", "id", &pair.client.spiffe_id())?;
    ensure!(certificate["status"] == "valid" && certificate["not_after"].is_u64(), "{certificate}");
    let connection = find("connections", "source_workload", "commands/client")?;
    ensure!(connection["destination_identity"] == pair.server.spiffe_id(), "{connection}");
    find("policies", "name", "commands-server")?;
    let status = mesh.n1.signet(&["status"])?;
    ensure!(status["ready"] == true, "{status}");
    for command in ["status", "workloads", "certificates", "connections", "policies", "check"] {
        let table = mesh.n1.signet_text(&[command])?;
        ensure!(!table.trim().is_empty(), "signet {command} shows nothing");
    }
    let checks = mesh.n1.signet(&["check"])?;
    for name in ["ca", "conflicts", "capture"] {
        let line =
            rows(&checks).find(|row| row["name"] == name).with_context(|| format!("no {name}: {checks}"))?;
        ensure!(line["ok"] == true, "{line}");
    }
    ensure!(mesh.n1.signet_text(&["workloads"])?.contains("client"), "the table lacks the pod");
    Ok(())
}
