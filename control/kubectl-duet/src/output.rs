//! Text for people: tables as kubectl's, ages, sizes.

use crate::cluster::Error;
use comfy_table::Table;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use std::io::Write;
use std::time::Duration;

pub fn print(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

pub fn print_json(value: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::Local(format!("writing JSON: {error}")))?;
    print(&(text + "\n"))
}

/// Columns side by side, nothing drawn between them.
pub fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// As kubectl writes ages: the largest one or two units.
pub fn age(seconds: i64) -> String {
    let s = seconds.max(0);
    match (s / 60, s / 3600, s / 86400) {
        (0..2, ..) => format!("{s}s"),
        (m @ 2..10, ..) if s % 60 != 0 => format!("{m}m{}s", s % 60),
        (m @ 2..180, ..) => format!("{m}m"),
        (m, h @ 3..8, _) if m % 60 != 0 => format!("{h}h{}m", m % 60),
        (_, h @ 3..48, _) => format!("{h}h"),
        (_, h, d @ 2..8) if h % 24 != 0 => format!("{d}d{}h", h % 24),
        (.., d @ 2..730) => format!("{d}d"),
        (.., d) if d < 365 * 8 && d % 365 != 0 => format!("{}y{}d", d / 365, d % 365),
        (.., d) => format!("{}y", d / 365),
    }
}

pub fn since(time: Timestamp, now: Timestamp) -> String {
    age(now.as_second() - time.as_second())
}

/// "in 3h", "3h ago".
pub fn from_now(time: i64, now: i64) -> String {
    if time >= now {
        format!("in {}", age(time - now))
    } else {
        format!("{} ago", age(now - time))
    }
}

/// Three digits at most before the unit.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ if value < 9.95 => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

pub fn took(time: Duration) -> String {
    let us = time.as_micros();
    match us {
        0..1000 => format!("{us}us"),
        1000..10_000 => format!("{:.1}ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{}ms", us / 1000),
        1_000_000..60_000_000 => format!("{:.1}s", us as f64 / 1e6),
        _ => age(i64::try_from(time.as_secs()).unwrap_or(i64::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_written_as_kubectl_writes_them() {
        for (seconds, text) in [
            (-5, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (610, "10m"),
            (179 * 60, "179m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (8 * 3600 + 60, "8h"),
            (47 * 3600, "47h"),
            (48 * 3600, "2d"),
            (49 * 3600, "2d1h"),
            (8 * 86400 + 3600, "8d"),
            (400 * 86400, "400d"),
            (800 * 86400, "2y70d"),
            (3650 * 86400, "10y"),
        ] {
            assert_eq!(age(seconds), text, "{seconds}");
        }
        assert_eq!(from_now(100, 40), "in 60s");
        assert_eq!(from_now(40, 100), "60s ago");
    }

    #[test]
    fn sizes_and_times_have_few_digits() {
        let sizes = [
            0,
            999,
            1000,
            9_940,
            9_960,
            123_456,
            999_499,
            999_600,
            5_000_000_000,
        ];
        let written = [
            "0 B", "999 B", "1.0 kB", "9.9 kB", "10 kB", "123 kB", "999 kB", "1.0 MB", "5.0 GB",
        ];
        assert_eq!(sizes.map(bytes), written);
        let times = [250, 1_250, 12_500, 1_500_000, 90_000_000];
        let written = ["250us", "1.2ms", "12ms", "1.5s", "90s"];
        assert_eq!(times.map(|us| took(Duration::from_micros(us))), written);
    }

    #[test]
    fn a_table_is_as_wide_as_its_words() {
        let rows = [["web-0".to_owned(), "1/1".to_owned()]];
        assert_eq!(
            table(["NAME", "READY"], rows),
            "NAME    READY\nweb-0   1/1\n"
        );
    }
}
