//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::contestants::Contestant;
use crate::plane::PlaneArgs;
use crate::rows::Row;

/// The command line of the benchmark.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "benches",
    args_conflicts_with_subcommands = true,
    about = "Byrnie beside its peers: the same loads through each, in turns, on one machine",
    long_about = "Byrnie beside its peers: the same loads through each, in turns, on one machine.\n\n\
        Every contestant gets two network namespaces joined by a veth, the same redirect rules at both ends (those of \
        `byrnie capture apply`), and an nginx with one worker. A round runs each row through each contestant, one after \
        the other, and begins with another contestant each time. Needs root, because the proxies have a UID of their \
        own; everything is in namespaces that end with this program.\n\n\
        Started by `cargo run`, it first builds the programs of the images, which are what is measured; started otherwise, \
        it measures those that lie beside it.",
    after_long_help = "EXAMPLES\n  \
        cargo run --release -p benches            # everything, five rounds: about 25 minutes\n  \
        cargo run --release -p benches -- --rounds 1 --seconds 2 --rows keepalive --contestants direct,byrnie\n  \
        cargo run --release -p benches -- --patience 120    # wait until nothing else runs, up to two minutes a load\n  \
        cargo run --release -p benches -- control-plane     # the control plane, with 1,000 and 5,000 proxies\n\n\
        WHAT THE REPORT SAYS\n  \
        Medians over the rounds, with the least and the greatest. Ratios are medians of the ratios within a round, and of added latencies the ratios of the medians. A row \
        in which anything failed is void for that contestant. A dagger marks rows during which other programs used more \
        than 5 % of this machine. What could not be run says why; missing tools are installed by benches/install-tools \
        (apt and PyPI) unless --no-install is given.\n\n\
        EXIT CODES\n  \
        0  measured, with or without void rows\n  1  nothing could be measured\n  2  the command line is wrong\n  \
        3  this kernel or user can't: the reason is on standard error"
)]
pub(crate) struct Args {
    /// Another measurement, in place of this one.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// Rows to measure, separated by commas; all, unless told.
    #[arg(long, value_name = "ROW", value_enum, value_delimiter = ',')]
    pub(crate) rows: Vec<Row>,
    /// Contestants, separated by commas; all but `plain-tls`, unless told.
    #[arg(long, value_name = "NAME", value_enum, value_delimiter = ',')]
    pub(crate) contestants: Vec<Contestant>,
    /// How many times everything is measured; a median of fewer than five says little.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Length of each load.
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=60))]
    pub(crate) seconds: u32,
    /// How long each load waits for the machine to become quiet.
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) patience: u64,
    /// TCP congestion control of all pods, of those in /proc/sys/net/ipv4/tcp_available_congestion_control: Linux's own
    /// default, whatever this machine's is, so that machines compare. Where the machine does not let a namespace choose it,
    /// that is allowed, which stays after the run; how to take it back is said.
    #[arg(long, value_name = "NAME", default_value = "cubic")]
    pub(crate) congestion_control: String,
    /// Directory for report.md and report.json; `target/benches` unless told.
    #[arg(long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    /// Install nothing: what is missing is not run.
    #[arg(long)]
    pub(crate) no_install: bool,
}

/// What is done in place of the comparison.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Command {
    /// Certificates per second, memory and CPU for each connected proxy, and how fast changes arrive; needs no root.
    ControlPlane(PlaneArgs),
    /// One of the proxies of the contestant `plain-tls`, which the benchmark starts.
    #[command(hide = true)]
    PlainTls {
        /// Where its identity is.
        directory: PathBuf,
    },
}

impl Args {
    /// The chosen rows, in the order in which they are measured.
    pub(crate) fn chosen_rows(&self) -> Vec<Row> {
        Row::ALL.into_iter().filter(|row| self.rows.is_empty() || self.rows.contains(row)).collect()
    }

    /// The chosen contestants.
    pub(crate) fn chosen_contestants(&self) -> Vec<Contestant> {
        let chosen = |one: &Contestant| {
            if self.contestants.is_empty() { one.takes_part_unchosen() } else { self.contestants.contains(one) }
        };
        Contestant::ALL.into_iter().filter(chosen).collect()
    }

    /// The length of a load.
    pub(crate) fn length(&self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }

    /// How long a load waits for a quiet machine.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(self.patience)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn without_a_choice_everything_is_measured_five_times() {
        let args = Args::try_parse_from(["benches"]).expect("the defaults");
        assert_eq!(args.chosen_rows(), Row::ALL);
        let compared =
            [Contestant::Direct, Contestant::Relay, Contestant::EnvoyL4, Contestant::EnvoyHttp, Contestant::Byrnie];
        assert_eq!(args.chosen_contestants(), compared);
        assert_eq!((args.rounds, args.congestion_control.as_str()), (5, "cubic"));
    }

    #[test]
    fn a_choice_keeps_the_order_of_measuring() {
        let args =
            Args::try_parse_from(["benches", "--contestants", "byrnie,plain-tls,direct", "--rows", "bulk,keepalive"]);
        let args = args.expect("a choice");
        assert_eq!(args.chosen_contestants(), [Contestant::Direct, Contestant::PlainTls, Contestant::Byrnie]);
        assert_eq!(args.chosen_rows(), [Row::Keepalive, Row::Bulk]);
    }
}
