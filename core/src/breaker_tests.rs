use super::*;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn accrual() -> Accrual {
    Accrual {
        consecutive: Some(3),
        ..Accrual::default()
    }
}

fn start() -> Instant {
    *EPOCH + SECOND
}

fn out_for(turn: Option<Turn>) -> Duration {
    match turn {
        Some(Turn::OutFor(out_for)) => out_for,
        other => panic!("{other:?}"),
    }
}

/// Fails until it is out; for how long.
fn trip(breaker: &Breaker, now: Instant) -> Duration {
    assert_eq!(breaker.failed(breaker.ticket(), now), None);
    assert_eq!(breaker.failed(breaker.ticket(), now), None);
    out_for(breaker.failed(breaker.ticket(), now))
}

#[test]
fn failures_in_a_row_take_it_out_and_a_success_between_does_not() {
    let breaker = Breaker::new(accrual());
    for _ in 0..10 {
        assert_eq!(breaker.failed(breaker.ticket(), start()), None);
        assert_eq!(breaker.failed(breaker.ticket(), start()), None);
        assert_eq!(breaker.succeeded(breaker.ticket(), start()), None);
    }
    assert_eq!(breaker.state(start()), State::In);
    let out_for = trip(&breaker, start());
    assert!(
        (MIN_BACKOFF..=MIN_BACKOFF.mul_f64(1.0 + JITTER)).contains(&out_for),
        "{out_for:?}"
    );
    assert_eq!(breaker.state(start()), State::Out);
    assert_eq!(breaker.trips(), 1);
}

#[test]
fn one_request_decides_whether_it_comes_back() {
    let breaker = Breaker::new(accrual());
    let mut now = start();
    let mut last = trip(&breaker, now);
    for expected in [2, 4, 8, 16, 32, 60, 60] {
        assert!(breaker.probe(now).is_none(), "before the backoff is over");
        now += last;
        let probe = breaker.probe(now).expect("the backoff is over");
        assert!(breaker.probe(now).is_none(), "one at a time");
        last = out_for(breaker.failed(probe, now));
        let expected = Duration::from_secs(expected);
        assert!(last >= expected && last <= expected.mul_f64(1.0 + JITTER));
    }
    now += last;
    let probe = breaker.probe(now).unwrap();
    assert_eq!(breaker.succeeded(probe, now), Some(Turn::Back));
    assert_eq!(breaker.state(now), State::In);
    let again = trip(&breaker, now);
    assert!(again <= MIN_BACKOFF.mul_f64(1.0 + JITTER), "{again:?}");
}

#[test]
fn a_probation_without_an_end_is_repeated() {
    let breaker = Breaker::new(accrual());
    let now = start() + trip(&breaker, start());
    let lost = breaker.probe(now).unwrap();
    assert!(breaker.probe(now + PROBATION / 2).is_none());
    assert!(breaker.probe(now + PROBATION).is_some());
    // Late is not never.
    assert_eq!(breaker.succeeded(lost, now + PROBATION), Some(Turn::Back));
}

#[test]
fn what_was_begun_before_says_nothing() {
    let breaker = Breaker::new(accrual());
    let (early, late) = (breaker.ticket(), breaker.ticket());
    trip(&breaker, start());
    assert_eq!(breaker.succeeded(early, start()), None);
    assert_eq!(breaker.failed(late, start()), None);
    assert_eq!(breaker.state(start()), State::Out);
}

#[test]
fn with_no_better_endpoint_a_success_brings_it_back_and_failures_change_nothing() {
    let breaker = Breaker::new(accrual());
    trip(&breaker, start());
    for _ in 0..10 {
        assert_eq!(breaker.failed(breaker.ticket(), start()), None);
    }
    assert_eq!(
        breaker.succeeded(breaker.ticket(), start()),
        Some(Turn::Back)
    );
}

#[test]
fn the_success_rate_notices_what_never_fails_twice() {
    let rate = Accrual {
        success_rate: Some(0.6),
        ..accrual()
    };
    let breaker = Breaker::new(rate);
    let now = start();
    let mut answers = 0;
    loop {
        answers += 2;
        assert_eq!(breaker.succeeded(breaker.ticket(), now), None);
        if breaker.failed(breaker.ticket(), now).is_some() {
            break;
        }
        assert!(answers < 1000);
    }
    assert_eq!(answers, MIN_REQUESTS);
    // Failures that are long ago are forgotten.
    let breaker = Breaker::new(rate);
    for _ in 0..9 {
        assert_eq!(breaker.succeeded(breaker.ticket(), now), None);
        assert_eq!(breaker.failed(breaker.ticket(), now), None);
    }
    let later = now + WINDOW * 2;
    for _ in 0..30 {
        assert_eq!(breaker.succeeded(breaker.ticket(), later), None);
    }
    assert_eq!(breaker.failed(breaker.ticket(), later), None);
}

#[test]
fn rules_that_change_are_followed_from_then_on() {
    let breaker = Breaker::new(accrual());
    trip(&breaker, start());
    breaker.configure(Accrual {
        consecutive: None,
        ..accrual()
    });
    assert_eq!(breaker.state(start()), State::In);
    for _ in 0..100 {
        assert_eq!(breaker.failed(breaker.ticket(), start()), None);
    }
    breaker.configure(Accrual {
        consecutive: Some(1),
        ..accrual()
    });
    assert!(breaker.failed(breaker.ticket(), start()).is_some());
}

proptest! {
    /// Whatever happens, in whatever order: it is out exactly after a turn said so, the
    /// backoff stays within its bounds, and one success brings it back.
    #[test]
    fn it_is_never_lost(steps in prop::collection::vec((0..4u8, 0..5000u64), 1..200)) {
        let breaker = Breaker::new(accrual());
        let mut now = start();
        let mut out = false;
        let mut old = breaker.ticket();
        for (step, pause) in steps {
            now += Duration::from_millis(pause);
            let ticket = breaker.probe(now).unwrap_or_else(|| breaker.ticket());
            let turn = match step {
                0 => breaker.succeeded(ticket, now),
                1 | 2 => breaker.failed(ticket, now),
                _ => breaker.failed(std::mem::replace(&mut old, ticket), now),
            };
            match turn {
                Some(Turn::Back) => out = false,
                Some(Turn::OutFor(time)) => {
                    out = true;
                    prop_assert!(time >= MIN_BACKOFF && time <= MAX_BACKOFF.mul_f64(1.0 + JITTER));
                }
                None => {}
            }
            prop_assert_eq!(breaker.is_in(), !out);
        }
        breaker.succeeded(breaker.ticket(), now);
        prop_assert!(breaker.is_in());
    }
}
