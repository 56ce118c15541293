//! Proofs that a decision was taken and that it allows. What forwards traffic takes them by value.

use std::net::IpAddr;

use crate::{Decision, EgressRequest, Policies, Request, evaluate, evaluate_egress};

/// Proof that an inbound connection to one port of the workload was allowed. Only [`authorize`] makes it.
#[must_use]
#[derive(Debug)]
pub struct Authorized {
    port: u16,
    decision: Decision,
}

impl Authorized {
    /// The one port of the workload that it opens.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// What was decided, for the log.
    pub const fn decision(&self) -> &Decision {
        &self.decision
    }
}

/// Proof that a connection out of the mesh was allowed. Only [`authorize_egress`] makes it.
#[must_use]
#[derive(Debug)]
pub struct AuthorizedEgress {
    destination: IpAddr,
    port: u16,
    decision: Decision,
}

impl AuthorizedEgress {
    /// The one address that it opens.
    pub const fn destination(&self) -> IpAddr {
        self.destination
    }

    /// The one port there.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// What was decided, for the log.
    pub const fn decision(&self) -> &Decision {
        &self.decision
    }
}

/// Decides on an inbound connection.
///
/// # Errors
/// The decision, where it does not allow.
pub fn authorize(policies: &Policies, request: &Request<'_>) -> Result<Authorized, Decision> {
    let decision = evaluate(policies, request);
    if decision.allowed { Ok(Authorized { port: request.port, decision }) } else { Err(decision) }
}

/// Decides on a connection to an address outside of the cluster.
///
/// # Errors
/// The decision, where it does not allow.
pub fn authorize_egress(policies: &Policies, request: &EgressRequest<'_>) -> Result<AuthorizedEgress, Decision> {
    let decision = evaluate_egress(policies, request);
    if decision.allowed {
        Ok(AuthorizedEgress { destination: request.destination, port: request.port, decision })
    } else {
        Err(decision)
    }
}

#[cfg(test)]
mod tests;
