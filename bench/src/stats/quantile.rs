//! Quantiles of histograms.

use hdrhistogram::Histogram;

/// Samples that must lie beyond a quantile before it is printed.
const SAMPLES_BEYOND: f64 = 100.0;

/// Whether n samples determine quantile q well enough to be printed: n·(1−q) ≥ 100.
pub fn quantile_is_printable(n: u64, q: f64) -> bool {
    // 10 000 · (1 − 0.99) is 100 in decimal and 99.999… in binary.
    n as f64 * (1.0 - q) >= SAMPLES_BEYOND * (1.0 - 1e-9)
}

/// The nearest-rank quantile: the ⌈q·n⌉-th smallest sample, to the histogram's precision, never
/// interpolated. Absent where it would not be printable.
pub fn quantile(histogram: &Histogram<u64>, q: f64) -> Option<u64> {
    quantile_is_printable(histogram.len(), q).then(|| histogram.value_at_quantile(q))
}
