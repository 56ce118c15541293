//! Every bound of the control plane, each with its reason.

use std::time::Duration;

/// A file of the source above this size is refused: Kubernetes itself takes no object above 1.5 MiB, and a file
/// holds few; without a bound a runaway file would take the memory of everyone.
pub const SOURCE_FILE_BYTES: u64 = 4 * 1024 * 1024;
/// Files in one source directory.
pub const SOURCE_FILES: usize = 10_000;
/// Depth of folders in a source directory; ends cycles of symbolic links.
pub const SOURCE_DEPTH: usize = 16;
/// Changes on disk are taken together for this long; with the publication below, 100 ms are not exceeded.
pub const SOURCE_DEBOUNCE: Duration = Duration::from_millis(30);
/// A file that somebody is still writing is waited for at most this long after its last change.
pub const SOURCE_WRITER_PATIENCE: Duration = Duration::from_secs(2);
/// The safety net under inotify (network file systems, an exhausted watch table).
pub const SOURCE_POLL: Duration = Duration::from_secs(10);

/// Changes that the API server tells of are taken together for this long; with the publication below, 100 ms are not
/// exceeded.
pub const WATCH_COALESCE: Duration = Duration::from_millis(50);
/// The API server ends a watch after this many seconds, and we do 5 s later: a connection that died unnoticed is found.
pub const WATCH_SECONDS: u32 = 60;
/// The longest wait before a failed watch is tried again; shorter ones, with jitter, come before.
pub const WATCH_BACKOFF: Duration = Duration::from_secs(10);
/// A watch that was resumed and has not failed for this long works; longer than [`API_SERVER_CONNECT`].
pub const WATCH_SETTLED: Duration = Duration::from_secs(10);
/// The cluster is listed for the first time for as long as something comes; after this much silence the start fails.
pub const FIRST_LISTING: Duration = Duration::from_secs(60);
/// How often the log says how far that is.
pub const LISTING_TOLD: Duration = Duration::from_secs(5);
/// How often it is asked for a resource that an older API server does not have: it comes by an upgrade of the cluster.
pub const ABSENT_RESOURCE: Duration = Duration::from_secs(600);
/// Networks of pods, and of Services, that every proxy is told. Those of a cluster's nodes are adjacent and make one; of
/// those that are left after that, wider ones are made.
pub const NETWORKS: usize = 64;
/// A TCP and TLS connection to the API server.
pub const API_SERVER_CONNECT: Duration = Duration::from_secs(5);
/// Longer than a watch may be without a word ([`WATCH_SECONDS`]).
pub const API_SERVER_SILENCE: Duration = Duration::from_secs(75);

/// Changes of the model and of what was issued are published together after this time.
pub const PUBLISH_COALESCE: Duration = Duration::from_millis(30);
/// A pod's first certificate is handed out when the mesh knows of it, and after this time in any case.
pub const PUBLISHED: Duration = Duration::from_secs(1);
/// Time alone changes answers (the end of a permission, of a certificate whose pod has left the mesh); it is noticed at
/// least this often.
pub const EXPIRY_CHECK: Duration = Duration::from_secs(30);

/// The TLS handshake, from the accepted connection on.
pub const TLS_HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at once; each holds some 40 KiB and can cost 1 ms of signing.
pub const TLS_HANDSHAKES: usize = 512;
/// Handshakes at once from one address.
pub const TLS_HANDSHAKES_PER_ADDRESS: usize = 64;
/// Open connections; one proxy holds one, and a second while it renews.
pub const CONNECTIONS: usize = 16_384;
/// Open connections without a client certificate from one address: else one machine could take all places.
pub const ANONYMOUS_PER_ADDRESS: usize = 64;
/// A connection without a client certificate has this long for its one Certify.
pub const ANONYMOUS: Duration = Duration::from_secs(30);
/// HTTP/2 PING interval and the wait for its answer: finds dead proxies.
pub const H2_KEEPALIVE: Duration = Duration::from_secs(10);
/// See [`H2_KEEPALIVE`].
pub const H2_KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Concurrent calls on one connection: one Watch and a few Certify.
pub const H2_STREAMS: u32 = 8;
/// Open connections have this long to end after SIGTERM.
pub const SHUTDOWN: Duration = Duration::from_secs(2);

/// A message from a proxy; the largest is a report.
pub const MESSAGE_BYTES: usize = 2 * 1024 * 1024;
/// Names, edges and the like in one message; three times what a full report has. One that says nothing takes two bytes
/// on the wire and 300 in memory.
pub const MESSAGE_PARTS: usize = 16_384;
/// A CSR for a P-256 key takes about 200 bytes.
pub const CSR_BYTES: usize = 8 * 1024;
/// A Watch stream whose first message does not come is ended.
pub const HELLO: Duration = Duration::from_secs(10);
/// Resources that one proxy subscribes to.
pub const SUBSCRIPTIONS: usize = 4096;
/// A resource's name; the longest real one is `bundle/` and a trust domain of 255 bytes.
pub const RESOURCE_NAME_BYTES: usize = 300;
/// Names asked for in one go by one pod, and how fast that allowance grows again, per second.
pub const QUESTIONS_BURST: u32 = 4096;
/// See [`QUESTIONS_BURST`].
pub const QUESTIONS_PER_SECOND: u32 = 500;
/// Resources in one response; keeps a response below gRPC's 4 MiB.
pub const RESOURCES_PER_RESPONSE: usize = 64;
/// Responses that wait for a slow reader; everything else coalesces by resource.
pub const RESPONSES_QUEUED: usize = 2;
/// Issuances to one pod in one go, and one more per second.
pub const CERTIFICATES_BURST: u32 = 30;
/// See [`CERTIFICATES_BURST`].
pub const CERTIFICATES_PER_SECOND: u32 = 1;

/// Endpoints that one client gets of a Service.
pub const ENDPOINTS: usize = 64;

/// Edges of one report.
pub const REPORT_EDGES: usize = 4096;
/// Refusals of one report.
pub const REPORT_REFUSALS: usize = 256;
/// Egress records of one report.
pub const REPORT_EGRESS: usize = 1024;
/// Bytes of one string of a report; longer ones are cut.
pub const REPORT_STRING_BYTES: usize = 512;
/// Refusals that `Observe` remembers.
pub const REFUSALS: usize = 256;
/// Resources that a proxy refused and that are remembered of it.
pub const NACKS: usize = 64;

/// Life of a join token where the request does not say.
pub const TOKEN_TTL: Duration = Duration::from_secs(600);
/// The longest life of a join token.
pub const TOKEN_TTL_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Used, revoked and expired tokens are remembered this long, so that a refusal can say which it was.
pub const TOKEN_MEMORY: Duration = Duration::from_secs(24 * 3600);
/// Tokens on record at once.
pub const TOKENS: usize = 100_000;
/// The last certificate of a pod is remembered this long after its end also while the source does not show the pod: a
/// weekend with a damaged file must not make its pods strangers.
pub const ISSUANCE_MEMORY: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often the journal drops what has expired.
pub const JOURNAL_PRUNE: Duration = Duration::from_secs(60);

/// One call to the API server; one that hangs holds nobody for longer.
pub const API_CALL: Duration = Duration::from_secs(10);
/// The first wait before a call is tried again; doubled each time.
pub const API_RETRY: Duration = Duration::from_millis(500);
/// The longest wait before a call is tried again: an API server that is back is noticed within it.
pub const API_RETRY_MAX: Duration = Duration::from_secs(30);
/// One call about the Lease. The holder renews 13 s before the Lease's end by two calls, and must be done or have given
/// up before it.
pub const LEASE_CALL: Duration = Duration::from_secs(5);
/// Objects in one answer to a list. An object may have 1.5 MiB, and whoever may write some could otherwise make an answer
/// that no control plane has the memory for.
pub const LIST_PAGE: u32 = 100;

/// A projected ServiceAccount token has some 1.2 KiB; names of 253 bytes each would make it 3.
pub const SERVICE_ACCOUNT_TOKEN_BYTES: usize = 8 * 1024;
/// All questions to the API server about one token, of a proxy that has no certificate: less than the 10 s that it waits for
/// an answer, so that it hears the reason.
pub const REVIEW_FIRST: Duration = Duration::from_secs(8);
/// The same of a proxy that has one: after it, the API server's keys answer.
pub const REVIEW_RENEWAL: Duration = Duration::from_secs(3);
/// Token reviews at once: the API server has others to serve, too.
pub const TOKEN_REVIEWS: usize = 64;
/// The result of a review counts this long: a proxy's certificate and its stream cost one review, and a pod that is gone
/// is found out by its UID anyway.
pub const TOKEN_KNOWN: Duration = Duration::from_secs(60);
/// Results of reviews remembered at once; some 300 bytes each.
pub const TOKENS_KNOWN: usize = 8192;
/// How often the API server's keys are read: a new one signs tokens for longer than that before an old one goes.
pub const KEYS_READ: Duration = Duration::from_secs(300);
/// Keys that could not be read for this long count no more. Tokens that they have signed last an hour.
pub const KEYS_HELD: Duration = Duration::from_secs(24 * 3600);
/// Keys at once; an API server has one, and two while it changes them.
pub const SIGNING_KEYS: usize = 32;
/// How far ahead, in seconds, the clock of an API server may be when a token has just been made; its own libraries grant
/// each other as much.
pub const TOKEN_EARLY: i64 = 60;
/// Tokens to check that come from one address in one go. A pod needs one or two; a node may stand before all of its
/// pods.
pub const REVIEWS_BURST: u32 = 256;
/// See [`REVIEWS_BURST`].
pub const REVIEWS_PER_SECOND: u32 = 10;
/// How often a stream of a pod that the source does not show (yet) asks the API server for it.
pub const LIVE_CHECK: Duration = Duration::from_secs(10);
/// In Kubernetes, certificates of pods that the source does not show are remembered this long after their begin, which
/// lies ten minutes before their issuance: it may not show a new pod yet. A UID that is gone never comes back.
pub const ISSUANCE_MEMORY_KUBERNETES: Duration = Duration::from_secs(1200);

/// Connections to the administration's TCP port; what the API server forwards.
pub const ADMIN_CONNECTIONS: usize = 64;
/// Connections to the health port; kubelet has one at a time.
pub const HEALTH_CONNECTIONS: usize = 64;
/// A request to the health port comes and goes within this time.
pub const HEALTH_REQUEST: Duration = Duration::from_secs(5);

/// How long the Lease holds without being renewed: after a crash nobody writes for as long.
pub const LEASE: Duration = Duration::from_secs(30);
/// How long before its end it is renewed: two calls of [`LEASE_CALL`] each, with their connections, fit in.
pub const LEASE_GRACE: Duration = Duration::from_secs(13);
/// How often a replica that does not lead looks whether the leader has given the Lease back: nobody writes until then. The
/// leader looks as often whether a newer version asks for it.
pub const LEASE_LOOKED_AT: Duration = Duration::from_secs(2);
/// Before it writes, the leader reads the Lease, unless it has within this time.
pub const LEASE_ASKED: Duration = Duration::from_secs(5);
/// Changes of the mesh that the leader writes something for are taken together for this long.
pub const WRITE_COALESCE: Duration = Duration::from_millis(250);
/// Failures of one pass of a writer that are told one by one.
pub const FAILURES_TOLD: usize = 20;
/// What fails all the time is told again after this time.
pub const FAILURES_TOLD_AGAIN: Duration = Duration::from_secs(300);
/// How often the leader compares what it has written with what is there.
pub const COMPARED: Duration = Duration::from_secs(60);
/// How often it looks at the certificates of ingress controllers: who has lost one waits for no longer.
pub const INGRESS_COMPARED: Duration = Duration::from_secs(5);
/// Life of the injector's serving certificate, renewed at its half: long enough for a control plane that is away for two
/// weeks.
pub const INJECTOR_CERTIFICATE: Duration = Duration::from_secs(30 * 24 * 3600);
/// How often the leader looks after the injector's certificate: an installation waits for it.
pub const INJECTOR_CHECK: Duration = Duration::from_secs(10);
/// Events are told again after this time, where their cause lasts. Kubernetes forgets them after an hour.
pub const EVENT_AGAIN: Duration = Duration::from_secs(1200);
/// Events in one go: a mesh in trouble must not fill etcd.
pub const EVENTS_BURST: u32 = 50;
/// See [`EVENTS_BURST`].
pub const EVENTS_PER_SECOND: u32 = 1;
/// Events remembered so as not to be told twice.
pub const EVENTS_REMEMBERED: usize = 4096;
/// An event's note; the API server takes 1 KiB.
pub const EVENT_NOTE_BYTES: usize = 1000;
/// A condition's message: some problems of an object, not all that there can be.
pub const CONDITION_BYTES: usize = 4096;
/// Names of Secrets that MeshConfig has named since the start, and that are looked through for what it no longer names.
pub const INGRESS_SECRET_NAMES: usize = 64;
/// How often that is done where MeshConfig does not change.
pub const SWEPT: Duration = Duration::from_secs(600);
/// How often the reports of the connected proxies are looked through for what an operator should see.
pub const PROXIES_LOOKED_AT: Duration = Duration::from_secs(10);
