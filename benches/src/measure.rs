//! One row through one contestant: the load, what it came to, and what the proxies used for it.

use std::cell::Cell;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::contestants::{Contestant, requests_followed};
use crate::failure::{Failure, Result, doing};
use crate::http;
use crate::loads::iperf::Way;
use crate::loads::{Requests, connections, h2load, idle, iperf, open_loop, wrk};
use crate::process::{Memory, cpu_seconds, memory};
use crate::results::Outcome;
use crate::rows::{Metric, Row};
use crate::site::{IPERF_PORT, Site};

/// Length of the load that goes before a measured one.
const WARM_UP: Duration = Duration::from_secs(1);

/// How long connections are idle before memory is looked at, and how long after they were closed.
const SETTLE: Duration = Duration::from_secs(2);

/// Longest that the first request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a row came to.
pub(crate) type Figures = Vec<(Metric, Outcome)>;

/// Measures a row. `cold` and `idle` want a pair that has carried nothing yet.
pub(crate) fn row(site: &mut Site, row: Row, length: Duration) -> Figures {
    let contestant = site.contestant();
    if let Some(reason) = contestant.cannot(row) {
        return same_for_all(contestant, row, &Outcome::NotRun(reason.to_owned()));
    }
    let measured = match row {
        Row::Cold => cold(site),
        Row::Keepalive => keepalive(site, length),
        Row::Rate => rate(site, length),
        Row::Connections => new_connections(site, length),
        Row::H2c => h2c(site, length),
        Row::Bulk => bulk(site, length),
        Row::Idle => Ok(idle_connections(site)),
    };
    match measured.and_then(|figures| site.check().map(|()| figures)) {
        Ok(figures) => figures,
        Err(failure) => same_for_all(contestant, row, &Outcome::Void(failure.to_string())),
    }
}

/// The same outcome for every figure of a row that the contestant could have had.
pub(crate) fn same_for_all(contestant: Contestant, row: Row, outcome: &Outcome) -> Figures {
    let has = |metric: &Metric| {
        let is_of_all = !matches!(metric, Metric::ParsedRequests | Metric::ParsedCpu) && metric.added_to().is_none();
        is_of_all && (contestant.has_proxies() || !metric.is_of_proxies())
    };
    let of_all = row.metrics().filter(has).map(|metric| (metric, outcome.clone()));
    of_all.chain(parsed(contestant, row, outcome)).collect()
}

/// The figures with HTTP parsed: only of those who do.
fn parsed(contestant: Contestant, row: Row, outcome: &Outcome) -> impl Iterator<Item = (Metric, Outcome)> {
    let parses = row == Row::Keepalive && contestant.parses();
    let metrics = [Metric::ParsedRequests, Metric::ParsedCpu].into_iter().filter(move |_| parses);
    metrics.map(|metric| (metric, outcome.clone()))
}

fn cold(site: &Site) -> Result<Figures> {
    let to = site.at(http::PORT)?;
    let question = http::request(to, "/", "close");
    let ask = || {
        let begun = Instant::now();
        let mut stream = std::net::TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        http::ask(&mut stream, &question)?;
        Ok::<_, std::io::Error>(begun.elapsed())
    };
    let took = site.client().run(ask).map_err(doing("entering the client's namespace"))?;
    let took = took.map_err(doing("the first request"))?;
    Ok(vec![(Metric::Cold, Outcome::Value(took.as_secs_f64() * 1000.0))])
}

fn keepalive(site: &Site, length: Duration) -> Result<Figures> {
    let to = site.at(http::PORT)?;
    let (requests, cpu) = warm(site, length, |length| wrk::run(site.client(), to, length))?;
    let mut figures = of_requests(Metric::KeepaliveRequests, Metric::KeepaliveCpu, requests, cpu);
    figures.extend(match site.contestant() {
        Contestant::EnvoyHttp => of_requests(Metric::ParsedRequests, Metric::ParsedCpu, requests, cpu),
        Contestant::Byrnie => followed(site, length)?,
        Contestant::Direct | Contestant::Relay | Contestant::EnvoyL4 | Contestant::PlainTls => Figures::new(),
    });
    Ok(figures)
}

/// The same load to the port that is declared to be HTTP, and that both proxies have seen every request of it.
fn followed(site: &Site, length: Duration) -> Result<Figures> {
    let to = site.at(http::DECLARED_PORT)?;
    let before = site.both().map(requests_followed);
    let asked = Cell::new(0.0);
    let load = |length| {
        let requests = wrk::run(site.client(), to, length)?;
        asked.set(asked.get() + requests.count);
        Ok(requests)
    };
    let (requests, cpu) = warm(site, length, load)?;
    for (proxy, before) in site.both().into_iter().zip(before) {
        let followed = requests_followed(proxy)? - before?;
        if followed < asked.get() {
            let reason = format!("a proxy has followed {followed} requests of {}", asked.get());
            return Err(Failure::new(reason));
        }
    }
    Ok(of_requests(Metric::ParsedRequests, Metric::ParsedCpu, requests, cpu))
}

fn rate(site: &Site, length: Duration) -> Result<Figures> {
    let to = site.at(http::PORT)?;
    let (found, cpu) = warm(site, length, |length| open_loop::run(site.client(), to, length))?;
    let percentiles =
        [(Metric::RateP50, found.p50), (Metric::RateP99, found.p99), (Metric::RateP99OfSeconds, found.p99_of_seconds)];
    let mut figures: Figures = percentiles.map(|(metric, value)| (metric, Outcome::Value(value))).into();
    figures.extend(per_10k(Metric::RateCpu, found.count, cpu));
    Ok(figures)
}

fn new_connections(site: &Site, length: Duration) -> Result<Figures> {
    let to = site.at(http::PORT)?;
    let (requests, cpu) = warm(site, length, |length| connections::run(site.client(), to, length))?;
    Ok(of_requests(Metric::Connections, Metric::ConnectionsCpu, requests, cpu))
}

fn h2c(site: &Site, length: Duration) -> Result<Figures> {
    let to = site.at(http::H2C_PORT)?;
    let (requests, cpu) = warm(site, length, |length| h2load::run(site.client(), to, length))?;
    Ok(of_requests(Metric::H2cRequests, Metric::H2cCpu, requests, cpu))
}

/// One and eight streams, both ways, each from its first byte. The CPU time is of all four together.
fn bulk(site: &Site, length: Duration) -> Result<Figures> {
    let to = site.at(IPERF_PORT)?;
    let loads = [
        (Metric::BulkTo1, 1, Way::To),
        (Metric::BulkTo8, 8, Way::To),
        (Metric::BulkFrom1, 1, Way::From),
        (Metric::BulkFrom8, 8, Way::From),
    ];
    let mut figures = Figures::new();
    let (mut bytes, mut seconds) = (0.0, 0.0);
    for (metric, streams, way) in loads {
        let before = cpu_seconds(&site.proxies())?;
        let found = iperf::run(site.client(), to, streams, way, length)?;
        seconds += cpu_seconds(&site.proxies())? - before;
        bytes += found.bytes;
        figures.push((metric, Outcome::Value(found.gigabits)));
    }
    if site.contestant().has_proxies() {
        figures.push((Metric::BulkCpu, Outcome::Value(seconds / (bytes / 1e9))));
    }
    Ok(figures)
}

/// Each step keeps what came before it: where 9,000 connections fail, the figures of 4,000 stand.
fn idle_connections(site: &Site) -> Figures {
    let mut figures = Figures::new();
    let mut held = Vec::new();
    if let Err(failure) = steps(site, &mut held, &mut figures) {
        let measured: Vec<Metric> = figures.iter().map(|(metric, _)| *metric).collect();
        let missing = Row::Idle.metrics().filter(|metric| !measured.contains(metric));
        figures.extend(missing.map(|metric| (metric, Outcome::Void(failure.to_string()))));
    }
    figures
}

fn steps(site: &Site, held: &mut Vec<std::net::TcpStream>, figures: &mut Figures) -> Result<()> {
    let (clients, to) = (site.clients(), site.at(http::PORT)?);
    // The first connection is not part of what others cost: it opens what a proxy opens once.
    idle::open(&clients, to, held, clients.len())?;
    held.clear();
    sleep(SETTLE);
    let (each, idle) = memory_of_all(site)?;
    figures.extend(in_mib(Metric::RssIdle, Metric::PssIdle, each));
    let many = [
        (1_000_u32, Metric::Rss1000, Metric::Pss1000, Metric::PerConnection1000),
        (4_000, Metric::Rss4000, Metric::Pss4000, Metric::PerConnection4000),
        (9_000, Metric::Rss9000, Metric::Pss9000, Metric::PerConnection9000),
    ];
    for (wanted, rss, pss, each) in many {
        idle::open(&clients, to, held, usize::try_from(wanted).unwrap_or(usize::MAX))?;
        sleep(SETTLE);
        idle::check(held)?;
        figures.extend(in_mib(rss, pss, memory(site.server_proxy()?)?));
        // A connection is held by one proxy at each end.
        let (_, now) = memory_of_all(site)?;
        figures.push((each, Outcome::Value((now - idle) / f64::from(2 * wanted))));
    }
    held.clear();
    sleep(SETTLE);
    figures.extend(in_mib(Metric::RssAfter, Metric::PssAfter, memory(site.server_proxy()?)?));
    Ok(())
}

/// The mean of what the proxies hold, and the sum of their RSS, in KiB.
fn memory_of_all(site: &Site) -> Result<(Memory, f64)> {
    let (mut count, mut sum) = (0.0, Memory::default());
    for id in site.proxies() {
        let one = memory(id)?;
        (count, sum) = (count + 1.0, Memory { rss: sum.rss + one.rss, pss: sum.pss + one.pss });
    }
    Ok((Memory { rss: sum.rss / count, pss: sum.pss / count }, sum.rss))
}

fn in_mib(rss: Metric, pss: Metric, memory: Memory) -> [(Metric, Outcome); 2] {
    [(rss, memory.rss), (pss, memory.pss)].map(|(metric, kib)| (metric, Outcome::Value(kib / 1024.0)))
}

/// Runs a load once to warm up, then measures it with the CPU seconds that the proxies, where there are any, used for it.
fn warm<T>(site: &Site, length: Duration, load: impl Fn(Duration) -> Result<T>) -> Result<(T, Option<f64>)> {
    load(WARM_UP)?;
    let before = cpu_seconds(&site.proxies())?;
    let found = load(length)?;
    let used = cpu_seconds(&site.proxies())? - before;
    Ok((found, site.contestant().has_proxies().then_some(used)))
}

fn of_requests(rate: Metric, cost: Metric, requests: Requests, cpu: Option<f64>) -> Figures {
    let mut figures = vec![(rate, Outcome::Value(requests.per_second))];
    figures.extend(per_10k(cost, requests.count, cpu));
    figures
}

/// The proxies' time for 10,000 requests; nothing where there are no proxies.
fn per_10k(metric: Metric, count: f64, cpu: Option<f64>) -> Option<(Metric, Outcome)> {
    cpu.map(|cpu| (metric, Outcome::Value(cpu / count * 1e4)))
}
