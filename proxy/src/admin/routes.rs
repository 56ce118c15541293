//! Which request gets what.

use std::net::IpAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;

use super::{Administration, Door, views};
use crate::probes::{self, Asked};
use crate::readiness;

/// The body of a POST is at most a filter for the log.
const MAX_BODY: usize = 4 * 1024;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
/// OpenMetrics 1.0.
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A hook of a container's life failed. The kubelet does not look at the status of its answer, so there must be none: the
/// connection is broken off.
#[derive(Debug, thiserror::Error)]
#[error("the hook failed: {0}")]
pub(super) struct HookFailed(String);

/// Answers `request`, which arrived at the address `at`.
pub(super) async fn route<B>(
    administration: &Administration,
    door: Door,
    request: Request<B>,
    at: Option<IpAddr>,
) -> Result<Response<Full<Bytes>>, HookFailed>
where
    B: hyper::body::Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let path = request.uri().path().to_owned();
    let reads = request.method() == Method::GET || request.method() == Method::HEAD;
    if let Some(answer) = reading(administration, door, &path) {
        return Ok(if reads { answer() } else { not_allowed("GET, HEAD") });
    }
    if let Some(asked_for) = path.strip_prefix(byrnie_proto::probes::PREFIX).filter(|_| door == Door::Health) {
        let user_agent = request.headers().get(USER_AGENT).and_then(|value| value.to_str().ok());
        return if reads {
            probe(administration, asked_for, Asked { at, user_agent }).await
        } else {
            Ok(not_allowed("GET"))
        };
    }
    if door == Door::Control && matches!(path.as_str(), "/renew" | "/drain" | "/log-level") {
        return Ok(if request.method() == Method::POST {
            change(administration, &path, request).await
        } else {
            not_allowed("POST")
        });
    }
    Ok(text(StatusCode::NOT_FOUND, "there is nothing here\n".to_owned()))
}

async fn probe(
    administration: &Administration,
    asked_for: &str,
    asked: Asked<'_>,
) -> Result<Response<Full<Bytes>>, HookFailed> {
    let (nonce, name) = asked_for.split_once('/').unwrap_or_default();
    Ok(match administration.prober.perform(nonce, name, asked).await {
        Some(Ok(said)) => text(StatusCode::OK, said + "\n"),
        Some(Err(reason)) if probes::is_hook(name) => {
            tracing::warn!(hook = name, reason, "a hook of the pod failed");
            return Err(HookFailed(reason));
        }
        Some(Err(reason)) => text(StatusCode::SERVICE_UNAVAILABLE, reason + "\n"),
        None => text(StatusCode::NOT_FOUND, "this pod has no such probe\n".to_owned()),
    })
}

type Answer<'a> = Box<dyn FnOnce() -> Response<Full<Bytes>> + Send + 'a>;

fn reading<'a>(administration: &'a Administration, door: Door, path: &str) -> Option<Answer<'a>> {
    let shared = &administration.shared;
    let status = matches!(door, Door::Status | Door::Control);
    let answer: Answer<'a> = match path {
        "/status" if status => Box::new(|| json(&views::status(shared))),
        "/config" if status => Box::new(|| json(&views::config(&shared.config))),
        "/destinations" if status => Box::new(|| json(&views::destinations(shared))),
        "/metrics" if status || door == Door::Metrics => Box::new(|| {
            views::refresh_metrics(shared);
            response(StatusCode::OK, METRICS, shared.telemetry.metrics().encode())
        }),
        "/healthz/ready" if status || door == Door::Health => Box::new(|| ready(administration)),
        "/healthz/live" if status || door == Door::Health => Box::new(|| text(StatusCode::OK, "live\n".to_owned())),
        _ => return None,
    };
    Some(answer)
}

fn ready(administration: &Administration) -> Response<Full<Bytes>> {
    let reasons = readiness::reasons(&administration.shared);
    if reasons.is_empty() {
        text(StatusCode::OK, "ready\n".to_owned())
    } else {
        text(StatusCode::SERVICE_UNAVAILABLE, reasons.iter().map(|reason| format!("{reason}\n")).collect())
    }
}

async fn change<B>(administration: &Administration, path: &str, request: Request<B>) -> Response<Full<Bytes>>
where
    B: hyper::body::Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let body = match Limited::new(request.into_body(), MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return text(StatusCode::BAD_REQUEST, format!("the body can't be read: {error}\n")),
    };
    let shared = &administration.shared;
    match path {
        "/renew" => match shared.certificates.renew_and_wait().await {
            Ok(generation) => json(&views::renewed(shared, generation)),
            Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        },
        "/drain" => {
            tracing::info!("asked to drain over the administration socket");
            shared.drain.begin();
            text(StatusCode::OK, "draining\n".to_owned())
        }
        _ => match std::str::from_utf8(&body).map_err(|error| error.to_string()).and_then(|filter| {
            administration.log_level.set(filter.trim())?;
            Ok(filter.trim().to_owned())
        }) {
            Ok(filter) => {
                tracing::warn!(filter, "the level of the log was changed");
                text(StatusCode::OK, format!("{filter}\n"))
            }
            Err(reason) => text(StatusCode::BAD_REQUEST, format!("expected a level such as debug: {reason}\n")),
        },
    }
}

fn not_allowed(allowed: &'static str) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("expected {allowed}\n"));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

fn json(view: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_string_pretty(view) {
        Ok(text) => response(StatusCode::OK, JSON, text + "\n"),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn text(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    response(status, TEXT, text)
}

fn response(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
