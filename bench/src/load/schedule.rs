//! When requests are due: a Poisson process, made from a seed before anything is measured.
//!
//! The same seed, rate and duration give the same schedule on every machine and for every arm. To keep that true
//! across versions of the random-number crates, only the raw ChaCha stream is used and the exponential gaps
//! are computed here. Warm-up draws from a stream of its own, so that its length (which depends on
//! when the system settles) cannot shift the measured schedule.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Which of the two independent random streams of a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Measured = 0,
    Warmup = 1,
}

/// An endless, strictly reproducible sequence of due times, in nanoseconds from the beginning.
#[derive(Clone, Debug)]
pub struct Schedule {
    random: ChaCha8Rng,
    mean_gap_ns: f64,
    at_ns: f64,
}

impl Schedule {
    /// `rate` is in requests per second and must be positive and finite.
    pub fn new(seed: u64, stream: Stream, rate: f64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(stream as u64);
        Self {
            random,
            mean_gap_ns: 1e9 / rate,
            at_ns: 0.0,
        }
    }

    /// The due times before `end_ns`, counted from the beginning.
    pub fn until(self, end_ns: u64) -> impl Iterator<Item = u64> {
        self.take_while(move |due| *due < end_ns)
    }
}

impl Iterator for Schedule {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        // 53 random bits in (0, 1]: the logarithm is finite.
        let uniform = ((self.random.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64;
        self.at_ns -= uniform.ln() * self.mean_gap_ns;
        Some(self.at_ns as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_seed_gives_one_schedule() {
        let schedule = |seed| {
            Schedule::new(seed, Stream::Measured, 500.0)
                .until(5 * SECOND)
                .collect::<Vec<_>>()
        };
        assert_eq!(schedule(7), schedule(7));
        assert_ne!(schedule(7), schedule(8));
        let warmup: Vec<_> = Schedule::new(7, Stream::Warmup, 500.0)
            .until(5 * SECOND)
            .collect();
        assert_ne!(schedule(7), warmup);
    }

    /// Pins the first values, so that a dependency's update cannot silently change every schedule.
    #[test]
    fn seed_7_is_pinned() {
        let first: Vec<u64> = Schedule::new(7, Stream::Measured, 1_000.0)
            .take(4)
            .collect();
        assert_eq!(first, PINNED);
    }
    const PINNED: [u64; 4] = [1_846_451, 3_630_306, 3_980_890, 4_300_075];

    #[test]
    fn gaps_are_exponential() {
        let dues: Vec<u64> = Schedule::new(3, Stream::Measured, 1_000.0)
            .take(50_000)
            .collect();
        let gaps: Vec<f64> = dues
            .windows(2)
            .map(|w| (w[1] - w[0]) as f64 / 1e6)
            .collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean - 1.0).abs() < 0.02, "mean gap {mean} ms");
        assert!(
            (variance.sqrt() / mean - 1.0).abs() < 0.03,
            "coefficient of variation"
        );
        let beyond_mean = gaps.iter().filter(|g| **g > 1.0).count() as f64 / gaps.len() as f64;
        assert!(
            (beyond_mean - (-1.0f64).exp()).abs() < 0.01,
            "P(gap > mean) = {beyond_mean}"
        );
    }

    #[test]
    fn until_stops_before_the_end() {
        let dues: Vec<u64> = Schedule::new(1, Stream::Measured, 100.0)
            .until(2 * SECOND)
            .collect();
        assert!(dues.iter().all(|due| *due < 2 * SECOND));
        assert!((150..250).contains(&dues.len()));
    }
}
