//! Generates the types of `byrnie/**/*.proto` with protox, so that no machine needs `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=byrnie");
    let files = protox::compile(
        ["byrnie/tunnel/v1/tunnel.proto", "byrnie/mesh/v1/policy.proto", "byrnie/mesh/v1/mesh.proto"],
        ["."],
    )?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
