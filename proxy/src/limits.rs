//! Every bound of the data path, each with its reason. `docs/architecture.md` names this file for operators.

use std::time::Duration;

/// From the first byte of a TLS handshake to its last. A full mutual handshake costs two round trips and 0.3 ms of CPU;
/// five seconds cover three lost packets in a row (initial RTO 1 s, doubled) and no more.
pub const TLS_HANDSHAKE: Duration = Duration::from_secs(5);

/// For a TCP connection to open, to a pod or to the application: two lost SYNs (1 s + 2 s).
pub const CONNECT: Duration = Duration::from_secs(3);

/// From `OPEN` to its answer, at the client: the server's own [`CONNECT`] to its application, and a second for the way.
pub const OPEN_TO_ACCEPT: Duration = Duration::from_secs(4);

/// How long an `ACCEPT` may wait for the application's first word, to go out with it: the shortest that the timer knows. The
/// client's bytes have reached the application by then, and it sends more of them without waiting.
pub const ACCEPT_WAITS: Duration = Duration::from_millis(1);

/// In permissive mode, on a port not declared server-first, how long a silent client keeps the application's bytes back:
/// until then it is not known whether the client will speak TLS.
pub const PERMISSIVE_SILENCE: Duration = Duration::from_millis(500);

/// How long an idle tunnel stays in the client's pool, before up to 25 % of jitter is taken off: long enough for the
/// pauses of connection pools and health checks, short enough that a scaled-down pod is forgotten.
pub const IDLE_TUNNEL: Duration = Duration::from_secs(60);

/// How old a tunnel may be when a new stream begins, so that load spreads over new endpoints.
pub const TUNNEL_AGE: Duration = Duration::from_secs(600);

/// How long the server keeps a tunnel between streams: twice what the client does, because only clients close idle
/// tunnels; were both to, an `OPEN` could cross a close.
pub const SERVER_IDLE_TUNNEL: Duration = Duration::from_secs(1200);

/// Idle tunnels to one destination and identity: as many as a busy client has short connections at a time. A tunnel comes
/// back a moment after the application has begun its next connection, so that with 8, 32 workers paid a handshake for 22 %
/// of their connections.
pub const IDLE_PER_DESTINATION: usize = 64;

/// Idle tunnels of one worker. At 5 KiB each this is 20 MiB.
pub const IDLE_TOTAL: usize = 4096;

/// Inbound tunnels of one SPIFFE ID, so that one workload can't take every file descriptor (20,000 is a common bound).
pub const INBOUND_PER_PEER: usize = 4096;

/// TLS handshakes under way from one address.
pub const HANDSHAKES_PER_SOURCE: usize = 512;

/// TLS handshakes under way in all; the address that has the most loses its oldest.
pub const HANDSHAKES: usize = 2048;

/// A stream of which one side has ended and on which no byte has moved is cut after this time.
pub const HALF_CLOSED: Duration = Duration::from_secs(300);

/// A peer is gone when it was silent for this long with data under way to it, and left three retransmissions or window
/// probes in a row unanswered: what keepalive (10 s x 3) allows a peer to which nothing is under way.
pub const UNREACHABLE: Duration = Duration::from_secs(30);

/// How often it is looked for such peers: the interval of keepalive's probes. One look reads every connected socket of the
/// pod.
pub const UNREACHABLE_LOOK: Duration = Duration::from_secs(10);

/// Open files that the proxy keeps for itself: listeners, log, control plane, 32 probes, and what asks for metrics and
/// health.
pub const FILES_OF_PROXY: usize = 96;

/// Open files of a worker: its listeners, its runtime, and what the kernel counts of its thread.
pub const FILES_OF_WORKER: usize = 9;

/// After `GOAWAY` and the last stream, how long the server waits for the client's close_notify.
pub const CLOSE_NOTIFY: Duration = Duration::from_secs(5);

/// How often accept is tried again when the process has no file descriptor left.
pub const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// How often streams are looked at for expired identities and dead peers: half the second within which a stream must be
/// cut.
pub const SWEEP: Duration = Duration::from_millis(500);

/// After a change, how long further changes are waited for before the streams are looked at: a rollout of a large Service
/// is hundreds of changes, and each look goes over all streams. Well within the second until a stream must be cut.
pub const SETTLE: Duration = Duration::from_millis(50);

/// Bytes of a ClientHello, with every extension: post-quantum key shares need about 1.8 KiB; TLS allows 64 KiB (RFC
/// 8446, 4: lengths are 24 bits, but no client comes near).
pub const CLIENT_HELLO: usize = 64 * 1024;

/// Bytes of an incomplete TLS handshake message with its records. rustls would take 64 KiB of message in records of one
/// byte, 1.5 MiB from a peer that has proved nothing; a chain of three certificates is 3 KiB, and one full record, whatever
/// it carries, is 16.3 KiB.
pub const HANDSHAKE_MESSAGE: usize = 32 * 1024;

/// After a failed handshake, how long its alert may take to reach the peer and the peer to close.
pub const ALERT: Duration = Duration::from_secs(1);

/// What a buffer holds at first; a request, its answer, or a small query.
pub const BUFFER_MIN: usize = 4 * 1024;

/// What a buffer of the application's bytes grows to: one `DATA` frame.
pub const BUFFER_APPLICATION: usize = 64 * 1024;

/// What a buffer of TLS records grows to: with less, a bulk transfer pays a system call per 16 KiB.
pub const BUFFER_TLS: usize = 256 * 1024;

/// Probes of the kubelet under way, hooks not counted: a pod has a few, each once at a time; more wait within their own
/// time.
pub const PROBES: usize = 32;

/// Bytes of a head of HTTP that is followed, or of all trailers. One that comes in pieces is kept until it is whole, and a
/// peer may have [`INBOUND_PER_PEER`] of them. Heads beyond it are rare (big cookies); their connections are just not counted.
pub const HTTP_HEAD: usize = 16 * 1024;

/// Header fields of a message that is followed; servers of the field take about 100.
pub const HTTP_FIELDS: usize = 128;

/// Bytes of one line of a chunked body that is followed, its extensions with it, which nobody uses.
pub const HTTP_LINE: usize = 4 * 1024;

/// Requests of one followed connection whose answers have not ended; clients that pipeline at all send a few tens.
pub const HTTP_PIPELINED: usize = 256;

/// Attempts to reach an endpoint for one application connection, each at another endpoint where there is one.
pub const ATTEMPTS: usize = 3;
