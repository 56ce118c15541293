//! The machine that `byrnie demo` and the scenario tests run on: network
//! namespaces, links, routes, processes in them, and a tap on the wire. It
//! needs Linux and nothing else: no `ip`, no `nft`, and no root where the
//! kernel lets users make user namespaces.
//!
//! A program that uses it begins like this, before any thread exists:
//!
//! ```no_run
//! byrnie_netlab::shim::maybe_run();
//! let entered = match byrnie_netlab::enter() {
//!     Ok(entered) => entered,
//!     Err(reason) => {
//!         eprintln!("{reason}");
//!         std::process::exit(3);
//!     }
//! };
//! let lab = byrnie_netlab::Lab::new(&entered, "example")?;
//! # Ok::<(), byrnie_netlab::LabError>(())
//! ```
//!
//! Nothing is left behind: namespaces have no names in the file system,
//! mounts live in a private mount namespace, and every process is in a PID
//! namespace that dies with the program, even by `kill -9`.

mod command;
mod enter;
mod entrance;
pub mod harness;
mod host;
mod lab;
mod links;
mod namespace;
mod networks;
pub mod shim;
mod tap;

pub use command::{HostCommand, Process};
pub use enter::{CannotRun, Entered, Privileges, enter, is_outside};
pub use entrance::{Entrance, NotAnEntrance};
pub use host::Host;
pub use lab::{Lab, LabError};
pub use namespace::NetNs;
pub use networks::LabNetworks;
pub use shim::RunAs;
pub use tap::{Excerpt, InterfaceCount, Tap, TapOptions, TapReport};
