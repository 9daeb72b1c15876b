//! Aligned columns for people: plain text, the same on a terminal and in a pipe.

use serde_json::Value;

/// One column: its title and how a row fills it. The one place where a field is read for people.
pub(crate) struct Column {
    /// In capitals.
    pub(crate) title: &'static str,
    /// The cell of a row; `now` is in seconds since 1970.
    pub(crate) cell: fn(row: &Value, now: u64) -> String,
}

/// Lays rows out under their titles.
pub(crate) fn render(columns: &[Column], rows: &[Value], now: u64) -> String {
    let titles = columns.iter().map(|column| column.title.to_owned()).collect();
    let cells = |row| columns.iter().map(|column| (column.cell)(row, now)).collect();
    let lines: Vec<Vec<String>> = std::iter::once(titles).chain(rows.iter().map(cells)).collect();
    align(&lines)
}

/// Pads every cell but a line's last to its column's width, two spaces between.
pub(crate) fn align(lines: &[Vec<String>]) -> String {
    let lines: Vec<Vec<String>> =
        lines.iter().map(|line| line.iter().map(|cell| printable(cell)).collect()).collect();
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(|column| width(&lines, column)).collect();
    let mut text = String::new();
    for line in &lines {
        let padded: Vec<String> =
            line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        text.push_str(padded.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn width(lines: &[Vec<String>], column: usize) -> usize {
    lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
}

/// Names come from the cluster: a control character in one must not reach the terminal. An empty cell is `-`.
fn printable(cell: &str) -> String {
    if cell.is_empty() {
        return "-".into();
    }
    cell.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const COLUMNS: [Column; 2] = [
        Column { title: "NAME", cell: |row, _| row["name"].as_str().unwrap_or_default().into() },
        Column { title: "N", cell: |row, _| row["n"].to_string() },
    ];

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [json!({"name": "a-long-name", "n": 1}), json!({"name": "b", "n": 22})];
        assert_eq!(render(&COLUMNS, &rows, 0), "NAME         N\na-long-name  1\nb            22\n");
    }

    #[test]
    fn a_name_cannot_write_on_the_terminal() {
        let text = render(&COLUMNS, &[json!({"name": "\u{1b}[2Jx\n", "n": 1})], 0);
        assert!(!text.contains('\u{1b}') && text.lines().count() == 2, "{text:?}");
    }

    #[test]
    fn an_empty_list_still_shows_its_titles() {
        assert_eq!(render(&COLUMNS, &[], 0), "NAME  N\n");
    }
}
