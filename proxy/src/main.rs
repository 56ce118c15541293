//! The sidecar proxy's binary; everything is in the library.

use std::process::ExitCode;

use byrnie_proxy::config::CommandLine;
use clap::Parser;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // A panic is a defect after which nothing of this process can be trusted. The release profile aborts by itself;
    // this makes every other build do the same.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
    byrnie_proxy::commands::main(CommandLine::parse())
}
