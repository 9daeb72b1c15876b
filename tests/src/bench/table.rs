//! Rows for people: one table per path with a column per contender, and one with every figure's spread.
//!
//! Markdown throughout, its columns padded, so that the same text reads well in a terminal.

use super::statistics::{DIRECT, ENVOY, Row};

/// One table per path: a line per measure, a column per contender, and the ratios.
pub(super) fn overview(rows: &[Row]) -> String {
    let paths = distinct(rows.iter().map(|row| row.path));
    let tables = paths.into_iter().map(|path| {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.path == path).collect();
        format!("{}\n\n{}", title(path), markdown(&path_table(&rows)))
    });
    tables.collect::<Vec<_>>().join("\n")
}

/// Every row with its spread.
pub(super) fn details(rows: &[Row]) -> String {
    let header = ["measure", "unit", "path", "contender", "median", "min", "max", "to direct", "to Envoy"];
    let lines = rows.iter().map(|row| {
        let ratios = [row.ratio_to_direct, row.ratio_to_envoy].map(|ratio| ratio.map_or_else(dash, number));
        let figures = [row.median, row.min, row.max].map(number);
        let words = [row.measure.as_str(), row.unit, row.path, row.contender].map(str::to_owned);
        [&words[..], &figures[..], &ratios[..]].concat()
    });
    let mut table = vec![header.map(str::to_owned).to_vec()];
    table.extend(lines);
    markdown(&table)
}

fn path_table(rows: &[&Row]) -> Vec<Vec<String>> {
    let contenders = distinct(rows.iter().map(|row| row.contender));
    let ratios: Vec<Ratio> = contenders.iter().flat_map(|contender| ratios_of(contender, rows)).collect();
    let mut header = vec!["measure".to_owned(), "unit".to_owned()];
    header.extend(contenders.iter().map(|contender| (*contender).to_owned()));
    header.extend(ratios.iter().map(|ratio| format!("{} / {}", ratio.contender, ratio.baseline)));
    let mut table = vec![header];
    for measure in distinct(rows.iter().map(|row| row.measure.as_str())) {
        let of = |contender: &str| {
            rows.iter().find(|row| row.measure == measure && row.contender == contender).copied()
        };
        let unit = rows.iter().find(|row| row.measure == measure).map_or("", |row| row.unit);
        let mut line = vec![measure.to_owned(), unit.to_owned()];
        line.extend(
            contenders.iter().map(|contender| of(contender).map_or_else(dash, |row| number(row.median))),
        );
        line.extend(
            ratios
                .iter()
                .map(|ratio| of(ratio.contender).and_then(|row| (ratio.of)(row)).map_or_else(dash, number)),
        );
        table.push(line);
    }
    table
}

/// A column of ratios.
struct Ratio<'a> {
    contender: &'a str,
    baseline: &'static str,
    of: fn(&Row) -> Option<f64>,
}

/// Those that one of Signet's contenders has at all. The others' are among every figure.
fn ratios_of<'a>(contender: &'a str, rows: &[&Row]) -> Vec<Ratio<'a>> {
    if !contender.starts_with("signet") {
        return Vec::new();
    }
    let candidates = [
        Ratio { contender, baseline: DIRECT, of: |row| row.ratio_to_direct },
        Ratio { contender, baseline: ENVOY, of: |row| row.ratio_to_envoy },
    ];
    let known =
        |ratio: &Ratio<'_>| rows.iter().any(|row| row.contender == contender && (ratio.of)(row).is_some());
    candidates.into_iter().filter(known).collect()
}

fn title(path: &str) -> String {
    match path {
        "across" => "**Across two nodes**".to_owned(),
        "same-node" => "**On the same node**".to_owned(),
        "ca" => "**The CA**".to_owned(),
        "in-process" => "**A large mesh, in the engine's own tables**".to_owned(),
        other => format!("**{other}**"),
    }
}

fn distinct<'a>(values: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut distinct = Vec::new();
    for value in values {
        if !distinct.contains(&value) {
            distinct.push(value);
        }
    }
    distinct
}

/// Three significant digits, thousands apart.
pub(super) fn number(value: f64) -> String {
    let magnitude = value.abs();
    match magnitude {
        m if m >= 1_000.0 => thousands(value),
        m if m >= 100.0 => format!("{value:.0}"),
        m if m >= 10.0 => format!("{value:.1}"),
        m if m >= 0.1 || m == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let groups: Vec<String> =
        digits.as_bytes().rchunks(3).rev().map(|group| String::from_utf8_lossy(group).into_owned()).collect();
    format!("{}{}", if value < 0.0 { "-" } else { "" }, groups.join(","))
}

fn dash() -> String {
    "–".to_owned()
}

/// The first line is the header.
pub(super) fn markdown(table: &[Vec<String>]) -> String {
    let columns = table.first().map_or(0, Vec::len);
    let width = |column: usize| table.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (at, line) in table.iter().enumerate() {
        text += &markdown_line(line, &widths);
        if at == 0 {
            let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
            text += &markdown_line(&rule, &widths);
        }
    }
    text
}

fn markdown_line(cells: &[String], widths: &[usize]) -> String {
    let padded: Vec<String> =
        cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
    format!("| {} |\n", padded.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        let shown = [162_512.4, 312.4, 55.64, 1.052, 0.0123, 0.0, -2_048.0].map(number);
        assert_eq!(shown, ["162,512", "312", "55.6", "1.05", "0.0123", "0.00", "-2,048"]);
    }

    #[test]
    fn a_contender_without_a_figure_has_a_dash() {
        let rows = [row(DIRECT, "a", None), row("signet", "a", Some(0.5)), row("signet", "b", None)];
        let text = overview(&rows);
        assert!(text.contains("| measure | unit | direct | signet | signet / direct |"), "{text}");
        assert!(text.contains("| b       | s    | –      | 2.00   | –               |"), "{text}");
    }

    #[test]
    fn every_row_is_in_the_details() {
        let rows = [row(DIRECT, "a", None), row("signet", "a", Some(0.5))];
        assert_eq!(details(&rows).lines().count(), 2 + rows.len());
    }

    fn row(contender: &'static str, measure: &str, ratio_to_direct: Option<f64>) -> Row {
        let measure = measure.to_owned();
        let (median, min, max) = (2.0, 1.0, 3.0);
        Row {
            contender,
            path: "across",
            measure,
            unit: "s",
            median,
            min,
            max,
            ratio_to_direct,
            ratio_to_envoy: None,
        }
    }
}
