//! When a system is warm: three successive 1-s medians of the response agree within 10 %.

use super::report::Warmup;

const SECOND_NS: u64 = 1_000_000_000;
const SUCCESSIVE: usize = 3;
const AGREEMENT: f64 = 1.10;

/// Collects warm-up responses by the second in which they were answered.
#[derive(Debug, Default)]
pub struct Settling {
    start_ns: u64,
    seconds: Vec<Vec<u64>>,
}

impl Settling {
    pub fn begin(&mut self, start_ns: u64) {
        self.start_ns = start_ns;
        self.seconds.clear();
    }

    pub fn answered(&mut self, done_ns: u64, response_ns: u64) {
        let second = (done_ns.saturating_sub(self.start_ns) / SECOND_NS) as usize;
        if self.seconds.len() <= second {
            self.seconds.resize_with(second + 1, Vec::new);
        }
        self.seconds[second].push(response_ns);
    }

    /// Whole seconds that have passed at `now_ns`.
    pub fn whole_seconds(&self, now_ns: u64) -> usize {
        (now_ns.saturating_sub(self.start_ns) / SECOND_NS) as usize
    }

    /// Whether the last three of the whole seconds before `now_ns` agree.
    pub fn settled(&self, now_ns: u64) -> bool {
        let medians = self.medians_us(now_ns);
        let Some(last) = medians
            .len()
            .checked_sub(SUCCESSIVE)
            .map(|from| &medians[from..])
        else {
            return false;
        };
        let slowest = last.iter().copied().fold(f64::MIN, f64::max);
        let fastest = last.iter().copied().fold(f64::MAX, f64::min);
        fastest > 0.0 && slowest / fastest <= AGREEMENT
    }

    pub fn summary(&self, now_ns: u64, requests: u64) -> Warmup {
        Warmup {
            seconds: now_ns.saturating_sub(self.start_ns) as f64 / SECOND_NS as f64,
            requests,
            medians_us: self.medians_us(now_ns),
            settled: self.settled(now_ns),
        }
    }

    fn medians_us(&self, now_ns: u64) -> Vec<f64> {
        let second = |index: usize| {
            self.seconds
                .get(index)
                .map_or(0.0, |responses| median_us(responses))
        };
        (0..self.whole_seconds(now_ns)).map(second).collect()
    }
}

fn median_us(responses_ns: &[u64]) -> f64 {
    let mut sorted = responses_ns.to_vec();
    sorted.sort_unstable();
    sorted
        .get(sorted.len() / 2)
        .map_or(0.0, |ns| *ns as f64 / 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(medians_us: &[u64]) -> (Settling, u64) {
        let mut settling = Settling::default();
        settling.begin(5);
        for (second, us) in medians_us.iter().enumerate() {
            for offset in 0..11 {
                settling.answered(
                    5 + second as u64 * SECOND_NS + offset,
                    (us + offset - 5) * 1_000,
                );
            }
        }
        (settling, 5 + medians_us.len() as u64 * SECOND_NS)
    }

    #[test]
    fn three_seconds_within_a_tenth_settle() {
        let (settling, now) = after(&[900, 400, 205, 200, 215]);
        assert!(settling.settled(now));
        assert_eq!(
            settling.summary(now, 55).medians_us,
            [900.0, 400.0, 205.0, 200.0, 215.0]
        );
    }

    #[test]
    fn two_seconds_or_a_falling_median_do_not() {
        let (settling, now) = after(&[200, 200]);
        assert!(!settling.settled(now));
        let (settling, now) = after(&[260, 230, 200]);
        assert!(!settling.settled(now));
    }

    #[test]
    fn an_unanswered_second_does_not_settle() {
        let (settling, now) = after(&[200, 200, 200]);
        assert!(settling.settled(now));
        assert!(!settling.settled(now + SECOND_NS));
    }
}
