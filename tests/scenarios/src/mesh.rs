//! One mesh: a lab, a control plane on a directory of objects, and pods.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use byrnie_netlab::{Host, Lab, Tap, TapOptions};
use byrnie_proto::mesh::v1::{Edge, ObserveResponse};
use tempfile::TempDir;

use crate::control_plane::{ControlPlane, ControlPlaneOptions};
use crate::leftovers::temporary;
use crate::objects::{self, PodObject, Service};
use crate::pod::{Inner, Pod, PodBuilder};
use crate::proxy::{Proxy, ProxyOptions, Site};
use crate::world::World;
use crate::{DEADLINE, eventually, namespace_of};

/// How a mesh is made.
#[derive(Debug)]
pub struct MeshBuilder<'a> {
    world: &'a World,
    config: String,
    control_plane: ControlPlaneOptions,
}

impl MeshBuilder<'_> {
    /// More lines of `MeshConfig.spec`, indented by four spaces' worth of their own.
    #[must_use]
    pub fn config(mut self, lines: &str) -> Self {
        self.config.push_str(lines);
        self
    }

    /// A life of SVIDs that is shorter than a user may configure.
    #[must_use]
    pub fn svid_ttl(mut self, ttl: Duration) -> Self {
        self.control_plane.svid_ttl = Some(ttl);
        self
    }

    /// The control plane's state on a disk of its own of so many bytes.
    #[must_use]
    pub fn state_of(mut self, bytes: u64) -> Self {
        self.control_plane.state_bytes = Some(bytes);
        self
    }

    /// Makes the lab and starts the control plane.
    pub async fn start(self) -> Mesh {
        Mesh::start_with(self).await
    }
}

/// A mesh. Dropping it ends every process in it and removes its files; when a scenario has failed, the ends of all logs
/// are printed first.
#[derive(Debug)]
pub struct Mesh {
    // The lab goes first: when a failed scenario is held for a look inside, the processes are still there.
    lab: Lab,
    name: &'static str,
    control_plane: ControlPlane,
    pods: Mutex<Vec<Pod>>,
    next_pod: AtomicU8,
    next_service: AtomicU8,
    bundle: PathBuf,
    directory: TempDir,
}

impl Mesh {
    /// A mesh with defaults.
    pub async fn start(world: &World) -> Self {
        Self::builder(world).start().await
    }

    /// A mesh with choices.
    pub fn builder(world: &World) -> MeshBuilder<'_> {
        MeshBuilder { world, config: String::new(), control_plane: ControlPlaneOptions::default() }
    }

    async fn start_with(builder: MeshBuilder<'_>) -> Self {
        let name = builder.world.name();
        let lab = Lab::new(&builder.world.entered, name).expect("a lab");
        let directory = tempfile::Builder::new().prefix(temporary()).tempdir().expect("a temporary directory");
        // The proxies and the control plane are other users, and each finds its own part below.
        allow_others(directory.path());
        let source = directory.path().join("source");
        std::fs::create_dir(&source).expect("a source directory");
        allow_others(&source);
        let networks = [lab.networks().pods_v4.to_string(), lab.networks().pods_v6.to_string()];
        std::fs::write(source.join("mesh.yaml"), objects::mesh_config(networks, &builder.config))
            .expect("the MeshConfig");
        let home = directory.path().join("control-plane");
        let control_plane =
            ControlPlane::new(lab.node().clone(), home, source, lab.privileges(), builder.control_plane);
        control_plane.start();
        let mesh = Self {
            name,
            control_plane,
            pods: Mutex::default(),
            next_pod: AtomicU8::new(11),
            next_service: AtomicU8::new(11),
            bundle: directory.path().join("bundle.pem"),
            directory,
            lab,
        };
        mesh.control_plane.answers().await;
        std::fs::write(&mesh.bundle, mesh.control_plane.bundle().await.to_pem()).expect("the trust bundle");
        mesh
    }

    /// The control plane.
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// The lab.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The mesh's own directory, for files of a scenario.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The directory that is the control plane's source.
    pub fn source(&self) -> PathBuf {
        self.directory.path().join("source")
    }

    /// A pod that is to be made.
    pub fn pod(&self, place: &str) -> PodBuilder<'_> {
        let (_, name) = namespace_of(place);
        PodBuilder {
            mesh: self,
            place: place.to_owned(),
            app: name.to_owned(),
            service_account: name.to_owned(),
            annotations: Vec::new(),
            meshed: true,
            captured: true,
            proxy: ProxyOptions::default(),
        }
    }

    /// Several meshed pods at once, all ready.
    pub async fn pods<const N: usize>(&self, places: [&str; N]) -> [Pod; N] {
        let mut pods = Vec::with_capacity(N);
        for place in places {
            pods.push(self.pod(place).launch().await);
        }
        for pod in &pods {
            pod.ready().await;
        }
        pods.try_into().expect("as many pods as places")
    }

    pub(crate) async fn launch(&self, builder: PodBuilder<'_>) -> Pod {
        let number = self.next_pod.fetch_add(1, Ordering::Relaxed);
        let addresses = self.lab.networks().pod(number);
        let host = self.lab.pod(&builder.place, &addresses, &[]).expect("a pod");
        let uid = format!("00000000-0000-4000-8000-{number:012}");
        let (namespace, _) = namespace_of(&builder.place);
        self.apply(&format!("namespace-{namespace}"), &objects::namespace_yaml(namespace));
        let object = PodObject {
            place: &builder.place,
            uid: &uid,
            app: &builder.app,
            service_account: &builder.service_account,
            annotations: &builder.annotations,
            addresses: &addresses,
            terminating: false,
        };
        self.apply(&pod_file(&builder.place), &object.yaml());
        let proxy = builder.meshed.then(|| {
            let site = Site {
                control_plane: self.control_plane.address(),
                trust_bundle: self.bundle.clone(),
                privileges: self.lab.privileges(),
            };
            let directory = self.directory.path().join("pods").join(builder.place.replace('/', "-"));
            Proxy::new(directory, site, builder.proxy)
        });
        let (service_account, app) = (builder.service_account, builder.app);
        let pod = Pod(Arc::new(Inner { place: builder.place, uid, service_account, app, host, proxy }));
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).push(pod.clone());
        self.knows(&pod).await;
        if pod.0.proxy.is_some() {
            pod.give_token(&self.control_plane.token(pod.name(), &pod.0.service_account).await);
            if builder.captured {
                pod.capture();
            }
            pod.start_proxy();
        }
        pod
    }

    /// Waits until the control plane has taken a pod's object.
    pub(crate) async fn knows(&self, pod: &Pod) {
        let object = format!("Pod {}", pod.name());
        let what = format!("the control plane knows {object}");
        self.observed(&what, |seen| seen.objects.iter().find(|known| known.object == object).map(|_| ())).await;
    }

    /// A pod's object says that it is being deleted.
    pub fn delete(&self, pod: &Pod) {
        let object = PodObject {
            place: pod.name(),
            uid: pod.uid(),
            app: &pod.0.app,
            service_account: &pod.0.service_account,
            annotations: &[],
            addresses: pod.host().addresses(),
            terminating: true,
        };
        self.apply(&pod_file(pod.name()), &object.yaml());
    }

    /// Writes an object into the source, whole, as an editor that renames does.
    pub fn apply(&self, name: &str, yaml: &str) {
        let source = self.source();
        let temporary = self.directory.path().join(format!("{name}.new"));
        std::fs::write(&temporary, yaml).expect("an object's file");
        std::fs::rename(temporary, source.join(format!("{name}.yaml"))).expect("an object's file in its place");
    }

    /// Takes an object's file away.
    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.source().join(format!("{name}.yaml"))).expect("an object's file");
    }

    /// Puts a Service in place; its addresses, IPv4 first.
    pub fn service(&self, service: &Service) -> [IpAddr; 2] {
        let addresses = objects::cluster_ips(self.next_service.fetch_add(1, Ordering::Relaxed));
        self.apply(&format!("service-{}", service.place().replace('/', "-")), &service.yaml(&addresses));
        addresses
    }

    /// A host behind the router.
    pub fn external(&self, name: &str, addresses: &[IpAddr]) -> Host {
        self.lab.external(name, addresses).expect("an external host")
    }

    /// Listens to what goes between these pods.
    pub fn tap(&self, marker: &str, pods: &[&Pod]) -> Tap {
        let addresses = pods.iter().flat_map(|pod| pod.host().addresses().to_vec());
        self.lab.tap(TapOptions::new(marker).between(addresses)).expect("a tap")
    }

    /// What the control plane says of the mesh.
    pub async fn observe(&self) -> ObserveResponse {
        self.control_plane.observe().await
    }

    /// Waits until the control plane says of the mesh what `wanted` looks for.
    pub async fn observed<T>(&self, what: &str, mut wanted: impl FnMut(&ObserveResponse) -> Option<T>) -> T {
        eventually(what, DEADLINE / 5, async || wanted(&self.observe().await)).await
    }

    /// Waits for the edge between two workloads to be as `wanted`.
    pub async fn edge(&self, from: &str, to: &str, wanted: impl Fn(&Edge) -> bool) -> Edge {
        let what = format!("the edge from {from} to {to}");
        let is = |edge: &&Edge| edge.source == from && edge.destination == to && wanted(edge);
        self.observed(&what, |seen| seen.edges.iter().find(is).cloned()).await
    }

    /// Every process's log, for secrets that must not be there.
    pub fn all_logs(&self) -> Vec<(String, String)> {
        let mut logs = vec![("the control plane".to_owned(), self.control_plane.log().text())];
        for pod in self.pods.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if let Some(proxy) = &pod.0.proxy {
                logs.push((format!("the proxy of {}", pod.name()), proxy.log.text()));
                logs.push((format!("the access log of {}", pod.name()), proxy.access_log.text()));
            }
        }
        logs
    }

    fn show_logs(&self) {
        eprintln!("\n==== {} failed", self.name);
        self.control_plane.log().show("the control plane");
        for pod in self.pods.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            eprintln!("---- {}: {}", pod.name(), pod.host().enter_hint());
            if let Some(proxy) = &pod.0.proxy {
                proxy.log.show(&format!("the proxy of {}", pod.name()));
                proxy.access_log.show(&format!("the access log of {}", pod.name()));
            }
        }
        eprintln!("==== end of {}", self.name);
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        // A lab that is held keeps everything; otherwise the processes end before their directory goes.
        if !std::thread::panicking() || std::env::var_os("BYRNIE_HOLD").is_none() {
            for pod in self.pods.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
                if let Some(proxy) = &pod.0.proxy {
                    proxy.kill();
                }
            }
            self.control_plane.kill();
        }
    }
}

fn pod_file(place: &str) -> String {
    format!("pod-{}", place.replace('/', "-"))
}

fn allow_others(directory: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).expect("the mode of a directory");
}
