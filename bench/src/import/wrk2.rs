//! wrk2's text: its spectrum of percentiles, in ms.

use super::Found;

const LOAD: &str =
    "constant rate over a fixed number of connections; timed from when each request was due";

pub fn parse(text: &str) -> Result<Found, String> {
    if !text.contains("HdrHistogram - Recorded Latency") {
        return Err(
            "there is no \"Latency Distribution (HdrHistogram - Recorded Latency)\"; run wrk2 with --latency \
             (wrk without a 2 has no constant rate)"
                .into(),
        );
    }
    let (mut requests, mut timed, mut duration_s) = (None, 0, None);
    let (mut rate, mut failed) = (None, 0);
    let mut quantiles = Vec::new();
    let mut spectrum = false;
    // "Recorded" is timed from when it was due; "Uncorrected", which -U adds, is not.
    let end = text.find("HdrHistogram - Uncorrected Latency");
    for line in text[..end.unwrap_or(text.len())].lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["Detailed", "Percentile", "spectrum:"] => {
                // Finer than the eight lines before it.
                quantiles.clear();
                spectrum = true;
            }
            [value, share, count, _] if spectrum => {
                let (Ok(ms), Ok(share), Ok(count)) = (
                    value.parse::<f64>(),
                    share.parse::<f64>(),
                    count.parse::<u64>(),
                ) else {
                    continue;
                };
                quantiles.push((share, ms * 1000.0));
                timed = count;
            }
            [share, time] if !spectrum && share.ends_with('%') => {
                let share = share.trim_end_matches('%').parse::<f64>();
                if let (Ok(share), Some(us)) = (share, micros(time)) {
                    quantiles.push((share / 100.0, us));
                }
            }
            _ => {}
        }
    }
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [count, "requests", "in", time, ..] => {
                requests = count.parse::<u64>().ok();
                duration_s = micros(time.trim_end_matches(',')).map(|us| us / 1e6);
            }
            ["Non-2xx", "or", "3xx", "responses:", count] => {
                failed += count.parse::<u64>().unwrap_or(0);
            }
            ["Socket", "errors:", counts @ ..] => {
                let counts = counts
                    .iter()
                    .filter_map(|word| word.trim_end_matches(',').parse::<u64>().ok());
                failed += counts.sum::<u64>();
            }
            ["Requests/sec:", value] => rate = value.parse().ok(),
            _ => {}
        }
    }
    Ok(Found {
        tool: "wrk2".into(),
        load: LOAD,
        // Those of the calibration are not timed.
        requests: match timed {
            0 => requests.ok_or("there is no line \"… requests in …\"")?,
            timed => timed,
        },
        failed,
        rate: rate.ok_or("there is no line \"Requests/sec:\"")?,
        duration_s: duration_s.ok_or("the line \"… requests in …\" has no time")?,
        quantiles,
    })
}

/// "6.67ms", "921.00us", "1.02s", "2.00m".
fn micros(text: &str) -> Option<f64> {
    const UNITS: [(&str, f64); 5] = [
        ("us", 1.0),
        ("ms", 1e3),
        ("s", 1e6),
        ("m", 60e6),
        ("h", 3600e6),
    ];
    let (unit, factor) = UNITS.iter().find(|(unit, _)| text.ends_with(unit))?;
    let value: f64 = text.strip_suffix(unit)?.parse().ok()?;
    Some(value * factor)
}
