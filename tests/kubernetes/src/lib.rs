//! The API-server rig: a real etcd and kube-apiserver for each test, and Byrnie's own control plane and injector as they
//! run in a cluster, with the permissions that they have there. There are no kubelets: a pod is what a test says it is,
//! and the test speaks to the control plane as that pod's proxy would.
//!
//! ```text
//! async fn a_pod_gets_its_identity(world: World) {
//!     let (cluster, control_plane, _injector) = Cluster::running(&world).await;
//!     cluster.enrolled("shop").await;
//!     let web = cluster.pod("shop", "web").await;
//!     web.certify(control_plane.address, Some(&web.token().await), None).await.expect("an SVID");
//! }
//! ```
//!
//! A rig fails by panicking: with a panic comes the end of every log.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod api;
mod api_server;
mod child;
mod cluster;
pub mod http;
mod kubeconfig;
mod mounted;
mod pod;
mod programs;
mod watch;
mod world;

pub use api::{Api, Refused};
pub use api_server::{ApiServer, ApiServerOptions};
pub use child::Child;
pub use cluster::{Cluster, ControlPlane, Injector};
pub use pod::Pod;
pub use programs::{Programs, programs};
pub use watch::Watch;
pub use world::{World, run};
