//! The admission webhooks: they put the proxy into pods, and refuse what can not work.
//!
//! [`inject`] is the pure part, which `byrnie inject` uses as well. Around it stand a server ([`Server`]) with a
//! certificate that is renewed under it ([`certificate`]), the [`review`]s that the API server sends, and what is known
//! of the mesh ([`mesh`]). Where something is not known the answer is no: a pod that is let in without its proxy would
//! speak in plaintext.

mod arguments;
pub mod certificate;
pub mod inject;
pub mod limits;
pub mod mesh;
mod mutate;
mod nonce;
pub mod offline;
pub mod review;
mod run;
mod server;
mod validate;

pub use arguments::{Arguments, LogFormat};
pub use run::{Options, StartError, run};
pub use server::{Listeners, Server};
