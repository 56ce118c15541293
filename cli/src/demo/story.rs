//! The story, from the first plaintext packet to the killed control plane.

use std::time::Duration;

use byrnie_netlab::{Entered, Tap, TapOptions};

use super::checks::{self, Scene};
use super::children::until;
use super::directory::MeshDir;
use super::load::{self, Load};
use super::narrator::Narrator;
use super::report::{Report, Wire};
use super::topology::{CLIENT, INGRESS};
use super::world::World;
use super::{Options, exec, mesh};
use crate::failure::{Exit, Failure};

/// Requests of the client in each of the two phases.
const REQUESTS: u64 = 20;

/// Longest that they take.
const PATIENCE: Duration = Duration::from_secs(20);

/// How the story ended.
pub(super) enum Told {
    /// With everything taken down.
    Ended(Exit),
    /// With everything still running.
    Running {
        /// What the checks said.
        exit: Exit,
        /// What is to be taken down.
        world: Box<World>,
    },
}

/// Tells it.
pub(super) async fn play(
    entered: &Entered,
    options: &Options,
    dir: &MeshDir,
    narrator: &Narrator,
    report: &mut Report,
) -> Result<Told, Failure> {
    let mut world = World::build(entered)?;
    narrator.note("one network namespace for each of 7 pods and 3 hosts outside; a bridge; a router");
    world.start_applications(dir).await?;
    exec::describe(entered, &world, dir)?;
    narrator.part("Without the mesh");
    before(&world, options, narrator, report).await?;
    narrator.part("With the mesh: nobody restarts an application");
    let tap = tap(&world, options, "after")?;
    mesh::start(&mut world, dir, narrator).await?;
    let mut scene = Scene { world: &mut world, dir, narrator, report: &mut *report };
    after(&mut scene, tap).await?;
    let passed = report.conclude();
    conclude(report, narrator);
    if options.json {
        report.print()?;
    }
    let exit = if passed { Exit::Success } else { Exit::Negative };
    if options.once {
        return Ok(Told::Ended(exit));
    }
    invite(options, &world, dir, narrator);
    Ok(Told::Running { exit, world: Box::new(world) })
}

async fn before(world: &World, options: &Options, narrator: &Narrator, report: &mut Report) -> Result<(), Failure> {
    let tap = tap(world, options, "before")?;
    let client = world.host(CLIENT.name)?;
    narrator.note("client -> ingress -> shop/web -> shop/orders -> shop/stock -> partner.example");
    let load = Load::start(client, INGRESS.socket());
    load.wait_for(REQUESTS, PATIENCE).await?;
    let outcome = load.stop().await;
    let seen = tap.stop().map_err(|error| Failure::new(Exit::Refused, "the tap on the wire failed").found(error))?;
    report.requests.before = Some(outcome.requests);
    report.wire.before = Some(Wire::new(&seen, &world.marker));
    if let Some(excerpt) = &seen.first_hit {
        narrator.note(&format!("on the wire between {} and {}:", excerpt.source, excerpt.destination));
        narrator.quote(excerpt.text.trim_end());
    }
    report.check(narrator, checks::wire::visible_before(&seen, &outcome));
    Ok(())
}

async fn after(scene: &mut Scene<'_>, tap: Tap) -> Result<(), Failure> {
    let client = scene.world.host(CLIENT.name)?.clone();
    // The first requests find cold caches; a failure among them counts like any other.
    let load = Load::start(&client, INGRESS.socket());
    load.wait_for(REQUESTS, PATIENCE).await?;
    let outcome = load.stop().await;
    if let Some(error) = &outcome.first_error {
        scene.narrator.quote(&format!("the first failed request: {error}"));
    }
    scene.report.requests.after = Some(outcome.requests);
    checks::identities::edge_identities(scene).await?;
    let left = checks::egress::attempt_all(scene).await?;
    checks::attacks::run(scene).await?;
    checks::egress::judge(scene, left).await?;
    checks::reuse::run(scene).await?;
    checks::renewal::run(scene).await?;
    checks::outage::run(scene).await?;
    let seen = tap.stop().map_err(|error| Failure::new(Exit::Refused, "the tap on the wire failed").found(error))?;
    let wire = Wire::new(&seen, &scene.world.marker);
    scene.report.wire.after = Some(wire);
    let check = checks::wire::none_after(&seen, &outcome);
    scene.report.check(scene.narrator, check);
    let observed = mesh::observe(scene.world).await?;
    scene.report.take_over(&observed);
    Ok(())
}

fn tap(world: &World, options: &Options, phase: &str) -> Result<Tap, Failure> {
    let mut tap = TapOptions::new(world.marker.as_bytes());
    if let Some(directory) = &options.capture {
        tap = tap.pcap(directory.join(format!("{phase}.pcap")));
    }
    world
        .lab
        .tap(tap)
        .map_err(|error| Failure::new(Exit::KernelCannot, "cannot read the wire").found(load::sources(&error)))
}

fn conclude(report: &Report, narrator: &Narrator) {
    narrator.part("Who is who");
    narrator.quote(&table(&report.identities));
    narrator.part("Who talks to whom");
    narrator.quote(&table(&report.edges));
    let passed = report.checks.iter().filter(|check| check.passed).count();
    let (all, seconds) = (report.checks.len(), narrator.elapsed());
    narrator.line(&format!("\n{passed} of {all} checks passed in {seconds:.1} s"));
}

fn table<R: crate::output::Row>(rows: &[R]) -> String {
    crate::output::render(rows, false).to_string()
}

fn invite(options: &Options, world: &World, dir: &MeshDir, narrator: &Narrator) {
    let name = if options.mesh == "demo" { String::new() } else { format!("--mesh {} ", options.mesh) };
    narrator.part("It stays up until Ctrl-C. From another terminal:");
    for command in ["identity list", "edges -o wide", "proxy status", "proxy renew shop/web"] {
        narrator.line(&format!("  byrnie {name}{command}"));
    }
    narrator.line(&format!("  byrnie {name}demo exec shop/web -- curl -s http://orders.shop:8080/"));
    narrator.line(&format!("  byrnie {name}demo exec node -- tcpdump -ni pods -A"));
    narrator.part("Where things are");
    narrator.line(&format!("  control plane's socket   {}", dir.control_socket().display()));
    narrator.line(&format!("  objects, read live       {}", dir.join("source").display()));
    narrator.line(&format!("  logs                     {}", dir.join("logs").display()));
    for pod in super::topology::proxied() {
        let [v4, _] = pod.addresses();
        narrator.line(&format!("  metrics of {:<13} http://{v4}:15010/metrics   (in the demo's network)", pod.name));
    }
    for (host, entry) in world.hosts().map(|(name, host)| (name, host.enter_hint())) {
        narrator.line(&format!("  enter {host:<18} {entry}"));
    }
}

/// Looks at the mesh until `condition` holds of it, and takes over what it knows.
pub(super) async fn observe_until<T>(
    scene: &mut Scene<'_>,
    what: &str,
    patience: Duration,
    mut condition: impl FnMut(&byrnie_proto::mesh::v1::ObserveResponse) -> Option<T>,
) -> Result<T, Failure> {
    until(what, patience, async || {
        scene.world.check()?;
        let observed = mesh::observe(scene.world).await?;
        scene.report.take_over(&observed);
        Ok(condition(&observed))
    })
    .await
}
