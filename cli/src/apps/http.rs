//! A small HTTP service: answers with its name and, at `/`, with what the services that it needs answered. Any other
//! path it answers alone.

use std::io;
use std::rc::Rc;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Response, StatusCode, Uri};
use serde_json::{Value, json};

use super::{fetch, serve};
use crate::args::HttpApp;

struct Service {
    name: String,
    header: Option<(HeaderName, HeaderValue)>,
    upstreams: Vec<Uri>,
    partners: Vec<Uri>,
}

/// Runs it, for ever.
pub(super) async fn run(options: HttpApp) -> io::Result<()> {
    let service = Rc::new(Service {
        name: options.name,
        header: options.header.as_deref().map(parse_header).transpose()?,
        upstreams: parse_all(&options.upstream)?,
        partners: parse_all(&options.partner)?,
    });
    serve::serve(&options.listen, move |request, _| {
        let service = Rc::clone(&service);
        async move { service.answer(request.uri().path()).await }
    })
    .await
}

impl Service {
    async fn answer(&self, path: &str) -> Response<Full<Bytes>> {
        let mut status = StatusCode::OK;
        let mut calls = Vec::new();
        if path == "/" {
            let own = self.upstreams.iter().map(|url| (url, self.header.as_ref()));
            for (url, header) in own.chain(self.partners.iter().map(|url| (url, None))) {
                let (good, call) = call(url, header).await;
                if !good {
                    status = StatusCode::BAD_GATEWAY;
                }
                calls.push(call);
            }
        }
        let mut response = serve::json(status, &json!({ "service": self.name, "calls": calls }));
        if let Some((name, value)) = &self.header {
            response.headers_mut().insert(name.clone(), value.clone());
        }
        response
    }
}

async fn call(url: &Uri, header: Option<&(HeaderName, HeaderValue)>) -> (bool, Value) {
    match fetch::get(url, header).await {
        Ok(answer) => {
            let text = || Value::String(String::from_utf8_lossy(&answer.body).into_owned());
            let body = serde_json::from_slice(&answer.body).unwrap_or_else(|_| text());
            let call = json!({ "url": url.to_string(), "status": answer.status.as_u16(), "answer": body });
            (answer.status.is_success(), call)
        }
        Err(error) => (false, json!({ "url": url.to_string(), "error": error.to_string() })),
    }
}

fn parse_header(text: &str) -> io::Result<(HeaderName, HeaderValue)> {
    let (name, value) = text.split_once(": ").ok_or_else(|| io::Error::other("--header: expected `name: value`"))?;
    let name = HeaderName::try_from(name).map_err(io::Error::other)?;
    Ok((name, HeaderValue::try_from(value).map_err(io::Error::other)?))
}

fn parse_all(urls: &[String]) -> io::Result<Vec<Uri>> {
    urls.iter().map(|url| url.parse().map_err(io::Error::other)).collect()
}
