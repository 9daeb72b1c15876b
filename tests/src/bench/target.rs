//! What Signet wants to reach, beside what it has reached: told, never judged.
//!
//! Against direct TCP on one node, against the Envoy pair (with Envoy's defaults) across two, and in absolute figures where
//! there is nothing to compare with. HBONE, the tunnel to everybody else, is to be ahead of the pair everywhere.

use super::statistics::Row;

/// A table: a line per target.
pub(super) fn table(rows: &[Row]) -> Vec<Vec<String>> {
    let header = ["target", "contender", "measure", "wanted", "measured", ""].map(str::to_owned).to_vec();
    let mut table = vec![header];
    for target in targets() {
        // Of several numbers the largest, which comes last.
        let row = rows.iter().rfind(|row| {
            (row.contender, row.path) == (target.contender, target.path) && row.is_of(target.measure)
        });
        let value = row.and_then(|row| target.wanted.value(row));
        let verdict = match value {
            Some(value) if target.wanted.holds(value) => "reached",
            Some(_) => "**not reached**",
            None => "not measured",
        };
        let shown = value.map_or_else(|| "–".to_owned(), |value| format!("{value:.3}"));
        let measure = row.map_or(target.measure, |row| &row.measure);
        let cells = [target.title, target.contender, measure, &target.wanted.text(), &shown, verdict];
        table.push(cells.map(str::to_owned).to_vec());
    }
    table
}

struct Target {
    title: &'static str,
    contender: &'static str,
    path: &'static str,
    measure: &'static str,
    wanted: Wanted,
}

#[derive(Clone, Copy)]
enum Wanted {
    /// At least so much of what direct TCP has.
    OfDirect(f64),
    /// At least so much of what the Envoy pair has.
    OfEnvoy(f64),
    /// At most so much of what the Envoy pair has.
    AtMostOfEnvoy(f64),
    /// At most this, in the row's unit.
    AtMost(f64),
}

impl Wanted {
    fn value(self, row: &Row) -> Option<f64> {
        match self {
            Self::OfDirect(_) => row.ratio_to_direct,
            Self::OfEnvoy(_) | Self::AtMostOfEnvoy(_) => row.ratio_to_envoy,
            Self::AtMost(_) => Some(row.median),
        }
    }

    fn holds(self, value: f64) -> bool {
        match self {
            Self::OfDirect(least) | Self::OfEnvoy(least) => value >= least,
            Self::AtMostOfEnvoy(most) | Self::AtMost(most) => value <= most,
        }
    }

    fn text(self) -> String {
        match self {
            Self::OfDirect(least) => format!("≥ {least} of direct"),
            Self::OfEnvoy(least) => format!("≥ {least} of Envoy"),
            Self::AtMostOfEnvoy(most) => format!("≤ {most} of Envoy"),
            Self::AtMost(most) => format!("≤ {most}"),
        }
    }
}

fn targets() -> impl Iterator<Item = Target> {
    let same_node = SAME_NODE.iter().map(|(title, measure, wanted)| Target {
        title,
        contender: "signet-same-node",
        path: "same-node",
        measure,
        wanted: *wanted,
    });
    let across = ACROSS.iter().map(|(title, measure, wanted)| Target {
        title,
        contender: "signet",
        path: "across",
        measure,
        wanted: *wanted,
    });
    let hbone = HBONE.iter().map(|(title, measure, wanted)| Target {
        title,
        contender: "signet-hbone",
        path: "across",
        measure,
        wanted: *wanted,
    });
    let inventory = INVENTORY.iter().map(|(title, measure, wanted)| Target {
        title,
        contender: "signetd",
        path: "in-process",
        measure,
        wanted: *wanted,
    });
    same_node.chain(across).chain(inventory).chain(hbone)
}

type Line = (&'static str, &'static str, Wanted);

const SAME_NODE: [Line; 11] = [
    ("throughput, 1 stream", "throughput_1", Wanted::OfDirect(0.95)),
    ("4 streams", "throughput_4", Wanted::OfDirect(0.95)),
    ("1 stream, reversed", "throughput_1_reversed", Wanted::OfDirect(0.95)),
    ("4 streams, reversed", "throughput_4_reversed", Wanted::OfDirect(0.95)),
    ("engine CPU per GB: none", "throughput_1_cpu", Wanted::AtMost(NONE)),
    ("requests/s, 1 keep-alive", "requests_1", Wanted::OfDirect(0.95)),
    ("16 keep-alive", "requests_16", Wanted::OfDirect(0.95)),
    ("64 keep-alive", "requests_64", Wanted::OfDirect(0.95)),
    ("engine CPU per 10,000 requests: none", "requests_16_cpu", Wanted::AtMost(NONE)),
    ("new connections, 1 at a time", "connections_1", Wanted::OfDirect(0.80)),
    ("16 at a time", "connections_16", Wanted::OfDirect(0.85)),
];

const ACROSS: [Line; 15] = [
    ("throughput, 1 stream", "throughput_1", Wanted::OfEnvoy(1.5)),
    ("4 streams", "throughput_4", Wanted::OfEnvoy(1.5)),
    ("1 stream, reversed", "throughput_1_reversed", Wanted::OfEnvoy(1.5)),
    ("4 streams, reversed", "throughput_4_reversed", Wanted::OfEnvoy(1.5)),
    ("engine CPU per GB, 1 stream", "throughput_1_cpu", Wanted::AtMostOfEnvoy(0.60)),
    ("engine CPU per GB, 4 streams", "throughput_4_cpu", Wanted::AtMostOfEnvoy(0.60)),
    ("requests/s, 1 keep-alive", "requests_1", Wanted::OfEnvoy(1.25)),
    ("16 keep-alive", "requests_16", Wanted::OfEnvoy(1.6)),
    ("64 keep-alive", "requests_64", Wanted::OfEnvoy(1.6)),
    ("engine CPU per request, 16 keep-alive", "requests_16_cpu", Wanted::AtMostOfEnvoy(0.6)),
    ("new connections, 1 at a time", "connections_1", Wanted::OfEnvoy(2.5)),
    ("16 at a time", "connections_16", Wanted::OfEnvoy(4.5)),
    ("engine memory, fresh, MiB", "memory_fresh", Wanted::AtMost(15.0)),
    ("anonymous KiB per idle connection, client's end", "memory_per_#_idle_client", Wanted::AtMost(4.0)),
    ("anonymous KiB per idle connection, server's end", "memory_per_#_idle_server", Wanted::AtMost(4.0)),
];

const HBONE: [Line; 14] = [
    ("HBONE: throughput, 1 stream", "throughput_1", Wanted::OfEnvoy(1.0)),
    ("4 streams", "throughput_4", Wanted::OfEnvoy(1.0)),
    ("1 stream, reversed", "throughput_1_reversed", Wanted::OfEnvoy(1.0)),
    ("4 streams, reversed", "throughput_4_reversed", Wanted::OfEnvoy(1.0)),
    ("engine CPU per GB, 1 stream", "throughput_1_cpu", Wanted::AtMostOfEnvoy(1.0)),
    ("requests/s, 1 keep-alive", "requests_1", Wanted::OfEnvoy(1.0)),
    ("16 keep-alive", "requests_16", Wanted::OfEnvoy(1.0)),
    ("64 keep-alive", "requests_64", Wanted::OfEnvoy(1.0)),
    ("engine CPU per request, 16 keep-alive", "requests_16_cpu", Wanted::AtMostOfEnvoy(1.0)),
    ("new connections, 1 at a time", "connections_1", Wanted::OfEnvoy(1.0)),
    ("16 at a time", "connections_16", Wanted::OfEnvoy(1.0)),
    ("engine memory, fresh", "memory_fresh", Wanted::AtMostOfEnvoy(1.0)),
    ("memory per idle connection, client's end", "memory_per_#_idle_client", Wanted::AtMostOfEnvoy(1.0)),
    ("memory per idle connection, server's end", "memory_per_#_idle_server", Wanted::AtMostOfEnvoy(1.0)),
];

const INVENTORY: [Line; 3] = [
    ("100,000 pods known, MiB more", "inventory_100000_memory", Wanted::AtMost(60.0)),
    ("look-up by address, p99, µs", "lookup_address_p99", Wanted::AtMost(1.0)),
    ("look-up by VIP, p99, µs", "lookup_vip_p99", Wanted::AtMost(1.0)),
];

/// Seconds for a GB or 10,000 requests: what an engine that is not in the path uses for itself meanwhile.
const NONE: f64 = 0.01;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_held_against_the_median_ratio_of_its_own_row() {
        let rows = [row("signet", "throughput_1", Some(1.6)), row("signet", "throughput_4", Some(1.4))];
        let table = table(&rows);
        let verdict = |contender: &str, measure: &str| {
            let line = table.iter().find(|line| line[1] == contender && line[2] == measure).unwrap();
            (line[4].clone(), line[5].clone())
        };
        assert_eq!(verdict("signet", "throughput_1"), ("1.600".into(), "reached".into()));
        assert_eq!(verdict("signet", "throughput_4"), ("1.400".into(), "**not reached**".into()));
        assert_eq!(verdict("signet", "requests_1"), ("–".into(), "not measured".into()));
        assert_eq!(verdict("signet-hbone", "throughput_1").1, "not measured");
    }

    #[test]
    fn less_is_better_where_a_target_is_a_ceiling() {
        assert!(Wanted::AtMost(4.0).holds(4.0) && !Wanted::AtMost(4.0).holds(4.1));
        assert!(Wanted::AtMostOfEnvoy(0.6).holds(0.5) && !Wanted::AtMostOfEnvoy(0.6).holds(0.7));
    }

    fn row(contender: &'static str, measure: &str, ratio_to_envoy: Option<f64>) -> Row {
        Row {
            contender,
            path: "across",
            measure: measure.to_owned(),
            unit: "s",
            median: 1.0,
            min: 1.0,
            max: 1.0,
            ratio_to_direct: None,
            ratio_to_envoy,
        }
    }
}
