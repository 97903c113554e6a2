//! Numbers as people read them: three digits, a unit that fits, the interval in brackets.

use super::{SMOKE, VOID};
use crate::results::{Claim, Comparison, Effect, Estimate};
use crate::stats::Bounds;

/// Three significant digits, no exponent: 0.0123, 1.23, 12.3, 123, 12300.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".into();
    }
    let magnitude = value.abs();
    if magnitude == 0.0 {
        return "0".into();
    }
    // Of the rounded value: 9.996 is 10.0, not 10.00.
    let order = (magnitude * (1.0 + 5e-4)).log10().floor() as i32;
    let decimals = (2 - order).clamp(0, 6) as usize;
    let text = if value == value.trunc() {
        format!("{value:.0}")
    } else {
        format!("{value:.decimals$}")
    };
    text.replace('-', "−")
}

/// The value in its unit, scaled where people would: 1530 µs is 1.53 ms, a share is per cent.
pub fn quantity(value: f64, unit: &str) -> String {
    let magnitude = value.abs();
    match unit {
        "µs" if magnitude >= 1e6 => format!("{} s", number(value / 1e6)),
        "µs" if magnitude >= 1e3 => format!("{} ms", number(value / 1e3)),
        "ms" if magnitude >= 1e3 => format!("{} s", number(value / 1e3)),
        "ns" if magnitude >= 1e3 => format!("{} µs", number(value / 1e3)),
        "MiB" if magnitude >= 2048.0 => format!("{} GiB", number(value / 1024.0)),
        "bytes" if magnitude >= 2e6 => format!("{} MB", number(value / 1e6)),
        "bytes" if magnitude >= 2e3 => format!("{} kB", number(value / 1e3)),
        "share" => percent(value),
        "×" => ratio(value),
        "" => number(value),
        _ => format!("{} {unit}", number(value)),
    }
}

/// 0.983 is "98.3 %".
pub fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    let near_an_end = !(10.0..90.0).contains(&percent);
    let decimals = usize::from(near_an_end && (percent - percent.round()).abs() >= 0.05);
    format!("{percent:.decimals$} %").replace('-', "−")
}

/// "p = 0.031", "p < 0.001".
pub fn p_value(p: f64) -> String {
    if p < 0.001 {
        "p < 0.001".into()
    } else {
        format!("p = {p:.3}")
    }
}

/// "1.31×"
pub fn ratio(value: f64) -> String {
    if value.abs() >= 100.0 {
        format!("{value:.0}×")
    } else if value.abs() >= 10.0 {
        format!("{value:.1}×")
    } else {
        format!("{value:.2}×")
    }
}

/// " [1.20, 1.52]", or nothing without an interval.
pub fn brackets(interval: Option<Bounds>, show: impl Fn(f64) -> String) -> String {
    interval
        .map(|bounds| format!(" [{}, {}]", show(bounds.low), show(bounds.high)))
        .unwrap_or_default()
}

/// "1.31× [1.20, 1.52]"
pub fn ratio_estimate(estimate: &Estimate) -> String {
    let bare = |value: f64| ratio(value).trim_end_matches('×').to_string();
    ratio(estimate.value) + &brackets(estimate.interval, bare)
}

/// "8.1 MiB [7.9, 8.3]"
pub fn quantity_estimate(estimate: &Estimate, unit: &str) -> String {
    quantity(estimate.value, unit)
        + &brackets(estimate.interval, |v| in_unit_of(v, estimate.value, unit))
}

/// A difference with its sign: "+120 µs [98, 141]".
fn difference_estimate(estimate: &Estimate, unit: &str) -> String {
    let sign = if estimate.value > 0.0 { "+" } else { "" };
    sign.to_string() + &quantity_estimate(estimate, unit)
}

/// The number in the unit that `quantity` would choose for `reference`, without naming it.
fn in_unit_of(value: f64, reference: f64, unit: &str) -> String {
    let magnitude = reference.abs();
    let divisor = match unit {
        "µs" if magnitude >= 1e6 => 1e6,
        "µs" | "ms" | "ns" if magnitude >= 1e3 => 1e3,
        "MiB" if magnitude >= 2048.0 => 1024.0,
        "bytes" if magnitude >= 2e6 => 1e6,
        "bytes" if magnitude >= 2e3 => 1e3,
        "share" => return percent(value),
        _ => 1.0,
    };
    number(value / divisor)
}

/// The effect with its interval, whatever may be claimed: "1.31× [1.20, 1.52]".
pub fn effect(comparison: &Comparison) -> String {
    match (&comparison.estimate, comparison.effect) {
        (None, _) => "–".into(),
        (Some(estimate), Effect::Ratio) => ratio_estimate(estimate),
        (Some(estimate), Effect::Difference) => difference_estimate(estimate, &comparison.unit),
    }
}

/// The effect as a half-sentence that does not say more than may be claimed.
pub fn finding(comparison: &Comparison) -> String {
    let effect = effect(comparison);
    match comparison.claim {
        Claim::Higher | Claim::Lower => effect,
        Claim::Equivalent => format!("{effect}, practically the same"),
        // What holds for the whole run is said once, before the sentence.
        Claim::NoClaim if matches!(comparison.reason.as_deref(), Some(SMOKE | VOID)) => effect,
        Claim::NoClaim => format!("{effect} (~{})", why_not(comparison)),
    }
}

/// ": reason; n blocks would settle it", as far as known.
fn why_not(comparison: &Comparison) -> String {
    let mut text = String::new();
    if let Some(reason) = &comparison.reason {
        text += &format!(": {reason}");
    }
    if let Some(blocks) = comparison.blocks_needed {
        text += &format!("; about {blocks} blocks would settle it");
    }
    text
}

/// The same text with spaces that do not break, where a line must not end: within an interval,
/// before a bracket or a unit.
pub fn unbroken(text: &str) -> String {
    const UNITS: [&str; 14] = [
        "µs", "ms", "ns", "s", "KiB", "MiB", "GiB", "%", "bytes", "kB", "MB", "pods", "key", "keys",
    ];
    let mut out = String::with_capacity(text.len());
    let mut words = text.split(' ').peekable();
    while let Some(word) = words.next() {
        out += word;
        let Some(next) = words.peek() else { break };
        let inside = word.starts_with('[') && word.ends_with(',');
        let opens = next.starts_with('[');
        let bare = next.trim_end_matches(['.', ',', ';', ')', ':']);
        let unit = UNITS.contains(&bare) && word.ends_with(|c: char| c.is_ascii_digit());
        out.push(if inside || opens || unit || word == "~" {
            '\u{a0}'
        } else {
            ' '
        });
    }
    out
}

/// A moment without its fraction of a second: "2026-01-02T03:04:05Z".
pub fn moment(rfc3339: &str) -> String {
    match rfc3339.split_once('.') {
        Some((seconds, fraction)) if fraction.ends_with('Z') => format!("{seconds}Z"),
        _ => rfc3339.to_string(),
    }
}

/// "1 block", "6 blocks".
pub fn plural(count: u32, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// "a, b and c".
pub fn list(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}
