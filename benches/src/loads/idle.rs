//! Connections that have been used once and then stay, silent.

use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use byrnie_netlab::Host;

use crate::failure::{Failure, Result, doing};
use crate::http;

/// How many are opened at a time.
const AT_A_TIME: usize = 16;

/// Longest that one may take to open and be answered.
const PATIENCE: Duration = Duration::from_secs(10);

/// Opens connections until there are `wanted`, as many of them from each of `hosts`.
///
/// # Errors
/// When one can't be opened, or is not answered.
pub(crate) fn open(hosts: &[Host], to: SocketAddr, held: &mut Vec<TcpStream>, wanted: usize) -> Result<()> {
    let before = held.len();
    for (number, host) in (1..).zip(hosts) {
        let share = wanted.saturating_sub(before) * number / hosts.len();
        held.extend(opened(host, to, (before + share).saturating_sub(held.len()))?);
    }
    Ok(())
}

fn opened(host: &Host, to: SocketAddr, missing: usize) -> Result<impl Iterator<Item = TcpStream>> {
    let question = http::request(to, "/", "keep-alive");
    let opened = host.run(|| {
        thread::scope(|scope| {
            let openers: Vec<_> = (0..AT_A_TIME)
                .map(|opener| {
                    let share = missing / AT_A_TIME + usize::from(opener < missing % AT_A_TIME);
                    let question = &question;
                    scope.spawn(move || (0..share).map(|_| one(to, question)).collect::<Result<Vec<_>>>())
                })
                .collect();
            let joined = openers.into_iter().map(|opener| opener.join());
            joined
                .map(|all| all.unwrap_or_else(|_| Err(Failure::new("an opener panicked"))))
                .collect::<Result<Vec<_>>>()
        })
    });
    Ok(opened.map_err(doing("entering the client's namespace"))??.into_iter().flatten())
}

fn one(to: SocketAddr, question: &[u8]) -> Result<TcpStream> {
    let open = || {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        http::ask(&mut stream, question)?;
        Ok::<_, std::io::Error>(stream)
    };
    open().map_err(doing("an idle connection"))
}

/// That all are still open.
pub(crate) fn check(held: &[TcpStream]) -> Result<()> {
    for stream in held {
        stream.set_nonblocking(true).map_err(doing("an idle connection"))?;
        match stream.peek(&mut [0]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(Failure::new(format!("an idle connection: {error}"))),
            Ok(_) => return Err(Failure::new("an idle connection was closed")),
        }
    }
    Ok(())
}
