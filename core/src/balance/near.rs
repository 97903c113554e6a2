//! Who of a service's endpoints is near: on the client's node, or in its zone.
//!
//! A service says whether that matters (Kubernetes' `trafficDistribution`, KEP-4444 and
//! KEP-3015). Those that are near get all requests while enough of them are in; with fewer,
//! what is too much for them goes to all endpoints, and comes back with them.

use super::pool::Pool;
use super::{Endpoint, InFlight};
use crate::api::TrafficDistribution;
use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where a client is; empty where that is not known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place<'a> {
    pub node: &'a str,
    pub zone: &'a str,
}

/// An endpoint, and where it is.
pub struct Located {
    pub endpoint: Arc<Endpoint>,
    pub node: String,
    /// Whose clients it is for in the first place.
    pub zones: Vec<String>,
}

/// All endpoints of a port of a service.
#[derive(Debug, Default)]
pub struct Endpoints {
    all: Pool,
    by_node: HashMap<String, Pool>,
    by_zone: HashMap<String, Pool>,
}

// === impl Endpoints ===

impl Endpoints {
    pub fn new(all: Vec<Located>, distribution: TrafficDistribution, slow_start: Duration) -> Self {
        let (mut by_node, mut by_zone) = (HashMap::new(), HashMap::new());
        let add = |to: &mut HashMap<String, Vec<_>>, place: &String, endpoint: &Arc<Endpoint>| {
            if !place.is_empty() {
                to.entry(place.clone()).or_default().push(endpoint.clone());
            }
        };
        for one in &all {
            if distribution == TrafficDistribution::SameNode {
                add(&mut by_node, &one.node, &one.endpoint);
            }
            if distribution != TrafficDistribution::Anywhere {
                let zones = one.zones.iter();
                zones.for_each(|zone| add(&mut by_zone, zone, &one.endpoint));
            }
        }
        let pools = |by: HashMap<String, Vec<_>>| {
            let pool = |(place, all)| (place, Pool::new(all, slow_start));
            by.into_iter().map(pool).collect()
        };
        Self {
            all: Pool::new(
                all.into_iter().map(|one| one.endpoint).collect(),
                slow_start,
            ),
            by_node: pools(by_node),
            by_zone: pools(by_zone),
        }
    }

    /// Whether it matters where the client is.
    pub fn heed_place(&self) -> bool {
        !self.by_zone.is_empty() || !self.by_node.is_empty()
    }

    /// Who gets a client's next request. `avoid` does only if there is no other. `None` if
    /// there is nobody at all.
    pub fn pick(&self, client: Place<'_>, avoid: Option<&Endpoint>) -> Option<InFlight> {
        let now = Instant::now();
        [self.by_node.get(client.node), self.by_zone.get(client.zone)]
            .into_iter()
            .flatten()
            .find_map(|near| near.pick_near(avoid, now))
            .or_else(|| self.all.pick(avoid, now))
    }
}

impl Deref for Endpoints {
    type Target = [Arc<Endpoint>];

    fn deref(&self) -> &Self::Target {
        &self.all.endpoints
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{endpoints, trip};
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    const HOME: Place<'_> = Place {
        node: "n1",
        zone: "a",
    };

    /// Endpoints in these zones, each on a node of its own.
    fn located(zones: &[&str]) -> Vec<Located> {
        let count = u8::try_from(zones.len()).unwrap();
        let all = endpoints(count).into_iter().zip(zones).enumerate();
        all.map(|(n, (endpoint, zone))| Located {
            endpoint,
            node: format!("n{n}"),
            zones: vec![(*zone).to_owned()],
        })
        .collect()
    }

    fn in_zones(zones: &[&str], distribution: TrafficDistribution) -> Endpoints {
        Endpoints::new(located(zones), distribution, Duration::ZERO)
    }

    /// Who of them gets some requests that are all under way at once.
    fn asked(all: &Endpoints, client: Place<'_>, avoid: Option<&Endpoint>) -> HashSet<usize> {
        let flights = (0..200).map(|_| all.pick(client, avoid).unwrap());
        let flights: Vec<_> = flights.collect();
        let chosen = |one: &Arc<Endpoint>| flights.iter().any(|it| Arc::ptr_eq(it.endpoint(), one));
        (0..all.len()).filter(|n| chosen(&all[*n])).collect()
    }

    #[test]
    fn the_own_zone_comes_first_and_the_own_node_before_it() {
        let zones = ["a", "a", "b", "b"];
        let all = in_zones(&zones, TrafficDistribution::SameZone);
        assert_eq!(asked(&all, HOME, None), HashSet::from([0, 1]));
        let all = in_zones(&zones, TrafficDistribution::SameNode);
        assert_eq!(asked(&all, HOME, None), HashSet::from([1]));
        let elsewhere = Place { node: "n9", ..HOME };
        assert_eq!(asked(&all, elsewhere, None), HashSet::from([0, 1]));
        // Where nobody is near, or nobody knows who is, all are alike.
        let nowhere = [
            (
                Place {
                    node: "n9",
                    zone: "c",
                },
                TrafficDistribution::SameZone,
            ),
            (Place::default(), TrafficDistribution::SameNode),
            (HOME, TrafficDistribution::Anywhere),
        ];
        for (client, distribution) in nowhere {
            let all = in_zones(&zones, distribution);
            assert_eq!(asked(&all, client, None).len(), 4, "{client:?}");
        }
    }

    #[test]
    fn what_fails_is_left_for_another_zone_and_come_back_to() {
        let all = in_zones(&["a", "b"], TrafficDistribution::SameZone);
        // A request that failed there goes elsewhere.
        assert_eq!(asked(&all, HOME, Some(&*all[0])), HashSet::from([1]));
        trip(&all[0]);
        assert_eq!(asked(&all, HOME, None), HashSet::from([1]));
        all[0].begin().judged(true);
        assert_eq!(asked(&all, HOME, None), HashSet::from([0]));
        // Out everywhere is out nowhere.
        trip(&all[0]);
        trip(&all[1]);
        assert_eq!(asked(&all, HOME, None), HashSet::from([0, 1]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// A zone keeps 1.4 times the part of its endpoints that is in, of all its requests.
        #[test]
        fn a_zone_keeps_what_it_can_carry(near in 1..12usize, out in 0..12usize, seed: u64) {
            const REQUESTS: usize = 4000;
            fastrand::seed(seed);
            let out = out.min(near);
            let zones: Vec<_> = std::iter::repeat_n("a", near).chain(["b"; 20]).collect();
            let all = in_zones(&zones, TrafficDistribution::SameZone);
            all[..out].iter().for_each(trip);
            let kept = (0..REQUESTS).filter(|_| {
                let near = &all.by_zone["a"];
                near.pick_near(None, Instant::now()).is_some()
            });
            let kept = kept.count() as f64 / REQUESTS as f64;
            let can = (1.4 * (near - out) as f64 / near as f64).min(1.0);
            prop_assert!((kept - can).abs() < 0.05, "{kept}, and it should be {can}");
        }
    }
}
