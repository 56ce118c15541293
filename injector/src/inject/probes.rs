//! The kubelet's probes and hooks: pointed at the proxy, with the originals handed to it.
//!
//! The kubelet is outside of the mesh; a port in strict mode refuses it. The proxy performs the admitted original, and
//! nothing else. A probe that points at the proxy already keeps the original that the pod's own proxy was given, and the
//! pod keeps its nonce. What names a host stays as it is: the kubelet asks that host from the node, as without a mesh.

use std::collections::BTreeMap;

use axum::http::{HeaderName, HeaderValue};
use byrnie_api::{Problem, quote};
use byrnie_proto::probes::{self, Nonce, PREFIX, PROBES, Probe as Original, ProbeAction, Probes};
use k8s_openapi::api::core::v1::{
    Container, GRPCAction, HTTPGetAction, LifecycleHandler, PodSpec, Probe, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Ours, containers, ports};
use crate::limits;

/// Rewrites the probes of `spec`, from which our own containers have been taken, and gives the text of the environment
/// variable for the proxy, if it has any to perform. `was` is what has been taken; `nonce` is new.
pub(super) fn rewrite(spec: &mut PodSpec, was: &Ours, nonce: Nonce, problems: &mut Vec<Problem>) -> Option<String> {
    let before = was.proxy.as_ref().and_then(before).filter(|before| is_asked_for(spec, &before.nonce));
    let (nonce, before) = before.map_or((nonce, BTreeMap::new()), |before| (before.nonce, before.probes));
    let mut rewriting = Rewriting {
        named: named_ports(spec),
        before,
        after: Probes { nonce, probes: BTreeMap::new() },
        grace: u32::try_from(containers::grace_seconds(spec)).unwrap_or(limits::GRACE_SECONDS).max(1),
        problems,
    };
    let sidecars = spec.init_containers.iter_mut().flatten().enumerate();
    let sidecars = sidecars.filter(|(_, each)| each.restart_policy.as_deref() == Some("Always"));
    for (index, container) in sidecars {
        rewriting.container(&format!("spec.initContainers[{}]", index + was.count), container);
    }
    for (index, container) in spec.containers.iter_mut().enumerate() {
        rewriting.container(&format!("spec.containers[{index}]"), container);
    }
    let count = rewriting.after.probes.len();
    let text = containers::probes_text(&rewriting.after);
    if text.len() > limits::PROBES_BYTES {
        let expected = format!("probes that take at most {} bytes as JSON, all together", limits::PROBES_BYTES);
        problems.push(Problem::new("spec.containers", expected, format!("{} bytes", text.len())));
    }
    if count > limits::PROBES {
        let expected = format!("at most {} probes and hooks, all together", limits::PROBES);
        problems.push(Problem::new("spec.containers", expected, format!("{count}")));
    }
    (count > 0).then_some(text)
}

struct NamedPort {
    container: String,
    name: String,
    number: u16,
}

fn named_ports(spec: &PodSpec) -> Vec<NamedPort> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let ports = containers.flat_map(|container| container.ports.iter().flatten().map(move |port| (container, port)));
    let named = ports.filter_map(|(container, port)| {
        let number = u16::try_from(port.container_port).ok()?;
        Some(NamedPort { container: container.name.clone(), name: port.name.clone()?, number })
    });
    named.collect()
}

/// What the pod's proxy was given. Text that can't be read is as good as none: the probes that need it say so.
fn before(proxy: &Container) -> Option<Probes> {
    let variable = proxy.env.iter().flatten().find(|variable| variable.name == PROBES)?;
    serde_json::from_str(variable.value.as_deref()?).ok()
}

/// Whether some probe or hook asks the proxy with this nonce.
fn is_asked_for(spec: &PodSpec, nonce: &Nonce) -> bool {
    let prefix = probes::path(nonce, "");
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut gets = containers.flat_map(|container| {
        let probes = [&container.startup_probe, &container.readiness_probe, &container.liveness_probe];
        let hooks = container.lifecycle.iter().flat_map(|hooks| [&hooks.post_start, &hooks.pre_stop]);
        let probes = probes.into_iter().flatten().filter_map(|probe| probe.http_get.as_ref());
        probes.chain(hooks.flatten().filter_map(|hook| hook.http_get.as_ref()))
    });
    gets.any(|get| path_at_proxy(get).is_some_and(|path| path.starts_with(&prefix)))
}

struct Rewriting<'a> {
    named: Vec<NamedPort>,
    before: BTreeMap<String, Original>,
    after: Probes,
    grace: u32,
    problems: &'a mut Vec<Problem>,
}

/// Where a probe or hook stands.
struct Place<'a> {
    path: String,
    container: &'a str,
    /// `<container>/<kind>`.
    name: String,
}

/// What a probe or hook does, as Kubernetes has it.
struct Handler<'a> {
    http_get: &'a mut Option<HTTPGetAction>,
    tcp_socket: &'a mut Option<TCPSocketAction>,
    grpc: &'a mut Option<GRPCAction>,
}

impl Handler<'_> {
    fn names_host(&self) -> bool {
        let http = self.http_get.as_ref().and_then(|get| get.host.as_deref());
        let tcp = self.tcp_socket.as_ref().and_then(|tcp| tcp.host.as_deref());
        http.or(tcp).is_some_and(|host| !host.is_empty())
    }
}

impl Rewriting<'_> {
    fn container(&mut self, path: &str, container: &mut Container) {
        let Container { name, startup_probe, readiness_probe, liveness_probe, lifecycle, .. } = container;
        for (field, kind, probe) in [
            ("startupProbe", "startup", startup_probe),
            ("readinessProbe", "readiness", readiness_probe),
            ("livenessProbe", "liveness", liveness_probe),
        ] {
            if let Some(probe) = probe {
                self.probe(&Place::new(path, field, name, kind), probe);
            }
        }
        let Some(lifecycle) = lifecycle else { return };
        if let Some(hook) = &mut lifecycle.post_start {
            let place = Place::new(path, "lifecycle.postStart", name, "post-start");
            self.hook(&place, hook, limits::POST_START_SECONDS);
        }
        if let Some(hook) = &mut lifecycle.pre_stop {
            self.hook(&Place::new(path, "lifecycle.preStop", name, "pre-stop"), hook, self.grace);
        }
    }

    fn probe(&mut self, place: &Place<'_>, probe: &mut Probe) {
        let seconds = probe.timeout_seconds.unwrap_or(1);
        let Some(timeout) = u32::try_from(seconds).ok().filter(|seconds| *seconds > 0) else {
            let path = format!("{}.timeoutSeconds", place.path);
            self.problems.push(Problem::new(path, "a number of seconds above 0", format!("`{seconds}`")));
            return;
        };
        let handler =
            Handler { http_get: &mut probe.http_get, tcp_socket: &mut probe.tcp_socket, grpc: &mut probe.grpc };
        if let Some(timeout) = self.handler(place, handler, timeout) {
            // The proxy's own work comes on top; the original's time is kept by the proxy.
            probe.timeout_seconds = Some(i32::try_from(timeout).unwrap_or(i32::MAX).saturating_add(1));
        }
    }

    fn hook(&mut self, place: &Place<'_>, hook: &mut LifecycleHandler, timeout: u32) {
        let handler = Handler { http_get: &mut hook.http_get, tcp_socket: &mut hook.tcp_socket, grpc: &mut None };
        self.handler(place, handler, timeout);
    }

    /// The original's time, where the handler now points at the proxy.
    fn handler(&mut self, place: &Place<'_>, handler: Handler<'_>, timeout: u32) -> Option<u32> {
        if handler.names_host() {
            return None;
        }
        let here = probes::path(&self.after.nonce, &place.name);
        let original = match points_at_proxy(handler.http_get.as_ref(), &here) {
            Pointed::Here => self.known(place, &here)?,
            Pointed::Elsewhere(path) => {
                self.problems.push(foreign(place, &path));
                return None;
            }
            Pointed::Not => Original { action: self.action(place, &handler)?, timeout_seconds: timeout },
        };
        let timeout = original.timeout_seconds;
        *handler.http_get = Some(HTTPGetAction {
            path: Some(here),
            port: IntOrString::Int(ports::HEALTH),
            scheme: Some("HTTP".to_owned()),
            host: None,
            http_headers: None,
        });
        *handler.tcp_socket = None;
        *handler.grpc = None;
        self.after.probes.insert(place.name.clone(), original);
        Some(timeout)
    }

    fn known(&mut self, place: &Place<'_>, here: &str) -> Option<Original> {
        let known = self.before.get(&place.name).filter(|original| original.timeout_seconds > 0).cloned();
        if known.is_none() {
            self.problems.push(foreign(place, here));
        }
        known
    }

    fn action(&mut self, place: &Place<'_>, handler: &Handler<'_>) -> Option<ProbeAction> {
        if let Some(get) = &*handler.http_get {
            return self.http_get(place, get);
        }
        if let Some(tcp) = &*handler.tcp_socket {
            return Some(ProbeAction::TcpSocket { port: self.port(place, "tcpSocket", &tcp.port)? });
        }
        let grpc = (*handler.grpc).as_ref()?;
        let port = self.port(place, "grpc", &IntOrString::Int(grpc.port))?;
        Some(ProbeAction::Grpc { port, service: grpc.service.clone().unwrap_or_default() })
    }

    fn http_get(&mut self, place: &Place<'_>, get: &HTTPGetAction) -> Option<ProbeAction> {
        let https = match get.scheme.as_deref().unwrap_or("HTTP") {
            "HTTP" => Some(false),
            "HTTPS" => Some(true),
            other => {
                let path = format!("{}.httpGet.scheme", place.path);
                self.problems.push(Problem::new(path, "`HTTP` or `HTTPS`", quote(other)));
                None
            }
        };
        let port = self.port(place, "httpGet", &get.port);
        let mut headers = Vec::new();
        for (index, header) in get.http_headers.iter().flatten().enumerate() {
            let path = format!("{}.httpGet.httpHeaders[{index}]", place.path);
            if HeaderName::from_bytes(header.name.as_bytes()).is_err() {
                self.problems.push(Problem::new(format!("{path}.name"), "the name of a header", quote(&header.name)));
            }
            if HeaderValue::from_str(&header.value).is_err() {
                let expected = "the value of a header: ASCII without control characters";
                // It may be a secret.
                self.problems.push(Problem::new(format!("{path}.value"), expected, "others"));
            }
            headers.push((header.name.clone(), header.value.clone()));
        }
        let path = request_target(get.path.as_deref().unwrap_or("/"));
        Some(ProbeAction::HttpGet { https: https?, port: port?, path, headers })
    }

    /// A name is looked up in the probe's own container first, as the kubelet does, then in the others.
    fn port(&mut self, place: &Place<'_>, action: &str, port: &IntOrString) -> Option<u16> {
        let path = || format!("{}.{action}.port", place.path);
        let (number, found, expected) = match port {
            IntOrString::Int(number) => (u16::try_from(*number).ok(), format!("`{number}`"), "a port from 1 to 65535"),
            IntOrString::String(name) => {
                let named = || self.named.iter().filter(|port| port.name == *name);
                let port = named().find(|port| port.container == place.container).or_else(|| named().next());
                let number = port.map(|port| port.number).or_else(|| name.parse().ok());
                (number, quote(name), "the name of a port of this container, or of another one of the pod")
            }
        };
        let number = number.filter(|number| *number > 0);
        if number.is_none() {
            self.problems.push(Problem::new(path(), expected, found));
        }
        number
    }
}

impl<'a> Place<'a> {
    fn new(path: &str, field: &str, container: &'a str, kind: &str) -> Self {
        Self { path: format!("{path}.{field}"), container, name: format!("{container}/{kind}") }
    }
}

enum Pointed {
    Not,
    Here,
    /// At another probe of the proxy's.
    Elsewhere(String),
}

fn points_at_proxy(get: Option<&HTTPGetAction>, here: &str) -> Pointed {
    match get.and_then(path_at_proxy) {
        None => Pointed::Not,
        Some(path) if path == here => Pointed::Here,
        Some(path) => Pointed::Elsewhere(path.to_owned()),
    }
}

/// The path of a probe of the proxy's.
fn path_at_proxy(get: &HTTPGetAction) -> Option<&str> {
    let path = get.path.as_deref().filter(|path| path.starts_with(PREFIX))?;
    (get.port == IntOrString::Int(ports::HEALTH)).then_some(path)
}

fn foreign(place: &Place<'_>, path: &str) -> Problem {
    let expected = "the probe of the application itself";
    let found = format!("{} on port {}, whose original the pod's proxy does not have", quote(path), ports::HEALTH);
    let hint = "this looks like a part of an injected pod; take the probe from the Deployment, or write it anew";
    Problem::new(place.path.clone(), expected, found).hint(hint)
}

/// As the kubelet makes a URL of it: with a slash in front, without a fragment, and what may not stand in a request
/// line in percent-encoding.
fn request_target(path: &str) -> String {
    let path = path.split('#').next().unwrap_or_default();
    let mut target = String::with_capacity(path.len() + 1);
    if !path.starts_with('/') {
        target.push('/');
    }
    for byte in path.bytes() {
        if byte.is_ascii_graphic() {
            target.push(char::from(byte));
        } else {
            target.push_str(&format!("%{byte:02X}"));
        }
    }
    target
}
