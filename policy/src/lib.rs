//! The policy model and its evaluation: pure functions, no I/O.
//!
//! The control plane compiles the objects that select a workload into [`Policies`]; the proxy of that workload asks
//! [`authorize`] before it dials the application, and [`authorize_egress`] before it dials anything outside of the
//! mesh. What forwards traffic demands the proofs that only these two make ([`Authorized`], [`AuthorizedEgress`]).
//! Nothing else in the project decides who may call whom.
//!
//! The meaning, in the order in which it is applied:
//!
//! 1. Deny beats allow.
//! 2. Any *enforced* Allow rule makes the workload default deny; where there is none,
//!    [`Policies::authorization_default`] holds. Rules in audit are a second evaluation that changes nothing.
//! 3. Where a rule needs a fact that is absent (an identity on plaintext), Deny matches and Allow does not.
//! 4. A TLS client outside of the mesh gets in by an ingress rule that names its identity, and by nothing else.
//! 5. Plaintext gets in under a `Permissive` that has not ended, and by nothing else; the default is strict.

mod decision;
mod error;
mod evaluate;
mod model;
mod proof;
#[cfg(test)]
mod testing;
mod wire;

pub use decision::{Decision, Reason};
pub use error::PolicyError;
pub use evaluate::{Caller, EgressRequest, Peer, Question, Request, evaluate, evaluate_egress, what_if};
pub use model::{
    Action, AuthorizationRule, DefaultAction, EgressRule, Enforcement, IngressRule, MtlsHolding, MtlsMode, MtlsRule,
    MtlsScope, MtlsTerms, PeerMatch, Policies, Ports, SpiffeIdPattern, parse_cidr,
};
pub use proof::{Authorized, AuthorizedEgress, authorize, authorize_egress};
