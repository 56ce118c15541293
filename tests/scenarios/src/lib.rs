//! The scenario rig: one mesh per scenario, on this machine's kernel. Real binaries of `byrnie-proxy` and
//! `byrnie-control-plane`, one network namespace per pod, real capture; applications live in the test process itself,
//! on sockets that were opened inside the pods' namespaces.
//!
//! ```text
//! async fn two_pods_talk(world: World) {
//!     let mesh = Mesh::start(&world).await;
//!     let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
//!     let _echo = orders.serve(8080, apps::echo);
//!     web.call(orders.at(8080)).await.expect("an answer");
//! }
//! ```
//!
//! A rig fails by panicking: with a panic comes the end of every log, so that the reason can be read where the test
//! failed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

pub mod apps;
mod binaries;
mod control_plane;
mod http;
mod leftovers;
mod logs;
mod mesh;
mod objects;
mod pod;
mod proxy;
mod random;
pub mod raw;
mod talk;
mod wait;
mod world;

pub use binaries::{binaries_are_built, binary, binary_is_built, missing};
pub use control_plane::{ControlPlane, ControlPlaneOptions};
pub use leftovers::Leftovers;
pub use logs::{AccessLine, Log};
pub use mesh::{Mesh, MeshBuilder};
pub use objects::{Service, deny, namespace_of};
pub use pod::{App, Pod, PodBuilder};
pub use proxy::ProxyOptions;
pub use random::{Random, marker, seed};
pub use talk::{Ending, ending, exchange, finish, hear, hexadecimal};
pub use wait::{DEADLINE, eventually, holds_for, within};
pub use world::{Outcome, World, main, run};
