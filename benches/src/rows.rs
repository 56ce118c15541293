//! The rows of the report: what is measured, in which unit, and what is wanted of Byrnie. What a row does is in
//! `measure.rs`, the loads themselves in `loads/`.

use clap::ValueEnum;
use serde::Serialize;

use crate::contestants::Contestant;

/// One load, or one state, in which several things are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Row {
    /// The first request ever through a fresh pair of proxies.
    Cold,
    /// HTTP/1.1 on 32 connections that stay, as fast as it goes.
    Keepalive,
    /// 1,000 requests per second over 64 connections, timed from the moment each was due.
    Rate,
    /// 32 workers that connect, ask once, and close.
    Connections,
    /// HTTP/2 in cleartext: one connection, 100 streams.
    H2c,
    /// iperf3: 1 and 8 streams, both ways.
    Bulk,
    /// Memory: idle, with 1,000, 4,000 and 9,000 idle connections, and after these.
    Idle,
}

impl Row {
    /// In the order in which they are measured: `cold` comes with the start of a pair, and `idle` has a fresh pair of
    /// its own at the end of a round.
    pub(crate) const ALL: [Self; 7] =
        [Self::Cold, Self::Keepalive, Self::Rate, Self::Connections, Self::H2c, Self::Bulk, Self::Idle];

    /// Its name, as on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Keepalive => "keepalive",
            Self::Rate => "rate",
            Self::Connections => "connections",
            Self::H2c => "h2c",
            Self::Bulk => "bulk",
            Self::Idle => "idle",
        }
    }

    /// What is measured in it.
    pub(crate) fn metrics(self) -> impl Iterator<Item = Metric> {
        Metric::ALL.into_iter().filter(move |metric| metric.row() == self)
    }
}

/// One figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Metric {
    KeepaliveRequests,
    ParsedRequests,
    ParsedCpu,
    KeepaliveCpu,
    RateP50,
    RateP99,
    RateP99OfSeconds,
    AddedP50,
    AddedP99,
    AddedP99OfSeconds,
    RateCpu,
    Connections,
    ConnectionsCpu,
    H2cRequests,
    H2cCpu,
    BulkTo1,
    BulkTo8,
    BulkFrom1,
    BulkFrom8,
    BulkCpu,
    RssIdle,
    PssIdle,
    Rss1000,
    Pss1000,
    PerConnection1000,
    Rss4000,
    Pss4000,
    PerConnection4000,
    Rss9000,
    Pss9000,
    PerConnection9000,
    RssAfter,
    PssAfter,
    Cold,
}

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    /// More.
    Higher,
    /// Less.
    Lower,
}

/// What is wanted of Byrnie's figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bound {
    /// At least (or at most) so many times another's.
    Times(f64, Contestant),
    /// At least (or at most) this.
    Absolute(f64),
}

/// A figure's description.
#[derive(Debug, Clone, Copy)]
pub(crate) struct About {
    /// For people, with its unit.
    pub(crate) title: &'static str,
    /// Which way is better.
    pub(crate) better: Better,
    /// Digits after the point.
    pub(crate) digits: usize,
    /// What is wanted first.
    pub(crate) first: Option<Bound>,
    /// What is wanted in the end.
    pub(crate) goal: Option<Bound>,
}

impl Metric {
    /// In the order of the report.
    pub(crate) const ALL: [Self; 34] = [
        Self::KeepaliveRequests,
        Self::ParsedRequests,
        Self::ParsedCpu,
        Self::KeepaliveCpu,
        Self::RateP50,
        Self::RateP99,
        Self::RateP99OfSeconds,
        Self::AddedP50,
        Self::AddedP99,
        Self::AddedP99OfSeconds,
        Self::RateCpu,
        Self::Connections,
        Self::ConnectionsCpu,
        Self::H2cRequests,
        Self::H2cCpu,
        Self::BulkTo1,
        Self::BulkTo8,
        Self::BulkFrom1,
        Self::BulkFrom8,
        Self::BulkCpu,
        Self::RssIdle,
        Self::PssIdle,
        Self::Rss1000,
        Self::Pss1000,
        Self::PerConnection1000,
        Self::Rss4000,
        Self::Pss4000,
        Self::PerConnection4000,
        Self::Rss9000,
        Self::Pss9000,
        Self::PerConnection9000,
        Self::RssAfter,
        Self::PssAfter,
        Self::Cold,
    ];

    /// The row that measures it.
    pub(crate) fn row(self) -> Row {
        match self {
            Self::KeepaliveRequests | Self::ParsedRequests | Self::ParsedCpu | Self::KeepaliveCpu => Row::Keepalive,
            Self::RateP50
            | Self::RateP99
            | Self::RateP99OfSeconds
            | Self::AddedP50
            | Self::AddedP99
            | Self::AddedP99OfSeconds
            | Self::RateCpu => Row::Rate,
            Self::Connections | Self::ConnectionsCpu => Row::Connections,
            Self::H2cRequests | Self::H2cCpu => Row::H2c,
            Self::BulkTo1 | Self::BulkTo8 | Self::BulkFrom1 | Self::BulkFrom8 | Self::BulkCpu => Row::Bulk,
            Self::RssIdle
            | Self::PssIdle
            | Self::Rss1000
            | Self::Pss1000
            | Self::PerConnection1000
            | Self::Rss4000
            | Self::Pss4000
            | Self::PerConnection4000
            | Self::Rss9000
            | Self::Pss9000
            | Self::PerConnection9000
            | Self::RssAfter
            | Self::PssAfter => Row::Idle,
            Self::Cold => Row::Cold,
        }
    }

    /// A figure that is the difference to `direct` in the same round: which one it is the difference of.
    pub(crate) fn added_to(self) -> Option<Self> {
        match self {
            Self::AddedP50 => Some(Self::RateP50),
            Self::AddedP99 => Some(Self::RateP99),
            Self::AddedP99OfSeconds => Some(Self::RateP99OfSeconds),
            _ => None,
        }
    }

    /// Whether it is of the proxies themselves, so that `direct` has none.
    pub(crate) fn is_of_proxies(self) -> bool {
        let is_cpu = matches!(
            self,
            Self::KeepaliveCpu | Self::ParsedCpu | Self::RateCpu | Self::ConnectionsCpu | Self::H2cCpu | Self::BulkCpu
        );
        is_cpu || self.row() == Row::Idle
    }

    /// Its description.
    pub(crate) fn about(self) -> About {
        use Better::{Higher, Lower};
        use Bound::Absolute;
        let l4 = |times| Some(Bound::Times(times, Contestant::EnvoyL4));
        let http = |times| Some(Bound::Times(times, Contestant::EnvoyHttp));
        let relay = |times| Some(Bound::Times(times, Contestant::Relay));
        let most = |value| Some(Absolute(value));
        let about = |title, better, digits, first, goal| About { title, better, digits, first, goal };
        match self {
            Self::KeepaliveRequests => about("HTTP/1.1, 32 connections: requests/s", Higher, 0, l4(1.2), relay(1.1)),
            Self::ParsedRequests => about("the same with HTTP parsed: requests/s", Higher, 0, http(1.6), http(2.2)),
            Self::ParsedCpu => about("proxies' CPU s per 10k requests with HTTP parsed", Lower, 3, None, None),
            Self::KeepaliveCpu => about("proxies' CPU s per 10k requests at most", Lower, 3, l4(0.7), relay(0.8)),
            Self::RateP50 => about("1,000 requests/s: p50, ms", Lower, 3, None, None),
            Self::RateP99 => about("1,000 requests/s: p99, ms", Lower, 3, None, None),
            Self::RateP99OfSeconds => about("1,000 requests/s: p99, median of the seconds, ms", Lower, 3, None, None),
            Self::AddedP50 => about("1,000 requests/s: added p50, ms", Lower, 3, l4(0.8), most(0.15)),
            Self::AddedP99 => about("1,000 requests/s: added p99, ms", Lower, 3, l4(0.8), most(0.3)),
            Self::AddedP99OfSeconds => {
                about("1,000 requests/s: added p99, median of the seconds, ms", Lower, 3, l4(0.8), most(0.3))
            }
            Self::RateCpu => about("proxies' CPU s per 10k requests at 1,000/s", Lower, 3, l4(0.7), relay(0.85)),
            Self::Connections => about("new connections/s", Higher, 0, l4(4.0), relay(1.3)),
            Self::ConnectionsCpu => about("proxies' CPU s per 10k new connections", Lower, 3, None, None),
            Self::H2cRequests => about("h2c, 1 connection × 100 streams: requests/s", Higher, 0, l4(1.0), relay(1.0)),
            Self::H2cCpu => about("proxies' CPU s per 10k h2c requests", Lower, 3, None, None),
            Self::BulkTo1 => about("bulk →, 1 stream, Gbit/s", Higher, 1, l4(1.0), l4(1.25)),
            Self::BulkTo8 => about("bulk →, 8 streams, Gbit/s", Higher, 1, l4(1.0), l4(1.25)),
            Self::BulkFrom1 => about("bulk ←, 1 stream, Gbit/s", Higher, 1, l4(1.0), l4(1.25)),
            Self::BulkFrom8 => about("bulk ←, 8 streams, Gbit/s", Higher, 1, l4(1.0), l4(1.25)),
            Self::BulkCpu => about("proxies' CPU s per GB", Lower, 2, l4(0.9), most(1.1)),
            Self::RssIdle => about("RSS idle, MiB each", Lower, 1, most(8.0), most(5.0)),
            Self::PssIdle => about("PSS idle, MiB each", Lower, 1, None, None),
            Self::Rss1000 => about("RSS with 1,000 idle connections, MiB", Lower, 1, None, None),
            Self::Pss1000 => about("PSS with 1,000 idle connections, MiB", Lower, 1, None, None),
            Self::PerConnection1000 => about("KiB per idle connection, of 1,000", Lower, 1, None, None),
            Self::Rss4000 => about("RSS with 4,000 idle connections, MiB", Lower, 1, None, None),
            Self::Pss4000 => about("PSS with 4,000 idle connections, MiB", Lower, 1, None, None),
            Self::PerConnection4000 => about("KiB per idle connection, of 4,000", Lower, 1, None, None),
            Self::Rss9000 => about("RSS with 9,000 idle connections, MiB", Lower, 1, None, None),
            Self::Pss9000 => about("PSS with 9,000 idle connections, MiB", Lower, 1, None, None),
            Self::PerConnection9000 => about("KiB per idle connection, of 9,000", Lower, 1, most(10.0), most(6.0)),
            Self::RssAfter => about("RSS 2 s after closing 9,000, MiB", Lower, 1, most(40.0), most(15.0)),
            Self::PssAfter => about("PSS 2 s after closing 9,000, MiB", Lower, 1, None, None),
            Self::Cold => about("first request ever through the pair, ms", Lower, 1, most(10.0), most(4.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_figures_and_every_figure_a_row() {
        let of_rows: usize = Row::ALL.into_iter().map(|row| row.metrics().count()).sum();
        assert_eq!(of_rows, Metric::ALL.len());
        assert!(Row::ALL.into_iter().all(|row| row.metrics().next().is_some()));
    }
}
