//! Waiting for what is rare beside what is frequent.
//!
//! A connection's task is woken for each request, and waits for its workload's end besides, for
//! a drain, for an hour without a word. To ask one of those again takes the lock of a list
//! that all connections stand in, so they are asked again when it is they who woke the
//! task, and not whenever it is woken.

use futures_util::task::AtomicWaker;
use pin_project_lite::pin_project;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::task::{Context, Poll, Wake, Waker, ready};
use tokio::task::coop::{Unconstrained, unconstrained};

pin_project! {
    /// A future that is polled only after it was woken.
    pub struct Rarely<F> {
        bell: Arc<Bell>,
        // What is frequent may have used up the task's budget, and this must not wait for that.
        #[pin]
        rare: Unconstrained<F>,
    }
}

pin_project! {
    /// Work that may be ended.
    pub struct Until<E, F> {
        #[pin]
        end: Rarely<E>,
        #[pin]
        work: F,
    }
}

struct Bell {
    rung: AtomicBool,
    task: AtomicWaker,
}

pub fn rarely<F>(rare: F) -> Rarely<F> {
    Rarely {
        bell: Arc::new(Bell {
            rung: AtomicBool::new(true),
            task: AtomicWaker::new(),
        }),
        rare: unconstrained(rare),
    }
}

/// Works until the end, which is rare; `None`: it came first.
pub fn until<E, F>(end: E, work: F) -> Until<E, F> {
    Until {
        end: rarely(end),
        work,
    }
}

// === impl Rarely ===

impl<F: Future> Future for Rarely<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        // Before it is looked: whoever rings after that wakes this task.
        this.bell.task.register(cx.waker());
        if !(this.bell.rung.load(Acquire) && this.bell.rung.swap(false, AcqRel)) {
            return Poll::Pending;
        }
        let waker = Waker::from(this.bell.clone());
        this.rare.poll(&mut Context::from_waker(&waker))
    }
}

// === impl Until ===

impl<E, F> Future for Until<E, F>
where
    E: Future<Output = ()>,
    F: Future,
{
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if this.end.poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(ready!(this.work.poll(cx))))
    }
}

// === impl Bell ===

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Release);
        self.task.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::pin::pin;
    use tokio::sync::oneshot;
    use tokio_util::sync::CancellationToken;

    #[tokio::test]
    async fn it_is_asked_once_until_it_is_woken() {
        let (tell, mut told) = oneshot::channel();
        let asked = Cell::new(0);
        let mut rare = pin!(rarely(poll_fn(|cx| {
            asked.set(asked.get() + 1);
            Pin::new(&mut told).poll(cx)
        })));
        for _ in 0..3 {
            let polled = poll_fn(|cx| Poll::Ready(rare.as_mut().poll(cx))).await;
            assert!(polled.is_pending());
        }
        assert_eq!(asked.get(), 1);
        tell.send("now").unwrap();
        assert_eq!(rare.await, Ok("now"));
        assert_eq!(asked.get(), 2);
    }

    #[tokio::test]
    async fn it_wakes_the_task_that_waits_now() {
        let (tell, told) = oneshot::channel();
        let mut rare = Box::pin(rarely(told));
        let polled = poll_fn(|cx| Poll::Ready(rare.as_mut().poll(cx))).await;
        assert!(polled.is_pending());
        let waits = tokio::spawn(rare);
        tokio::task::yield_now().await;
        tell.send("to another").unwrap();
        assert_eq!(waits.await.unwrap(), Ok("to another"));
    }

    #[tokio::test]
    async fn it_needs_nothing_of_the_tasks_budget() {
        let (tell, mut told) = tokio::sync::watch::channel(0);
        let mut rare = pin!(rarely(told.changed()));
        poll_fn(|cx| {
            assert!(rare.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        tell.send(1).unwrap();
        poll_fn(|cx| {
            // As a connection does whose peer sends without end.
            while tokio::task::coop::has_budget_remaining() {
                let mut spent = pin!(tokio::task::coop::consume_budget());
                let _ = spent.as_mut().poll(cx);
            }
            assert!(rare.as_mut().poll(cx).is_ready());
            Poll::Ready(())
        })
        .await;
    }

    #[tokio::test]
    async fn work_ends_with_its_end() {
        let end = CancellationToken::new();
        assert_eq!(until(end.cancelled(), async { 1 }).await, Some(1));
        let works = tokio::spawn(until(
            end.clone().cancelled_owned(),
            std::future::pending::<()>(),
        ));
        tokio::task::yield_now().await;
        end.cancel();
        assert_eq!(works.await.unwrap(), None);
        assert_eq!(until(end.cancelled(), async { 1 }).await, None);
    }

    /// Bells that are rung by other threads while they are looked at.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn none_is_missed() {
        for _ in 0..20_000 {
            let (tell, told) = oneshot::channel();
            let waits = tokio::spawn(rarely(told));
            tokio::spawn(async move { tell.send(()).unwrap() });
            waits.await.unwrap().unwrap();
        }
    }
}
