//! A server on the internet: says from which address it was called, and at which. It counts what reaches it, so that
//! "nothing came" is something that it can tell.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use hyper::StatusCode;
use serde_json::json;

use super::serve;

/// Runs it, for ever.
pub(super) async fn run(listen: &[SocketAddr]) -> io::Result<()> {
    let seen = Rc::new(Cell::new(0_u64));
    serve::serve(listen, move |_, ends| {
        seen.set(seen.get() + 1);
        let seen = seen.get();
        async move {
            let facts = json!({
                "seen_source": ends.peer.to_string(),
                "seen_destination": ends.local.to_string(),
                "requests": seen,
            });
            serve::json(StatusCode::OK, &facts)
        }
    })
    .await
}
