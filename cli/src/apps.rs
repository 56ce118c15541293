//! The applications in the demo's pods: real, small, and knowing nothing of the mesh. They are hidden commands of this
//! binary because the demo must not need anything else on the machine.

mod external;
pub(crate) mod fetch;
mod http;
mod ingress;
mod serve;

use crate::args::App;
use crate::client;
use crate::failure::{Exit, Failure};

pub(crate) use ingress::{Config as IngressConfig, Tls as IngressTls};

/// Runs one application until it is killed.
pub(crate) fn run(app: App) -> Result<Exit, Failure> {
    let served = client::runtime()?.block_on(async {
        match app {
            App::Http(options) => http::run(options).await,
            App::Ingress(options) => ingress::run(&options.config).await,
            App::External { listen } => external::run(&listen).await,
        }
    });
    served.map_err(|error| Failure::new(Exit::Refused, "the application ended").found(error))?;
    Ok(Exit::Success)
}
