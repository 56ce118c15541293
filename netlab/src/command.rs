//! Programs that run on a host of a lab.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Output, Stdio};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::enter::{STAGE, exit_code};
use crate::namespace::on_a_thread;
use crate::{Host, RunAs, shim};

/// A program to be run on a host: with its network namespace, a mount
/// namespace of its own, and no more privileges than [`RunAs`] says
/// (an application with UID 1000 unless told otherwise).
#[derive(Debug)]
pub struct HostCommand {
    host: Host,
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, Option<OsString>)>,
    clear_env: bool,
    directory: Option<PathBuf>,
    run_as: RunAs,
    files: Vec<(PathBuf, String)>,
    stdin: Stdio,
    stdout: Stdio,
    stderr: Stdio,
}

impl HostCommand {
    pub(crate) fn new(host: Host, program: OsString) -> Self {
        Self {
            host,
            program,
            args: Vec::new(),
            env: Vec::new(),
            clear_env: false,
            directory: None,
            run_as: RunAs::Application { uid: 1000 },
            files: Vec::new(),
            stdin: Stdio::null(),
            stdout: Stdio::inherit(),
            stderr: Stdio::inherit(),
        }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// An environment variable on top of the inherited ones.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let value = value.as_ref().to_owned();
        self.env.push((name.as_ref().to_owned(), Some(value)));
        self
    }

    /// Takes an inherited environment variable away.
    #[must_use]
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), None));
        self
    }

    /// Takes all inherited environment variables away.
    #[must_use]
    pub fn env_clear(mut self) -> Self {
        self.clear_env = true;
        self
    }

    /// The working directory.
    #[must_use]
    pub fn current_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// As whom it runs.
    #[must_use]
    pub fn user(mut self, run_as: RunAs) -> Self {
        self.run_as = run_as;
        self
    }

    /// The content of `/etc/hosts` that the program sees.
    #[must_use]
    pub fn hosts(self, content: impl Into<String>) -> Self {
        self.file("/etc/hosts", content)
    }

    /// The content of `/etc/resolv.conf` that the program sees.
    #[must_use]
    pub fn resolv_conf(self, content: impl Into<String>) -> Self {
        self.file("/etc/resolv.conf", content)
    }

    /// The content that the program sees in a file that exists already; the
    /// file itself does not change.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>, content: impl Into<String>) -> Self {
        self.files.push((path.into(), content.into()));
        self
    }

    /// Where its standard input comes from; nowhere, unless told.
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// Where its standard output goes (a file, a pipe); inherited, unless
    /// told.
    #[must_use]
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.stdout = stdout.into();
        self
    }

    /// Where its standard error goes (a file, a pipe); inherited, unless
    /// told.
    #[must_use]
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.stderr = stderr.into();
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// When a namespace, a mount or the process cannot be made. A program
    /// that does not exist shows later: exit code 127, and a line on its
    /// standard error.
    pub fn spawn(self) -> io::Result<Process> {
        let name = self.host.name().to_owned();
        let child = on_a_thread(move || self.spawn_here())??;
        Ok(Process { name, child })
    }

    /// Starts it, waits, and returns what it wrote.
    ///
    /// # Errors
    /// As [`HostCommand::spawn`].
    pub fn output(self) -> io::Result<Output> {
        let piped = self.stdout(Stdio::piped()).stderr(Stdio::piped());
        let host = piped.host.clone();
        let child = on_a_thread(move || piped.spawn_here())??;
        // The namespaces must outlive a child that is only just starting.
        let output = child.wait_with_output();
        drop(host);
        output
    }

    /// The child gets the namespaces of the thread that starts it.
    fn spawn_here(self) -> io::Result<Child> {
        setns(self.host.namespace(), CloneFlags::CLONE_NEWNET)?;
        unshare(CloneFlags::CLONE_NEWNS)?;
        show_files(&self.files)?;
        let mut command = shim::command(&self.program, self.run_as, self.host.privileges())?;
        command
            .args(&self.args)
            .env_remove(STAGE)
            // A group of its own: Ctrl-C at the terminal is for the lab's
            // program, which ends its children in order.
            .process_group(0)
            .stdin(self.stdin)
            .stdout(self.stdout)
            .stderr(self.stderr);
        if self.clear_env {
            let kept: Vec<_> =
                command.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))).collect();
            command.env_clear().envs(kept);
        }
        for (name, value) in &self.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command.spawn()
    }
}

/// Lays the contents over the files, in the mount namespace of this thread.
/// They live on a file system in memory that is detached at once, so that
/// nothing has to be removed afterwards.
pub(crate) fn show_files(files: &[(PathBuf, String)]) -> io::Result<()> {
    if files.is_empty() {
        return Ok(());
    }
    let scratch = Path::new("/tmp");
    let at = |what: &'static str| {
        move |errno: Errno| {
            let error = io::Error::from(errno);
            io::Error::new(error.kind(), format!("{what}: {error}"))
        }
    };
    mount(Some("netlab"), scratch, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("size=1m,mode=0755"))
        .map_err(at("mounting a file system in memory"))?;
    for (number, (path, content)) in files.iter().enumerate() {
        let source = scratch.join(number.to_string());
        fs::write(&source, content)?;
        mount(Some(&source), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(|errno| {
            let error = io::Error::from(errno);
            io::Error::new(error.kind(), format!("showing {}: {error}", path.display()))
        })?;
    }
    umount2(scratch, MntFlags::MNT_DETACH).map_err(at("detaching the file system in memory"))
}

/// A running program. Dropping it kills it, with all it started.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// Name of the host it runs on.
    pub fn host(&self) -> &str {
        &self.name
    }

    /// Its process ID, in the lab's PID namespace.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The standard streams that were asked for as pipes, and everything else
    /// the standard library offers.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends a signal to it (not to what it started).
    ///
    /// # Errors
    /// `ESRCH` when it has ended.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(nix::sys::signal::kill(self.pid(), signal)?)
    }

    /// Waits for its end; returns its exit code, or 128 + signal.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn wait(&mut self) -> io::Result<i32> {
        self.child.wait().map(exit_code)
    }

    /// Its status, if it has ended.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Kills it and what it started, and waits for its end.
    pub fn kill(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // Its group has its own ID; both calls fail only when it is gone.
        let _ = killpg(self.pid(), Signal::SIGKILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
