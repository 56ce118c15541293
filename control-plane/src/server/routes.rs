//! Which call goes where.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use byrnie_proto::mesh::v1::{
    CertifyRequest, CertifyResponse, WatchRequest,
    identity_server::{Identity, IdentityServer},
};
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codegen::{Service, http},
    server::{Grpc, StreamingService},
};

use super::{
    codec::{Fields, WatchCodec},
    connection::Caller,
};
use crate::{limits, plane::Plane, watch::Responses};

/// All calls that come over TLS.
#[derive(Clone)]
pub(super) struct Routes {
    plane: Arc<Plane>,
    identity: IdentityServer<IdentityService>,
}

struct IdentityService(Arc<Plane>);

struct WatchService(Arc<Plane>);

type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Routes {
    pub(super) fn new(plane: Arc<Plane>) -> Self {
        // A little more than both, so that what is too long is told by its name.
        let longest = limits::CSR_BYTES * 2 + limits::SERVICE_ACCOUNT_TOKEN_BYTES;
        let identity = IdentityServer::new(IdentityService(plane.clone())).max_decoding_message_size(longest);
        Self { plane, identity }
    }
}

impl Service<http::Request<Body>> for Routes {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != "/byrnie.mesh.v1.Mesh/Watch" {
            // It answers paths that are none of its own with `unimplemented`.
            return self.identity.call(request);
        }
        let service = WatchService(self.plane.clone());
        Box::pin(async move {
            let mut grpc = Grpc::new(WatchCodec).max_decoding_message_size(limits::MESSAGE_BYTES);
            Ok(grpc.streaming(service, request).await)
        })
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn certify(&self, request: Request<CertifyRequest>) -> Result<Response<CertifyResponse>, Status> {
        let caller = caller(&request)?;
        self.0.certify(&caller, request.into_inner()).await.map(Response::new)
    }
}

impl StreamingService<WatchRequest> for WatchService {
    type Response = Fields;
    type ResponseStream = Responses;
    type Future = Answer<Result<Response<Responses>, Status>>;

    fn call(&mut self, request: Request<Streaming<WatchRequest>>) -> Self::Future {
        let plane = self.0.clone();
        Box::pin(async move {
            let caller = caller(&request)?;
            plane.watch(caller, request.into_inner()).map(Response::new)
        })
    }
}

fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>();
    caller.cloned().ok_or_else(|| Status::internal("the connection does not say who is at its other end"))
}
