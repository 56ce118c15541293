//! The commands that only the demo itself starts.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

/// An application for a pod of the demo.
#[derive(Debug, Subcommand)]
pub enum App {
    /// A small HTTP service.
    Http(HttpApp),
    /// A reverse proxy, as an ingress controller is one.
    Ingress(IngressApp),
    /// A server on the internet, which says whom it saw.
    External {
        /// Where it listens.
        #[arg(long)]
        listen: Vec<SocketAddr>,
    },
}

/// A small HTTP service.
#[derive(Debug, Args)]
pub struct HttpApp {
    /// Where it listens.
    #[arg(long)]
    pub listen: Vec<SocketAddr>,
    /// What it calls itself in its answers.
    #[arg(long)]
    pub name: String,
    /// A header, `name: value`, for every answer and for every request to its own kind.
    #[arg(long)]
    pub header: Option<String>,
    /// Services that it calls for each request.
    #[arg(long)]
    pub upstream: Vec<String>,
    /// Services of others, which do not get the header.
    #[arg(long)]
    pub partner: Vec<String>,
}

/// A reverse proxy.
#[derive(Debug, Args)]
pub struct IngressApp {
    /// Its configuration, read again when it changes.
    #[arg(long)]
    pub config: PathBuf,
}
