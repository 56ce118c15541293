//! Helper programs, run by scenarios in processes of their own.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use byrnie_redirect::{BackEnd, CaptureConfig, Exempt, PROXY_MARK, set_priority};
use socket2::{Domain, SockRef, Socket, Type};

use crate::rig::{answer, with_programs};

pub(crate) fn ask_role(args: &[String]) -> ExitCode {
    let to = args[0].parse().unwrap();
    match TcpStream::connect_timeout(&to, Duration::from_secs(1)).and_then(answer) {
        Ok(text) => println!("{text}"),
        Err(error) => println!("error: {error}"),
    }
    ExitCode::SUCCESS
}

pub(crate) fn apply_role(args: &[String]) -> ExitCode {
    let back_end = BackEnd::ALL.into_iter().find(|back_end| back_end.to_string() == args[0]).unwrap();
    let config = CaptureConfig::new(Exempt::Mark(PROXY_MARK));
    match with_programs(back_end, |it| it.apply(&config)) {
        Ok(applied) => println!("{applied:?}"),
        Err(error) => println!("{error}"),
    }
    ExitCode::SUCCESS
}

/// More than a receive buffer holds.
pub(crate) const POURED: usize = 600_000;

/// Writes all at once, and is gone; with another argument, as the proxy would.
pub(crate) fn pour_role(args: &[String]) -> ExitCode {
    let to: SocketAddr = args[0].parse().unwrap();
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
    if args.len() > 1 {
        set_priority(&socket).unwrap();
    }
    socket.connect(&to.into()).unwrap();
    let mut stream: TcpStream = socket.into();
    SockRef::from(&stream).set_send_buffer_size(1_000_000).unwrap();
    stream.write_all(&vec![b'x'; POURED]).unwrap();
    ExitCode::SUCCESS
}
