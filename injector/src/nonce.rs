//! Random nonces for the probes of pods.

use byrnie_proto::probes::Nonce;

/// A new one.
///
/// # Errors
/// One sentence: the system gives no random bytes.
pub(crate) fn new() -> Result<Nonce, &'static str> {
    let mut random = [0; 16];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| "the system's random source failed")?;
    Ok(Nonce::new(random))
}
