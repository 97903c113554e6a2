//! The words in which traffic is described, in the file and in annotations alike.

use std::ops::RangeInclusive;
use std::time::Duration;

/// The longest time that can be said; Gateway API's durations end there too (GEP-2257).
const LONGEST: Duration = Duration::from_secs(100 * 60 * 60);

/// A time, as "10s", "1m30s" or "250ms", in milliseconds.
///
/// # Errors
/// What it is not, and what to write instead.
pub fn millis(text: &str) -> Result<u32, String> {
    let time = humantime::parse_duration(text).ok();
    let whole = time.filter(|time| time.subsec_nanos() % 1_000_000 == 0);
    match whole {
        Some(time) if !time.is_zero() && time <= LONGEST => {
            Ok(u32::try_from(time.as_millis()).unwrap_or(u32::MAX))
        }
        _ => Err(format!(
            "{text:?} is not a time: write one from 1ms to 100h, as 250ms, 10s or 1m30s"
        )),
    }
}

/// A number in `range`.
///
/// # Errors
/// What it is not, and what to write instead.
pub fn number(text: &str, range: RangeInclusive<u32>) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| {
        format!(
            "{text:?} is not known here: write a number from {} to {}",
            range.start(),
            range.end()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_or_refused_with_a_remedy() {
        assert_eq!(millis("250ms"), Ok(250));
        assert_eq!(millis("1m30s"), Ok(90_000));
        for wrong in ["", "10", "-1s", "0s", "1us", "101h", "soon"] {
            assert!(millis(wrong).unwrap_err().contains("10s"), "{wrong:?}");
        }
        assert_eq!(number("7", 1..=10), Ok(7));
        for wrong in ["0", "11", "", "x", "-1"] {
            assert!(number(wrong, 1..=10).is_err(), "{wrong:?}");
        }
    }
}
