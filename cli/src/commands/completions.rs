//! `byrnie completions`

use std::io::Write;

use clap::CommandFactory;

use crate::args::Args;
use crate::failure::{Exit, Failure};
use crate::output::cannot_print;

pub(super) fn run(shell: clap_complete::Shell) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "byrnie", &mut script);
    std::io::stdout().write_all(&script).map_err(cannot_print)?;
    Ok(Exit::Success)
}
