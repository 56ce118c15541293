//! What the control plane costs, and how fast it is: certificates per second, memory and CPU for each connected proxy, and
//! the time from a change to the last proxy that has it. The proxies are simulated in this process, each with its own
//! certificate, TLS connection and stream, as [`client`] does it; the control plane is the real program.

mod client;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Parser;
use serde::Serialize;

use crate::failure::{Failure, Result, doing};
use crate::machine::{self, Machine};
use crate::process::{cpu_seconds, memory};
use crate::statistics;
use crate::tools::{self, Tool};
use client::{Mesh, Seen, Simulated};

/// `benches control-plane`.
#[derive(Debug, Clone, Parser)]
pub(crate) struct PlaneArgs {
    /// How many proxies are simulated, one run for each number.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1_000, 5_000], value_parser = clap::value_parser!(u32).range(1..=8_000))]
    proxies: Vec<u32>,
    /// How many changes of each kind are made and followed to the last proxy.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    changes: u32,
}

/// The figures of one run.
#[derive(Debug, Clone, Serialize)]
struct Figures {
    proxies: u32,
    /// Certificates per second, with the clients' own work on the same cores.
    certificates_per_second: f64,
    /// The same by the control plane's own CPU time, if it had two cores to itself.
    certificates_per_second_of_two_cores: f64,
    certify_p50_ms: f64,
    certify_p99_ms: f64,
    /// What the control plane holds for each connected proxy.
    kib_per_proxy: f64,
    rss_mib: f64,
    /// CPU seconds per second while nothing changes and every proxy reports every five seconds.
    idle_cpu: f64,
    endpoint_change: Spread,
    policy_change: Spread,
}

/// Milliseconds from a change of a file to a proxy's having it, over all proxies and changes; and to the last of all.
#[derive(Debug, Clone, Serialize)]
struct Spread {
    p50_ms: f64,
    p99_ms: f64,
    /// The last proxy's, of the slowest change.
    slowest_ms: f64,
    /// CPU seconds of the control plane for one change.
    cpu: f64,
}

/// How long figures are looked at while nothing changes.
const IDLE: Duration = Duration::from_secs(10);

/// Longest that a change may take to reach everybody.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs it, prints a table, and writes it beside the other reports.
///
/// # Errors
/// Where a part does not work: nothing is left out silently.
pub(crate) fn run(args: &PlaneArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(doing("a runtime"))?;
    let mut all = Vec::new();
    for proxies in &args.proxies {
        let directory = tempfile::tempdir().map_err(doing("a temporary directory"))?;
        all.push(runtime.block_on(one(*proxies, args.changes, directory.path()))?);
    }
    let output = tools::target_directory().join("benches");
    fs::create_dir_all(&output).map_err(doing(output.display()))?;
    let json = serde_json::to_string_pretty(&all).map_err(doing("the report"))?;
    let machine = Machine::new(machine::outer_proc().map_err(doing("/proc"))?);
    let program = Tool::ByrnieControlPlane.version()?;
    let heading = format!("Measured {} on {}; byrnie {program}.\n\n", machine::now()?, machine.words());
    let table = heading + &table(&all);
    for (name, text) in [("control-plane.md", &table), ("control-plane.json", &json)] {
        let path = output.join(name);
        fs::write(&path, text).map_err(doing(path.display()))?;
        eprintln!("{}", path.display());
    }
    print!("{table}");
    Ok(())
}

async fn one(count: u32, changes: u32, directory: &Path) -> Result<Figures> {
    eprintln!("{count} proxies: the control plane starts");
    let mesh = Mesh::new(directory, count)?;
    let running = mesh.start(&Tool::ByrnieControlPlane.find()?)?;
    let process = running.id().ok_or_else(|| Failure::new("the control plane has ended"))?;
    let id = [process];
    mesh.is_up().await?;
    let joining = mesh.joining().await?;

    eprintln!("{count} proxies: certificates");
    let (before, begun) = (cpu_seconds(&id)?, Instant::now());
    let (svids, mut took) = mesh.certify(joining).await?;
    let (used, wall) = (cpu_seconds(&id)? - before, begun.elapsed().as_secs_f64());
    let certified = f64::from(count);

    eprintln!("{count} proxies: streams");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let alone = memory(process)?.rss;
    let mut proxies = Simulated::connect(&mesh, svids).await?;
    proxies.all_have(&Seen::Endpoints(1), Instant::now(), PATIENCE).await?;
    tokio::time::sleep(IDLE / 2).await;
    let rss = memory(process)?.rss;
    let before = cpu_seconds(&id)?;
    tokio::time::sleep(IDLE).await;
    let idle_cpu = (cpu_seconds(&id)? - before) / IDLE.as_secs_f64();

    eprintln!("{count} proxies: changes");
    let endpoint_change = spread(&id, &mut proxies, changes, |number| {
        mesh.endpoints(number + 1)?;
        Ok(Seen::Endpoints(number + 1))
    });
    let endpoint_change = endpoint_change.await?;
    let policy_change = spread(&id, &mut proxies, changes, |number| {
        mesh.rules(number)?;
        Ok(Seen::Rules(number))
    });
    Ok(Figures {
        proxies: count,
        certificates_per_second: certified / wall,
        certificates_per_second_of_two_cores: 2.0 * certified / used,
        certify_p50_ms: percentile(&mut took, 50),
        certify_p99_ms: percentile(&mut took, 99),
        kib_per_proxy: (rss - alone) / certified,
        rss_mib: rss / 1024.0,
        idle_cpu,
        endpoint_change,
        policy_change: policy_change.await?,
    })
}

/// Makes so many changes, numbered from one, and follows each to the last proxy.
async fn spread(
    id: &[u32],
    proxies: &mut Simulated,
    changes: u32,
    change: impl Fn(u32) -> Result<Seen>,
) -> Result<Spread> {
    let (mut each, mut last) = (Vec::new(), Vec::new());
    let before = cpu_seconds(id)?;
    for number in 1..=changes {
        let begun = Instant::now();
        let wanted = change(number)?;
        let took = proxies.all_have(&wanted, begun, PATIENCE).await?;
        last.extend(took.iter().copied().max());
        each.extend(took);
    }
    let cpu = (cpu_seconds(id)? - before) / f64::from(changes);
    Ok(Spread {
        p50_ms: percentile(&mut each, 50),
        p99_ms: percentile(&mut each, 99),
        slowest_ms: percentile(&mut last, 100),
        cpu,
    })
}

/// Of all of `samples`, in milliseconds.
fn percentile(samples: &mut [Duration], percent: usize) -> f64 {
    statistics::percentile(samples, percent).unwrap_or(f64::NAN)
}

fn table(all: &[Figures]) -> String {
    let proxies: Vec<String> = all.iter().map(|one| format!("{} proxies", one.proxies)).collect();
    let mut text = format!("| | wanted | {} |\n|---|---|{}\n", proxies.join(" | "), "---:|".repeat(all.len()));
    let mut add = |title: &str, wanted: &str, value: &dyn Fn(&Figures) -> String| {
        let values: Vec<String> = all.iter().map(value).collect();
        text += &format!("| {title} | {wanted} | {} |\n", values.join(" | "));
    };
    add("certificates/s, clients on the same cores", "", &|one| format!("{:.0}", one.certificates_per_second));
    add("certificates/s of two cores, by the control plane's CPU time", "≥ 1,000", &|one| {
        format!("{:.0}", one.certificates_per_second_of_two_cores)
    });
    add("`Certify` p50 / p99, 32 at a time, ms", "", &|one| {
        format!("{:.1} / {:.1}", one.certify_p50_ms, one.certify_p99_ms)
    });
    add("KiB per connected proxy", "≤ 48", &|one| format!("{:.1}", one.kib_per_proxy));
    add("RSS, MiB", "", &|one| format!("{:.0}", one.rss_mib));
    add("CPU, cores, while nothing changes", "", &|one| format!("{:.3}", one.idle_cpu));
    let mut add_change = |kind: &str, of: fn(&Figures) -> &Spread| {
        add(&format!("{kind}, p50 / p99 of all proxies, ms"), "", &|one| {
            format!("{:.0} / {:.0}", of(one).p50_ms, of(one).p99_ms)
        });
        add(&format!("{kind}, to the last proxy, the slowest change, ms"), "≤ 1,000", &|one| {
            format!("{:.0}", of(one).slowest_ms)
        });
        add(&format!("{kind}, CPU s of the control plane"), "", &|one| format!("{:.3}", of(one).cpu));
    };
    add_change("an endpoint's change", |one| &one.endpoint_change);
    add_change("a policy's change", |one| &one.policy_change);
    text
}
