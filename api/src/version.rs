//! Which of two versions is the later one.

/// Whether `one` is later than `other`, by their first three numbers. What has none (`latest`, a hash) is not later than
/// anything, and nothing is later than it; of pre-releases and their release none is.
pub fn is_newer(one: &str, other: &str) -> bool {
    let numbers = |text: &str| {
        let mut parts = text
            .trim_start_matches('v')
            .splitn(3, '.')
            .map(|part| part.split(|c: char| !c.is_ascii_digit()).next().and_then(|number| number.parse::<u64>().ok()));
        Some((parts.next()??, parts.next()??, parts.next()??))
    };
    matches!((numbers(one), numbers(other)), (Some(one), Some(other)) if one > other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert!(is_newer("0.10.0", "0.9.9"));
        assert!(is_newer("v1.0.0", "0.9.9"));
        assert!(!is_newer("0.1.0", "0.1.0"));
        assert!(!is_newer("0.1.0-rc1", "0.1.0"));
        for odd in ["", "latest", "1.2", "x.y.z", "99999999999999999999.0.0"] {
            assert!(!is_newer(odd, "0.1.0"), "{odd}");
            assert!(!is_newer("0.1.0", odd), "{odd}");
        }
    }
}
