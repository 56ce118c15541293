//! `byrnie demo`: the story of the platform, told on this machine's kernel. First without the mesh, so that everyone
//! sees what is on the wire; then with it, attacked, renewed under load, and with its control plane killed.
//!
//! [`topology`] says who is who and where, [`world`] makes it (namespaces, applications, proxies), [`story`] plays it,
//! `checks` hold the promises against what was measured, and [`report`] is what is printed as JSON.

mod attack;
mod checks;
mod children;
mod directory;
mod enroll;
mod exec;
mod load;
mod mesh;
mod narrator;
mod objects;
mod reach;
mod report;
mod story;
mod topology;
mod world;

use std::path::PathBuf;

use byrnie_netlab::{Entered, Privileges};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{DemoArgs, DemoCommand, MeshArgs};
use crate::client::runtime;
use crate::failure::{Exit, Failure};
use narrator::Narrator;
use report::Report;

/// What the user asked for.
#[derive(Debug)]
struct Options {
    mesh: String,
    once: bool,
    json: bool,
    capture: Option<PathBuf>,
    privileges: Privileges,
}

/// Runs the demo, or a command in a pod of one that runs.
pub(crate) fn run(mesh: &MeshArgs, args: DemoArgs) -> Result<Exit, Failure> {
    if let Some(DemoCommand::Exec { pod, command }) = &args.command {
        return exec::run(mesh, pod, command);
    }
    // Before anything else: a bad name is a usage error, also where the kernel can't.
    crate::mesh_dir::of(mesh.name())?;
    let json = args.json;
    let mut report = Report::new();
    let outcome = match byrnie_netlab::enter() {
        Ok(entered) => inside(&entered, mesh, args, &mut report),
        Err(reason) => Err(Failure::new(Exit::KernelCannot, reason.to_string())),
    };
    outcome.map_err(|mut failure| {
        // Within the demo everything is a check: what could not be looked at has not passed.
        if matches!(failure.exit, Exit::Unreachable | Exit::Refused) {
            failure.exit = Exit::Negative;
        }
        if json {
            // The failure goes to standard error in any case.
            let _ = report.print_failed(&failure);
        }
        failure
    })
}

fn inside(entered: &Entered, mesh: &MeshArgs, args: DemoArgs, report: &mut Report) -> Result<Exit, Failure> {
    let options = Options {
        mesh: mesh.name().to_owned(),
        once: args.once,
        json: args.json,
        capture: args.capture,
        privileges: entered.privileges(),
    };
    let narrator = Narrator::new(options.json);
    narrator.title(match options.privileges {
        Privileges::Root => "Byrnie: the whole mesh on this machine (as root; every proxy with a UID of its own)",
        Privileges::SingleUid => "Byrnie: the whole mesh on this machine (without root, in a user namespace)",
    });
    if let Some(directory) = &options.capture {
        std::fs::create_dir_all(directory).map_err(|error| {
            Failure::new(Exit::Usage, format!("cannot write to {}", directory.display())).found(error)
        })?;
    }
    let dir = directory::MeshDir::create(&options)?;
    if options.privileges == Privileges::Root {
        reach::make_reachable(&dir, options.capture.as_deref())?;
    }
    let tasks = tokio::task::LocalSet::new();
    let runtime = runtime()?;
    runtime.block_on(tasks.run_until(async {
        let mut interrupted = Interrupt::new()?;
        let story = story::play(entered, &options, &dir, &narrator, report);
        tokio::select! {
            told = story => match told? {
                story::Told::Ended(exit) => Ok(exit),
                story::Told::Running { exit, mut world } => {
                    tokio::select! {
                        () = interrupted.wait() => {}
                        () = keep_up(&mut world, &dir, &narrator) => {}
                    }
                    narrator.note("taking everything down");
                    drop(world);
                    Ok(exit)
                }
            },
            () = interrupted.wait() => {
                Err(Failure::new(Exit::Negative, "interrupted before the checks were through").next("byrnie demo"))
            }
        }
    }))
}

/// Looks after a demo that stays up: renews the ingress's files, and says so when something dies. Does not end.
async fn keep_up(world: &mut world::World, dir: &directory::MeshDir, narrator: &Narrator) {
    let mut well = true;
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        let looked = world.check().and_then(|()| mesh::refresh_ingress(dir, world));
        if let (true, Err(failure)) = (well, &looked) {
            narrator.line(&format!("\n{} {failure}", crate::output::red("error:")));
        }
        well = looked.is_ok();
    }
}

/// How often a demo that stays up is looked after.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

/// The signals that end a demo.
struct Interrupt {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Interrupt {
    fn new() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::new(Exit::Refused, "cannot listen to signals").found(error));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
