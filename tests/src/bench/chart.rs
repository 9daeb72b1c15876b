//! Charts: horizontal bars with their values, a group of bars per measure, a bar per contender, the spread as a whisker.
//!
//! Written as SVG by hand: bars, lines and words are all there is. Each group has a scale of its own, from zero, because a
//! request rate on one connection and one on sixty-four have nothing to say to each other; every bar carries its contender's
//! name, so there is no legend to look up.

use super::statistics::Row;
use super::table::number;

/// One picture.
pub(super) struct Chart {
    pub(super) file: String,
    pub(super) title: &'static str,
    pub(super) svg: String,
}

/// Every picture that the rows have something for.
pub(super) fn all(rows: &[Row]) -> Vec<Chart> {
    PICTURES.iter().filter_map(|picture| picture.draw(rows)).collect()
}

struct Picture {
    file: &'static str,
    title: &'static str,
    path: &'static str,
    /// In the order in which they are drawn.
    groups: &'static [Group],
}

struct Group {
    measure: &'static str,
    title: &'static str,
}

impl Picture {
    fn draw(&self, rows: &[Row]) -> Option<Chart> {
        let (mut body, mut y) = (String::new(), TOP);
        for group in self.groups {
            let bars: Vec<&Row> =
                rows.iter().filter(|row| row.path == self.path && row.is_of(group.measure)).collect();
            // Of several numbers the largest, which comes last.
            let last = bars.last().map(|row| row.measure.clone());
            let bars: Vec<&Row> =
                bars.into_iter().filter(|row| Some(&row.measure) == last.as_ref()).collect();
            if !bars.is_empty() {
                body += &draw_group(group.title, &bars, &mut y);
            }
        }
        let svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{y}\" viewBox=\"0 0 {WIDTH} {y}\" \
             font-family=\"Helvetica, Arial, sans-serif\">\n<rect width=\"{WIDTH}\" height=\"{y}\" fill=\"white\"/>\n\
             {}{}{body}</svg>\n",
            words(MARGIN, 30.0, 19, "start", "bold", self.title),
            words(MARGIN, 50.0, 12, "start", "normal", LEGEND),
        );
        (!body.is_empty()).then(|| Chart { file: self.file.to_owned(), title: self.title, svg })
    }
}

fn draw_group(title: &str, bars: &[&Row], y: &mut f64) -> String {
    let unit = bars.first().map_or("", |row| row.unit);
    let most = bars.iter().map(|row| row.max).fold(f64::MIN_POSITIVE, f64::max);
    let scale = |value: f64| (value / most * BAR_WIDTH).max(0.0);
    let mut text = words(MARGIN, *y, 14, "start", "bold", &format!("{title} ({unit})"));
    *y += 10.0;
    for row in bars {
        let (middle, end) = (*y + BAR_HEIGHT / 2.0, BAR_LEFT + scale(row.median));
        let [min, max] = [row.min, row.max].map(|value| BAR_LEFT + scale(value));
        let colour = colour(row.contender);
        text += &words(BAR_LEFT - 8.0, middle + 4.5, 13, "end", "normal", row.contender);
        text += &format!(
            "<rect x=\"{BAR_LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR_HEIGHT}\" fill=\"{colour}\"/>\n",
            (end - BAR_LEFT).max(1.0)
        );
        if row.max > row.min {
            text += &whisker(min, max, middle);
        }
        text += &words(end.max(max) + 8.0, middle + 4.5, 13, "start", "normal", &number(row.median));
        *y += BAR_HEIGHT + BAR_GAP;
    }
    text += &format!(
        "<line x1=\"{BAR_LEFT}\" x2=\"{BAR_LEFT}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#333\"/>\n",
        *y - (BAR_HEIGHT + BAR_GAP) * bars.len() as f64 - 2.0,
        *y - BAR_GAP + 2.0
    );
    *y += GROUP_GAP;
    text
}

fn whisker(min: f64, max: f64, y: f64) -> String {
    let line = |x1: f64, y1: f64, x2: f64, y2: f64| {
        format!(
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#222\" stroke-width=\"1.2\"/>\n"
        )
    };
    let tick = |x: f64| line(x, y - 4.0, x, y + 4.0);
    line(min, y, max, y) + &tick(min) + &tick(max)
}

/// Text that this module or the benchmark has chosen: nothing in it needs escaping.
fn words(x: f64, y: f64, size: u32, anchor: &str, weight: &str, text: &str) -> String {
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" text-anchor=\"{anchor}\" font-weight=\"{weight}\" \
         fill=\"#222\">{text}</text>\n"
    )
}

/// The same for a contender in every picture; Signet's in blue.
fn colour(contender: &str) -> &'static str {
    match contender {
        "direct" => "#9d9d9d",
        "envoy-pair" => "#d37295",
        "envoy-pair-64" => "#e8b4c6",
        "haproxy-pair" => "#7fb069",
        "signet-hbone" | "signet-same-node-mtls" => "#8cc3ee",
        _ => "#1f6fb4",
    }
}

const LEGEND: &str =
    "bar: median of the rounds; whisker: smallest and largest; each group has its own scale, from zero";
const WIDTH: f64 = 920.0;
const MARGIN: f64 = 20.0;
const TOP: f64 = 82.0;
const BAR_LEFT: f64 = 190.0;
const BAR_WIDTH: f64 = 610.0;
const BAR_HEIGHT: f64 = 18.0;
const BAR_GAP: f64 = 5.0;
const GROUP_GAP: f64 = 28.0;

const fn group(measure: &'static str, title: &'static str) -> Group {
    Group { measure, title }
}

const PICTURES: [Picture; 8] = [
    Picture {
        file: "throughput.svg",
        title: "Throughput across two nodes: more is better",
        path: "across",
        groups: &[
            group("throughput_1", "1 stream"),
            group("throughput_4", "4 streams"),
            group("throughput_1_reversed", "1 stream, reversed"),
            group("throughput_4_reversed", "4 streams, reversed"),
        ],
    },
    Picture {
        file: "requests.svg",
        title: "Requests on connections that stay, across two nodes: more is better",
        path: "across",
        groups: &[
            group("requests_1", "1 connection"),
            group("requests_16", "16 connections"),
            group("requests_64", "64 connections"),
        ],
    },
    Picture {
        file: "latency.svg",
        title: "Time from request to answer, across two nodes: less is better",
        path: "across",
        groups: &[
            group("requests_1_p50", "1 connection, median"),
            group("requests_16_p50", "16 connections, median"),
            group("requests_16_p99", "16 connections, 99th percentile"),
            group("requests_64_p999", "64 connections, 99.9th percentile"),
            group("connections_1_p50", "with a new connection, 1 at a time, median"),
            group("connections_16_p99", "with a new connection, 16 at a time, 99th percentile"),
        ],
    },
    Picture {
        file: "connections.svg",
        title: "New connections and handshakes, across two nodes: more is better",
        path: "across",
        groups: &[
            group("connections_1", "a new connection for every request, 1 at a time"),
            group("connections_16", "a new connection for every request, 16 at a time"),
            group("handshakes_16", "full handshakes at the server's end, 16 at a time"),
        ],
    },
    Picture {
        file: "cpu.svg",
        title: "Processor time of both engines, across two nodes: less is better",
        path: "across",
        groups: &[
            group("throughput_1_cpu", "for a GB, 1 stream"),
            group("throughput_4_reversed_cpu", "for a GB, 4 streams, reversed"),
            group("requests_16_cpu", "for 10,000 requests, 16 connections"),
            group("connections_16_cpu", "for 10,000 new connections, 16 at a time"),
        ],
    },
    Picture {
        file: "memory.svg",
        title: "Memory of the larger engine, across two nodes: less is better",
        path: "across",
        groups: &[
            group("memory_fresh", "fresh, resident"),
            group("memory_#_idle", "with all idle connections, resident"),
            group("memory_per_#_idle_client", "for each idle connection, anonymous, client's end"),
            group("memory_per_#_idle_server", "for each idle connection, anonymous, server's end"),
        ],
    },
    Picture {
        file: "same-node.svg",
        title: "On one node: more is better",
        path: "same-node",
        groups: &[
            group("throughput_1", "throughput, 1 stream"),
            group("throughput_4_reversed", "throughput, 4 streams, reversed"),
            group("requests_1", "requests, 1 connection"),
            group("requests_64", "requests, 64 connections"),
            group("connections_1", "a new connection for every request, 1 at a time"),
            group("connections_16", "a new connection for every request, 16 at a time"),
        ],
    },
    Picture {
        file: "same-node-latency.svg",
        title: "Time from request to answer, on one node: less is better",
        path: "same-node",
        groups: &[
            group("requests_1_p50", "1 connection, median"),
            group("requests_16_p99", "16 connections, 99th percentile"),
            group("connections_16_p99", "with a new connection, 16 at a time, 99th percentile"),
        ],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_a_bar_and_a_value_for_each_contender() {
        let rows = [row("direct", "requests_1", 1000.0), row("signet", "requests_1", 900.0)];
        let charts = all(&rows);
        assert_eq!(charts.len(), 1);
        let svg = &charts[0].svg;
        for word in ["1 connection (req/s)", ">direct<", ">signet<", ">1,000<", ">900<", charts[0].title] {
            assert!(svg.contains(word), "{word} is not in {svg}");
        }
        // The background, and a bar each.
        assert_eq!(svg.matches("<rect").count(), 3);
    }

    #[test]
    fn of_several_numbers_of_idle_connections_the_largest_is_drawn() {
        let rows = [row("signet", "memory_1000_idle", 1.0), row("signet", "memory_10000_idle", 8.0)];
        let svg = &all(&rows)[0].svg;
        assert!(svg.contains(">8.00<") && !svg.contains(">1.00<"), "{svg}");
    }

    fn row(contender: &'static str, measure: &str, median: f64) -> Row {
        Row {
            contender,
            path: "across",
            measure: measure.to_owned(),
            unit: "req/s",
            median,
            min: median,
            max: median,
            ratio_to_direct: None,
            ratio_to_envoy: None,
        }
    }
}
