//! The Kubernetes objects of a scenario, as the YAML that a user would write.

use std::fmt::Write as _;
use std::net::IpAddr;

/// A namespace of this name is not enrolled; every other one is.
pub(crate) const UNENROLLED: &str = "legacy";

/// The namespace of `namespace/name`.
///
/// # Panics
/// Without a slash.
pub fn namespace_of(place: &str) -> (&str, &str) {
    place.split_once('/').unwrap_or_else(|| panic!("expected NAMESPACE/NAME, found {place:?}"))
}

/// A Service in front of the pods whose `app` label is its name.
#[derive(Debug, Clone)]
pub struct Service {
    place: String,
    app: String,
    headless: bool,
    ports: Vec<(u16, u16, Option<&'static str>)>,
}

impl Service {
    /// A ClusterIP Service `namespace/name` without ports.
    pub fn new(place: &str) -> Self {
        let (_, name) = namespace_of(place);
        Self { place: place.to_owned(), app: name.to_owned(), headless: false, ports: Vec::new() }
    }

    /// A headless one.
    #[must_use]
    pub fn headless(mut self) -> Self {
        self.headless = true;
        self
    }

    /// The `app` label of its pods.
    #[must_use]
    pub fn app(mut self, app: &str) -> Self {
        app.clone_into(&mut self.app);
        self
    }

    /// A port, and the pods' port behind it.
    #[must_use]
    pub fn port(mut self, port: u16, target: u16) -> Self {
        self.ports.push((port, target, None));
        self
    }

    /// The same, with its `appProtocol`.
    #[must_use]
    pub fn port_speaking(mut self, port: u16, target: u16, protocol: &'static str) -> Self {
        self.ports.push((port, target, Some(protocol)));
        self
    }

    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    pub(crate) fn yaml(&self, addresses: &[IpAddr]) -> String {
        let (namespace, name) = namespace_of(&self.place);
        let ips = if self.headless {
            "clusterIP: None".to_owned()
        } else {
            let [first, ..] = addresses else { panic!("a Service without an address") };
            let all: Vec<String> = addresses.iter().map(|address| format!("\"{address}\"")).collect();
            format!("clusterIP: \"{first}\"\n  clusterIPs: [{}]\n  ipFamilyPolicy: PreferDualStack", all.join(", "))
        };
        let mut ports = String::new();
        for (port, target, protocol) in &self.ports {
            let protocol = protocol.map(|name| format!(", appProtocol: {name}")).unwrap_or_default();
            let _ = writeln!(ports, "  - {{name: p{port}, port: {port}, targetPort: {target}{protocol}}}");
        }
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec:\n  selector: {{app: {}}}\n  {ips}\n  ports:\n{ports}",
            self.app
        )
    }
}

/// An `AuthorizationPolicy` that refuses `service_account` everywhere in the namespace.
pub fn deny(namespace: &str, name: &str, service_account: &str) -> String {
    format!(
        "apiVersion: byrnie.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n  action: Deny\n  rules:\n  - from: [{{serviceAccount: {service_account}}}]\n"
    )
}

pub(crate) fn namespace_yaml(name: &str) -> String {
    let labels = if name == UNENROLLED { "" } else { ", labels: {byrnie.dev/mesh: enabled}" };
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}{labels}}}\n")
}

pub(crate) struct PodObject<'a> {
    pub(crate) place: &'a str,
    pub(crate) uid: &'a str,
    pub(crate) app: &'a str,
    pub(crate) service_account: &'a str,
    pub(crate) annotations: &'a [(String, String)],
    pub(crate) addresses: &'a [IpAddr],
    pub(crate) terminating: bool,
}

impl PodObject<'_> {
    pub(crate) fn yaml(&self) -> String {
        let (namespace, name) = namespace_of(self.place);
        let ips: Vec<String> = self.addresses.iter().map(|address| format!("{{ip: \"{address}\"}}")).collect();
        let annotations: String =
            self.annotations.iter().map(|(key, value)| format!("    {key}: \"{value}\"\n")).collect();
        let annotations = if annotations.is_empty() { annotations } else { format!("  annotations:\n{annotations}") };
        let deleted = if self.terminating { "  deletionTimestamp: \"2026-01-01T00:00:00Z\"\n" } else { "" };
        format!(
            "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {account}, namespace: {namespace}}}\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  uid: {uid}\n{deleted}\
             {annotations}  labels: {{app: {app}}}\n\
             spec:\n  serviceAccountName: {account}\n  containers: [{{name: app, image: app}}]\n\
             status:\n  phase: Running\n  podIPs: [{ips}]\n",
            account = self.service_account,
            uid = self.uid,
            app = self.app,
            ips = ips.join(", "),
        )
    }
}

pub(crate) fn mesh_config(pods: [String; 2], extra: &str) -> String {
    let [v4, v6] = pods;
    format!(
        "apiVersion: byrnie.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: default}}\nspec:\n  networks:\n    \
         serviceCIDRs: [\"{SERVICES_V4}\", \"{SERVICES_V6}\"]\n    podCIDRs: [\"{v4}\", \"{v6}\"]\n{extra}"
    )
}

const SERVICES_V4: &str = "10.96.0.0/16";
const SERVICES_V6: &str = "fd96::/108";

/// The addresses of the service with this number.
pub(crate) fn cluster_ips(number: u8) -> [IpAddr; 2] {
    [IpAddr::from([10, 96, 0, number]), IpAddr::from([0xfd96, 0, 0, 0, 0, 0, 0, u16::from(number)])]
}
