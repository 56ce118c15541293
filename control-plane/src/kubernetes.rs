//! What the control plane asks the API server, and what it writes there: who a token belongs to, the root that all
//! replicas share, and (one replica at a time) what others read. Objects are followed by [`crate::source`].

mod ca;
mod client;
#[cfg(test)]
mod testing;
mod token;

use std::collections::BTreeMap;

pub(crate) use self::{
    ca::{CaError, authority},
    client::{Cluster, connect, patiently},
    token::{Claims, Reviewer, TokenRefused},
};

/// What everything that the control plane makes is labelled with.
fn managed() -> BTreeMap<String, String> {
    BTreeMap::from([("app.kubernetes.io/managed-by".to_owned(), "byrnie".to_owned())])
}
