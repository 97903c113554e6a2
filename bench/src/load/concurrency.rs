//! How many requests are under way, on the mean: the left side of Little's law, L = λ·W.
//!
//! The right side comes from the schedule and the histogram of responses. Both describe the same requests by
//! different bookkeeping: here a level that rises and falls and the clock between its changes, there one number
//! per answer. Where they disagree, requests were lost, counted twice or recorded with a wrong time, and no
//! quantile of that trial means anything.

/// The level of requests under way, and its integral over time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Concurrency {
    under_way: u64,
    at_ns: u64,
    request_ns: i128,
}

impl Concurrency {
    /// A request that was due at `intended_ns` is looked at.
    pub fn arrived(&mut self, intended_ns: u64, now_ns: u64) {
        self.advance(now_ns);
        self.under_way += 1;
        // It has been in the system since it was due.
        self.request_ns += i128::from(self.at_ns) - i128::from(intended_ns);
    }

    /// It ended; `counted_ns` is what the distribution of responses holds for it, if anything.
    pub fn left(&mut self, intended_ns: u64, now_ns: u64, counted_ns: Option<u64>) {
        self.advance(now_ns);
        self.under_way = self.under_way.saturating_sub(1);
        // The clock of an answer may lie before that of a later event which was handled first.
        self.request_ns -= i128::from(self.at_ns) - i128::from(now_ns);
        let spent_ns = i128::from(now_ns) - i128::from(intended_ns);
        match counted_ns {
            // A time-out counts for its whole length, however soon it was noticed.
            Some(counted_ns) if i128::from(counted_ns) != spent_ns => {
                self.request_ns += i128::from(counted_ns) - spent_ns;
            }
            Some(_) => {}
            None => self.request_ns -= spent_ns,
        }
    }

    /// Mean over a window of that length.
    pub fn mean(&self, window_ns: u64) -> f64 {
        if window_ns == 0 {
            return 0.0;
        }
        self.request_ns as f64 / window_ns as f64
    }

    fn advance(&mut self, now_ns: u64) {
        let passed_ns = now_ns.saturating_sub(self.at_ns);
        if self.under_way > 0 {
            self.request_ns += i128::from(self.under_way) * i128::from(passed_ns);
        }
        self.at_ns = self.at_ns.max(now_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_is_weighted_by_time() {
        let mut level = Concurrency::default();
        level.arrived(100, 100);
        level.arrived(200, 200);
        level.left(100, 300, Some(200));
        level.left(200, 700, Some(500));
        assert_eq!(level.mean(1000), 0.7);
    }

    #[test]
    fn lateness_counts_and_order_does_not() {
        let mut level = Concurrency::default();
        level.arrived(100, 150);
        level.arrived(120, 151);
        level.left(100, 140, Some(40));
        level.left(120, 220, Some(100));
        assert_eq!(level.mean(1000), 0.14);
    }

    #[test]
    fn what_the_distribution_leaves_out_is_left_out_here() {
        let mut level = Concurrency::default();
        level.arrived(0, 0);
        level.left(0, 400, None);
        assert_eq!(level.mean(1000), 0.0);
        level.arrived(500, 500);
        level.left(500, 1499, Some(1000));
        assert_eq!(level.mean(1000), 1.0);
    }

    /// A request that ends twice, or never, shows.
    #[test]
    fn an_error_of_the_books_shows() {
        let mut level = Concurrency::default();
        level.arrived(0, 0);
        level.arrived(0, 0);
        level.left(0, 100, Some(100));
        level.left(0, 100, Some(100));
        level.left(0, 900, Some(900));
        assert!((level.mean(1000) - 1.1).abs() > 0.5);
    }
}
