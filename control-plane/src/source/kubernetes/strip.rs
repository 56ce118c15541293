//! What is kept of an object. Everything else (managed fields, other people's annotations, environments, volumes,
//! container states) is dropped before it is stored: it is most of the bytes, and some of it is secret.

use std::collections::BTreeMap;

use byrnie_api::{Kind, labels};
use k8s_openapi::{
    api::{
        core::v1::{Container, Namespace, Node, NodeSpec, NodeStatus, Pod, PodSpec, PodStatus, Service},
        discovery::v1::EndpointSlice,
        networking::v1::ServiceCIDR,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::api::DynamicObject;
use serde_json::{Map, Value};

use crate::source::{Object, ObjectKey, document::key_of};

/// An object as it is stored.
pub(super) struct Kept {
    pub(super) key: ObjectKey,
    pub(super) uid: Option<String>,
    /// Of ours only: a status that is written back names it.
    pub(super) generation: Option<i64>,
    pub(super) object: Result<Object, Refused>,
}

/// An object that is malformed by itself.
pub(super) struct Refused {
    pub(super) message: String,
    /// What closes what it may have been there to close.
    pub(super) stand_in: Option<Object>,
}

/// Name, labels, and our annotations.
pub(super) fn namespace(namespace: Namespace) -> Kept {
    let metadata = metadata(namespace.metadata);
    kept("Namespace", metadata, |metadata| Object::Namespace(Box::new(Namespace { metadata, ..Namespace::default() })))
}

/// Name, labels, our annotations, UID, controlling owner, deletion; service account, node, host network; ports and names
/// of containers, the arguments of our capture container; phase, addresses, readiness.
pub(super) fn pod(pod: Pod) -> Kept {
    let mut metadata = metadata(pod.metadata);
    metadata.owner_references = metadata.owner_references.map(|mut owners| {
        owners.retain(|owner| owner.controller == Some(true));
        owners
    });
    let spec = pod.spec.map(|spec| PodSpec {
        containers: spec.containers.into_iter().map(container).collect(),
        init_containers: spec.init_containers.map(|containers| containers.into_iter().map(container).collect()),
        host_network: spec.host_network,
        node_name: spec.node_name,
        service_account_name: spec.service_account_name,
        ..PodSpec::default()
    });
    let status = pod.status.map(|status| PodStatus {
        phase: status.phase,
        pod_ip: status.pod_ip,
        pod_ips: status.pod_ips,
        host_ip: status.host_ip,
        host_ips: status.host_ips,
        conditions: status.conditions.map(|mut conditions| {
            conditions.retain(|condition| condition.type_ == "Ready");
            for condition in &mut conditions {
                condition.last_probe_time = None;
                condition.last_transition_time = None;
                condition.message = None;
                condition.reason = None;
                condition.observed_generation = None;
            }
            conditions
        }),
        ..PodStatus::default()
    });
    kept("Pod", metadata, |metadata| Object::Pod(Box::new(Pod { metadata, spec, status })))
}

/// Name, labels, our annotations; the spec; the load balancer's addresses.
pub(super) fn service(service: Service) -> Kept {
    let metadata = metadata(service.metadata);
    let status = service.status.map(|mut status| {
        status.conditions = None;
        status
    });
    kept("Service", metadata, |metadata| Object::Service(Box::new(Service { metadata, spec: service.spec, status })))
}

/// Name, labels; ports, addresses, conditions, nodes and zones.
pub(super) fn endpoint_slice(slice: EndpointSlice) -> Kept {
    let metadata = metadata(slice.metadata);
    let endpoints = slice.endpoints.map(|mut endpoints| {
        for endpoint in &mut endpoints {
            // Consumers use the first; the others are the same endpoint.
            endpoint.addresses.truncate(1);
            endpoint.target_ref = None;
            endpoint.hints = None;
            endpoint.deprecated_topology = None;
        }
        endpoints
    });
    kept("EndpointSlice", metadata, |metadata| {
        Object::EndpointSlice(Box::new(EndpointSlice { metadata, endpoints, ..slice }))
    })
}

/// Name; the networks of its pods, and its addresses: most of a Node is the images that lie there.
pub(super) fn node(node: Node) -> Kept {
    let spec =
        node.spec.map(|spec| NodeSpec { pod_cidr: spec.pod_cidr, pod_cidrs: spec.pod_cidrs, ..NodeSpec::default() });
    let status = node.status.map(|status| NodeStatus { addresses: status.addresses, ..NodeStatus::default() });
    kept("Node", named(node.metadata), |metadata| Object::Node(Box::new(Node { metadata, spec, status })))
}

/// Name and networks.
pub(super) fn service_cidr(object: ServiceCIDR) -> Kept {
    kept("ServiceCIDR", named(object.metadata), |metadata| {
        Object::ServiceCidr(Box::new(ServiceCIDR { metadata, spec: object.spec, status: None }))
    })
}

/// An object of the group `byrnie.dev`, read as strictly as from a file; its status is ours, and not read.
pub(super) fn ours(kind: Kind, object: DynamicObject) -> Kept {
    let uid = object.metadata.uid.clone();
    let generation = object.metadata.generation;
    let key = ObjectKey {
        kind: kind.to_string(),
        namespace: object.metadata.namespace.clone().unwrap_or_default(),
        name: object.metadata.name.clone().unwrap_or_default(),
    };
    let metadata = ObjectMeta { generation, ..metadata(object.metadata) };
    let mut fields = match object.data {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    fields.remove("status");
    fields.insert("apiVersion".to_owned(), format!("{}/{}", byrnie_api::GROUP, byrnie_api::VERSION).into());
    fields.insert("kind".to_owned(), kind.to_string().into());
    fields.insert("metadata".to_owned(), serde_json::to_value(metadata).unwrap_or_default());
    let object = match byrnie_api::parse(Value::Object(fields)) {
        Ok(object) if key_of(&object) == key => Ok(Object::Mesh(Box::new(object))),
        Ok(object) => Err(Refused { message: format!("expected {key}, found {object}"), stand_in: None }),
        Err(error) => {
            let words: Vec<String> = error.problems.iter().map(ToString::to_string).collect();
            let stand_in = error.stand_in().cloned().map(|object| Object::Mesh(Box::new(object)));
            Err(Refused { message: words.join("; "), stand_in })
        }
    };
    Kept { key, uid, generation, object }
}

fn kept(kind: &str, metadata: ObjectMeta, object: impl FnOnce(ObjectMeta) -> Object) -> Kept {
    let key = ObjectKey {
        kind: kind.to_owned(),
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
    };
    Kept { key, uid: metadata.uid.clone(), generation: None, object: Ok(object(metadata)) }
}

fn metadata(metadata: ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        labels: metadata.labels,
        annotations: metadata.annotations.map(our_annotations).filter(|annotations| !annotations.is_empty()),
        owner_references: metadata.owner_references,
        deletion_timestamp: metadata.deletion_timestamp,
        ..ObjectMeta::default()
    }
}

fn named(metadata: ObjectMeta) -> ObjectMeta {
    ObjectMeta { name: metadata.name, uid: metadata.uid, ..ObjectMeta::default() }
}

fn our_annotations(mut annotations: BTreeMap<String, String>) -> BTreeMap<String, String> {
    annotations.retain(|name, _| {
        let prefix = name.split_once('/').map(|(prefix, _)| prefix);
        matches!(prefix, Some(byrnie_api::GROUP | "openservicemesh.io"))
    });
    annotations
}

fn container(container: Container) -> Container {
    let captures = container.name == labels::CAPTURE_CONTAINER;
    Container {
        name: container.name,
        ports: container.ports,
        restart_policy: container.restart_policy,
        command: container.command.filter(|_| captures),
        args: container.args.filter(|_| captures),
        ..Container::default()
    }
}
