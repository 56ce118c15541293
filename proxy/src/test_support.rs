//! Two proxies in one process, without a control plane: an authority, and for each proxy what the control plane would
//! have told it.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use byrnie_identity::authority::{CertificateAuthority, IssueLimits};
use byrnie_identity::{Clock, KeyPair, SpiffeId, Svid, TrustDomain};
use byrnie_policy::Policies;
use clap::Parser;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};

use crate::certificates::Certificates;
use crate::config::{CommandLine, Config};
use crate::control::Control;
use crate::discovery::Discovery;
use crate::model::{Networks, OwnPod};
use crate::readiness::Readiness;
use crate::room::Room;
use crate::shared::{Drain, Shared};
use crate::streams::Streams;
use crate::telemetry::Telemetry;

/// The mesh's authority, and what is needed to make proxies of it.
pub(crate) struct TestMesh {
    pub(crate) authority: CertificateAuthority,
    pub(crate) clock: Clock,
    directory: TempDir,
}

impl TestMesh {
    pub(crate) fn new() -> TestMesh {
        TestMesh::with_clock(Clock::system())
    }

    pub(crate) fn with_clock(clock: Clock) -> TestMesh {
        let limits = IssueLimits::allow_shorter(Duration::from_secs(1));
        let authority = CertificateAuthority::create_with(trust_domain(), &clock, limits).unwrap();
        TestMesh { authority, clock, directory: TempDir::new().unwrap() }
    }

    pub(crate) fn svid(&self, service_account: &str, life: Duration) -> Svid {
        let key = KeyPair::generate().unwrap();
        let issued = self.authority.issue(&key.spki_der(), &id(service_account), life).unwrap();
        Svid::new(issued.chain, key).unwrap()
    }

    /// A proxy of namespace `shop` that holds an SVID and lets every member of the mesh in.
    pub(crate) fn proxy(&self, service_account: &str) -> Arc<Shared> {
        let directory = self.directory.path().join(service_account);
        std::fs::create_dir_all(&directory).unwrap();
        let bundle = self.directory.path().join("bundle.pem");
        std::fs::write(&bundle, self.authority.bundle().to_pem()).unwrap();
        let state = directory.to_str().unwrap();
        let line = CommandLine::parse_from([
            "byrnie-proxy",
            "--control-plane",
            "127.0.0.1:1",
            "--state",
            state,
            "--access-log",
            "off",
            "--trust-bundle",
            bundle.to_str().unwrap(),
        ]);
        let options = line.options;
        self.svid(service_account, Duration::from_secs(3600)).save(&directory).unwrap();
        let config = Config::try_from(options).unwrap();
        let certificates = Certificates::open(&config, self.clock.clone()).unwrap();
        let telemetry = Telemetry::new(&config.access_log, self.clock.clone()).unwrap();
        let control = Control::new();
        control.take_own(own_pod(service_account, Policies::default()));
        let discovery = Discovery::new(control.clone(), telemetry.clone(), self.clock.clone());
        Arc::new(Shared {
            config,
            clock: self.clock.clone(),
            certificates,
            control,
            discovery,
            telemetry,
            readiness: Readiness::new(),
            room: Room::default(),
            streams: Streams::new(),
            drain: Drain::new(),
        })
    }
}

pub(crate) fn trust_domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

pub(crate) fn id(service_account: &str) -> SpiffeId {
    SpiffeId::workload(&trust_domain(), "shop", service_account).unwrap()
}

pub(crate) fn own_pod(service_account: &str, policies: Policies) -> OwnPod {
    OwnPod {
        workload: format!("shop/{service_account}").into(),
        namespace: "shop".into(),
        spiffe_id: id(service_account),
        pod_uid: format!("uid-{service_account}").into(),
        terminating: false,
        policies,
        networks: Networks::default(),
        ports: HashMap::new(),
    }
}

/// A listener on loopback and its address.
pub(crate) async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Two ends of one connection.
pub(crate) async fn connected() -> (TcpStream, TcpStream) {
    let (listener, address) = listener().await;
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0)
}
