//! Generates the types of `byrnie/**/*.proto` and of the gRPC health service with protox, so that no machine needs `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=byrnie");
    println!("cargo:rerun-if-changed=grpc");
    let files = protox::compile(
        [
            "byrnie/tunnel/v1/tunnel.proto",
            "byrnie/mesh/v1/policy.proto",
            "byrnie/mesh/v1/mesh.proto",
            "grpc/health/v1/health.proto",
        ],
        ["."],
    )?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
