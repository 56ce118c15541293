//! Byrnie beside its peers: the same loads through each, in turns, on one machine. `docs/performance.md` says how to run
//! it and what came out.

mod args;
mod congestion;
mod contestants;
mod failure;
mod http;
mod loads;
mod machine;
mod measure;
mod plane;
mod process;
mod report;
mod results;
mod rig;
mod rows;
mod site;
mod statistics;
mod tools;
mod wire;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::ExitCode;

use byrnie_netlab::{Entered, Privileges};
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::getuid;

use args::{Args, Command};
use failure::{Failure, Result, doing};
use machine::Machine;
use report::{Conditions, Report};
use results::Results;
use rig::Rig;
use tools::Tool;

/// This kernel or this user can't.
const CANNOT: u8 = 3;

fn main() -> ExitCode {
    byrnie_netlab::shim::maybe_run();
    let args = Args::parse();
    let instead = args.command.as_ref().map(|command| match command {
        Command::ControlPlane(of_plane) => {
            tools::build().and_then(|()| raise_limit_of_files()).and_then(|()| plane::run(of_plane))
        }
        Command::PlainTls { directory } => contestants::run_plain_tls(directory),
    });
    if let Some(done) = instead {
        return ended(done);
    }
    if byrnie_netlab::is_outside() {
        if !args.no_install {
            tools::install_missing();
        }
        // Whoever is not root hears below that it is needed, and not of a file that only root may write, or after a build.
        if getuid().is_root() {
            if let Err(reason) = congestion::allow(&args.congestion_control) {
                return cannot(&reason);
            }
            if let Err(failure) = tools::build() {
                return ended(Err(failure));
            }
        }
    }
    let outer = machine::outer_proc();
    let entered = match byrnie_netlab::enter() {
        Ok(entered) => entered,
        Err(reason) => return cannot(&reason),
    };
    if entered.privileges() != Privileges::Root {
        return cannot(&"it needs root: the proxies have a UID of their own");
    }
    ended(outer.map_err(doing("/proc")).and_then(|outer| run(&entered, &args, outer)))
}

/// The exit code, and on standard error why.
fn ended(done: Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn cannot(reason: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("not run: {reason}");
    ExitCode::from(CANNOT)
}

fn run(entered: &Entered, args: &Args, outer: File) -> Result<()> {
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build: its figures say nothing (cargo run --release -p benches)");
    }
    raise_limit_of_files()?;
    let machine = Machine::new(outer);
    let directory = tempfile::Builder::new().prefix("byrnie-benches-").tempdir();
    let directory = directory.map_err(doing("a temporary directory"))?;
    // Every process below is another user, and each has its own part.
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).map_err(doing("a temporary directory"))?;
    let now = machine.look()?;
    if now.are_busy() {
        eprintln!("this machine is busy: other programs use {:.0} % of it", (now.foreign + now.steal) * 100.0);
    }
    let mut results = Results::default();
    let mut rig = Rig::new(entered, &machine, args, directory.path())?;
    let seen = rig.check_the_wire();
    for round in 1..=args.rounds {
        eprintln!("round {round} of {}", args.rounds);
        rig.round(round, &mut results);
    }
    drop(rig);
    results.derive();
    if !results.has_values() {
        return Err(Failure::new("nothing could be measured"));
    }
    let report =
        Report { conditions: conditions(args, &machine)?, contestants: args.chosen_contestants(), seen, results };
    write(args, &report)
}

fn write(args: &Args, report: &Report) -> Result<()> {
    let output = args.output.clone().unwrap_or_else(|| tools::target_directory().join("benches"));
    fs::create_dir_all(&output).map_err(doing(output.display()))?;
    let markdown = report.markdown();
    print!("{markdown}");
    let json = serde_json::to_string_pretty(&report.json()).map_err(doing("the report"))?;
    for (name, text) in [("report.md", &markdown), ("report.json", &json)] {
        let path = output.join(name);
        fs::write(&path, text).map_err(doing(path.display()))?;
        eprintln!("{}", path.display());
    }
    Ok(())
}

/// To the hard limit, for this program and what it starts: 9,000 connections are 18,000 files of a proxy.
fn raise_limit_of_files() -> Result<()> {
    let limit = || doing("the limit of open files");
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(limit())?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(limit())
}

fn conditions(args: &Args, machine: &Machine) -> Result<Conditions> {
    let programs = [
        ("byrnie", Tool::ByrnieProxy),
        ("HAProxy", Tool::Haproxy),
        ("Envoy", Tool::Envoy),
        ("nginx", Tool::Nginx),
        ("wrk", Tool::Wrk),
        ("h2load", Tool::H2load),
        ("iperf3", Tool::Iperf3),
    ];
    Ok(Conditions {
        when: machine::now()?,
        machine: machine.words(),
        programs: programs.into_iter().filter_map(|(name, tool)| Some((name, tool.version().ok()?))).collect(),
        congestion_control: args.congestion_control.clone(),
        rounds: args.rounds,
        seconds: args.seconds,
    })
}
