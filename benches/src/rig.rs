//! The machine room: one lab, a place for each contestant, a control plane where Byrnie takes part, and the order of the
//! rounds.

use std::path::Path;

use byrnie_netlab::{Entered, Lab};

use crate::args::Args;
use crate::contestants::{Contestant, Mesh};
use crate::failure::{Failure, Result, doing};
use crate::machine::Machine;
use crate::measure::{self, Figures};
use crate::results::{Outcome, Results, Sample};
use crate::rows::Row;
use crate::site::{Clients, PODS, Site, workload};
use crate::tools::Tool;
use crate::wire;

/// The first pod's number in the lab's network.
const FIRST_POD: u8 = 11;

/// Everything that runs.
#[derive(Debug)]
pub(crate) struct Rig<'a> {
    machine: &'a Machine,
    args: &'a Args,
    // Before the lab, whose namespaces its processes are in.
    mesh: Option<Mesh>,
    places: Vec<Place>,
    lab: Lab,
}

/// A contestant, and where it stands or why it can't.
#[derive(Debug)]
struct Place {
    contestant: Contestant,
    site: Result<Site>,
}

/// What was seen on the wire of a contestant, or why it does not take part.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) contestant: Contestant,
    pub(crate) on_the_wire: Result<String>,
}

impl<'a> Rig<'a> {
    /// Makes it all, in `directory`. A contestant that can't be started is in it with its reason.
    ///
    /// # Errors
    /// When there can be no lab, or a tool is missing that every contestant needs.
    pub(crate) fn new(entered: &Entered, machine: &'a Machine, args: &'a Args, directory: &Path) -> Result<Self> {
        Tool::Nginx.find()?;
        let lab = Lab::new(entered, "benches").map_err(Failure::new)?;
        let (mut mesh, mut places) = (None, Vec::new());
        for (contestant, number) in args.chosen_contestants().into_iter().zip((FIRST_POD..).step_by(PODS.len())) {
            let site = needs(contestant)
                .and_then(|()| Site::new(contestant, &lab, directory, number, &args.congestion_control));
            if contestant == Contestant::Byrnie && site.is_ok() {
                mesh = Some(control_plane(&lab, directory, number)?);
            }
            places.push(Place { contestant, site });
        }
        Ok(Self { machine, args, mesh, places, lab })
    }

    /// Starts every pair once and looks at the wire, while it still goes through the lab's bridge, where the tap is. Who
    /// shows what it must not is out. Then the pods get cables of their own.
    pub(crate) fn check_the_wire(&mut self) -> Vec<Seen> {
        let mut all = Vec::new();
        for place in &mut self.places {
            let on_the_wire = match &mut place.site {
                Ok(site) => site.restart(self.mesh.as_ref(), Clients::One).and_then(|()| wire::check(&self.lab, site)),
                Err(failure) => Err(failure.clone()),
            };
            let laid = match &place.site {
                Ok(site) => site.lay_cable(&self.lab),
                Err(_) => Ok(()),
            };
            if let Err(failure) = on_the_wire.clone().and(laid) {
                eprintln!("{} is out: {failure}", place.contestant.name());
                place.site = Err(failure);
            }
            all.push(Seen { contestant: place.contestant, on_the_wire });
        }
        all
    }

    /// One round: every row through every contestant, each row beginning with another one than in the round before.
    pub(crate) fn round(&mut self, round: u32, results: &mut Results) {
        let rows = self.args.chosen_rows();
        let turns = usize::try_from(round).unwrap_or(0) % self.places.len().max(1);
        self.places.rotate_left(turns);
        self.fresh_proxies(Clients::One);
        for row in &rows {
            if *row == Row::Idle {
                self.fresh_proxies(Clients::All);
            }
            for at in 0..self.places.len() {
                self.measure(at, *row, round, results);
            }
        }
        self.places.sort_by_key(|place| Contestant::ALL.iter().position(|one| *one == place.contestant));
    }

    /// Who does not come up is out for good: the log says why.
    fn fresh_proxies(&mut self, clients: Clients) {
        for place in &mut self.places {
            let Ok(site) = &mut place.site else { continue };
            if let Err(failure) = site.restart(self.mesh.as_ref(), clients) {
                eprintln!("{} is out: {failure}", place.contestant.name());
                place.site = Err(failure);
            }
        }
    }

    fn measure(&mut self, at: usize, row: Row, round: u32, results: &mut Results) {
        let Some(place) = self.places.get_mut(at) else { return };
        let contestant = place.contestant;
        let not_run = |reason: &Failure| measure::same_for_all(contestant, row, &Outcome::NotRun(reason.to_string()));
        let (figures, busy) = match (&mut place.site, loads_with(row)) {
            (Ok(site), Ok(())) => watched(self.machine, self.args, site, row),
            (Ok(_), Err(failure)) => (not_run(&failure), false),
            (Err(failure), _) => (not_run(failure), false),
        };
        for (metric, outcome) in figures {
            let busy = busy && matches!(outcome, Outcome::Value(_));
            let text = match &outcome {
                Outcome::Value(value) => format!("{value:.*}", metric.about().digits),
                Outcome::Void(reason) => format!("void: {reason}"),
                Outcome::NotRun(reason) => format!("not run: {reason}"),
            };
            let mark = if busy { " (busy)" } else { "" };
            eprintln!("  round {round}  {:<10}  {}: {text}{mark}", contestant.name(), metric.about().title);
            results.add(Sample { round, contestant, metric, outcome, busy });
        }
    }
}

/// Measures a row, and whether somebody else used the machine meanwhile.
fn watched(machine: &Machine, args: &Args, site: &mut Site, row: Row) -> (Figures, bool) {
    let before = machine.wait_until_quiet(args.patience()).and_then(|()| machine.read());
    let figures = measure::row(site, row, args.length());
    let others = before.and_then(|before| machine.since(&before));
    match others {
        Ok(others) => (figures, others.are_busy()),
        Err(failure) => {
            eprintln!("whether others used this machine can't be told: {failure}");
            (figures, true)
        }
    }
}

/// Byrnie's control plane, for the pods of the site with this number.
fn control_plane(lab: &Lab, directory: &Path, number: u8) -> Result<Mesh> {
    let directory = directory.join("control-plane");
    std::fs::create_dir_all(&directory).map_err(doing(directory.display()))?;
    let workloads: Vec<_> = PODS
        .into_iter()
        .zip(number..)
        .filter_map(|(end, number)| match lab.networks().pod(number) {
            [std::net::IpAddr::V4(address), _] => Some((workload(Contestant::Byrnie, end), address)),
            _ => None,
        })
        .collect();
    Mesh::start(lab, &directory, &workloads)
}

/// The programs that a contestant consists of. The redirect rules of all are Byrnie's.
fn needs(contestant: Contestant) -> Result<()> {
    let tools: &[Tool] = match contestant {
        Contestant::Direct => &[],
        Contestant::Relay => &[Tool::Haproxy, Tool::Byrnie],
        Contestant::EnvoyL4 | Contestant::EnvoyHttp => &[Tool::Envoy, Tool::Byrnie],
        Contestant::PlainTls => &[Tool::Byrnie],
        Contestant::Byrnie => &[Tool::Byrnie, Tool::ByrnieProxy, Tool::ByrnieControlPlane],
    };
    tools.iter().try_for_each(|tool| tool.find().map(|_| ()))
}

/// The programs that make the load of a row.
fn loads_with(row: Row) -> Result<()> {
    let tool = match row {
        Row::Keepalive => Tool::Wrk,
        Row::H2c => Tool::H2load,
        Row::Bulk => Tool::Iperf3,
        Row::Cold | Row::Rate | Row::Connections | Row::Idle => return Ok(()),
    };
    tool.find().map(|_| ())
}
