//! The tunnel protocol `byrnie/1`.

/// Payloads of the control frames.
pub mod v1 {
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::indexing_slicing)]
    tonic::include_proto!("byrnie.tunnel.v1");
}
