//! The Kubernetes-facing types: the custom resources of group `byrnie.dev`, labels, annotations; nothing else.
//!
//! An object comes in as the value that a YAML file or the API server holds. [`parse`] takes it strictly, against the
//! same schema that the API server is given ([`crds`]): whatever this version does not understand refuses the object,
//! with the place, what was expected and what was found, and all of it at once. [`compile`] turns the objects that
//! select a workload into `byrnie_policy::Policies`, in which alone it is decided who may call whom.

// `printcolumn` takes the same keys once for each column.
#![allow(clippy::duplicated_attributes)]

mod authorization_policy;
mod capture;
mod compile;
mod egress_policy;
mod ingress_policy;
mod injection;
pub mod labels;
mod mesh_config;
mod mtls_policy;
mod not_yet;
mod object;
mod problem;
mod schema;
mod selector;
mod sidecar;
mod status;
mod syntax;
mod version;

pub use authorization_policy::{
    Action, AuthorizationPolicy, AuthorizationPolicySpec, Enforcement, Operation, Rule, Source,
};
pub use capture::CaptureExclusions;
pub use compile::{Workload, compile};
pub use egress_policy::{Destination, EgressPolicy, EgressPolicySpec};
pub use ingress_policy::{IngressPolicy, IngressPolicySpec};
pub use injection::{Injection, injection, is_meshed};
pub use mesh_config::{
    DEFAULT_TRUST_DOMAIN, IngressCertificate, MESH_CONFIG_NAME, MeshAuthorization, MeshConfig, MeshConfigSpec,
    MeshEgress, MeshMtls, MeshNetworks, MeshResources, MeshSettings, MeshSidecar, SidecarExclusions, SidecarResources,
};
pub use mtls_policy::{MtlsMode, MtlsPolicy, MtlsPolicySpec};
pub use object::{GROUP, Kind, Object, RefusedPolicy, VERSION, is_ours, parse};
pub use problem::{NOT_SUPPORTED_YET, ParseError, Problem, quote, with_causes};
pub use schema::crds;
pub use selector::Selector;
pub use sidecar::{ImageReference, LogLevel, Quantity, ResourceSettings, Resources, SidecarSettings, TerminationDelay};
pub use status::{ACCEPTED, Condition, Status};
pub use version::is_newer;
