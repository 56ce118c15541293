//! `byrnie demo exec`: a command in a pod of a demo that runs in another terminal, so that everyone can look with their
//! own tools and need not believe this one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use byrnie_netlab::{Entered, Host, Privileges};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use serde::{Deserialize, Serialize};

use super::directory::MeshDir;
use super::world::World;
use crate::args::MeshArgs;
use crate::failure::{Exit, Failure};
use crate::mesh_dir;

/// Name of the file by which the demo says where its namespaces are.
const FILE: &str = "demo.json";

/// How to get in.
#[derive(Debug, Serialize, Deserialize)]
struct Entrance {
    /// The demo's process, as seen from outside.
    pid: u32,
    /// Whether it lives in a user namespace of its own.
    user_namespace: bool,
    /// The number of the open file of each host's network namespace.
    hosts: BTreeMap<String, i32>,
}

/// Writes down how to get in.
pub(super) fn describe(entered: &Entered, world: &World, dir: &MeshDir) -> Result<(), Failure> {
    let number = |host: &Host| host.namespace().as_fd().as_raw_fd();
    let mut hosts: BTreeMap<String, i32> = world.hosts().map(|(name, host)| (name.to_owned(), number(host))).collect();
    hosts.insert("node".into(), number(world.lab.node()));
    hosts.insert("router".into(), number(world.lab.router()));
    let entrance = Entrance {
        pid: entered.host_pid().unwrap_or_else(std::process::id),
        user_namespace: entered.privileges() == Privileges::SingleUid,
        hosts,
    };
    let text = serde_json::to_vec_pretty(&entrance).map_err(|error| dir.failed("write", &error))?;
    std::fs::write(dir.join(FILE), text).map_err(|error| dir.failed("write", &error))
}

/// Runs `command` in `pod`; returns only when it could not be started.
pub(super) fn run(mesh: &MeshArgs, pod: &str, command: &[OsString]) -> Result<Exit, Failure> {
    let dir = mesh_dir::control_socket(mesh.name())?.parent().map(Path::to_owned).unwrap_or_default();
    let not_running = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Unreachable, format!("no demo named `{}` runs", mesh.name()))
            .expected(format!("what it says of itself in {}", dir.join(FILE).display()))
            .found(error)
            .next("byrnie demo   (without --once, in another terminal)")
    };
    let text = std::fs::read(dir.join(FILE)).map_err(|error| not_running(&error))?;
    let entrance: Entrance = serde_json::from_slice(&text).map_err(|error| not_running(&error))?;
    let Some(number) = entrance.hosts.get(pod) else {
        let known: Vec<_> = entrance.hosts.keys().map(String::as_str).collect();
        return Err(Failure::new(Exit::Usage, format!("the demo has no pod `{pod}`"))
            .expected(format!("one of {}", known.join(", ")))
            .next("byrnie demo exec shop/web -- COMMAND"));
    };
    enter(&entrance, *number, &dir.join("hosts")).map_err(|error| {
        Failure::new(Exit::Refused, format!("cannot enter {pod}"))
            .expected("the user who started the demo, or root")
            .found(error)
    })?;
    let Some((program, arguments)) = command.split_first() else {
        return Err(Failure::new(Exit::Usage, "there is no command").next("byrnie demo exec shop/web -- COMMAND"));
    };
    let error = Command::new(program).args(arguments).exec();
    Err(Failure::new(Exit::Usage, format!("cannot run {}", program.display())).found(error))
}

/// Into the pod's network, with a mount namespace of our own in which its names resolve.
fn enter(entrance: &Entrance, number: i32, hosts: &Path) -> io::Result<()> {
    let process = Path::new("/proc").join(entrance.pid.to_string());
    // Opened before anything is entered: afterwards this `/proc` may show them no more.
    let network = File::open(process.join("fd").join(number.to_string()))?;
    if entrance.user_namespace {
        setns(File::open(process.join("ns/user"))?, CloneFlags::CLONE_NEWUSER)?;
    }
    setns(network, CloneFlags::CLONE_NEWNET)?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
    mount(Some(hosts), "/etc/hosts", None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}
