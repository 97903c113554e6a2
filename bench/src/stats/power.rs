//! How many blocks a question needs, from the noise at hand.
//!
//! The median of n normal effects has variance (π/2)·σ²/n; what is asked for is 80 % power at a
//! two-sided 5 %. Effects are not normal, so the number is a plan and not a promise.

use super::MIN_BLOCKS;

/// z₀.₉₇₅ + z₀.₈
const DIFFERENCE: f64 = 1.959_964 + 0.841_621;
/// z₀.₉₇₅ + z₀.₉: 80 % power for both one-sided tests together when the truth is zero.
const EQUIVALENCE: f64 = 1.959_964 + 1.281_552;

/// Beyond this a number of blocks is no plan.
const MOST: f64 = 9999.0;

/// Blocks that would show an effect of `size` at noise `deviation` (same scale); `None` if it
/// would take more than 9999.
pub fn blocks_for_difference(deviation: f64, size: f64) -> Option<u32> {
    blocks(deviation, size.abs(), DIFFERENCE)
}

/// The smallest effect that so many blocks would show at noise `deviation` (same scale): the inverse of
/// [`blocks_for_difference`]. None below the blocks that an interval needs.
pub fn difference_shown(deviation: f64, blocks: u32) -> Option<f64> {
    (blocks as usize >= MIN_BLOCKS && deviation.is_finite())
        .then(|| DIFFERENCE * deviation * (std::f64::consts::FRAC_PI_2 / f64::from(blocks)).sqrt())
}

/// Blocks that would show an effect, now estimated as `size`, to lie within ±`margin`.
pub fn blocks_for_equivalence(deviation: f64, size: f64, margin: f64) -> Option<u32> {
    blocks(deviation, margin - size.abs(), EQUIVALENCE)
}

/// Blocks after which an interval that reaches to `reach` after so many would not reach to `limit`.
pub fn blocks_to_narrow(blocks: usize, reach: f64, limit: f64) -> Option<u32> {
    let n = blocks as f64 * (reach / limit).powi(2);
    (n <= MOST).then(|| n.ceil() as u32)
}

fn blocks(deviation: f64, distance: f64, z: f64) -> Option<u32> {
    if distance <= 0.0 || !deviation.is_finite() {
        return None;
    }
    let n = std::f64::consts::FRAC_PI_2 * (z * deviation / distance).powi(2);
    (n <= MOST).then(|| (n.ceil() as u32).max(MIN_BLOCKS as u32))
}
