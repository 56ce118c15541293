//! An HTTP or HTTPS probe as the kubelet makes it: `GET`, good from 200 to 399. Redirects are followed on the same host
//! alone; one that leads to another host ends the probe well, because who sends it is alive.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use byrnie_identity::tls;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::{Outcome, Prober};

/// Where one request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) https: bool,
    /// An address, without brackets; in a Location, perhaps a name.
    pub(super) host: String,
    pub(super) port: u16,
    /// Path and query.
    pub(super) target: String,
}

/// As many redirects as the kubelet follows (Go's `http.Client`).
const REDIRECTS: usize = 10;

/// How much of a body the kubelet reads.
const BODY: usize = 10 * 1024;

/// Head of an answer.
const HEAD: usize = 64 * 1024;

/// Performs the probe at `at`, the host of `url`; `good`: the statuses that are.
pub(super) async fn get(
    prober: &Prober,
    at: IpAddr,
    mut url: Url,
    headers: &[(String, String)],
    user_agent: Option<&str>,
    good: Range<u16>,
) -> Outcome {
    let first = url.host.clone();
    let (mut host, headers) = head(headers, user_agent)?;
    for _ in 0..=REDIRECTS {
        let response = one(prober, at, &url, host.as_deref(), &headers).await?;
        let status = response.status();
        let location = response.headers().get(LOCATION).cloned().filter(|_| redirects(status));
        read_some(response).await?;
        if let Some(location) = location {
            let location = location.to_str().map_err(|_| format!("{status} with a Location that is no text"))?;
            let (next, absolute) = follow(&url, location)?;
            if next.host == first {
                // A name that was given for this server alone does not go along to where another is named.
                host = host.filter(|_| !absolute);
                url = next;
                continue;
            }
            return Ok(format!("{status}, which leads to another host and is not followed"));
        }
        let said = format!("status {} of {}", status.as_u16(), url.shown());
        return if good.contains(&status.as_u16()) { Ok(said) } else { Err(said) };
    }
    Err(format!("stopped after {REDIRECTS} redirects"))
}

/// The headers of the probe, and its `Host` where it names one. The kubelet's own are there unless the probe says
/// otherwise; an empty one is left out.
fn head(given: &[(String, String)], user_agent: Option<&str>) -> Result<(Option<String>, HeaderMap), String> {
    let (mut host, mut headers) = (None, HeaderMap::new());
    for (name, value) in given {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| format!("header {name:?}: {error}"))?;
        let value = HeaderValue::from_str(value).map_err(|error| format!("header {name}: {error}"))?;
        match name {
            HOST => host = host.or_else(|| value.to_str().ok().filter(|text| !text.is_empty()).map(str::to_owned)),
            name => drop(headers.append(name, value)),
        }
    }
    if !headers.contains_key(USER_AGENT) {
        let known =
            user_agent.filter(|text| text.starts_with("kube-") && text.len() <= 64).unwrap_or("kube-probe/byrnie");
        headers.insert(USER_AGENT, HeaderValue::from_str(known).map_err(|error| error.to_string())?);
    }
    if !headers.contains_key(ACCEPT) {
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    }
    for name in [USER_AGENT, ACCEPT] {
        if headers.get(&name).is_some_and(HeaderValue::is_empty) {
            headers.remove(&name);
        }
    }
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    Ok((host, headers))
}

async fn one(
    prober: &Prober,
    at: IpAddr,
    url: &Url,
    host: Option<&str>,
    headers: &HeaderMap,
) -> Result<Response<Incoming>, String> {
    let mut request = Request::get(url.target.as_str()).header(HOST, host.unwrap_or(&url.authority()));
    if let Some(all) = request.headers_mut() {
        all.extend(headers.clone());
    }
    let request = request.body(Empty::new()).map_err(|error| format!("{}: {error}", url.shown()))?;
    let stream = prober.dial(SocketAddr::new(at, url.port)).await?;
    if !url.https {
        return exchange(stream, request, url).await;
    }
    let failed = |error: &dyn std::fmt::Display| format!("{}: the TLS handshake failed: {error}", url.shown());
    let config = tls::probe_client_config().map_err(|error| failed(&error))?;
    let name = ServerName::try_from(url.host.clone()).map_err(|error| failed(&error))?;
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|error| failed(&error))?;
    exchange(stream, request, url).await
}

async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>, url: &Url) -> Result<Response<Incoming>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: hyper::Error| format!("{}: {error}", url.shown());
    let mut builder = hyper::client::conn::http1::Builder::new();
    let (mut sender, connection) = builder.max_buf_size(HEAD).handshake(TokioIo::new(stream)).await.map_err(failed)?;
    // Ends with the exchange: when the response is read or dropped.
    tokio::spawn(async move { drop(connection.await) });
    sender.send_request(request).await.map_err(failed)
}

/// Reads as much of the body as the kubelet does: a server that breaks off within it has failed.
async fn read_some(response: Response<Incoming>) -> Result<(), String> {
    let mut body = response.into_body();
    let mut read = 0;
    while read < BODY {
        match body.frame().await {
            None => break,
            Some(Ok(frame)) => read += frame.data_ref().map_or(0, Bytes::len),
            Some(Err(error)) => return Err(format!("the body broke off: {error}")),
        }
    }
    Ok(())
}

fn redirects(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where `location` leads from `from`, and whether it named a host (RFC 9110, 10.2.2; RFC 3986, 5.2).
fn follow(from: &Url, location: &str) -> Result<(Url, bool), String> {
    let location = location.split('#').next().unwrap_or_default();
    let bad = || format!("a Location that can't be followed: {:?}", location.chars().take(256).collect::<String>());
    let within = |target: String| (Url { target, ..from.clone() }, false);
    let (path, _) = from.target.split_once('?').unwrap_or((&from.target, ""));
    if location.contains("://") || location.starts_with("//") {
        let scheme = if from.https { "https" } else { "http" };
        let text = if location.starts_with("//") { format!("{scheme}:{location}") } else { location.to_owned() };
        let uri: Uri = text.parse().map_err(|_| bad())?;
        let https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(bad()),
        };
        let host = uri.host().ok_or_else(bad)?.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        let named = uri.path_and_query().map_or("/", |named| named.as_str());
        return Ok((Url { https, host, port, target: target(named) }, true));
    }
    Ok(match location.chars().next() {
        None => within(from.target.clone()),
        Some('/') => within(target(location)),
        Some('?') => within(target(&format!("{path}{location}"))),
        Some(_) => {
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            within(target(&format!("{folder}/{location}")))
        }
    })
}

/// A path and query as it goes over the wire: without a fragment, and with whatever may not stand there escaped, as Go's
/// `net/url` does.
pub(super) fn target(path: &str) -> String {
    let mut target = String::with_capacity(path.len() + 1);
    if !path.starts_with('/') {
        target.push('/');
    }
    for byte in path.split('#').next().unwrap_or_default().bytes() {
        match byte {
            b'!' | b'$'..=b';' | b'=' | b'?'..=b'Z' | b'[' | b']' | b'_' | b'a'..=b'z' | b'~' => {
                target.push(byte.into());
            }
            _ => target.push_str(&format!("%{byte:02X}")),
        }
    }
    target
}

impl Url {
    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Without its query, which may hold a token.
    fn shown(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        let path = self.target.split('?').next().unwrap_or_default();
        format!("{scheme}://{}{path}", self.authority())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn url(target: &str) -> Url {
        Url { https: false, host: "10.0.0.5".into(), port: 8080, target: target.into() }
    }

    #[test]
    fn a_location_is_read_as_the_kubelet_reads_it() {
        let from = url("/health/live?deep=1");
        let to = |location: &str| follow(&from, location).map(|(next, absolute)| (next.shown(), next.target, absolute));
        let at = "http://10.0.0.5:8080";
        assert_eq!(to("/ok").unwrap(), (format!("{at}/ok"), "/ok".into(), false));
        assert_eq!(to("ok?x=1#part").unwrap(), (format!("{at}/health/ok"), "/health/ok?x=1".into(), false));
        assert_eq!(to("?deep=2").unwrap().1, "/health/live?deep=2");
        assert_eq!(to("").unwrap().1, "/health/live?deep=1");
        assert_eq!(to("https://10.0.0.5/ok").unwrap(), ("https://10.0.0.5:443/ok".into(), "/ok".into(), true));
        assert_eq!(to("//10.0.0.5:81/ok").unwrap().0, "http://10.0.0.5:81/ok");
        assert_eq!(to("http://[fd00::5]:81").unwrap().0, "http://[fd00::5]:81/");
        for bad in ["ftp://10.0.0.5/", "http://", "http://a b/", "://x"] {
            assert!(to(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_may_not_stand_in_a_path_is_escaped_and_the_fragment_stays_here() {
        assert_eq!(target("/a b/\u{e9}?q={1}#x"), "/a%20b/%C3%A9?q=%7B1%7D");
        assert_eq!(target("ready"), "/ready");
        assert_eq!(target("/a%20b"), "/a%20b");
        assert!(target("/\r\nHost: x").parse::<Uri>().is_ok());
    }
}
