//! An API server of a few lines for unit tests of decisions; the real one is in `tests/kubernetes`.

#![allow(clippy::unwrap_used)]

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http_body_util::{BodyExt, Full};
use kube::{Client, client::Body};
use serde_json::{Value, json};

/// What was asked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
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
                query: head.uri.query().unwrap_or_default().to_owned(),
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
