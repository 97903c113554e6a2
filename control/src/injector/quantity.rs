//! Quantities, as in a container's resources: "100m", "1.5", "64Mi", "2e9".

use std::fmt;
use std::str::FromStr;

/// The longest that is looked at; a real one has a dozen characters.
const MAX_CHARS: usize = 32;
/// Digits after the point beyond these are below what Kubernetes keeps.
const NANO_DIGITS: usize = 9;
const NANO: i128 = 1_000_000_000;

/// A quantity that is not negative, and the text that it was written as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantity {
    text: String,
    nanos: i128,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no quantity")]
pub struct NoQuantity;

// === impl Quantity ===

impl Quantity {
    /// Whole units, rounded up.
    pub fn ceil(&self) -> u64 {
        u64::try_from((self.nanos + NANO - 1) / NANO).unwrap_or(u64::MAX)
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    pub fn exceeds(&self, other: &Self) -> bool {
        self.nanos > other.nanos
    }

    /// Whether both are as much, however they are written.
    pub fn equals(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl FromStr for Quantity {
    type Err = NoQuantity;

    fn from_str(text: &str) -> Result<Self, NoQuantity> {
        if text.len() > MAX_CHARS {
            return Err(NoQuantity);
        }
        let unsigned = text.strip_prefix('+').unwrap_or(text);
        let end = unsigned
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() && fraction.is_empty()
            || !digits(fraction)
            || fraction.len() > NANO_DIGITS
        {
            return Err(NoQuantity);
        }
        let whole: i128 = format!("0{whole}").parse().map_err(|_| NoQuantity)?;
        let fraction: i128 = format!("{fraction:0<NANO_DIGITS$}")
            .parse()
            .map_err(|_| NoQuantity)?;
        let (multiplier, divisor) = factor(suffix).ok_or(NoQuantity)?;
        let nanos = whole
            .checked_mul(NANO)
            .and_then(|whole| whole.checked_add(fraction))
            .and_then(|number| number.checked_mul(multiplier))
            .ok_or(NoQuantity)?;
        Ok(Self {
            text: text.to_owned(),
            nanos: nanos / divisor,
        })
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What a suffix multiplies by and divides by.
fn factor(suffix: &str) -> Option<(i128, i128)> {
    Some(match suffix {
        "n" => (1, NANO),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "" => (1, 1),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (NANO, 1),
        "T" => (1_000 * NANO, 1),
        "P" => (1_000_000 * NANO, 1),
        "E" => (NANO * NANO, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10i128.checked_pow(exponent.unsigned_abs())?;
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn quantity(text: &str) -> Quantity {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_as_much_is_equal() {
        for (a, b) in [
            ("1000m", "1"),
            ("1.5", "1500m"),
            (".5", "500m"),
            ("1.", "1"),
            ("1Ki", "1024"),
            ("1.5Gi", "1536Mi"),
            ("2e3", "2k"),
            ("2E3", "2k"),
            ("5e-1", "500m"),
            ("1E", "1e18"),
            ("+1", "1"),
        ] {
            assert!(quantity(a).equals(&quantity(b)), "{a} = {b}");
        }
        assert!(quantity("1Gi").exceeds(&quantity("1G")));
        assert_eq!(quantity("1001m").ceil(), 2);
        assert_eq!(quantity("64Mi").to_string(), "64Mi");
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in [
            "",
            "-1",
            "1 Mi",
            "1mi",
            "Mi",
            "1,5",
            "1.2.3",
            ".",
            "1e",
            "1e99",
            "64MB",
            "0x10",
            "half",
            "1.0000000001",
            "99999999999999999999999999999999E",
        ] {
            assert_eq!(Quantity::from_str(text), Err(NoQuantity), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "[0-9.eEkKMGinum+-]{0,40}") {
            let _ = Quantity::from_str(&text);
        }
    }
}
