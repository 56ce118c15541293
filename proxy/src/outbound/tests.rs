#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod soak;

use std::time::Duration;

use byrnie_policy::{DefaultAction, Policies};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::model::AppProtocol;
use crate::sockets;
use crate::test_support::{connected, id, listener, own_pod};
use crate::tunnel::tests::Rig;

fn endpoint(address: SocketAddr, service_account: &str, weight: u32) -> Endpoint {
    Endpoint {
        address,
        weight,
        zone: "".into(),
        workload: format!("shop/{service_account}").into(),
        pod_uid: format!("uid-{service_account}").into(),
        meshed: Meshed::Yes(id(service_account)),
        terminating: false,
    }
}

fn service(endpoints: Vec<Endpoint>) -> Destination {
    let service = Some("shop/orders".into());
    Destination { kind: DestinationKind::Service, service, protocol: AppProtocol::Tcp, endpoints }
}

/// The application's end of a connection to `destination`, and the task that carries it.
async fn dial(rig: &Rig, worker: &Arc<Worker>, destination: Destination) -> (TcpStream, tokio::task::JoinHandle<()>) {
    let (near, application) = connected().await;
    sockets::reset_unless_clean(&application);
    let (source, dialled) = (near.local_addr().unwrap(), OriginalDestination(rig.address));
    let (shared, worker, own) = (rig.client.clone(), worker.clone(), rig.client.control.own().unwrap());
    let mut connection = shared.telemetry.connection(Direction::Outbound, source, dialled.0);
    let outbound = Outbound { shared, worker, application, source, dialled, own };
    let carried = async move { drop(outbound.to_endpoints(&mut connection, destination.into()).await) };
    (near, tokio::spawn(carried))
}

#[tokio::test]
async fn what_was_said_to_an_endpoint_that_refused_is_said_to_the_pod_itself() {
    let mut rig = Rig::new().await;
    // Nobody listens behind the first endpoint; the second, which is all but never drawn first, is the pod itself.
    rig.application = listener().await.0;
    let (own_application, own_address) = listener().await;
    let endpoints = vec![endpoint(rig.address, "orders", u32::MAX), endpoint(own_address, "web", 1)];
    let (mut near, carried) = dial(&rig, &Worker::new(), service(endpoints)).await;
    near.write_all(b"a request in full").await.unwrap();
    near.shutdown().await.unwrap();
    let (mut application, _) = own_application.accept().await.unwrap();
    let mut request = vec![];
    application.read_to_end(&mut request).await.unwrap();
    assert_eq!(request, b"a request in full");
    drop(application);
    near.read_to_end(&mut request).await.unwrap();
    carried.await.unwrap();
}

#[tokio::test]
async fn behind_a_service_what_is_outside_is_reached_only_as_egress_policy_says() {
    let rig = Rig::new().await;
    let (outside, address) = listener().await;
    let external = Endpoint { meshed: Meshed::External, ..endpoint(address, "outside", 1) };
    let (mut near, carried) = dial(&rig, &Worker::new(), service(vec![external.clone()])).await;
    near.read_to_end(&mut vec![]).await.unwrap_err();
    carried.await.unwrap();

    let policies = Policies { egress_default: DefaultAction::Allow, ..Policies::default() };
    rig.client.control.take_own(own_pod("web", policies));
    let (mut near, carried) = dial(&rig, &Worker::new(), service(vec![external])).await;
    near.write_all(b"as it is").await.unwrap();
    near.shutdown().await.unwrap();
    // The first connection never came.
    let (mut other, _) = outside.accept().await.unwrap();
    let mut said = vec![];
    other.read_to_end(&mut said).await.unwrap();
    assert_eq!(said, b"as it is");
    drop(other);
    near.read_to_end(&mut said).await.unwrap();
    carried.await.unwrap();
}

#[tokio::test]
async fn how_long_a_connection_lasts_is_no_load() {
    let rig = Rig::new().await;
    let worker = Worker::new();
    let orders = endpoint(rig.address, "orders", 1);
    let (mut near, carried) = dial(&rig, &worker, service(vec![orders.clone()])).await;
    let application = rig.application.accept().await.unwrap().0;
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(application);
    near.shutdown().await.unwrap();
    near.read_to_end(&mut vec![]).await.unwrap();
    carried.await.unwrap();
    let cost = worker.loads.cost(&orders);
    assert!(cost < 0.1, "{cost} s, after a connection of one second that opened in milliseconds");
    assert_eq!(worker.idle_tunnels(), 1);
}

#[tokio::test]
async fn a_cut_is_felt_at_once_however_full_the_tunnel_is() {
    let rig = Rig::new().await;
    let (mut near, carried) = dial(&rig, &Worker::new(), service(vec![endpoint(rig.address, "orders", 1)])).await;
    let application = rig.application.accept().await.unwrap().0;
    // The application at the far end reads nothing, until no buffer on the way takes more.
    let block = vec![7; 1 << 20];
    while tokio::time::timeout(Duration::from_millis(300), near.write_all(&block)).await.is_ok() {}
    rig.client.streams.cut_all("the test");
    let ended = tokio::time::timeout(Duration::from_secs(1), carried).await;
    assert!(ended.is_ok(), "the application waits for what the tunnel has to say");
    assert!(near.write_all(b"x").await.is_err() || near.read(&mut [0]).await.is_err());
    drop(application);
}
