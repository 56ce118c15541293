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

/// Opens connections until there are `wanted`.
///
/// # Errors
/// When one can't be opened, or is not answered.
pub(crate) fn open(host: &Host, to: SocketAddr, held: &mut Vec<TcpStream>, wanted: usize) -> Result<()> {
    let missing = wanted.saturating_sub(held.len());
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
    held.extend(opened.map_err(doing("entering the client's namespace"))??.into_iter().flatten());
    Ok(())
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
