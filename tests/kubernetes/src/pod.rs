//! A pod as the API server knows it, with what its proxy would do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use byrnie_api::labels::TOKEN_AUDIENCE;
use byrnie_identity::tls::{self, ALPN_H2};
use byrnie_identity::{Clock, KeyPair, Svid, SvidVerifier, TrustBundle, TrustBundles, TrustDomain, control_plane_id};
use byrnie_proto::mesh::v1::certify_request::Credential;
use byrnie_proto::mesh::v1::identity_client::IdentityClient;
use byrnie_proto::mesh::v1::{CertifyRequest, Hello};
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::watch::Watch;
use crate::{Api, Refused};

/// A pod.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its ServiceAccount.
    pub account: String,
    /// Its UID.
    pub uid: String,
    /// Its address.
    pub ip: String,
    /// The object as it was stored.
    pub object: Value,
    api: Api,
}

impl Pod {
    /// Creates it (and its ServiceAccount) with one container, and says that it runs.
    ///
    /// # Errors
    /// What the API server or a webhook says.
    pub async fn create(api: &Api, namespace: &str, name: &str, account: &str) -> Result<Self, Refused> {
        Self::create_with(api, namespace, name, account, &json!({})).await
    }

    /// As [`Pod::create`], with these fields over the usual ones (a merge).
    ///
    /// # Errors
    /// What the API server or a webhook says.
    pub async fn create_with(
        api: &Api,
        namespace: &str,
        name: &str,
        account: &str,
        over: &Value,
    ) -> Result<Self, Refused> {
        let metadata = json!({ "name": account });
        let service_account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata });
        api.apply(&format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}"), &service_account).await?;
        let mut object = Self::manifest(name, account);
        merge(&mut object, over);
        let stored = api.create(&format!("/api/v1/namespaces/{namespace}/pods"), &object).await?;
        let ip = next_address();
        let pod = Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            account: account.to_owned(),
            uid: stored["metadata"]["uid"].as_str().expect("a UID").to_owned(),
            ip: ip.clone(),
            object: stored,
            api: api.clone(),
        };
        let ready = json!([{ "type": "Ready", "status": "True" }]);
        let status = json!({ "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }], "conditions": ready });
        api.merge(&format!("{}/status", pod.path()), &json!({ "status": status })).await?;
        Ok(pod)
    }

    /// The object that is created.
    pub fn manifest(name: &str, account: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "labels": { "app": account } },
            "spec": {
                "serviceAccountName": account, "nodeName": "node-1",
                "containers": [{ "name": "app", "image": "app", "ports": [{ "name": "http", "containerPort": 8080 }] }],
            },
        })
    }

    /// Its path in the API.
    pub fn path(&self) -> String {
        format!("/api/v1/namespaces/{}/pods/{}", self.namespace, self.name)
    }

    /// Deletes it at once.
    pub async fn delete(&self) {
        self.api.delete(&self.path()).await.expect("a deleted pod");
    }

    /// The token that its proxy has.
    pub async fn token(&self) -> String {
        self.try_token(&[TOKEN_AUDIENCE], Some(&self.uid), 3600).await.expect("a token")
    }

    /// A token with another audience, bound to a pod of this name with this UID or to none, for so many seconds.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn try_token(&self, audiences: &[&str], uid: Option<&str>, seconds: u32) -> Result<String, Refused> {
        let bound = uid.map(|uid| json!({ "apiVersion": "v1", "kind": "Pod", "name": self.name, "uid": uid }));
        let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": { "audiences": audiences, "expirationSeconds": seconds, "boundObjectRef": bound } });
        let path = format!("/api/v1/namespaces/{}/serviceaccounts/{}/token", self.namespace, self.account);
        let answer = self.api.create(&path, &request).await?;
        Ok(answer["status"]["token"].as_str().expect("a token").to_owned())
    }

    /// An SVID for this token and, on renewal, this SVID.
    ///
    /// # Errors
    /// What the control plane says.
    pub async fn certify(&self, at: SocketAddr, token: Option<&str>, svid: Option<&Svid>) -> Result<Svid, Status> {
        self.certify_trusting(&self.verifier().await, at, token, svid).await
    }

    /// As [`Pod::certify`], with a trust bundle that was read before.
    ///
    /// # Errors
    /// What the control plane says.
    pub async fn certify_trusting(
        &self,
        verifier: &Arc<SvidVerifier>,
        at: SocketAddr,
        token: Option<&str>,
        svid: Option<&Svid>,
    ) -> Result<Svid, Status> {
        let key = KeyPair::generate().expect("a key");
        let credential = token.map(|token| Credential::ServiceAccountToken(token.to_owned()));
        let request = CertifyRequest { csr: key.csr_der().expect("a CSR"), credential };
        let channel = channel(verifier, at, svid).await?;
        let response = IdentityClient::new(channel).certify(request).await?.into_inner();
        let chain = response.chain.into_iter().map(CertificateDer::from).collect();
        Ok(Svid::new(chain, key).expect("an SVID"))
    }

    /// What its proxy has after its start.
    pub async fn svid(&self, at: SocketAddr) -> Svid {
        self.certify(at, Some(&self.token().await), None).await.expect("an SVID")
    }

    /// Opens the stream that its proxy has.
    ///
    /// # Errors
    /// What the control plane says.
    pub async fn watch(&self, at: SocketAddr, svid: &Svid, token: &str) -> Result<Watch, Status> {
        self.watch_trusting(&self.verifier().await, at, svid, token).await
    }

    /// As [`Pod::watch`], with a trust bundle that was read before.
    ///
    /// # Errors
    /// What the control plane says.
    pub async fn watch_trusting(
        &self,
        verifier: &Arc<SvidVerifier>,
        at: SocketAddr,
        svid: &Svid,
        token: &str,
    ) -> Result<Watch, Status> {
        let hello = Hello { version: env!("CARGO_PKG_VERSION").to_owned(), service_account_token: token.to_owned() };
        Watch::open(channel(verifier, at, Some(svid)).await?, hello).await
    }

    /// What trusts the roots in the namespace's trust bundle.
    pub async fn verifier(&self) -> Arc<SvidVerifier> {
        let path = format!("/api/v1/namespaces/{}/configmaps/byrnie-trust-bundle", self.namespace);
        let object = self.api.get(&path).await.expect("the trust bundle of the namespace");
        let pem = object["data"]["bundle.pem"].as_str().expect("roots");
        let domain: TrustDomain = "cluster.local".parse().expect("a trust domain");
        let mut bundles = TrustBundles::default();
        bundles.insert(TrustBundle::from_pem(domain, 1, pem.as_bytes()).expect("roots"));
        SvidVerifier::new(bundles.shared(), Clock::system())
    }
}

/// A connection to a control plane whose identity is checked.
async fn channel(verifier: &Arc<SvidVerifier>, at: SocketAddr, svid: Option<&Svid>) -> Result<Channel, Status> {
    let config = tls::client_config(svid, verifier, ALPN_H2).expect("a TLS configuration");
    let verifier = Arc::clone(verifier);
    let connect = move |_: Uri| {
        let (config, verifier) = (config.clone(), Arc::clone(&verifier));
        async move {
            let stream = TcpStream::connect(at).await?;
            let name = ServerName::IpAddress(at.ip().into());
            let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await?;
            let chain = stream.get_ref().1.peer_certificates().expect("a certificate");
            let peer = verifier.verify(chain).map_err(std::io::Error::other)?;
            assert_eq!(*peer.id(), control_plane_id(peer.id().trust_domain()));
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    };
    let endpoint = Endpoint::from_static("http://control-plane.invalid");
    let connected = endpoint.connect_with_connector(tower::service_fn(connect)).await;
    connected.map_err(|error| Status::unavailable(format!("{error:?}")))
}

/// Objects are merged, everything else is replaced.
fn merge(object: &mut Value, over: &Value) {
    match (object, over) {
        (Value::Object(object), Value::Object(over)) => {
            for (key, value) in over {
                merge(object.entry(key).or_insert(Value::Null), value);
            }
        }
        (object, over) => *object = over.clone(),
    }
}

fn next_address() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("10.244.{}.{}", number / 250 % 250, number % 250 + 1)
}
