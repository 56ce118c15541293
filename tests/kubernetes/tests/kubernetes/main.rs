fn main() {
    let programs = byrnie_kubelab::programs().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for i in 0..2 {
            let begun = std::time::Instant::now();
            let server = byrnie_kubelab::ApiServer::start(&programs, Default::default()).await;
            println!("{i}: ready after {:?} {}", begun.elapsed(), server.url());
            println!("{:?}", server.kubectl(&["get", "ns"], ""));
            let begun = std::time::Instant::now();
            server.kill();
            server.start_again().await;
            println!("{i}: again after {:?}", begun.elapsed());
        }
    });
}
