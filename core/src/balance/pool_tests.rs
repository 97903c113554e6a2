use super::super::tests::endpoints;
use super::*;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

/// How many of many requests each gets, of which each takes `took` and `busy` are under way.
fn shares(pool: &Pool, took: &[Duration], busy: usize, now: Instant) -> Vec<usize> {
    let mut shares = vec![0; pool.endpoints.len()];
    let mut under_way = std::collections::VecDeque::new();
    for _ in 0..6000 {
        let flight = pool.pick(None, now).unwrap();
        // How long this test takes says nothing of it.
        flight
            .told
            .store(true, std::sync::atomic::Ordering::Relaxed);
        let at = |one: &Arc<Endpoint>| Arc::ptr_eq(one, flight.endpoint());
        let chosen = pool.endpoints.iter().position(at).unwrap();
        shares[chosen] += 1;
        pool.endpoints[chosen].observe(took[chosen], now);
        under_way.push_back(flight);
        if under_way.len() > busy {
            under_way.pop_front();
        }
    }
    shares
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whether one request follows the other or several are under way.
    #[test]
    fn each_gets_what_it_weighs(
        weights in proptest::collection::vec(1..8u32, 2..6),
        busy in 0..20usize,
        seed: u64,
    ) {
        fastrand::seed(seed);
        let all = endpoints(u8::try_from(weights.len()).unwrap());
        for (endpoint, weight) in all.iter().zip(&weights) {
            endpoint.weigh(*weight);
        }
        // Where all weigh the same, load alone decides, as it does without weights.
        prop_assume!(weights.iter().any(|weight| *weight != weights[0]));
        let pool = Pool::new(all, Duration::ZERO);
        let took = vec![Duration::from_millis(5); weights.len()];
        let shares = shares(&pool, &took, busy, Instant::now());
        let sum: u32 = weights.iter().sum();
        for (share, weight) in shares.iter().zip(&weights) {
            let (share, fair) = (*share as f64 / 6000.0, f64::from(*weight) / f64::from(sum));
            prop_assert!((share - fair).abs() < 0.1, "{shares:?} of {weights:?}");
        }
    }
}

#[test]
fn a_heavy_endpoint_that_is_slow_is_passed_over() {
    let all = endpoints(3);
    all[0].weigh(10);
    let pool = Pool::new(all, Duration::ZERO);
    let took = [50, 5, 5].map(Duration::from_millis);
    let shares = shares(&pool, &took, 0, Instant::now());
    assert!(shares[0] < 200, "{shares:?}");
}

#[test]
fn a_new_endpoint_warms_up() {
    let mut all = endpoints(2);
    let address = "10.0.0.9:80".parse().unwrap();
    let new = Endpoint::new(address, None, Default::default());
    all.push(Arc::new(new.new_since(Instant::now())));
    let since = all[2].since.unwrap();
    let pool = Pool::new(all, SECOND * 60);
    let took = [Duration::from_millis(5); 3];
    let part = |seconds: u32| {
        let shares = shares(&pool, &took, 0, since + SECOND * seconds);
        shares[2] as f64 / 6000.0
    };
    // Of three, one tenth, one half, and then as any other.
    let (cold, half) = (part(0), part(30));
    assert!((cold - 0.1 / 2.1).abs() < 0.03, "{cold}");
    assert!((half - 0.5 / 2.5).abs() < 0.05, "{half}");
    assert!(pool.is_even(since + SECOND * 60));
}
