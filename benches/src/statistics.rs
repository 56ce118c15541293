//! Medians, spreads and percentiles.

use std::time::Duration;

/// Median, least and greatest; the median of an even number is the mean of the two in the middle.
pub(crate) fn spread(values: &mut [f64]) -> Option<(f64, f64, f64)> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    let median = if values.len() % 2 == 1 { upper } else { f64::midpoint(*values.get(middle - 1)?, upper) };
    Some((median, *values.first()?, *values.last()?))
}

/// The nearest rank, in milliseconds; `None` where there are no samples. Sorts them.
pub(crate) fn percentile(samples: &mut [Duration], percent: usize) -> Option<f64> {
    samples.sort_unstable();
    let at = (samples.len() * percent).div_ceil(100).saturating_sub(1);
    samples.get(at).map(|sample| sample.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_one_in_the_middle_or_the_mean_of_two() {
        assert_eq!(spread(&mut [3.0, 1.0, 2.0]), Some((2.0, 1.0, 3.0)));
        assert_eq!(spread(&mut [4.0, 1.0, 2.0, 3.0]), Some((2.5, 1.0, 4.0)));
        assert_eq!(spread(&mut []), None);
    }

    #[test]
    fn a_percentile_is_the_sample_of_the_nearest_rank() {
        let mut samples: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&mut samples, 50), Some(50.0));
        assert_eq!(percentile(&mut samples, 99), Some(99.0));
        assert_eq!(percentile(&mut [], 50), None);
    }
}
