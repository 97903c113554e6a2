//! Order statistics of a handful of numbers.

/// The median; the mean of the middle two for an even count; `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    median_of_sorted(&sorted)
}

pub(super) fn median_of_sorted(sorted: &[f64]) -> Option<f64> {
    let n = sorted.len();
    match n {
        0 => None,
        _ if n % 2 == 1 => Some(sorted[n / 2]),
        _ => Some(middle(sorted[n / 2 - 1], sorted[n / 2])),
    }
}

/// The mean of two; equal infinities have none by arithmetic.
pub(super) fn middle(low: f64, high: f64) -> f64 {
    if low == high { low } else { (low + high) / 2.0 }
}

/// Standard deviation as the larger of the usual estimate and 1.4826 times the median absolute
/// deviation: planning from six numbers should err towards more blocks, not fewer.
pub fn deviation(values: &[f64]) -> Option<f64> {
    if values.len() < 2 {
        return None;
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let usual = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
    let middle = median(values)?;
    let distances: Vec<f64> = values.iter().map(|v| (v - middle).abs()).collect();
    Some(usual.max(1.4826 * median(&distances)?))
}

/// Ranks from 1, ties sharing the mean of theirs, doubled so that they are integers.
pub fn ranks(values: &[f64]) -> Vec<u64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut doubled = vec![0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let mut end = start + 1;
        while end < order.len() && values[order[end]] == values[order[start]] {
            end += 1;
        }
        for &index in &order[start..end] {
            doubled[index] = (start + 1 + end) as u64;
        }
        start = end;
    }
    doubled
}
