//! Requests to the API server, as JSON.

use std::fmt;
use std::path::Path;

use http::{Method, Request};
use kube::{Client, Config};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

/// The API server, as one user.
#[derive(Clone)]
pub struct Api {
    client: Client,
}

/// An answer that is not a success.
#[derive(Debug, Clone)]
pub struct Refused {
    /// The HTTP status; 0 when there was no answer.
    pub code: u16,
    /// What the API server said.
    pub message: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl From<kube::Error> for Refused {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self { code: status.code, message: status.message },
            other => Self { code: 0, message: format!("{other:?}") },
        }
    }
}

impl Api {
    pub(crate) fn new(url: &str, authority: &Path, token: &str) -> Self {
        let mut config = Config::new(url.parse().expect("an address"));
        let root = CertificateDer::from_pem_file(authority).expect("a certificate");
        config.root_cert = Some(vec![root.to_vec()]);
        config.auth_info = serde_json::from_value(json!({ "token": token })).expect("a token");
        Self { client: Client::try_from(config).expect("a client") }
    }

    /// The client itself.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Reads a path as it is.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn text(&self, path: &str) -> Result<String, Refused> {
        Ok(self.client.request_text(request(Method::GET, path, "application/json", &Value::Null)).await?)
    }

    /// Reads an object or a list.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn get(&self, path: &str) -> Result<Value, Refused> {
        self.send(Method::GET, path, "application/json", &Value::Null).await
    }

    /// Creates an object in a collection.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn create(&self, collection: &str, object: &Value) -> Result<Value, Refused> {
        self.send(Method::POST, collection, "application/json", object).await
    }

    /// Changes an object by a merge patch; a path that ends in `/status` changes its status.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn merge(&self, path: &str, patch: &Value) -> Result<Value, Refused> {
        self.send(Method::PATCH, path, "application/merge-patch+json", patch).await
    }

    /// Creates or changes an object by server-side apply.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn apply(&self, path: &str, object: &Value) -> Result<Value, Refused> {
        let path = format!("{path}?fieldManager=kubelab&force=true");
        self.send(Method::PATCH, &path, "application/apply-patch+yaml", object).await
    }

    /// Deletes an object at once.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn delete(&self, path: &str) -> Result<(), Refused> {
        let now = json!({ "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0 });
        self.send(Method::DELETE, path, "application/json", &now).await.map(|_| ())
    }

    async fn send(&self, method: Method, path: &str, content: &str, body: &Value) -> Result<Value, Refused> {
        Ok(self.client.request(request(method, path, content, body)).await?)
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

fn request(method: Method, path: &str, content: &str, body: &Value) -> Request<Vec<u8>> {
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let request = Request::builder().method(method).uri(path).header("content-type", content);
    request.body(body).expect("a request")
}
