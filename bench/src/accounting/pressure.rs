//! CPU pressure stall information: for how long someone waited for a processor.

use super::{Error, lacks, read};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;

/// The `some` line's total: time in which at least one task was runnable and
/// not running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CpuPressure(pub Duration);

const MACHINE: &str = "/proc/pressure/cpu";

impl CpuPressure {
    /// Of the whole machine; `None` where the kernel keeps no such figures.
    pub fn read() -> Option<Self> {
        Self::of(Path::new(MACHINE)).ok()
    }

    /// Of one cgroup: its `cpu.pressure` file. Present in the v2 tree even where
    /// the cpu controller itself is v1.
    pub fn of(file: &Path) -> Result<Self, Error> {
        Self::parse(&read(file)?).ok_or_else(lacks(file, "\"some … total=\""))
    }

    fn parse(text: &str) -> Option<Self> {
        let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
        let total = some
            .split_whitespace()
            .find_map(|field| field.strip_prefix("total="))?;
        Some(Self(Duration::from_micros(total.parse().ok()?)))
    }

    /// The share of `window` in which someone waited, 0 to 1.
    pub fn share_since(self, earlier: Self, window: Duration) -> f64 {
        if window.is_zero() {
            return 0.0;
        }
        self.0.saturating_sub(earlier.0).as_secs_f64() / window.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_not_full() {
        let text = "some avg10=1.23 avg60=0.90 avg300=3.68 total=94522432\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let read = CpuPressure::parse(text).unwrap();
        assert_eq!(read.0, Duration::from_micros(94_522_432));
        let later = CpuPressure(read.0 + Duration::from_millis(250));
        assert!((later.share_since(read, Duration::from_secs(1)) - 0.25).abs() < 1e-9);
    }

    #[test]
    fn no_some_line() {
        assert_eq!(CpuPressure::parse("full total=3\n"), None);
    }
}
