//! The control plane: it issues identities to proxies, and tells them where to connect and what is allowed.
//!
//! From the outside in: [`ControlPlane`] starts and ends the parts; `server` has the doors; `certify` and `watch` the
//! calls behind them; [`hub`] the subscriptions; [`model`] the mesh as it is; [`source`] where it comes from;
//! [`journal`] what must not be forgotten.

mod arguments;
mod certificates;
mod certify;
mod health;
pub mod hub;
pub mod journal;
mod kubernetes;
pub mod limits;
pub mod model;
mod plane;
mod proxies;
mod publish;
mod run;
mod server;
pub mod source;
pub mod state;
mod watch;

pub use self::{
    arguments::{Arguments, LogFormat},
    run::{ControlPlane, Options, RunError, SourceKind, StartProblems},
};
