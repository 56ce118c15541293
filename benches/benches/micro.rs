//! What single steps cost, on one core, where a decision rests on it: handshakes with and without the post-quantum key
//! exchange, the verification of a chain, the lookup of a destination, policy by number of rules, the frames of a tunnel.
//! `cargo bench -p benches`; docs/performance.md says what came out.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use byrnie_identity::authority::CertificateAuthority;
use byrnie_identity::tls::{ALPN_TUNNEL, ClientAuth, client_config, server_config};
use byrnie_identity::{Clock, KeyPair, SpiffeId, Svid, SvidVerifier, TrustBundles, TrustDomain};
use byrnie_policy::{Action, AuthorizationRule, Enforcement, Peer, PeerMatch, Policies, Ports, Request, evaluate};
use byrnie_proto::tunnel::{Received, Role, Session, v1};
use byrnie_proxy::config::AccessLog;
use byrnie_proxy::control::Control;
use byrnie_proxy::discovery::Discovery;
use byrnie_proxy::model::Destination;
use byrnie_proxy::telemetry::Telemetry;
use byrnie_redirect::OriginalDestination;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures::FutureExt;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs as provider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, DigitallySignedStruct, ServerConfig, ServerConnection, SideData,
    SignatureScheme,
};

/// An authority and two workloads of it.
struct Mesh {
    bundles: TrustBundles,
    verifier: Arc<SvidVerifier>,
    client: Svid,
    server: Svid,
}

impl Mesh {
    fn new() -> Self {
        let trust_domain: TrustDomain = "cluster.local".parse().unwrap();
        let clock = Clock::system();
        let authority = CertificateAuthority::create(trust_domain.clone(), &clock).unwrap();
        let mut bundles = TrustBundles::default();
        bundles.insert(authority.bundle());
        let svid = |name: &str| {
            let id = SpiffeId::workload(&trust_domain, "shop", name).unwrap();
            let key = KeyPair::generate().unwrap();
            let issued = authority.issue(&key.spki_der(), &id, Duration::from_secs(24 * 3600)).unwrap();
            Svid::new(issued.chain, key).unwrap()
        };
        let verifier = SvidVerifier::new(bundles.clone().shared(), clock);
        Self { bundles, client: svid("web"), server: svid("orders"), verifier }
    }

    fn server_config(&self) -> Arc<ServerConfig> {
        server_config(&self.server, &self.verifier, ALPN_TUNNEL, ClientAuth::Required).unwrap()
    }

    /// As proxies have it: X25519MLKEM768 first.
    fn hybrid(&self) -> Arc<ClientConfig> {
        client_config(Some(&self.client), &self.verifier, ALPN_TUNNEL).unwrap()
    }

    /// The same with X25519 alone, which no proxy has.
    fn classical(&self) -> Arc<ClientConfig> {
        let mut only = provider::default_provider();
        only.kx_groups = vec![provider::kx_group::X25519];
        let ours = self.hybrid();
        let builder = ClientConfig::builder_with_provider(Arc::new(only));
        let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).unwrap().dangerous();
        let verifier = Arc::new(Classical(self.verifier.clone()));
        let builder = builder.with_custom_certificate_verifier(verifier);
        let mut config = builder.with_client_cert_resolver(ours.client_auth_cert_resolver.clone());
        config.alpn_protocols.clone_from(&ours.alpn_protocols);
        config.resumption = rustls::client::Resumption::disabled();
        config.enable_sni = false;
        Arc::new(config)
    }
}

/// The mesh's verifier, for [`Mesh::classical`].
#[derive(Debug)]
struct Classical(Arc<SvidVerifier>);

impl ServerCertVerifier for Classical {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain: Vec<_> = std::iter::once(leaf).chain(others).cloned().collect();
        let verified = self.0.verify(&chain);
        verified.map(|_| ServerCertVerified::assertion()).map_err(|_| rustls::CertificateError::BadSignature.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    provider::default_provider().signature_verification_algorithms
}

/// One mutual handshake in memory, by this key exchange; the time of the client and that of the server.
fn handshake(exchange: &str, client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> [Duration; 2] {
    let name = ServerName::try_from("unused.invalid").unwrap();
    let begun = Instant::now();
    let mut client = ClientConnection::new(client.clone(), name).unwrap();
    let mut spent = [begun.elapsed(), Duration::ZERO];
    let begun = Instant::now();
    let mut server = ServerConnection::new(server.clone()).unwrap();
    spent[1] += begun.elapsed();
    let mut wire = Vec::new();
    while client.is_handshaking() || server.is_handshaking() {
        let begun = Instant::now();
        client.write_tls(&mut wire).unwrap();
        spent[0] += begun.elapsed();
        let begun = Instant::now();
        hear(&mut server, &mut wire);
        server.write_tls(&mut wire).unwrap();
        spent[1] += begun.elapsed();
        let begun = Instant::now();
        hear(&mut client, &mut wire);
        spent[0] += begun.elapsed();
    }
    let agreed = client.negotiated_key_exchange_group().map(|group| group.name());
    assert_eq!(agreed.and_then(|name| name.as_str()), Some(exchange));
    spent
}

/// Gives a connection all that is on the wire.
fn hear<Side: SideData>(connection: &mut ConnectionCommon<Side>, wire: &mut Vec<u8>) {
    let mut arrived = wire.as_slice();
    while !arrived.is_empty() {
        connection.read_tls(&mut arrived).unwrap();
        connection.process_new_packets().unwrap();
    }
    wire.clear();
}

fn handshakes(criterion: &mut Criterion) {
    let mesh = Mesh::new();
    let server = mesh.server_config();
    let mut group = criterion.benchmark_group("handshake");
    for (exchange, client) in [("X25519MLKEM768", mesh.hybrid()), ("X25519", mesh.classical())] {
        for (side, name) in ["client", "server"].into_iter().enumerate() {
            group.bench_function(BenchmarkId::new(exchange, name), |bencher| {
                bencher.iter_custom(|count| (0..count).map(|_| handshake(exchange, &client, &server)[side]).sum());
            });
        }
    }
    group.finish();
}

fn chain(criterion: &mut Criterion) {
    let mesh = Mesh::new();
    let mut group = criterion.benchmark_group("verification of a chain");
    group.bench_function("that was verified before", |bencher| {
        bencher.iter(|| mesh.verifier.verify(black_box(mesh.server.chain())).unwrap());
    });
    let fresh = || SvidVerifier::new(mesh.bundles.clone().shared(), Clock::system());
    group.bench_function("for the first time", |bencher| {
        let verify = |verifier: &mut Arc<SvidVerifier>| verifier.verify(black_box(mesh.server.chain())).unwrap();
        bencher.iter_batched_ref(fresh, verify, BatchSize::SmallInput);
    });
    group.finish();
}

/// A destination that the control plane has told of, among so many.
fn lookup(criterion: &mut Criterion) {
    let telemetry = Telemetry::new(&AccessLog::Off, Clock::system()).unwrap();
    // For the time that a question may take.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    let mut group = criterion.benchmark_group("lookup of a destination");
    for count in [10_u16, 1_000] {
        let discovery = Discovery::new(Control::new(), telemetry.clone(), Clock::system());
        let address = |number: u16| SocketAddr::from(([10, 96, 0, 10], 1024 + number));
        for number in 0..count {
            let asked = discovery.lookup(OriginalDestination(address(number))).now_or_never();
            assert!(asked.is_none(), "known before it was told");
            discovery.answered(address(number), Destination::external());
        }
        let dialled = OriginalDestination(address(count / 2));
        group.bench_function(BenchmarkId::new("of", count), |bencher| {
            bencher.iter(|| discovery.lookup(black_box(dialled)).now_or_never().unwrap().unwrap());
        });
    }
    group.finish();
}

/// The rule that matches is the last one.
fn policies(count: usize) -> Policies {
    let rule = |number: usize| AuthorizationRule {
        name: format!("AuthorizationPolicy shop/rule[{number}]").into(),
        action: Action::Allow,
        enforcement: Enforcement::Enforce,
        from: vec![PeerMatch {
            namespace: Some("shop".into()),
            service_account: Some(if number + 1 == count { "web".into() } else { format!("caller-{number}").into() }),
            ..PeerMatch::default()
        }],
        ports: Ports::ANY,
    };
    Policies { authorization: (0..count).map(rule).collect(), ..Policies::default() }
}

fn policy(criterion: &mut Criterion) {
    let mesh = Mesh::new();
    let peer = mesh.verifier.verify(mesh.client.chain()).unwrap();
    let mut group = criterion.benchmark_group("policy evaluation");
    for count in [10, 1_000, 10_000] {
        let policies = policies(count);
        let request = Request { peer: Peer::Mesh(&peer), port: 8080, now: SystemTime::now() };
        assert!(evaluate(&policies, &request).allowed);
        group.bench_function(BenchmarkId::new("rules", count), |bencher| {
            bencher.iter(|| evaluate(black_box(&policies), &request));
        });
    }
    group.finish();
}

/// `DATA` of 16 KiB: its header written, and the frame read again.
fn frames(criterion: &mut Criterion) {
    const PAYLOAD: usize = 16 * 1024;
    let (mut client, mut server) = (Session::new(Role::Client), Session::new(Role::Server));
    let nonce = vec![7; byrnie_proto::tunnel::NONCE_LEN];
    let mut wire = Vec::new();
    client.open(&v1::Open { nonce: nonce.clone(), ..v1::Open::default() }, &mut wire);
    server.receive(&wire).unwrap();
    wire.clear();
    server.accept(&v1::Accept { nonce }, &mut wire);
    client.receive(&wire).unwrap();
    let mut group = criterion.benchmark_group("frame");
    group.throughput(Throughput::Bytes(PAYLOAD as u64));
    group.bench_function("DATA of 16 KiB", |bencher| {
        let mut frame = vec![0; byrnie_proto::tunnel::HEADER_LEN + PAYLOAD];
        bencher.iter(|| {
            let header = client.data(PAYLOAD);
            frame.splice(..header.len(), header);
            let mut left = frame.as_slice();
            while !left.is_empty() {
                let (taken, received) = server.receive(left).unwrap();
                assert!(matches!(received, None | Some(Received::Data(_))));
                left = left.get(taken..).unwrap();
            }
        });
    });
    group.finish();
}

criterion_group!(benches, handshakes, chain, lookup, policy, frames);
criterion_main!(benches);
