//! What reaches what, by which address, and what of it is seen on the wire.

use byrnie_scenarios::{Mesh, World, apps, exchange, finish, marker};

pub(crate) async fn two_meshed_pods_talk_and_the_wire_shows_only_tls(world: World) {
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let _echo = orders.serve(8080, apps::echo);
    for to in [orders.at(8080), orders.at6(8080)] {
        let words = marker();
        let tap = mesh.tap(&words, &[&web, &orders]);
        let mut stream = web.connect(to).await.unwrap();
        assert_eq!(exchange(&mut stream, words.as_bytes()).await.unwrap(), words.as_bytes());
        assert_eq!(finish(&mut stream).await.unwrap(), b"");
        let seen = tap.stop().unwrap();
        assert_eq!((seen.marker_hits, seen.missed), (0, 0), "{:?}", seen.first_hit);
        assert!(seen.tls_records > 0, "{seen:?}");
    }
    let line = web.logged("the call", |line| line.text("dst.workload") == "orders").await;
    assert_eq!(line.text("tls.protocol.version"), "1.3");
    assert_eq!(line.text("tls.curve"), "X25519MLKEM768");
    assert_eq!(line.text("dst.identity"), orders.spiffe_id());
    let edge = mesh.edge("shop/web", "shop/orders", |edge| edge.connections >= 2).await;
    assert!(edge.secured && edge.plaintext_connections == 0, "{edge:?}");
    assert_eq!((edge.source_id, edge.destination_id), (web.spiffe_id(), orders.spiffe_id()));
}
