//! What Byrnie's design has and this version does not do. It is refused by name, so that nobody believes it to hold.

use crate::Kind;

/// Kinds of the group `byrnie.dev`.
pub(crate) const KINDS: [&str; 2] = ["ServicePolicy", "TrustRoot"];

/// What stands at `path`, if it is a field that a later version will take. List indices are written `[]`.
pub(crate) fn field(kind: Kind, path: &str) -> Option<&'static str> {
    let anywhere = ANYWHERE.iter().find(|(known, _)| *known == path);
    let here = fields(kind).iter().find(|(known, _)| *known == path);
    anywhere.or(here).map(|(_, what)| *what)
}

type Fields = &'static [(&'static str, &'static str)];

const ANYWHERE: Fields = &[("spec.selector.matchExpressions", "workloads are selected by matchLabels only")];

const L4: &str = "policies are by identity and port only; what is inside of HTTP is not looked at";
const MTLS_INGRESS: &str = "clients outside of the mesh get in by mutual TLS with a named principal only";
const CIDR_EGRESS: &str = "destinations are named by network and port only";
const MESH: &str = "the mesh has no such setting";

const fn fields(kind: Kind) -> Fields {
    match kind {
        Kind::MeshConfig => &[
            ("spec.mtls.mode", "an enrolled namespace is Strict; MtlsPolicy changes that"),
            ("spec.protocols", "UDP and SCTP are neither captured nor encrypted"),
            ("spec.otherProtocols", "UDP and SCTP are neither captured nor encrypted"),
            ("spec.udp", "UDP is neither captured nor encrypted"),
            ("spec.sctp", "SCTP is neither captured nor encrypted"),
            ("spec.tls", MESH),
            ("spec.mtls.cipherSuites", MESH),
            ("spec.mtls.minVersion", MESH),
            ("spec.telemetry", MESH),
            ("spec.tracing", MESH),
            ("spec.accessLog", MESH),
        ],
        Kind::MtlsPolicy => &[("spec.ports", "one policy is for one `port`, or for all")],
        Kind::AuthorizationPolicy => &[
            ("spec.rules[].from[].ipBlocks", "callers are known by their identity only"),
            ("spec.rules[].from[].notIpBlocks", "callers are known by their identity only"),
            ("spec.rules[].to[].methods", L4),
            ("spec.rules[].to[].paths", L4),
            ("spec.rules[].to[].hosts", L4),
            ("spec.rules[].to[].headers", L4),
            ("spec.rules[].when", L4),
        ],
        Kind::IngressPolicy => &[
            ("spec.mode", MTLS_INGRESS),
            ("spec.sources", MTLS_INGRESS),
            ("spec.from", MTLS_INGRESS),
            ("spec.plaintext", MTLS_INGRESS),
            ("spec.tls", MTLS_INGRESS),
            ("spec.mtls", "`principals` says who the client must be; nothing else of TLS is chosen here"),
            ("spec.allowNodeAddresses", MTLS_INGRESS),
            ("spec.ipBlocks", MTLS_INGRESS),
            ("spec.hosts", L4),
            ("spec.methods", L4),
            ("spec.paths", L4),
            ("spec.headers", L4),
        ],
        Kind::EgressPolicy => &[
            ("spec.selector", "workloads are named by `serviceAccounts`"),
            ("spec.hosts", CIDR_EGRESS),
            ("spec.addressCheck", CIDR_EGRESS),
            ("spec.to[].hosts", CIDR_EGRESS),
            ("spec.to[].protocol", CIDR_EGRESS),
            ("spec.to[].https", CIDR_EGRESS),
            ("spec.to[].http", CIDR_EGRESS),
            ("spec.to[].tcp", CIDR_EGRESS),
            ("spec.to[].addressCheck", CIDR_EGRESS),
            ("spec.to[].methods", L4),
            ("spec.to[].paths", L4),
            ("spec.to[].headers", L4),
        ],
    }
}
