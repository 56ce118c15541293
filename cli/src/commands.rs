//! What each command does.

mod capture;
mod check;
mod completions;
mod edges;
mod identity;
mod inject;
mod install;
mod namespace;
pub(crate) mod proxy;
mod token;

use std::path::PathBuf;

use byrnie_proto::mesh::v1::ObserveResponse;

use crate::args::{Args, Command, MeshArgs};
use crate::client::{Client, runtime};
use crate::cluster::{Cluster, Target};
use crate::failure::{Exit, Failure};
use crate::{apps, demo, mesh_dir};

/// Does what the command line says.
pub(crate) fn dispatch(args: Args) -> Result<Exit, Failure> {
    match args.command {
        Command::Demo(options) => demo::run(&args.mesh, options),
        Command::Install(options) => install::install(&args.mesh, &options, false),
        Command::Upgrade(options) => install::install(&args.mesh, &options, true),
        Command::Uninstall(options) => install::uninstall(&args.mesh, &options),
        Command::Generate(options) => install::generate(&options),
        Command::Namespace(command) => namespace::run(&args.mesh, command),
        Command::Identity(command) => identity::run(&args.mesh, command),
        Command::Check(options) => check::run(&args.mesh, &options),
        Command::Edges(options) => edges::run(&args.mesh, &options),
        Command::Proxy(command) => proxy::run(&args.mesh, command),
        Command::Inject(options) => inject::run(&options),
        Command::Capture(command) => capture::run(command),
        Command::Token(command) => token::run(&args.mesh, command),
        Command::Completions { shell } => completions::run(shell),
        Command::App(app) => apps::run(app),
    }
}

/// The socket of the mesh on this machine that the command line means.
fn socket(mesh: &MeshArgs) -> Result<PathBuf, Failure> {
    match &mesh.socket {
        Some(path) => Ok(path.clone()),
        None => mesh_dir::control_socket(mesh.name()),
    }
}

/// Refuses, in a cluster, what works by files and sockets of one machine.
fn only_on_this_machine(mesh: &MeshArgs, what: &str, next: &str) -> Result<(), Failure> {
    if Target::of(mesh)? == Target::Local(socket(mesh)?) {
        return Ok(());
    }
    Err(Failure::new(Exit::Usage, format!("{what} is for a mesh on this machine"))
        .expected("--mesh NAME or --socket PATH")
        .found("a cluster")
        .next(next))
}

/// What the mesh is now.
fn observe(mesh: &MeshArgs) -> Result<ObserveResponse, Failure> {
    let target = Target::of(mesh)?;
    runtime()?.block_on(async {
        match target {
            Target::Local(socket) => Client::connect(&socket).await?.observe().await,
            Target::Cluster => Cluster::connect(mesh).await?.observe().await,
        }
    })
}
