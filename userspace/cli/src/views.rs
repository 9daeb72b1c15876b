//! The views: where each is asked for, and which columns it shows.
//!
//! Fields are read one by one from the JSON, so that a `signet` still shows what it knows of a newer `signetd`'s answer;
//! a field that is not there is `-`.

use clap::Subcommand;
use serde_json::Value;

use crate::table::{self, Column};
use crate::units;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum View {
    /// Is this node ready, and how much is on it
    Status,
    /// Every workload of the mesh, and how far this node is with its own
    Workloads,
    /// The SVID of each workload here: whose, until when, what went wrong
    Certificates,
    /// Live connections, with the identities both sides proved
    Connections,
    /// Every policy, its scope, and what of it could not be kept
    Policies,
    /// What is missing or broken on this machine; exit code 1 where something is
    Check,
}

impl View {
    /// Where the admin socket has it.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Status => "/v1/status",
            Self::Workloads => "/v1/workloads",
            Self::Certificates => "/v1/certificates",
            Self::Connections => "/v1/connections",
            Self::Policies => "/v1/policies",
            Self::Check => "/v1/check",
        }
    }

    /// The answer for people.
    pub(crate) fn table(self, answer: &Value, now: u64) -> String {
        let rows = answer.as_array().map(Vec::as_slice).unwrap_or_default();
        match self {
            Self::Status => status(answer),
            Self::Workloads => table::render(WORKLOADS, rows, now),
            Self::Certificates => table::render(CERTIFICATES, rows, now),
            Self::Connections => table::render(CONNECTIONS, rows, now),
            Self::Policies => table::render(POLICIES, rows, now),
            Self::Check => table::render(CHECK, rows, now),
        }
    }

    /// `check` found something.
    pub(crate) fn is_failure(self, answer: &Value) -> bool {
        let is_broken = |finding: &Value| finding["ok"] != Value::Bool(true);
        self == Self::Check && answer.as_array().is_none_or(|findings| findings.iter().any(is_broken))
    }
}

const WORKLOADS: &[Column] = &[
    Column { title: "NAMESPACE", cell: |row, _| text(&row["namespace"]) },
    Column { title: "NAME", cell: |row, _| text(&row["name"]) },
    Column { title: "NODE", cell: |row, _| text(&row["node"]) },
    Column { title: "ADDRESSES", cell: |row, _| list(&row["addresses"]) },
    Column { title: "MESH", cell: |row, _| yes_no(&row["enrolled"]) },
    Column { title: "STATE", cell: |row, _| text(&row["state"]) },
    Column { title: "IDENTITY", cell: |row, _| text(&row["identity"]) },
    Column { title: "ERROR", cell: |row, _| text(&row["error"]) },
];

const CERTIFICATES: &[Column] = &[
    Column { title: "IDENTITY", cell: |row, _| text(&row["id"]) },
    Column { title: "STATUS", cell: |row, _| text(&row["status"]) },
    Column { title: "SERIAL", cell: |row, _| text(&row["serial"]) },
    Column { title: "AGE", cell: |row, now| age(&row["not_before"], now) },
    Column { title: "EXPIRES", cell: |row, now| moment(&row["not_after"], now) },
    Column { title: "NEXT ATTEMPT", cell: |row, now| moment(&row["next_attempt"], now) },
    Column { title: "WORKLOAD", cell: |row, _| text(&row["workload"]) },
    Column { title: "ERROR", cell: |row, _| text(&row["error"]) },
];

const CONNECTIONS: &[Column] = &[
    Column { title: "DIRECTION", cell: |row, _| text(&row["direction"]) },
    Column { title: "PATH", cell: |row, _| text(&row["path"]) },
    Column { title: "SOURCE", cell: |row, _| end(&row["source"], &row["source_workload"]) },
    Column { title: "DESTINATION", cell: |row, _| end(&row["destination"], &row["destination_workload"]) },
    Column { title: "SERVICE", cell: |row, _| text(&row["service"]) },
    Column { title: "PEER IDENTITY", cell: |row, _| text(peer_identity(row)) },
    Column { title: "POLICY", cell: |row, _| text(&row["policy"]) },
    Column { title: "AGE", cell: |row, now| age(&row["since"], now) },
    Column { title: "SENT", cell: |row, _| size(&row["sent"]) },
    Column { title: "RECEIVED", cell: |row, _| size(&row["received"]) },
];

const POLICIES: &[Column] = &[
    Column { title: "KIND", cell: |row, _| text(&row["kind"]) },
    Column { title: "NAMESPACE", cell: |row, _| text(&row["namespace"]) },
    Column { title: "NAME", cell: |row, _| text(&row["name"]) },
    Column { title: "SCOPE", cell: |row, _| text(&row["scope"]) },
    Column { title: "SELECTOR", cell: |row, _| labels(&row["selector"]) },
    Column { title: "EFFECT", cell: |row, _| effect(row) },
    Column { title: "WARNINGS", cell: |row, _| list(&row["warnings"]) },
];

const CHECK: &[Column] = &[
    Column { title: "RESULT", cell: |row, _| if row["ok"] == true { "ok".into() } else { "FAILED".into() } },
    Column { title: "WHAT", cell: |row, _| text(&row["name"]) },
    Column { title: "DETAIL", cell: |row, _| text(&row["detail"]) },
];

fn status(answer: &Value) -> String {
    let counts = &answer["counts"];
    let mut lines = vec![
        pair("node", text(&answer["node"])),
        pair("signetd", format!("{}, instance {}", text(&answer["version"]), text(&answer["instance"]))),
        pair("trust domain", text(&answer["trust_domain"])),
        pair("up", number(&answer["uptime_seconds"]).map_or_else(String::new, units::age)),
        pair("ready", yes_no(&answer["ready"])),
    ];
    for condition in answer["conditions"].as_array().into_iter().flatten() {
        lines.push(pair(&format!("  {}", text(&condition["name"])), text(&condition["detail"])));
    }
    let workloads = format!(
        "{} in the mesh's view, {} here: {} captured, {} waiting",
        counts["workloads"], counts["local_workloads"], counts["captured"], counts["waiting"]
    );
    lines.push(pair("workloads", workloads));
    lines.extend(
        ["services", "policies", "certificates", "connections"].map(|of| pair(of, counts[of].to_string())),
    );
    table::align(&lines)
}

fn pair(name: &str, value: String) -> Vec<String> {
    vec![name.to_owned(), value]
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn number(value: &Value) -> Option<u64> {
    value.as_u64()
}

fn list(value: &Value) -> String {
    let items: Vec<String> = value.as_array().into_iter().flatten().map(text).collect();
    items.join(", ")
}

fn labels(value: &Value) -> String {
    let pairs = value.as_object().into_iter().flatten();
    pairs.map(|(key, value)| format!("{key}={}", text(value))).collect::<Vec<_>>().join(",")
}

fn yes_no(value: &Value) -> String {
    match value.as_bool() {
        Some(true) => "yes".into(),
        Some(false) => "no".into(),
        None => String::new(),
    }
}

fn age(since: &Value, now: u64) -> String {
    number(since).map_or_else(String::new, |since| units::age(now.saturating_sub(since)))
}

fn moment(at: &Value, now: u64) -> String {
    number(at).map_or_else(String::new, |at| units::relative(at, now))
}

fn size(count: &Value) -> String {
    number(count).map_or_else(String::new, units::bytes)
}

/// `namespace/name (10.0.0.1:80)`, or the address alone where nobody is known there.
fn end(address: &Value, workload: &Value) -> String {
    match workload.as_str() {
        Some(workload) => format!("{workload} ({})", text(address)),
        None => text(address),
    }
}

/// Whom the engine authenticated: the server of an outbound connection, the client of an inbound one.
fn peer_identity(row: &Value) -> &Value {
    if row["direction"] == "outbound" { &row["destination_identity"] } else { &row["source_identity"] }
}

fn effect(row: &Value) -> String {
    let dry_run = if row["dry_run"] == true { " (dry run)" } else { "" };
    format!("{}{dry_run}", text(&row["effect"]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_check_with_a_broken_line_fails() {
        let broken = json!([{"name": "btf", "ok": true}, {"name": "capture", "ok": false}]);
        assert!(View::Check.is_failure(&broken));
        assert!(!View::Check.is_failure(&json!([{"name": "btf", "ok": true}])));
        assert!(!View::Connections.is_failure(&broken));
    }

    #[test]
    fn an_answer_that_is_no_list_of_findings_is_no_success() {
        assert!(View::Check.is_failure(&json!({"error": "?"})));
    }

    #[test]
    fn the_peer_is_the_one_the_engine_authenticated() {
        let rows = json!([
            {"direction": "outbound", "source_identity": "me", "destination_identity": "server"},
            {"direction": "inbound", "source_identity": "client", "destination_identity": "me"},
        ]);
        let shown = View::Connections.table(&rows, 0);
        assert!(shown.contains("server") && shown.contains("client") && !shown.contains("me "), "{shown}");
    }

    #[test]
    fn certificates_say_when_they_expire() {
        let rows =
            json!([{"id": "spiffe://td/ns/a/sa/b", "status": "valid", "not_before": 100, "not_after": 400}]);
        assert!(View::Certificates.table(&rows, 208).contains("1m48s  in 3m12s"));
    }

    #[test]
    fn what_an_older_signetd_does_not_send_is_a_dash() {
        let shown = View::Workloads.table(&json!([{"name": "a"}]), 0);
        assert_eq!(
            shown.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>(),
            ["-", "a", "-", "-", "-", "-", "-", "-"]
        );
    }

    #[test]
    fn status_shows_why_a_node_is_not_ready() {
        let answer = json!({
            "ready": false, "node": "n1", "uptime_seconds": 192,
            "conditions": [{"name": "capture", "ok": false, "detail": "waiting for the source"}],
            "counts": {"workloads": 3},
        });
        let shown = View::Status.table(&answer, 0);
        assert!(shown.contains("3m12s") && shown.contains("waiting for the source"), "{shown}");
    }
}
