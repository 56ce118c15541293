//! The ports that the proxy of a pod has for itself.

/// Read-only status, on loopback.
pub(crate) const ADMIN: i32 = 15000;
/// Where capture sends what the application opens, on loopback.
pub(crate) const OUTBOUND: i32 = 15001;
/// Where capture sends what reaches the pod.
pub(crate) const INBOUND: i32 = 15003;
/// Metrics.
pub(crate) const METRICS: i32 = 15010;
/// Health, and the probes of the pod's containers.
pub(crate) const HEALTH: i32 = 15021;

/// All of them, with what they are for.
pub(crate) const ALL: [(i32, &str); 5] = [
    (ADMIN, "the proxy's status"),
    (OUTBOUND, "what the pod opens"),
    (INBOUND, "what reaches the pod"),
    (METRICS, "the proxy's metrics"),
    (HEALTH, "the proxy's health"),
];
