//! An API server of a few lines for unit tests of decisions; the real one is in `tests/kubernetes`.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    path::Path,
    sync::{Arc, Mutex},
};

use arc_swap::ArcSwap;
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use byrnie_identity::{Clock, SvidVerifier, TrustBundles, authority::CertificateAuthority};
use http_body_util::{BodyExt, Full};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    hub::Hub,
    journal::{Journal, unix},
    model::{MeshView, Model},
    plane::{Allowances, Plane},
    source::{MeshedBy, Object, ObjectKey, Objects, Stored},
};

/// What was asked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) body: Vec<u8>,
}

impl Asked {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// What is answered.
pub(crate) struct Answer(u16, String);

impl Answer {
    pub(crate) fn json(code: u16, value: &Value) -> Self {
        Self(code, value.to_string())
    }

    pub(crate) fn status(code: u16, reason: &str) -> Self {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason,
            "reason": reason, "code": code});
        Self(code, status.to_string())
    }

    pub(crate) fn list(kind: &str, items: &[Value]) -> Self {
        let list = json!({"kind": kind, "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items});
        Self(200, list.to_string())
    }
}

/// A control plane that serves nobody, with these objects as its source. Its state is in `home`.
pub(crate) fn plane(home: &Path, objects: &[Value]) -> Arc<Plane> {
    let clock = Clock::system();
    let mut items = BTreeMap::new();
    for value in objects {
        let kind = value["kind"].as_str().unwrap();
        let object = match kind {
            "Pod" => Object::Pod(Box::new(serde_json::from_value(value.clone()).unwrap())),
            "Namespace" => Object::Namespace(Box::new(serde_json::from_value(value.clone()).unwrap())),
            _ => Object::Mesh(Box::new(byrnie_api::parse(value.clone()).unwrap())),
        };
        let part = |name: &str| value["metadata"][name].as_str().unwrap_or_default().to_owned();
        let key = ObjectKey { kind: kind.to_owned(), namespace: part("namespace"), name: part("name") };
        items.insert(Arc::new(key), Stored { object: Arc::new(object), file: "kubernetes".into(), line: 0 });
    }
    let objects = Objects { items, meshed_by: MeshedBy::Sidecar, ..Objects::default() };
    let model = Arc::new(Model::build(&objects, &Arc::default()));
    let authority = CertificateAuthority::create("cluster.local".parse().unwrap(), &clock).unwrap();
    let journal = Journal::open(&home.join("journal.redb"), clock.clone()).unwrap();
    let meshed = Arc::new(journal.meshed_pods());
    let view = MeshView { model: model.clone(), meshed, bundle: authority.bundle(), now: clock.wall() };
    Arc::new(Plane {
        verifier: SvidVerifier::new(TrustBundles::from(authority.bundle()).shared(), clock.clone()),
        authority,
        journal,
        model: ArcSwap::new(model),
        hub: Hub::new(Arc::new(view.clone()), clock.wall()),
        proxies: Arc::default(),
        allowances: Allowances::new(clock.clone()),
        reviewer: None,
        published: watch::Sender::new(view.meshed),
        ttl: None,
        ending: watch::Sender::new(false),
        clock,
    })
}

/// A client whose server is `answer`, and what it was asked.
pub(crate) fn fake(answer: impl FnMut(&Asked) -> Answer + Send + 'static) -> (Client, Arc<Mutex<Vec<Asked>>>) {
    let seen: Arc<Mutex<Vec<Asked>>> = Arc::default();
    let (log, answer) = (seen.clone(), Arc::new(Mutex::new(answer)));
    let service = tower::service_fn(move |request: hyper::Request<Body>| {
        let (log, answer) = (log.clone(), answer.clone());
        async move {
            let (head, body) = request.into_parts();
            let asked = Asked {
                method: head.method.to_string(),
                path: head.uri.path().to_owned(),
                body: body.collect().await.unwrap().to_bytes().to_vec(),
            };
            log.lock().unwrap().push(asked.clone());
            let Answer(code, body) = (*answer.lock().unwrap())(&asked);
            let response = hyper::Response::builder().status(code).body(Full::new(bytes::Bytes::from(body)));
            Ok::<_, Infallible>(response.unwrap())
        }
    });
    (Client::new(service, "default"), seen)
}

/// Who issues the tokens of [`Signer`].
pub(crate) const ISSUER: &str = "https://kubernetes.default.svc";

/// A key that an API server signs tokens with.
pub(crate) struct Signer {
    pub(crate) id: String,
    pair: EcdsaKeyPair,
}

impl Signer {
    pub(crate) fn new(id: &str) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        Self { id: id.to_owned(), pair }
    }

    /// The point, uncompressed.
    pub(crate) fn public(&self) -> Vec<u8> {
        self.pair.public_key().as_ref().to_vec()
    }

    pub(crate) fn jwk(&self) -> Value {
        let point = self.public();
        json!({"use": "sig", "kty": "EC", "kid": self.id, "alg": "ES256", "crv": "P-256",
            "x": base64(&point[1..33]), "y": base64(&point[33..])})
    }

    /// A token of a pod in namespace shop, as the API server makes it.
    pub(crate) fn token(&self, pod: &str, account: &str) -> String {
        self.sign(&json!({"alg": "ES256", "kid": self.id}), &Self::claims(pod, account))
    }

    pub(crate) fn claims(pod: &str, account: &str) -> Value {
        let now = unix(std::time::SystemTime::now());
        json!({"iss": ISSUER, "aud": ["byrnie.dev/ca"], "iat": now, "nbf": now, "exp": now + 3600,
            "sub": format!("system:serviceaccount:shop:{account}"),
            "kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": account, "uid": "u"},
                "pod": {"name": pod, "uid": format!("uid-{pod}")}}})
    }

    pub(crate) fn sign(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", base64(header.to_string()), base64(claims.to_string()));
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", base64(signature))
    }
}

pub(crate) fn base64(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}
