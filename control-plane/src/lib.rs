//! The control plane: issuance, discovery, policy distribution.

pub mod hub;
pub mod journal;
pub mod limits;
pub mod model;
pub mod source;
pub mod state;
