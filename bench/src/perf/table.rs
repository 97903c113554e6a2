//! The table: medians over the blocks, and the ratios that the bar is set for.

use super::floor::Cores;
use super::{Measured, RATES, Subject};
use crate::arm::Arm;
use crate::stats;
use comfy_table::{Table, presets};
use std::fmt::Write as _;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quantity {
    /// At the first rate.
    Median,
    /// Of both proxies, at a rate.
    CpuPerRequest(usize),
    /// Of anyone who wakes up as often, at the first rate.
    Floor(Cores),
    CpuPerConnection,
    /// Of the server's proxy.
    CpuPerHandshake,
    IdleRss,
    IdleAnonymous,
    KibPerConnection,
    KibLeft,
    /// Without symbols.
    Binary,
}

impl Quantity {
    const ALL: [Self; 13] = [
        Self::Median,
        Self::CpuPerRequest(0),
        Self::CpuPerRequest(1),
        Self::CpuPerRequest(2),
        Self::Floor(Cores::One),
        Self::Floor(Cores::Two),
        Self::CpuPerConnection,
        Self::CpuPerHandshake,
        Self::IdleRss,
        Self::IdleAnonymous,
        Self::KibPerConnection,
        Self::KibLeft,
        Self::Binary,
    ];

    fn title(self) -> String {
        match self {
            Self::Median => format!("p50 at {}/s, µs", RATES[0]),
            Self::CpuPerRequest(2) => "proxy CPU per request at saturation, µs".to_owned(),
            Self::CpuPerRequest(at) => format!("proxy CPU per request at {}/s, µs", RATES[at]),
            Self::Floor(cores) => {
                let on = match cores {
                    Cores::One => "on one core",
                    Cores::Two => "on two cores",
                };
                format!("floor: four turns {on} at {}/s, µs", RATES[0])
            }
            Self::CpuPerConnection => "proxy CPU per new connection, µs".to_owned(),
            Self::CpuPerHandshake => "server's proxy CPU per mTLS handshake, µs".to_owned(),
            Self::IdleRss => "idle proxy, RSS, MiB".to_owned(),
            Self::IdleAnonymous => "idle proxy, anonymous, MiB".to_owned(),
            Self::KibPerConnection => "anonymous KiB per idle connection".to_owned(),
            Self::Binary => "stripped binary, MB".to_owned(),
            Self::KibLeft => "of that left 30 s after the close".to_owned(),
        }
    }

    fn digits(self) -> usize {
        match self {
            Self::Median
            | Self::CpuPerRequest(_)
            | Self::Floor(_)
            | Self::CpuPerConnection
            | Self::CpuPerHandshake => 0,
            _ => 1,
        }
    }
}

/// As Markdown.
pub fn render(subjects: &[Subject], measured: &Measured, seed: u64) -> String {
    let mut text = String::new();
    let titles = subjects.iter().map(|subject| subject.title());
    let mut values = table(std::iter::once("median of the blocks".to_owned()).chain(titles));
    for quantity in Quantity::ALL {
        let cells = subjects.iter().map(|subject| {
            // An idle proxy carries neither.
            let known = measured.get(&(quantity, *subject));
            known.and_then(|values| stats::median(values)).map_or_else(
                || "–".to_owned(),
                |value| format!("{value:.*}", quantity.digits()),
            )
        });
        values.add_row(std::iter::once(quantity.title()).chain(cells));
    }
    let _ = writeln!(text, "{values}\n");

    let mut ratios = table(["ratio [95 %]", "over", "value"].map(str::to_owned));
    let none = subjects.iter().find(|subject| subject.arm == Arm::None);
    for subject in subjects {
        let against = [
            (Quantity::Median, none.copied()),
            (Quantity::CpuPerRequest(0), subject.rival()),
            (Quantity::CpuPerRequest(1), subject.rival()),
            (Quantity::CpuPerRequest(2), subject.rival()),
            (Quantity::CpuPerConnection, subject.rival()),
            (Quantity::CpuPerHandshake, subject.rival()),
        ];
        for (quantity, other) in against {
            let Some(other) = other.filter(|other| other != subject) else {
                continue;
            };
            if let Some(ratio) = ratio(measured, quantity, *subject, other, seed) {
                let what = format!("{}: {}", subject.title(), quantity.title());
                ratios.add_row([what, other.title(), ratio]);
            }
        }
    }
    let _ = writeln!(text, "{ratios}");
    text
}

fn table(header: impl IntoIterator<Item = String>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header);
    table
}

fn ratio(
    measured: &Measured,
    quantity: Quantity,
    subject: Subject,
    other: Subject,
    seed: u64,
) -> Option<String> {
    let pairs: Vec<(f64, f64)> = measured
        .get(&(quantity, subject))?
        .iter()
        .copied()
        .zip(measured.get(&(quantity, other))?.iter().copied())
        .collect();
    let logs = stats::log_ratios(&pairs)?;
    let middle = stats::median(&logs)?.exp();
    let seed = stats::subseed(seed, &format!("{quantity:?}/{subject:?}"));
    Some(match stats::median_interval(&logs, seed) {
        Some(bounds) => {
            let bounds = bounds.map(f64::exp);
            format!("{middle:.2} [{:.2}, {:.2}]", bounds.low, bounds.high)
        }
        None => format!("{middle:.2}"),
    })
}
