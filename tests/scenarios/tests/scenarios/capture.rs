//! Capture itself: what it takes hold of, and what passes it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use byrnie_redirect::{PROXY_MARK, set_mark, set_priority};
use byrnie_scenarios::{DEADLINE, Ending, Mesh, Pod, World, apps, deny, ending, within};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::TcpStream;

/// The kernel remembers a reset connection for ten seconds, with the way that it went; a new connection of the same
/// addresses and ports must not go that way because of it.
pub(crate) async fn a_port_that_was_the_applications_leads_the_proxy_out_and_the_other_way_round(world: World) {
    let mesh = Mesh::start(&world).await;
    mesh.apply("no-web", &deny("shop", "no-web", "web"));
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let outside = mesh.pod("legacy/outside").unmeshed().start().await;
    let _resetting = outside.serve(26, |stream| async move { apps::reset_now(stream) });
    let _orders = orders.serve(25, apps::greet);
    // The application's connection, refused by its proxy with a reset; then the proxy's, from the same port to the same
    // address: it must come out.
    let mut refused = from_port(&world, &web, orders.at(25), 40_001, Who::Application).await.unwrap();
    assert_eq!(within("the refusal", DEADLINE / 5, ending(&mut refused)).await, Ending::Reset);
    drop(refused);
    web.logged("the refusal", |line| line.text("src.addr").ends_with(":40001")).await;
    let before = web.access_log().lines().len();
    let mut own = from_port(&world, &web, orders.at(25), 40_001, Who::Proxy).await.unwrap();
    let _ = tokio::time::timeout(Duration::from_millis(500), ending(&mut own)).await;
    assert_eq!(web.access_log().lines().len(), before, "a connection of the proxy was captured");
    // The proxy's connection, reset by the other end; then the application's: it must be captured.
    let mut own = from_port(&world, &web, outside.at(26), 40_002, Who::Proxy).await.unwrap();
    assert_eq!(within("the reset", DEADLINE / 5, ending(&mut own)).await, Ending::Reset);
    drop(own);
    let mut captured = from_port(&world, &web, outside.at(26), 40_002, Who::Application).await.unwrap();
    let _ = within("an end", DEADLINE / 5, ending(&mut captured)).await;
    web.logged("the application's connection", |line| line.text("src.addr").ends_with(":40002")).await;
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Application,
    Proxy,
}

/// Connects from a port of the scenario's choice, as an application or as the proxy would.
async fn from_port(world: &World, pod: &Pod, to: SocketAddr, port: u16, who: Who) -> io::Result<TcpStream> {
    let (has_uids, source) = (world.has_uids(), SocketAddr::new(pod.at(port).ip(), port));
    let socket = pod.host().run(move || -> io::Result<Socket> {
        if who == Who::Proxy && has_uids {
            // Of this thread alone, which ends with this closure.
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(1500));
        }
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        match who {
            Who::Proxy if has_uids => set_priority(&socket)?,
            Who::Proxy => set_mark(&socket, PROXY_MARK)?,
            Who::Application => {}
        }
        socket.set_reuse_address(true)?;
        socket.bind(&SockAddr::from(source))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    })??;
    let connecting = tokio::net::TcpSocket::from_std_stream(socket.into()).connect(to);
    within("connect", DEADLINE / 5, connecting).await
}
