//! Tables, human sizes and times: data on stdout, as Docker lays it out.

use anyhow::Result;
use serde_json::{Map, Value};

use crate::{say, template::Template};

/// A list that `--format` may lay out.
#[derive(Debug)]
pub struct Listing {
    /// Go template of the default table, after `table `.
    pub default: &'static str,
    /// Field to heading, where it is not the field in capitals.
    pub headings: &'static [(&'static str, &'static str)],
    /// One object a row.
    pub rows: Vec<Value>,
}

impl Listing {
    /// Prints it: `quiet` shows that field alone.
    ///
    /// # Errors
    /// Where the template does not parse or names what a row does not have.
    pub fn print(&self, format: Option<&str>, quiet: Option<&str>) -> Result<()> {
        let terminal = crate::terminal::stdout_is_terminal();
        out!("{}", self.text(format, quiet, terminal)?);
        Ok(())
    }

    fn text(&self, format: Option<&str>, quiet: Option<&str>, terminal: bool) -> Result<String> {
        if let (Some(field), None) = (quiet, format) {
            let lines = self
                .rows
                .iter()
                .map(|row| format!("{}\n", row[field].as_str().unwrap_or_default()));
            return Ok(lines.collect());
        }
        let format = format.unwrap_or("table").replace("\\t", "\t").replace("\\n", "\n");
        match format.as_str() {
            "json" => self.plain("{{json .}}"),
            "table" => self.table(self.default, terminal),
            text => match text.strip_prefix("table ") {
                Some(columns) => self.table(columns, terminal),
                None => self.plain(text),
            },
        }
    }

    fn plain(&self, template: &str) -> Result<String> {
        let template = Template::parse(template)?;
        let mut out = String::new();
        for row in &self.rows {
            out.push_str(&template.render(row)?);
            out.push('\n');
        }
        Ok(out)
    }

    fn table(&self, columns: &str, terminal: bool) -> Result<String> {
        let template = Template::parse(columns)?;
        let mut lines = vec![template.heading(|field| self.heading(field))];
        for row in &self.rows {
            lines.push(match terminal {
                true => template.render(&cells(row))?,
                false => template.render(row)?,
            });
        }
        Ok(align(&lines))
    }

    fn heading(&self, field: &str) -> String {
        match self.headings.iter().find(|(known, _)| *known == field) {
            Some((_, heading)) => (*heading).to_owned(),
            None => field.to_uppercase(),
        }
    }
}

/// Cells with tabs between them, for [`align_wide`].
pub fn joined(cells: &[String]) -> String {
    cells.iter().map(|cell| say::shown(cell)).collect::<Vec<_>>().join("\t")
}

/// A row whose texts begin no lines and no columns of their own.
fn cells(row: &Value) -> Value {
    match row {
        Value::String(text) => say::cell_for_terminal(text).into(),
        Value::Array(items) => items.iter().map(cells).collect(),
        Value::Object(fields) => {
            let shown = fields.iter();
            shown.map(|(key, value)| (key.clone(), cells(value))).collect::<Map<_, _>>().into()
        }
        other => other.clone(),
    }
}

/// Lays tab-separated cells out in columns, three spaces apart and no less than
/// ten wide (Go `text/tabwriter` as Docker sets it up).
pub fn align(lines: &[String]) -> String {
    align_wide(lines, 10)
}

/// The same with columns no less than `least` wide.
pub fn align_wide(lines: &[String], least: usize) -> String {
    let rows: Vec<Vec<&str>> = lines.iter().map(|line| line.split('\t').collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|at| {
            // A cell that ends its line does not widen the column.
            let cells =
                rows.iter().filter(|row| at + 1 < row.len()).map(|row| row[at].chars().count() + 3);
            cells.max().unwrap_or(0).max(least)
        })
        .collect();
    let mut out = String::new();
    for row in rows {
        for (at, cell) in row.iter().enumerate() {
            if at + 1 == row.len() {
                out.push_str(cell);
            } else {
                // Not by a format's width, which ends at 65,535.
                let gap = widths[at].saturating_sub(cell.chars().count());
                out.push_str(cell);
                out.extend(std::iter::repeat_n(' ', gap));
            }
        }
        out.push('\n');
    }
    out
}

/// Powers of 1000 with three digits: `1.24MB` (docker/go-units `HumanSizeWithPrecision`).
pub fn size(bytes: i64) -> String {
    scaled(bytes as f64, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"], 3)
}

/// The same with four digits: `1.982MB` (docker/go-units `HumanSize`), for totals.
pub fn whole_size(bytes: i64) -> String {
    scaled(bytes as f64, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"], 4)
}

/// Powers of 1024: `15.6MiB` (docker/go-units `BytesSize`).
pub fn binary_size(bytes: u64) -> String {
    scaled(bytes as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"], 4)
}

/// Go's `%.{digits}g` and the unit.
fn scaled(mut value: f64, base: f64, units: &[&str], digits: usize) -> String {
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let before = if value >= 1.0 { value.log10().floor() as usize + 1 } else { 1 };
    let text = format!("{value:.*}", digits.saturating_sub(before));
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{}", units[unit])
}

/// `5 minutes`, `About an hour`, `2 weeks` (docker/go-units `HumanDuration`).
pub fn duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds as f64 / 3600.0).round() as i64);
    match (seconds, minutes, hours) {
        (..1, ..) => "Less than a second".into(),
        (1, ..) => "1 second".into(),
        (2..60, ..) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".into(),
        (_, 2..60, _) => format!("{minutes} minutes"),
        (.., 1) => "About an hour".into(),
        (.., 2..48) => format!("{hours} hours"),
        (.., 48..336) => format!("{} days", hours / 24),
        (.., 336..1440) => format!("{} weeks", hours / 24 / 7),
        (.., 1440..17520) => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// How long ago a time in seconds since 1970 was.
pub fn ago(seconds: i64) -> String {
    format!("{} ago", duration(jiff::Timestamp::now().as_second().saturating_sub(seconds)))
}

/// A time in seconds since 1970 as Go prints it: `2026-01-01 00:00:00 +0000 UTC`.
pub fn time(seconds: i64) -> String {
    match jiff::Timestamp::from_second(seconds) {
        Ok(time) => time
            .to_zoned(jiff::tz::TimeZone::system())
            .strftime("%Y-%m-%d %H:%M:%S %z %Z")
            .to_string(),
        Err(_) => String::new(),
    }
}

/// An error and its causes, but for those that the one before names already.
pub fn chain(error: &anyhow::Error) -> String {
    let mut words: Vec<String> = Vec::new();
    for cause in error.chain() {
        let mut cause = cause.to_string();
        // The system's own words, as Go has them.
        if let Some(plain) = cause.find(" (os error").map(|at| cause[..at].to_owned()) {
            cause = plain
                .chars()
                .take(1)
                .flat_map(char::to_lowercase)
                .chain(plain.chars().skip(1))
                .collect();
        }
        if words.last().is_none_or(|before| !before.contains(&cause)) {
            words.push(cause);
        }
    }
    words.join(": ")
}

/// An RFC 3339 time as Go prints it: `2026-01-01 00:00:00.5 +0000 UTC`.
pub fn go_time(text: &str) -> String {
    match text.parse::<jiff::Timestamp>() {
        Ok(time) => time
            .to_zoned(jiff::tz::TimeZone::UTC)
            .strftime("%Y-%m-%d %H:%M:%S%.f %z %Z")
            .to_string(),
        Err(_) => text.to_owned(),
    }
}

/// The first twelve digits of an id, without its algorithm.
pub fn short(id: &str) -> &str {
    let hex = id.strip_prefix("sha256:").unwrap_or(id);
    hex.get(..12).unwrap_or(hex)
}

/// At most `most` characters, the last of them `…` where it was longer.
pub fn ellipsis(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_docker_prints_them() {
        for (bytes, want) in [
            (0, "0B"),
            (999, "999B"),
            (1240, "1.24kB"),
            (5_270_000, "5.27MB"),
            (72_800_000, "72.8MB"),
        ] {
            assert_eq!(size(bytes), want);
        }
        assert_eq!(binary_size(32 << 20), "32MiB");
        assert_eq!(binary_size(1_234_567), "1.177MiB");
    }

    #[test]
    fn durations_as_docker_prints_them() {
        for (seconds, want) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (300, "5 minutes"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (3 * 86_400, "3 days"),
            (21 * 86_400, "3 weeks"),
            (90 * 86_400, "3 months"),
            (800 * 86_400, "2 years"),
        ] {
            assert_eq!(duration(seconds), want, "{seconds}");
        }
    }

    fn listing(mark: &str) -> Listing {
        let rows = vec![serde_json::json!({ "ID": "1", "Mark": mark, "Name": "x" })];
        Listing { default: "{{.ID}}\t{{.Mark}}\t{{.Name}}", headings: &[], rows }
    }

    #[test]
    fn a05_a_label_is_one_cell_of_a_terminals_table() {
        let hostile = listing("a\nroot\tx\u{1b}[2J");
        let text = |format, terminal| hostile.text(format, None, terminal).unwrap();
        assert_eq!(
            text(None, true),
            "ID        MARK                NAME\n1         a\\nroot\\tx\\x1b[2J   x\n"
        );
        // Elsewhere, and by a template of the user's own, as Docker's client.
        assert!(text(None, false).contains("a\nroot"));
        assert_eq!(text(Some("{{.Mark}}"), true), "a\nroot\tx\u{1b}[2J\n");
        assert!(text(Some("json"), true).contains("a\\nroot\\tx\\u001b[2J"));
    }

    #[test]
    fn a13_no_cell_is_too_wide() {
        let text = listing(&"x".repeat(100_000)).text(None, None, false).unwrap();
        assert_eq!(text.lines().nth(1).unwrap().len(), 10 + 100_003 + 1);
    }

    #[test]
    fn columns_are_aligned() {
        let lines = ["ID\tNAME".to_owned(), "0123456789ab\tx".to_owned()];
        assert_eq!(align(&lines), "ID             NAME\n0123456789ab   x\n");
    }
}
