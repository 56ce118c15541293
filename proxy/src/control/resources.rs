//! Takes one resource of the control plane, or says why not.

use std::net::SocketAddr;

use byrnie_identity::TrustBundle;
use byrnie_proto::mesh::v1 as proto;
use byrnie_proto::mesh::v1::resource::Body;

use crate::model::{Destination, OwnPod};
use crate::shared::Shared;

/// The resource that describes this pod.
pub(super) const SELF: &str = "self";
/// Before the name of a trust domain.
pub(super) const BUNDLE: &str = "bundle/";
/// Before `ip:port`.
const DESTINATION: &str = "destination/";

/// The name of the resource that describes `address`.
pub(super) fn destination_name(address: SocketAddr) -> String {
    format!("{DESTINATION}{address}")
}

/// Takes `resource`, or leaves everything as it is and says why.
pub(super) fn take(shared: &Shared, resource: proto::Resource) -> Result<(), String> {
    let name = resource.name.as_str();
    let body = resource.body.ok_or("expected a body, found none (or one of a kind that this proxy does not know)")?;
    if name == SELF {
        take_self(shared, body)
    } else if let Some(trust_domain) = name.strip_prefix(BUNDLE) {
        take_bundle(shared, trust_domain, body)
    } else if let Some(address) = name.strip_prefix(DESTINATION) {
        let address = address.parse().map_err(|_| "expected destination/ip:port".to_owned())?;
        take_destination(shared, address, body)
    } else {
        Err("this proxy did not subscribe to it".to_owned())
    }
}

fn take_self(shared: &Shared, body: Body) -> Result<(), String> {
    match body {
        Body::Self_(message) => {
            let own = OwnPod::try_from(message).map_err(|error| error.to_string())?;
            if let Some(held) = shared.certificates.held()
                && held.svid.id() != &own.spiffe_id
            {
                return Err(format!("expected {}, found {}", held.svid.id(), own.spiffe_id));
            }
            let terminating = own.terminating;
            shared.control.take_own(own);
            if terminating && !shared.drain.is_draining() {
                tracing::info!("the pod is being deleted: draining");
                shared.drain.begin();
                shared.telemetry.touch();
            }
            Ok(())
        }
        Body::Error(reason) => {
            tracing::error!(reason, "the control plane can't describe this pod; what it said before stays in force");
            Ok(())
        }
        _ => Err("expected a Self".to_owned()),
    }
}

fn take_bundle(shared: &Shared, trust_domain: &str, body: Body) -> Result<(), String> {
    match body {
        Body::Bundle(message) => {
            let bundle = TrustBundle::try_from(&message).map_err(|error| error.to_string())?;
            if bundle.trust_domain().as_str() != trust_domain {
                return Err(format!("expected the trust domain {trust_domain}, found {}", bundle.trust_domain()));
            }
            shared.certificates.take_bundle(bundle);
            Ok(())
        }
        Body::Error(reason) => {
            tracing::error!(trust_domain, reason, "the control plane has no bundle; the held one stays in force");
            Ok(())
        }
        _ => Err("expected a Bundle".to_owned()),
    }
}

fn take_destination(shared: &Shared, address: SocketAddr, body: Body) -> Result<(), String> {
    let refused = match body {
        Body::Destination(message) => match Destination::try_from(message) {
            Ok(destination) => {
                shared.discovery.answered(address, destination);
                return Ok(());
            }
            Err(error) => Err(error.to_string()),
        },
        Body::Error(reason) => {
            shared.discovery.failed(address, &reason);
            return Ok(());
        }
        _ => Err("expected a Destination".to_owned()),
    };
    if let Err(reason) = &refused {
        shared.discovery.failed(address, reason);
    }
    refused
}
