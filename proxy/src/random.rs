//! Random numbers for jitter, choice and names; none of them is a secret. Without a random source each has a fixed value,
//! and nothing but the spread is lost.

/// From 0 to 1, uniformly; a half without a random source.
pub(crate) fn fraction() -> f64 {
    let mut bytes = [0; 4];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 0.5,
    }
}

/// Any number.
pub(crate) fn number() -> u64 {
    u64::from_ne_bytes(bytes())
}

/// `N` bytes in lower-case hexadecimal.
pub(crate) fn hex<const N: usize>() -> String {
    bytes::<N>().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    bytes
}
