//! Helper programs, run by scenarios in processes of their own.

use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Duration;

use byrnie_redirect::{Capture, CaptureConfig, Exempt, NfTables, PROXY_MARK};

use crate::rig::answer;

pub(crate) fn ask_role(args: &[String]) -> ExitCode {
    let to = args[0].parse().unwrap();
    match TcpStream::connect_timeout(&to, Duration::from_secs(1)).and_then(answer) {
        Ok(text) => println!("{text}"),
        Err(error) => println!("error: {error}"),
    }
    ExitCode::SUCCESS
}

pub(crate) fn apply_role(_: &[String]) -> ExitCode {
    match NfTables.apply(&CaptureConfig::new(Exempt::Mark(PROXY_MARK))) {
        Ok(applied) => println!("{applied:?}"),
        Err(error) => println!("{error}"),
    }
    ExitCode::SUCCESS
}
