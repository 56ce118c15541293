//! The stream by which a proxy learns what it needs.

use std::collections::BTreeMap;
use std::time::Duration;

use byrnie_proto::mesh::v1::mesh_client::MeshClient;
use byrnie_proto::mesh::v1::resource::Body;
use byrnie_proto::mesh::v1::watch_request::Message;
use byrnie_proto::mesh::v1::{Destination, Hello, Resource, Subscribe, WatchRequest, WatchResponse};
use byrnie_scenarios::DEADLINE;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// One stream, and what came on it.
#[derive(Debug)]
pub struct Watch {
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
    latest: BTreeMap<String, Resource>,
}

impl Watch {
    pub(crate) async fn open(channel: Channel, hello: Hello) -> Result<Self, Status> {
        let (requests, stream) = mpsc::channel(16);
        let first = WatchRequest { message: Some(Message::Hello(hello)) };
        requests.send(first).await.expect("an open channel");
        let responses = MeshClient::new(channel).watch(ReceiverStream::new(stream)).await?.into_inner();
        Ok(Self { requests, responses, latest: BTreeMap::new() })
    }

    /// Asks for resources by their names. A stream that has ended already says so to whoever reads it.
    pub async fn subscribe(&self, names: &[&str]) {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let message = WatchRequest { message: Some(Message::Subscribe(Subscribe { names })) };
        let _ = self.requests.send(message).await;
    }

    /// Waits until a resource fits.
    ///
    /// # Errors
    /// How the stream ended.
    ///
    /// # Panics
    /// When it does not within five times `bound`.
    pub async fn until(
        &mut self,
        name: &str,
        bound: Duration,
        mut fits: impl FnMut(&Body) -> bool,
    ) -> Result<Body, Status> {
        let deadline = tokio::time::Instant::now() + bound * 5;
        loop {
            if let Some(body) = self.latest.get(name).and_then(|resource| resource.body.clone())
                && fits(&body)
            {
                return Ok(body);
            }
            let Ok(message) = tokio::time::timeout_at(deadline, self.responses.message()).await else {
                panic!("{name}: not within {:?}; the last was {:?}", bound * 5, self.latest.get(name));
            };
            let message = message?.ok_or_else(|| Status::aborted("the stream ended"))?;
            self.latest.extend(message.resources.into_iter().map(|resource| (resource.name.clone(), resource)));
        }
    }

    /// Subscribes to a destination and waits until it fits.
    ///
    /// # Errors
    /// How the stream ended.
    pub async fn destination(
        &mut self,
        address: &str,
        mut fits: impl FnMut(&Destination) -> bool,
    ) -> Result<Destination, Status> {
        let name = format!("destination/{address}");
        self.subscribe(&[&name]).await;
        let body =
            self.until(&name, DEADLINE / 5, |body| matches!(body, Body::Destination(found) if fits(found))).await?;
        match body {
            Body::Destination(destination) => Ok(destination),
            other => panic!("{name}: {other:?}"),
        }
    }
}
