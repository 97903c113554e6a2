use super::*;
use std::sync::atomic::AtomicUsize;

/// Burns a thread's time, as a poll does.
fn burn(time: Duration) {
    let began = Instant::now();
    while began.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// A task that always has more to do, and counts how often it did some.
async fn flood(each: Duration, done: Arc<AtomicUsize>) {
    loop {
        burn(each);
        done.fetch_add(1, Ordering::Relaxed);
        again().await;
    }
}

/// Goes to the end of the run queue. tokio's own yield waits for the kernel's news too.
async fn again() {
    let mut woken = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut woken, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// What this thread has had of its processor.
fn thread_time() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn begin() -> Arc<Fair> {
    let fair = Arc::<Fair>::default();
    tokio::spawn(fair.clone().run());
    fair
}

/// On one thread, so that the clock is the only thing that may disturb.
#[tokio::test]
async fn two_that_always_want_more_get_the_same_whatever_their_tasks() {
    let fair = begin();
    let (many, one) = (fair.share(), fair.share());
    let mut tasks = tokio::task::JoinSet::new();
    let done = Arc::<AtomicUsize>::default();
    for _ in 0..50 {
        tasks.spawn(many.of(flood(Duration::from_micros(20), done.clone())));
    }
    tasks.spawn(one.of(flood(Duration::from_micros(20), done.clone())));
    tokio::time::sleep(Duration::from_millis(400)).await;
    let [many, one] = [many, one].map(|share| share.used().unwrap().as_secs_f64());
    let part = one / (many + one);
    assert!((0.4..0.6).contains(&part), "{part} of {}", many + one);
}

#[tokio::test]
async fn who_weighs_more_gets_more() {
    let fair = begin();
    let (heavy, light) = (fair.share(), fair.share());
    heavy.weigh(3);
    let mut tasks = tokio::task::JoinSet::new();
    for share in [&heavy, &light] {
        for _ in 0..10 {
            tasks.spawn(share.of(flood(Duration::from_micros(20), Arc::default())));
        }
    }
    tokio::time::sleep(Duration::from_millis(400)).await;
    let [heavy, light] = [heavy, light].map(|share| share.used().unwrap().as_secs_f64());
    let part = heavy / (heavy + light);
    assert!((0.65..0.85).contains(&part), "{part}");
}

/// What a flood delays is itself: the other waits for one turn, not for all that is there.
#[tokio::test]
async fn a_workload_within_its_share_waits_for_one_turn_at_most() {
    let fair = begin();
    let (flooding, quiet) = (fair.share(), fair.share());
    let mut tasks = tokio::task::JoinSet::new();
    let done = Arc::<AtomicUsize>::default();
    for _ in 0..200 {
        tasks.spawn(flooding.of(flood(Duration::from_micros(50), done.clone())));
    }
    // Without turns, ten wake-ups would wait for 200 tasks each.
    let mut between = Vec::new();
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let before = done.load(Ordering::Relaxed);
        let asked = quiet.of(async {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        });
        tokio::spawn(asked).await.unwrap();
        between.push(done.load(Ordering::Relaxed) - before);
    }
    between.sort_unstable();
    let most = 11 * usize::try_from(TURN.as_micros() / 50 + 1).unwrap();
    // A guess of what a task costs may be wrong for once.
    assert!(between[95] <= 2 * most, "{between:?}, {most}");
    assert!(quiet.waits() == 0, "it has never used its turn");
}

/// Those put aside come before those that have only just woken up.
#[tokio::test]
async fn within_a_workload_nobody_is_overtaken_for_ever() {
    let fair = begin();
    let (mine, other) = (fair.share(), fair.share());
    let mut tasks = tokio::task::JoinSet::new();
    let counts: Vec<_> = (0..40).map(|_| Arc::<AtomicUsize>::default()).collect();
    for count in &counts {
        tasks.spawn(mine.of(flood(Duration::from_micros(50), count.clone())));
        tasks.spawn(other.of(flood(Duration::from_micros(50), Arc::default())));
    }
    tokio::time::sleep(Duration::from_millis(400)).await;
    let counts: Vec<_> = counts.iter().map(|it| it.load(Ordering::Relaxed)).collect();
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    assert!(*least > 0 && most - least <= most / 2 + 4, "{counts:?}");
}

#[tokio::test]
async fn one_alone_is_not_held_up() {
    let fair = begin();
    let alone = fair.share();
    let done = Arc::<AtomicUsize>::default();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..10 {
        tasks.spawn(alone.of(flood(Duration::from_micros(50), done.clone())));
    }
    let began = thread_time();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let busy = alone.used().unwrap().as_secs_f64() / (thread_time() - began);
    assert!(busy > 0.8, "of the time it was served {busy}");
    assert!(alone.waits() > 0, "it has had several turns");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_task_is_forgotten_on_several_threads() {
    let fair = begin();
    let shares = [fair.share(), fair.share(), fair.share()];
    let mut tasks = tokio::task::JoinSet::new();
    for share in &shares {
        for _ in 0..50 {
            tasks.spawn(share.of(async {
                for _ in 0..200 {
                    burn(Duration::from_micros(2));
                    again().await;
                }
            }));
        }
    }
    // Some are cut while they wait.
    let cut = tokio::spawn(shares[0].of(flood(Duration::from_micros(50), Arc::default())));
    tokio::time::sleep(Duration::from_millis(20)).await;
    cut.abort();
    let all = async { while tasks.join_next().await.is_some() {} };
    let all = tokio::time::timeout(Duration::from_secs(60), all).await;
    assert!(all.is_ok(), "some task waits for ever");
    assert!(shares.iter().all(|share| share.waits() > 0));
}

#[tokio::test]
async fn where_there_is_nobody_to_share_with_nothing_is_kept() {
    let share = Share::default();
    assert_eq!(share.of(async { 7 }).await, 7);
    assert_eq!(share.used(), None);
    assert_eq!(share.waits(), 0);
}
