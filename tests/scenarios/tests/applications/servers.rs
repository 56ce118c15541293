//! Servers of mail, files and shells.

use std::fs::{self, File};
use std::time::Duration;

use byrnie_netlab::HostCommand;
use byrnie_scenarios::{DEADLINE, Random, World, eventually, marker};
use nix::sys::signal::Signal;

use crate::packages::{program, python};
use crate::stage::{Program, Stage, assert_same, sha256};

pub(crate) async fn a_mail_with_an_attachment_arrives_as_it_was_sent(world: World) -> Result<(), String> {
    let [python, curl] = [python()?, program("curl", "curl")?];
    let words = marker();
    let stage = Stage::new(&world, &[2525], &words).await;
    let script = stage.configuration("server.py", include_str!("../../applications/smtp_server.py"));
    let inbox = stage.folder("inbox");
    let server = stage.serve(stage.at_server(&python).arg(script).arg("2525").arg(&inbox), 2525).await;

    let picture = Random::of("picture", 0).bytes(3 << 20);
    let file = stage.file("picture", &picture);
    let to = format!("smtp://{}:2525", stage.address());
    let curl = stage.at_client(&curl).args(["-sS", &to, "--mail-from", "web@shop", "--mail-rcpt", "orders@shop"]);
    let text = format!("={words};type=text/plain");
    let curl = curl.args(["-H", "Subject: a picture", "-F", &text]);
    stage.run(curl.args(["-F", &format!("file=@{};encoder=base64", file.display())])).await;
    assert_eq!(fs::read_to_string(inbox.join("text")).unwrap().trim_end(), words);
    assert_same("the attachment", &fs::read(inbox.join("picture")).unwrap(), &picture);
    server.stop(Signal::SIGTERM).await;
    stage.was_secured(1).await;
    Ok(())
}

pub(crate) async fn nginx_serves_thousands_of_streams_of_http_2_without_tls_and_takes_an_upload(
    world: World,
) -> Result<(), String> {
    let curl = program("curl", "curl")?;
    let h2load = program("h2load", "nghttp2-client")?;
    let stage = Stage::new(&world, &[8080, 8081], &marker()).await;
    let server = nginx(&stage).await?;
    let url = |path: &str| format!("http://{}:8080/{path}", stage.address());
    let curl = || stage.at_client(&curl).args(["-sS", "--fail", "--http2-prior-knowledge"]);

    let lines = stage.lines(4 << 20);
    let file = stage.file("lines", &lines);
    let facts = ["-w", "%{http_version} %{response_code}"];
    let said = stage.run(curl().args(facts).arg("-T").arg(file).arg(url("up"))).await;
    assert_eq!(String::from_utf8_lossy(&said), "2 201");
    assert_same("the upload", &fs::read(stage.path("served/up")).unwrap(), &lines);
    assert_same("the download", &stage.run(curl().arg(url("up"))).await, &lines);
    stage.file("served/small", &lines[..10_000]);
    let load = stage.at_client(&h2load).args(["-n", "4000", "-c", "4", "-m", "100", &url("small")]);
    let said = String::from_utf8(stage.run(load).await).unwrap();
    assert!(said.contains("4000 succeeded, 0 failed, 0 errored, 0 timeout"), "{said}");
    assert!(said.contains("status codes: 4000 2xx"), "{said}");
    server.stop(Signal::SIGTERM).await;
    stage.was_secured(6).await;
    Ok(())
}

pub(crate) async fn an_upload_beside_a_slow_download_arrives_whole_and_holds_little_memory(
    world: World,
) -> Result<(), String> {
    const UPLOAD: usize = 64 << 20;
    const DOWNLOAD: usize = 12 << 20;
    let curl = program("curl", "curl")?;
    // Of random bytes nothing can be told apart on the wire: what is looked for there is the head of a request.
    let stage = Stage::new(&world, &[8080, 8081], "PUT /up HTTP/1.1").await;
    let server = nginx(&stage).await?;
    let url = |path: &str| format!("http://{}:8081/{path}", stage.address());
    let [up, down] = [Random::of("up", 0).bytes(UPLOAD), Random::of("down", 0).bytes(DOWNLOAD)];
    let file = stage.file("up", &up);
    stage.file("served/down", &down);
    let back = stage.path("back");

    let curl = || stage.at_client(&curl).args(["-sS", "--fail"]);
    stage.run(curl().arg(url("down")).args(["-r", "0-99"])).await;
    let before = [stage.client.memory(), stage.server.memory()];
    let mut download = stage.start(curl().args(["--limit-rate", "2M", "-o"]).arg(&back).arg(url("down")));
    eventually("the download has begun", DEADLINE / 5, async || {
        fs::metadata(&back).is_ok_and(|file| file.len() > 0).then_some(())
    })
    .await;
    let mut upload = stage.start(curl().arg("-T").arg(file).arg(url("up")));
    assert!(download.is_running(), "the download was over before the upload began");
    let mut most = before;
    while upload.is_running() {
        most = [most[0].max(stage.client.memory()), most[1].max(stage.server.memory())];
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    upload.finish().await;
    download.finish().await;
    assert_eq!(sha256(&fs::read(stage.path("served/up")).unwrap()), sha256(&up));
    assert_eq!(sha256(&fs::read(back).unwrap()), sha256(&down));
    println!("{UPLOAD} bytes up beside {DOWNLOAD} slowly down: {before:?} KiB before, at most {most:?} KiB");
    // Two connections of two directions, each with a buffer of TLS records, one of what was in them, and one of the
    // application's bytes; and as much again that the allocator has not given back yet.
    let bound = 2 * 2 * 2 * (256 + 256 + 64);
    for proxy in 0..2 {
        assert!(most[proxy] < before[proxy] + bound, "{before:?} KiB, then {most:?} KiB; at most {bound} more");
    }
    server.stop(Signal::SIGTERM).await;
    stage.was_secured(3).await;
    Ok(())
}

pub(crate) async fn ssh_runs_commands_carries_files_and_forwards_a_port(world: World) -> Result<(), String> {
    let sshd = program("sshd", "openssh-server")?;
    let [ssh, keygen] = [program("ssh", "openssh-client")?, program("ssh-keygen", "openssh-client")?];
    // It encrypts by itself; but for the mesh, its greeting could be read.
    let stage = Stage::new(&world, &[2222], "SSH-2.0-OpenSSH").await;
    for key in ["host-key", "client-key"] {
        let keygen = stage.at_client(&keygen).args(["-q", "-t", "ed25519", "-N", "", "-f"]);
        stage.run(keygen.arg(stage.path(key))).await;
    }
    let configuration = stage.configuration("sshd_config", include_str!("../../applications/sshd_config"));
    let server = stage.at_server(&sshd).args(["-D", "-e", "-f"]).arg(configuration);
    let server = stage.serve(server, 2222).await;
    let configuration = stage.configuration("ssh_config", include_str!("../../applications/ssh_config"));
    let ssh = || -> HostCommand { stage.at_client(&ssh).arg("-F").arg(&configuration) };
    let address = stage.address();

    // Longer than any deadline of detection, handshake or connect.
    let silent = stage.start(ssh().args([&address, "sleep 6; echo still here"]));
    let lines = stage.lines(8 << 20);
    let file = stage.file("lines", &lines);
    let found = stage.run(ssh().args([&address, "cat lines"])).await;
    assert_same("a command's output", &found, &lines);
    stage.run(ssh().args([&address, "cat > up"]).stdin(File::open(file).unwrap())).await;
    assert_same("a command's input", &fs::read(stage.path("up")).unwrap(), &lines);
    // Through a forwarded port to the server's own loopback: ssh inside of ssh.
    let forward = stage.start(ssh().args(["-N", "-L", "127.0.0.1:7000:127.0.0.1:2222", &address]));
    eventually("the forwarded port", DEADLINE / 5, async || {
        stage.client.host().connect_async(([127, 0, 0, 1], 7000).into()).await.ok()
    })
    .await;
    let found = stage.run(ssh().args(["-p", "7000", "127.0.0.1", "sha256sum < lines"])).await;
    assert_eq!(String::from_utf8_lossy(&found), format!("{}  -\n", sha256(&lines)));
    forward.stop(Signal::SIGTERM).await;
    assert_eq!(silent.finish().await, b"still here\n");
    server.stop(Signal::SIGTERM).await;
    stage.was_secured(4).await;
    Ok(())
}

/// An nginx that serves the folder `served`, and puts there what is uploaded.
async fn nginx(stage: &Stage) -> Result<Program, String> {
    let nginx = program("nginx", "nginx-light")?;
    let configuration = stage.configuration("nginx.conf", include_str!("../../applications/nginx.conf"));
    stage.folder("served");
    let nginx = stage.at_server(&nginx).args(["-e", "stderr", "-c"]).arg(configuration);
    Ok(stage.serve(nginx, 8080).await)
}
