//! One of several endpoints that are as good as each other.
//!
//! Where they weigh the same, the less loaded one of two that are drawn is taken. Where they
//! do not, each is drawn as often as it weighs, and the first of the two is taken unless it
//! is [`BIAS`] times as slow as the other, or as crowded: by load alone, the lightest would get
//! as much as the heaviest. A new endpoint weighs less at first, if the service says so (slow start).

use super::{Endpoint, InFlight};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How much more loaded than another one an endpoint is passed over for.
const BIAS: f64 = 2.0;
/// What a new endpoint weighs at the least, of what it will; Envoy has this too.
const LEAST_WARMTH: f64 = 0.1;
/// Draws until one is taken whatever it weighs.
const DRAWS: usize = 64;
/// So much of what is there is enough: with 1/1.4 of its endpoints in, a place still takes
/// all of its requests (Envoy's overprovisioning factor).
const SPARE: f64 = 1.4;

#[derive(Debug, Default)]
pub(super) struct Pool {
    pub endpoints: Vec<Arc<Endpoint>>,
    slow_start: Duration,
    /// When the last of them that is new will weigh what it weighs.
    warm: Option<Instant>,
    /// Whether they do not all weigh the same.
    weighted: bool,
    heaviest: f64,
    mean: f64,
}

// === impl Pool ===

impl Pool {
    pub fn new(endpoints: Vec<Arc<Endpoint>>, slow_start: Duration) -> Self {
        let weights = || endpoints.iter().map(|one| one.weight());
        let heaviest = weights().fold(0.0, f64::max);
        let youngest = endpoints.iter().filter_map(|one| one.since).max();
        Self {
            weighted: weights().any(|weight| weight < heaviest),
            mean: weights().sum::<f64>() / endpoints.len().max(1) as f64,
            warm: youngest
                .filter(|_| !slow_start.is_zero())
                .map(|it| it + slow_start),
            heaviest,
            slow_start,
            endpoints,
        }
    }

    /// Somebody, if there is anybody at all: `avoid` if there is no other, and one that is
    /// out if all are.
    pub fn pick(&self, avoid: Option<&Endpoint>, now: Instant) -> Option<InFlight> {
        match &*self.endpoints {
            [] => None,
            [only] => Some(only.begin_at(now)),
            many => Some(self.seek(avoid, now, false).unwrap_or_else(|| {
                let avoided = many.iter().find(|endpoint| endpoint.breaker.is_in());
                let chosen = avoided.unwrap_or_else(|| {
                    let (first, second) = self.draw(now);
                    self.choose(first, second, now)
                });
                chosen.begin_at(now)
            })),
        }
    }

    /// Somebody who is in and is not `avoid`. If too few are in for all that is asked here,
    /// `None` for as many requests as are too many.
    pub fn pick_near(&self, avoid: Option<&Endpoint>, now: Instant) -> Option<InFlight> {
        self.seek(avoid, now, true)
    }

    fn seek(&self, avoid: Option<&Endpoint>, now: Instant, may_spill: bool) -> Option<InFlight> {
        let is_avoided = |one: &Endpoint| avoid.is_some_and(|avoid| std::ptr::eq(avoid, one));
        let is_wanted = |one: &Endpoint| one.breaker.is_in() && !is_avoided(one);
        if self.endpoints.len() > 1 {
            let (first, second) = self.draw(now);
            if is_wanted(first) && is_wanted(second) {
                return Some(self.choose(first, second, now).begin_at(now));
            }
        }
        // All have to be looked at. A probation that is due comes first, unless the request
        // has failed once already.
        let (mut first, mut second, mut healthy) = (None, None, 0);
        let start = fastrand::usize(..self.endpoints.len().max(1));
        let (before, after) = self.endpoints.split_at(start.min(self.endpoints.len()));
        for endpoint in after.iter().chain(before) {
            if avoid.is_none()
                && let Some(ticket) = endpoint.breaker.probe(now)
            {
                return Some(endpoint.begin_with(ticket, now));
            }
            healthy += usize::from(endpoint.breaker.is_in());
            if !is_wanted(endpoint) {
                continue;
            }
            // The two with the greatest keys, which are as good as drawn (Efraimidis, A-Res).
            let key = fastrand::f64().powf(1.0 / self.weight(endpoint, now));
            let drawn = Some((key, endpoint));
            if first.is_none_or(|(most, _)| key > most) {
                (first, second) = (drawn, first);
            } else if second.is_none_or(|(most, _)| key > most) {
                second = drawn;
            }
        }
        if may_spill && self.spills(healthy) {
            return None;
        }
        let chosen = match (first?.1, second) {
            (first, Some((_, second))) => self.choose(first, second, now),
            (only, None) => only,
        };
        Some(chosen.begin_at(now))
    }

    /// Whether a request that met somebody who is out goes elsewhere. Not all do meet one,
    /// which those that do make up for.
    fn spills(&self, healthy: usize) -> bool {
        let (all, healthy) = (self.endpoints.len() as f64, healthy as f64);
        let too_many = 1.0 - SPARE * healthy / all;
        let both = healthy * (healthy - 1.0) / (all * (all - 1.0)).max(1.0);
        too_many > 0.0 && fastrand::f64() * (1.0 - both) < too_many
    }

    fn is_even(&self, now: Instant) -> bool {
        !self.weighted && self.warm.is_none_or(|warm| warm <= now)
    }

    fn weight(&self, endpoint: &Endpoint, now: Instant) -> f64 {
        match endpoint.since {
            Some(since) if self.warm.is_some_and(|warm| warm > now) => {
                let age = now.saturating_duration_since(since);
                let warmth = age.as_secs_f64() / self.slow_start.as_secs_f64();
                endpoint.weight() * warmth.clamp(LEAST_WARMTH, 1.0)
            }
            _ => endpoint.weight(),
        }
    }

    /// Two different ones, of at least two.
    fn draw(&self, now: Instant) -> (&Arc<Endpoint>, &Arc<Endpoint>) {
        let many = &*self.endpoints;
        if self.is_even(now) {
            let first = fastrand::usize(..many.len());
            return (&many[first], &many[other_than(first, many.len())]);
        }
        let first = self.draw_by_weight(now, || fastrand::usize(..many.len()));
        let second = self.draw_by_weight(now, || other_than(first, many.len()));
        (&many[first], &many[second])
    }

    fn draw_by_weight(&self, now: Instant, draw: impl Fn() -> usize) -> usize {
        let mut drawn = draw();
        for _ in 0..DRAWS {
            let weight = self.weight(&self.endpoints[drawn], now);
            if fastrand::f64() * self.heaviest < weight {
                break;
            }
            drawn = draw();
        }
        drawn
    }

    fn choose<'a>(
        &self,
        first: &'a Arc<Endpoint>,
        second: &'a Arc<Endpoint>,
        now: Instant,
    ) -> &'a Arc<Endpoint> {
        if self.is_even(now) {
            return if first.load(now) <= second.load(now) {
                first
            } else {
                second
            };
        }
        // What is under way counts where it is more than the endpoint's weight allows. The other
        // one would have this request too: an endpoint that weighs little is soon too full.
        let crowded = |one: &Endpoint, more: f64| {
            let share = self.weight(one, now) / self.mean;
            one.load_by(now, |pending| ((pending + more) / share).max(1.0))
        };
        let latency = |one: &Endpoint| one.load_by(now, |_| 1.0);
        let is_slow = latency(first) > BIAS * latency(second);
        if is_slow || crowded(first, 0.0) > BIAS * crowded(second, 1.0) {
            second
        } else {
            first
        }
    }
}

fn other_than(first: usize, count: usize) -> usize {
    let second = fastrand::usize(..count - 1);
    second + usize::from(second >= first)
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
