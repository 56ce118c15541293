//! How many connections there may be: in all, and from one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::limits;

/// The connections of one listener.
#[derive(Clone, Default)]
pub(super) struct Places(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection's place, until dropped.
pub(super) struct Place {
    places: Places,
    source: IpAddr,
}

impl Places {
    /// A place for a connection from `source`; `None`: it has too many, or all have.
    pub(super) fn take(&self, source: IpAddr) -> Option<Place> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_source = taken.get(&source).copied().unwrap_or(0);
        if of_source >= limits::CONNECTIONS_PER_SOURCE || taken.values().sum::<usize>() >= limits::CONNECTIONS {
            return None;
        }
        taken.insert(source, of_source + 1);
        Some(Place { places: self.clone(), source })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.source) {
            Some(number) if *number > 1 => *number -= 1,
            _ => {
                taken.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn one_address_can_not_take_every_place() {
        let places = Places::default();
        let source = |last| IpAddr::from([10, 0, 0, last]);
        let held: Vec<_> = (0..limits::CONNECTIONS_PER_SOURCE).map(|_| places.take(source(1)).unwrap()).collect();
        assert!(places.take(source(1)).is_none());
        assert!(places.take(source(2)).is_some());
        drop(held);
        assert!(places.take(source(1)).is_some());
    }

    #[test]
    fn all_together_have_a_bound_too() {
        let places = Places::default();
        let sources = (0..=255).map(|last| IpAddr::from([10, 0, 0, last]));
        let held: Vec<_> = sources.clone().chain(sources).filter_map(|source| places.take(source)).collect();
        assert_eq!(held.len(), limits::CONNECTIONS);
    }
}
