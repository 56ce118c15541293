//! The sidecar proxy. It takes the TCP connections that capture brings it and turns every one between two pods of the
//! mesh into a stream of a mutually authenticated tunnel. The modules stand in the order in which the bytes meet them.

pub mod config;
pub mod limits;
pub mod shared;

mod sockets;
pub mod outbound;
pub mod balance;
pub mod tunnel;
pub mod inbound;
pub mod passthrough;
pub mod streams;

pub mod certificates;
pub mod control;
pub mod discovery;
pub mod model;
pub mod telemetry;
pub mod readiness;
pub mod admin;
pub mod run;
#[cfg(test)]
mod test_support;
