//! The sidecar proxy. It takes the TCP connections that capture brings it and turns every one between two pods of the
//! mesh into a stream of a mutually authenticated tunnel. Three groups of modules: what every part needs, the data path, and
//! what keeps it supplied and tells of it.

pub mod commands;
pub mod config;
pub mod limits;
mod moderation;
mod preemption;
mod random;
pub mod room;
pub mod shared;

pub mod balance;
pub mod http;
pub mod inbound;
pub mod outbound;
pub mod passthrough;
mod sockets;
pub mod streams;
pub mod tunnel;

pub mod admin;
pub mod certificates;
pub mod control;
pub mod discovery;
pub mod model;
pub mod probes;
pub mod readiness;
pub mod run;
pub mod telemetry;
#[cfg(test)]
mod test_support;
