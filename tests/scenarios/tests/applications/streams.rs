//! Connections that both sides keep open and speak on as they like.

use byrnie_scenarios::{World, marker};
use nix::sys::signal::Signal;

use crate::packages::python;
use crate::stage::{Stage, sha256};

pub(crate) async fn grpc_streams_both_ways_and_keeps_deadlines_and_errors(world: World) -> Result<(), String> {
    let python = python()?;
    let stage = Stage::new(&world, &[8080], &marker()).await;
    let server = stage.configuration("server.py", include_str!("../../applications/grpc_server.py"));
    let server = stage.serve(stage.at_server(&python).arg(server).arg("8080"), 8080).await;
    let client = stage.configuration("client.py", include_str!("../../applications/grpc_client.py"));
    let body = stage.lines(4 << 20);
    let file = stage.file("body", &body);
    let client = stage.at_client(&python).arg(client).arg(format!("{}:8080", stage.address())).arg(file);
    let said = String::from_utf8(stage.run(client).await).unwrap();
    let digest = sha256(&body);
    let expected = format!(
        "in turns 200\nafter a pause {digest}\nstatus OK\nstreamed {digest}\ndeadline DEADLINE_EXCEEDED\n\
         refused FAILED_PRECONDITION none of them is left sold-out\n"
    );
    assert_eq!(said, expected);
    server.stop(Signal::SIGTERM).await;
    stage.was_secured(1).await;
    Ok(())
}

pub(crate) async fn a_websocket_carries_megabytes_pings_after_a_silence_and_its_closing_code(
    world: World,
) -> Result<(), String> {
    let python = python()?;
    let stage = Stage::new(&world, &[8080], &marker()).await;
    let server = stage.configuration("server.py", include_str!("../../applications/websocket_server.py"));
    let server = stage.serve(stage.at_server(&python).arg(server).arg("8080"), 8080).await;
    let client = stage.configuration("client.py", include_str!("../../applications/websocket_client.py"));
    let body = stage.lines(4 << 20);
    let file = stage.file("body", &body);
    let client = stage.at_client(&python).arg(client).arg(format!("ws://{}:8080/", stage.address())).arg(file);
    let said = String::from_utf8(stage.run(client).await).unwrap();
    let expected = format!(
        "echo a few words\nfragments True\nbig {}\nping after a pause True\nclosed 4321 as you wish\n",
        sha256(&body)
    );
    assert_eq!(said, expected);
    server.stop(Signal::SIGTERM).await;
    stage.was_secured(1).await;
    Ok(())
}
