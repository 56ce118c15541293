//! Byrnie's wire formats, without any I/O: the messages and services that proxies, control plane and command line
//! speak (generated from `byrnie/**/*.proto`), and the codec of the tunnel protocol `byrnie/1`.

/// The control plane's API.
pub mod mesh {
    /// Version 1.
    #[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::indexing_slicing)]
    pub mod v1 {
        tonic::include_proto!("byrnie.mesh.v1");
    }
}

/// The standard health service of gRPC, which probes ask.
pub mod health {
    /// Version 1.
    #[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::indexing_slicing)]
    pub mod v1 {
        tonic::include_proto!("grpc.health.v1");
    }
}

/// What the kubelet asks of a pod, performed by its proxy.
pub mod probes;

/// The tunnel between two proxies.
pub mod tunnel;
