//! Chooses an endpoint for a connection: of two drawn at random, the one with the lower load, where load is the
//! connections under way times what a connection there took to open lately.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::model::Endpoint;
use crate::random;

/// How much of the average the newest measurement makes: the last ten or so decide.
const NEWEST: f64 = 0.2;

/// What is assumed of an endpoint that was never dialled: a round trip inside a cluster.
const UNKNOWN: f64 = 0.001;

/// Endpoints that are remembered; more than any client is given of its Services is a sign of churn, and all is forgotten.
const REMEMBERED: usize = 16 * 1024;

/// What one worker knows of the endpoints that it dials.
#[derive(Default)]
pub(crate) struct Loads(Mutex<HashMap<SocketAddr, Load>>);

#[derive(Clone, Copy)]
struct Load {
    under_way: u32,
    /// Seconds from choosing the endpoint to its `ACCEPT`, averaged.
    opening: f64,
}

impl Default for Load {
    fn default() -> Load {
        Load { under_way: 0, opening: UNKNOWN }
    }
}

/// One connection to an endpoint; it counts until this is dropped.
pub(crate) struct UnderWay<'a> {
    loads: &'a Loads,
    address: SocketAddr,
}

impl UnderWay<'_> {
    /// The connection opened after `time`.
    pub(crate) fn opened(&self, time: Duration) {
        self.loads.change(self.address, |load| load.opening += NEWEST * (time.as_secs_f64() - load.opening));
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.loads.change(self.address, |load| load.under_way = load.under_way.saturating_sub(1));
    }
}

impl Loads {
    /// The endpoint for the next connection, not one of `tried`. Those that are going away come last, weightless ones
    /// never.
    pub(crate) fn choose<'e>(&self, endpoints: &'e [Endpoint], tried: &[SocketAddr]) -> Option<&'e Endpoint> {
        let open = |endpoint: &&Endpoint| endpoint.weight > 0 && !tried.contains(&endpoint.address);
        let staying: Vec<&Endpoint> = endpoints.iter().filter(open).filter(|endpoint| !endpoint.terminating).collect();
        let candidates = if staying.is_empty() { endpoints.iter().filter(open).collect() } else { staying };
        let (first, second) = (draw(&candidates)?, draw(&candidates)?);
        Some(if self.cost(second) < self.cost(first) { second } else { first })
    }

    /// Counts a connection to `address`.
    pub(crate) fn begin(&self, address: SocketAddr) -> UnderWay<'_> {
        self.change(address, |load| load.under_way += 1);
        UnderWay { loads: self, address }
    }

    pub(crate) fn cost(&self, endpoint: &Endpoint) -> f64 {
        let load = self.lock().get(&endpoint.address).copied().unwrap_or_default();
        f64::from(load.under_way + 1) * load.opening
    }

    fn change(&self, address: SocketAddr, change: impl FnOnce(&mut Load)) {
        let mut loads = self.lock();
        if loads.len() >= REMEMBERED && !loads.contains_key(&address) {
            loads.retain(|_, load| load.under_way > 0);
        }
        change(loads.entry(address).or_default());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SocketAddr, Load>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Draws one of `candidates` by weight.
fn draw<'e>(candidates: &[&'e Endpoint]) -> Option<&'e Endpoint> {
    let total: u64 = candidates.iter().map(|endpoint| u64::from(endpoint.weight)).sum();
    let mut point = random::number().checked_rem(total)?;
    candidates.iter().copied().find(|endpoint| match point.checked_sub(u64::from(endpoint.weight)) {
        None => true,
        Some(rest) => {
            point = rest;
            false
        }
    })
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::model::Meshed;

    fn endpoint(last: u8, weight: u32, terminating: bool) -> Endpoint {
        Endpoint {
            address: SocketAddr::from(([10, 0, 0, last], 80)),
            weight,
            zone: Arc::from(""),
            workload: Arc::from("ns/w"),
            pod_uid: Arc::from("uid"),
            meshed: Meshed::NotEnrolled,
            terminating,
        }
    }

    #[test]
    fn what_was_tried_is_not_chosen_again() {
        let endpoints = [endpoint(1, 1, false), endpoint(2, 1, false)];
        let loads = Loads::default();
        let tried = [SocketAddr::from(([10, 0, 0, 1], 80))];
        for _ in 0..50 {
            assert_eq!(loads.choose(&endpoints, &tried).map(|chosen| chosen.address), Some(endpoints[1].address));
        }
        let all: Vec<SocketAddr> = endpoints.iter().map(|endpoint| endpoint.address).collect();
        assert!(loads.choose(&endpoints, &all).is_none());
    }

    #[test]
    fn an_endpoint_that_goes_away_is_the_last_resort() {
        let endpoints = [endpoint(1, 1, true), endpoint(2, 1, false)];
        let loads = Loads::default();
        for _ in 0..50 {
            assert_eq!(loads.choose(&endpoints, &[]).map(|chosen| chosen.address), Some(endpoints[1].address));
        }
        let tried = [endpoints[1].address];
        assert_eq!(loads.choose(&endpoints, &tried).map(|chosen| chosen.address), Some(endpoints[0].address));
    }

    #[test]
    fn the_busier_of_two_is_avoided() {
        let endpoints = [endpoint(1, 1, false), endpoint(2, 1, false)];
        let loads = Loads::default();
        let _busy: Vec<UnderWay<'_>> = (0..20).map(|_| loads.begin(endpoints[0].address)).collect();
        let quiet = (0..400)
            .filter(|_| loads.choose(&endpoints, &[]).is_some_and(|c| c.address == endpoints[1].address))
            .count();
        assert!(quiet > 250, "{quiet} of 400, expected about 300");
    }

    #[test]
    fn weights_are_shares_and_zero_is_none() {
        let endpoints = [endpoint(1, 0, false), endpoint(2, 1, false)];
        let loads = Loads::default();
        for _ in 0..50 {
            assert_eq!(loads.choose(&endpoints, &[]).map(|chosen| chosen.address), Some(endpoints[1].address));
        }
    }
}
