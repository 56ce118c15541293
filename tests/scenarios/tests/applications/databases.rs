//! Databases: one that speaks first, one that is spoken to first, and one whose clients wait.

use std::fs::{self, File};
use std::time::Duration;

use byrnie_netlab::HostCommand;
use byrnie_scenarios::{DEADLINE, Random, World, eventually, hexadecimal, marker};
use nix::sys::signal::Signal;

use crate::packages::program;
use crate::stage::{Stage, assert_same, sha256};

const PASSWORD: &str = "the-password";

pub(crate) async fn mariadb_speaks_first_and_its_megabytes_come_through_whole(world: World) -> Result<(), String> {
    let server = program("mariadbd", "mariadb-server-core")?;
    let install = program("mariadb-install-db", "mariadb-server-core")?;
    let client = program("mariadb", "mariadb-client-core")?;
    let stage = Stage::new(&world, &[3306], &marker()).await;
    let defaults = stage.configuration("mariadb.cnf", include_str!("../../applications/mariadb.cnf"));
    let defaults = format!("--defaults-file={}", defaults.display());
    let users = stage.configuration("init.sql", include_str!("../../applications/mariadb-init.sql"));
    let install = stage.at_server(&install).args([&defaults, "--auth-root-authentication-method=normal"]);
    stage.run(install.arg("--skip-test-db")).await;
    let server = stage.at_server(&server).args([defaults, format!("--init-file={}", users.display())]);
    let server = stage.serve(server, 3306).await;

    let client = || {
        let client = stage.at_client(&client).args(["--no-defaults", "--batch", "--raw", "--skip-column-names"]);
        let client = client.args(["--skip-ssl", "--local-infile=1", "--max-allowed-packet=32M"]);
        client.args(["--host", &stage.address(), "--user=app"]).arg(format!("--password={PASSWORD}"))
    };
    let lines = stage.lines(4 << 20);
    stage.file("lines", &lines);
    // Megabytes of lines from a file, and a statement of six megabytes.
    let blob = Random::of("blob", 0).bytes(3 << 20);
    let statements = include_str!("../../applications/mariadb.sql").replace("PICTURE", &hexadecimal(&blob));
    let statements = stage.configuration("statements.sql", &statements);
    let said = stage.run(client().stdin(File::open(statements).unwrap())).await;
    let count = lines.iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(String::from_utf8_lossy(&said), format!("{count}\n{}\n", sha256(&blob)));
    // Results of megabytes.
    let found = stage.run(client().args(["-e", "SELECT line FROM shop.lines ORDER BY id"])).await;
    assert_same("the lines", &found, &lines);
    let found = stage.run(client().args(["-e", "SELECT LOWER(HEX(body)) FROM shop.blobs"])).await;
    assert_same("the blob", found.trim_ascii_end(), hexadecimal(&blob).as_bytes());
    server.stop(Signal::SIGTERM).await;
    stage.was_secured(3).await;
    Ok(())
}

pub(crate) async fn postgresql_negotiates_tls_of_its_own_copies_megabytes_and_notifies_after_a_silence(
    world: World,
) -> Result<(), String> {
    let [server, initdb] = [program("postgres", "postgresql")?, program("initdb", "postgresql")?];
    let psql = program("psql", "postgresql-client")?;
    let news = marker();
    let stage = Stage::new(&world, &[5432], &news).await;
    let configuration = stage.configuration("postgresql.conf", include_str!("../../applications/postgresql.conf"));
    stage.configuration("pg_hba.conf", include_str!("../../applications/pg_hba.conf"));
    let own = rcgen::generate_simple_self_signed(["orders".to_owned()]).unwrap();
    stage.file("server.crt", own.cert.pem());
    stage.file("server.key", own.signing_key.serialize_pem());
    let password = stage.file("password", PASSWORD);
    let data = stage.path("data");
    let initdb = stage.at_server(&initdb).arg("-D").arg(&data).args(["-U", "postgres", "--auth=scram-sha-256"]);
    stage.run(initdb.arg("--no-sync").arg(format!("--pwfile={}", password.display()))).await;
    let server = stage.at_server(&server).arg("-D").arg(&data);
    let server = stage.serve(server.arg(format!("--config-file={}", configuration.display())), 5432).await;

    let psql = |tls: &str| -> HostCommand {
        let place = format!("host={} user=postgres dbname=postgres sslmode={tls}", stage.address());
        let psql = stage.at_client(&psql).args([&place, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
        psql.env("PGPASSWORD", PASSWORD)
    };
    let encrypted = ["-c", "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"];
    // The client asks for TLS; the server answers with one letter, and they go on without.
    assert_eq!(stage.run(psql("prefer").args(encrypted)).await, b"f\n");
    let lines = stage.lines(4 << 20);
    stage.file("lines", &lines);
    let script = stage.configuration("script.sql", include_str!("../../applications/postgresql.sql"));
    let said = stage.run(psql("disable").arg("-f").arg(script)).await;
    let (count, first) = (lines.split(|byte| *byte == b'\n').count() - 1, lines.split(|byte| *byte == b'\n').next());
    assert_eq!(said, [format!("{count}\n").as_bytes(), first.unwrap(), b"\n"].concat());
    assert_same("the lines", &fs::read(stage.path("lines.back")).unwrap(), &lines);

    let listen = stage.configuration("listen.sql", include_str!("../../applications/listen.sql"));
    let listener = stage.start(psql("disable").arg("-f").arg(listen));
    eventually("the listener", DEADLINE / 5, async || stage.path("listening").exists().then_some(())).await;
    // The silence is the matter itself.
    tokio::time::sleep(Duration::from_secs(3)).await;
    stage.run(psql("disable").args(["-c", &format!("NOTIFY news, '{news}'")])).await;
    stage.file("notified", "");
    let heard = String::from_utf8(listener.finish().await).unwrap();
    assert!(heard.contains(&format!("\"news\" with payload \"{news}\"")), "{heard}");

    // Now the server has TLS of its own, which goes through.
    let change = ["-c", "ALTER SYSTEM SET ssl = on", "-c", "SELECT pg_reload_conf()"];
    stage.run(psql("disable").args(change)).await;
    eventually("the server has TLS", DEADLINE / 5, async || {
        (stage.run(psql("prefer").args(encrypted)).await == b"t\n").then_some(())
    })
    .await;
    let found = stage.run(psql("require").args(["-c", "SELECT line FROM lines ORDER BY id"])).await;
    assert_same("the lines in TLS", &found, &lines);
    server.stop(Signal::SIGINT).await;
    stage.was_secured(7).await;
    Ok(())
}

pub(crate) async fn redis_is_pipelined_subscribed_to_and_waited_for(world: World) -> Result<(), String> {
    let server = program("redis-server", "redis-server")?;
    let [cli, benchmark] = [program("redis-cli", "redis-tools")?, program("redis-benchmark", "redis-tools")?];
    let news = marker();
    let stage = Stage::new(&world, &[6379], &news).await;
    let configuration = stage.configuration("redis.conf", include_str!("../../applications/redis.conf"));
    let server = stage.serve(stage.at_server(&server).arg(configuration), 6379).await;
    let cli = |arguments: &[&str]| {
        stage.at_client(&cli).args(["-h", &stage.address()]).args(arguments).env("REDISCLI_AUTH", PASSWORD)
    };

    // Forty thousand commands before the first answer is waited for, and every value there.
    let commands: String = (0..40_000).map(|number| format!("SET key:{number} {news}:{number}\r\n")).collect();
    let commands = stage.file("commands", commands);
    let said = stage.run(cli(&["--pipe"]).stdin(File::open(commands).unwrap())).await;
    assert!(String::from_utf8_lossy(&said).contains("errors: 0, replies: 40000"));
    for number in [0, 17, 39_999] {
        let found = stage.run(cli(&["GET", &format!("key:{number}")])).await;
        assert_eq!(String::from_utf8_lossy(&found), format!("{news}:{number}\n"));
    }
    let big = stage.lines(5 << 20);
    let file = stage.file("big", &big);
    assert_eq!(stage.run(cli(&["-x", "SET", "big"]).stdin(File::open(file).unwrap())).await, b"OK\n");
    let found = stage.run(cli(&["--raw", "GET", "big"])).await;
    assert_same("the big value", &found, &[&big, &b"\n"[..]].concat());

    let subscriber = stage.start(cli(&["SUBSCRIBE", "news"]));
    let waiting = stage.start(cli(&["BLPOP", "queue", "60"]));
    eventually("both clients wait", DEADLINE / 5, async || {
        let found = stage.run(cli(&["INFO", "clients"])).await;
        let channels = stage.run(cli(&["PUBSUB", "NUMSUB", "news"])).await;
        let is_blocked = String::from_utf8_lossy(&found).contains("blocked_clients:1");
        (is_blocked && channels == b"news\n1\n").then_some(())
    })
    .await;
    // The silence is the matter itself.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(stage.run(cli(&["PUBLISH", "news", &news])).await, b"1\n");
    subscriber.says(&news).await;
    stage.run(cli(&["LPUSH", "queue", &news])).await;
    assert_eq!(waiting.finish().await, format!("queue\n{news}\n").into_bytes());
    subscriber.stop(Signal::SIGTERM).await;

    // Twenty connections at once, sixteen commands under way on each.
    let load = ["-a", PASSWORD, "-n", "10000", "-c", "20", "-P", "16", "-t", "set,get", "--csv"];
    let said = stage.run(stage.at_client(&benchmark).args(["-h", &stage.address()]).args(load)).await;
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(said.contains("\"SET\"") && said.contains("\"GET\"") && !said.contains("rror"), "{said}");
    server.stop(Signal::SIGTERM).await;
    stage.was_secured(30).await;
    Ok(())
}
