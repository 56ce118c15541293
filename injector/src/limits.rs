//! Every bound of the injector, each with its reason.

use std::time::Duration;

/// A review holds the object, for an update also the old one; the API server takes no request above 3 MiB.
pub const REVIEW_BYTES: usize = 7 * 1024 * 1024;
/// Bytes of reviews held at once; a review that does not fit waits. A hostile JSON text takes some 16 times its length
/// in memory, so this is the bound of the process. Pods are of 5 to 20 KiB: a thousand of them fit.
pub const REVIEW_BYTES_AT_ONCE: usize = 16 * 1024 * 1024;
/// From the head of a request to its answer. The API server waits 5 s (the webhooks' `timeoutSeconds`).
pub const REQUEST: Duration = Duration::from_secs(5);
/// The TLS handshake, and the head of a request.
pub const HANDSHAKE: Duration = Duration::from_secs(5);
/// Connections at once. An API server opens few and sends many requests over each.
pub const CONNECTIONS: usize = 256;
/// Connections at once from one address: whoever holds many open, idle ones must not keep the API server out.
pub const CONNECTIONS_PER_SOURCE: usize = 64;
/// Requests at once on one connection of HTTP/2.
pub const STREAMS: u32 = 256;
/// From SIGTERM to the end of what is still open; more than [`REQUEST`], less than the grace period of a pod.
pub const DRAIN: Duration = Duration::from_secs(10);
/// How long a namespace that was not known yet, or looked as if it were outside of the mesh, is asked for.
pub const NAMESPACE_QUESTION: Duration = Duration::from_secs(2);
/// After an error of `accept` (no file descriptors), so that the loop does not spin.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often the certificate's files are read. The kubelet brings a changed Secret within about a minute.
pub const CERTIFICATE_POLL: Duration = Duration::from_secs(2);
/// A key, and a chain of a few certificates, in PEM.
pub const CERTIFICATE_BYTES: u64 = 128 * 1024;
/// The environment variable with the probes: Linux takes no variable above 128 KiB into a process.
pub const PROBES_BYTES: usize = 96 * 1024;
/// Probes and hooks of a pod: 64 containers with five each. The proxy takes no more.
pub const PROBES: usize = 320;
/// What is said about one object; more nobody mends at once, and an answer stays small.
pub const PROBLEMS: usize = 20;
/// A warning is cut by clients beyond this (Kubernetes' documentation: 256 characters, 4096 in all).
pub const WARNING_CHARACTERS: usize = 256;
/// Warnings of one answer.
pub const WARNINGS: usize = 16;
/// Seconds for which a `postStart` hook may take; Kubernetes bounds it by nothing.
pub const POST_START_SECONDS: u32 = 300;
/// Kubernetes' own grace period, in seconds, of a pod that names none.
pub const GRACE_SECONDS: u32 = 30;
/// Seconds for which a proxy carries open connections on after SIGTERM, where the pod's grace period is not shorter.
pub const DRAIN_SECONDS: i64 = 30;
