//! Helper programs, run by scenarios in processes of their own.

use std::process::{Command, ExitCode};
use std::time::Duration;

use byrnie_netlab::Lab;

pub(crate) fn status(_: &[String]) -> ExitCode {
    print!("{}", std::fs::read_to_string("/proc/self/status").unwrap());
    let namespace = nix::sched::CloneFlags::CLONE_NEWNET;
    match nix::sched::unshare(namespace) {
        Ok(()) => println!("unshare: allowed"),
        Err(errno) => println!("unshare: {errno:?}"),
    }
    let ours = std::env::vars().filter(|(name, _)| name.starts_with("BYRNIE_NETLAB"));
    println!("environment: {}", ours.map(|(name, _)| name).collect::<String>());
    ExitCode::SUCCESS
}

pub(crate) fn linger(_: &[String]) -> ExitCode {
    let entered = byrnie_netlab::enter().unwrap();
    let lab = Lab::new(&entered, "lingering").unwrap();
    let namespace = lab.node().run(|| std::fs::read_link("/proc/thread-self/ns/net")).unwrap();
    println!("{} {} {}", namespace.unwrap().display(), lab.node().entrance().unwrap(), lab.node().enter_hint());
    std::thread::sleep(Duration::from_secs(600));
    ExitCode::SUCCESS
}

pub(crate) fn exit_with(args: &[String]) -> ExitCode {
    match byrnie_netlab::enter() {
        Ok(_) => ExitCode::from(args[0].parse::<u8>().unwrap()),
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::from(3)
        }
    }
}

/// Enters a lab of another process; shows where it is, or sleeps there.
pub(crate) fn through(args: &[String]) -> ExitCode {
    let entrance: byrnie_netlab::Entrance = args[0].parse().unwrap();
    entrance.enter(&[("/etc/hosts".into(), "192.0.2.1 shown\n".into())]).unwrap();
    let mut command = match args.get(1) {
        Some(time) => {
            let mut sleep = Command::new("/bin/sleep");
            sleep.arg(time);
            sleep
        }
        None => {
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", "readlink /proc/self/ns/net; cat /etc/hosts"]);
            shell
        }
    };
    command.status().unwrap();
    ExitCode::SUCCESS
}

/// Makes a user namespace of its own in which no further one may be made,
/// and tries to make one.
pub(crate) fn refused(_: &[String]) -> ExitCode {
    byrnie_netlab::enter().unwrap();
    std::fs::write("/proc/sys/user/max_user_namespaces", "0").unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["role", "exit", "0"])
        .env_remove("BYRNIE_NETLAB_STAGE")
        .status()
        .unwrap();
    ExitCode::from(u8::try_from(status.code().unwrap()).unwrap())
}
