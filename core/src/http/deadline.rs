//! When a body must have gone by.

use super::body::Polled;
use super::classify::GRPC_DEADLINE_EXCEEDED;
use super::stall;
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// Which time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout {
    /// The whole request's.
    Request,
    /// The client's own: it says how long it waits.
    Client,
    /// One try's.
    Try,
    /// That until the head of an answer.
    Head,
    /// That between two pieces of an answer.
    Idle,
}

/// The end of a body's time, and what is done then.
pub struct Deadline {
    whole: Option<(Pin<Box<Sleep>>, Timeout)>,
    idle: Option<(Pin<Box<Sleep>>, Duration)>,
    /// Whether a client in gRPC waits for trailers.
    grpc: bool,
    over: bool,
    tell: Option<Box<dyn FnOnce(Timeout) + Send>>,
}

// === impl Timeout ===

impl Timeout {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Client => "client",
            Self::Try => "try",
            Self::Head => "response_head",
            Self::Idle => "idle",
        }
    }
}

impl std::fmt::Display for Timeout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Request => "the request took longer than it may",
            Self::Client => "the client waits no longer",
            Self::Try => "the server took longer than a try may",
            Self::Head => "the server did not begin to answer in time",
            Self::Idle => "the server said nothing for too long",
        })
    }
}

impl Error for Timeout {}

// === impl Deadline ===

impl Deadline {
    /// `None` if there is none.
    pub fn new(
        whole: Option<(Instant, Timeout)>,
        idle: Option<Duration>,
        grpc: bool,
        tell: impl FnOnce(Timeout) + Send + 'static,
    ) -> Option<Self> {
        stall::until(whole.map(|(at, _)| at));
        (whole.is_some() || idle.is_some()).then(|| Self {
            whole: whole.map(|(at, which)| (Box::pin(sleep_until(at)), which)),
            idle: idle.map(|idle| (Box::pin(sleep_until(Instant::now() + idle)), idle)),
            grpc,
            over: false,
            tell: Some(Box::new(tell)),
        })
    }

    /// A piece has gone by.
    pub fn moved(&mut self) {
        if let Some((sleep, idle)) = &mut self.idle {
            sleep.as_mut().reset(Instant::now() + *idle);
        }
    }

    /// What the body ends with instead, once all of it is too late.
    pub fn poll_whole(&mut self, cx: &mut Context<'_>) -> Polled {
        match &mut self.whole {
            Some((sleep, which)) => {
                let which = *which;
                ready!(sleep.as_mut().poll(cx));
                self.end(which)
            }
            None => Poll::Pending,
        }
    }

    /// What it ends with instead, once the next piece is too late.
    pub fn poll_idle(&mut self, cx: &mut Context<'_>) -> Polled {
        match &mut self.idle {
            Some((sleep, _)) => {
                ready!(sleep.as_mut().poll(cx));
                self.end(Timeout::Idle)
            }
            None => Poll::Pending,
        }
    }

    fn end(&mut self, which: Timeout) -> Polled {
        self.over = true;
        if let Some(tell) = self.tell.take() {
            tell(which);
        }
        Poll::Ready(Some(if self.grpc {
            Ok(Frame::trailers(deadline_exceeded(which)))
        } else {
            Err(which.into())
        }))
    }

    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Whether it is the client's own patience that may end first.
    pub fn is_clients(&self) -> bool {
        matches!(self.whole, Some((_, Timeout::Client)))
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        stall::until(None);
        // Nobody asked for the next piece until it was too late.
        if let Some((sleep, which)) = &self.whole
            && sleep.deadline() <= Instant::now()
            && let Some(tell) = self.tell.take()
        {
            tell(*which);
        }
    }
}

/// What a client in gRPC says of its patience, as "100m" for milliseconds.
pub fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let said = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = said.split_at_checked(said.len().checked_sub(1)?)?;
    // At most eight digits, by the specification.
    let number: u64 = (digits.len() <= 8).then(|| digits.parse().ok())??;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

fn deadline_exceeded(which: Timeout) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    let code = HeaderValue::from(u16::from(GRPC_DEADLINE_EXCEEDED));
    trailers.insert("grpc-status", code);
    if let Ok(why) = HeaderValue::try_from(which.to_string()) {
        trailers.insert("grpc-message", why);
    }
    trailers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Body;
    use bytes::Bytes;
    use http_body_util::BodyExt;
    use std::sync::{Arc, Mutex};

    const SECOND: Duration = Duration::from_secs(1);

    /// A body of pieces that come one every two seconds, and what was told of it.
    fn slow(
        pieces: u8,
        whole: Option<Duration>,
        idle: Option<Duration>,
        grpc: bool,
    ) -> (Body, Arc<Mutex<Option<Timeout>>>) {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            for piece in 0..pieces {
                tokio::time::sleep(SECOND * 2).await;
                let _ = sender.send(Bytes::from(vec![piece])).await;
            }
        });
        let told = Arc::<Mutex<Option<Timeout>>>::default();
        let tell = {
            let told = told.clone();
            move |which| *told.lock().unwrap() = Some(which)
        };
        let whole = whole.map(|time| (Instant::now() + time, Timeout::Request));
        let deadline = Deadline::new(whole, idle, grpc, tell).expect("there is one");
        (Body::pieces(receiver).until(deadline), told)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_comes_in_time_is_whole() {
        let (body, told) = slow(5, Some(SECOND * 11), Some(SECOND * 3), false);
        let body = body.collect().await.unwrap().to_bytes();
        assert_eq!(&*body, [0, 1, 2, 3, 4]);
        assert_eq!(*told.lock().unwrap(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_the_beginning_is_told_of_it_and_not_of_the_end() {
        let told = Arc::<Mutex<Vec<bool>>>::default();
        for (pieces, begun) in [(3, true), (0, false)] {
            let tell = {
                let told = told.clone();
                move |end: crate::http::End<'_>| {
                    let begun = matches!(end, crate::http::End::Begun);
                    told.lock().unwrap().push(begun);
                }
            };
            let (body, _) = slow(pieces, Some(SECOND * 60), None, true);
            body.on_begin(tell).collect().await.unwrap();
            assert_eq!(std::mem::take(&mut *told.lock().unwrap()), [begun]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn which_status_a_body_in_grpc_ended_with_is_told_once() {
        let told = Arc::<Mutex<Vec<Option<u8>>>>::default();
        let tell = || {
            let told = told.clone();
            move |status| told.lock().unwrap().push(status)
        };
        // It is cut in time, and says so.
        let (body, _) = slow(5, Some(SECOND * 5), None, true);
        let body = body.on_status(tell());
        body.on_end(|_| {}).collect().await.unwrap();
        // Its client goes away.
        let (body, _) = slow(5, None, Some(SECOND * 60), true);
        drop(body.on_status(tell()));
        assert_eq!(*told.lock().unwrap(), [Some(4), None]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_is_cut() {
        for (whole, idle, which) in [
            (Some(SECOND * 5), None, Timeout::Request),
            (None, Some(SECOND), Timeout::Idle),
        ] {
            let (body, told) = slow(5, whole, idle, false);
            assert!(body.collect().await.is_err(), "half a body is none");
            assert_eq!(*told.lock().unwrap(), Some(which));
        }
        let (body, _) = slow(5, Some(SECOND * 5), None, true);
        let body = body.collect().await.expect("gRPC has a word for it");
        assert_eq!(body.trailers().unwrap()["grpc-status"], "4");
    }

    #[test]
    fn a_client_in_grpc_says_how_patient_it_is() {
        let said = |text: &'static str| {
            let pair = ("grpc-timeout".parse().unwrap(), text.parse().unwrap());
            grpc_timeout(&HeaderMap::from_iter([pair]))
        };
        assert_eq!(said("100m"), Some(Duration::from_millis(100)));
        assert_eq!(said("2S"), Some(SECOND * 2));
        assert_eq!(said("1H"), Some(SECOND * 3600));
        for wrong in ["", "S", "123456789S", "1s", "-1S", "1.5S"] {
            assert_eq!(said(wrong), None, "{wrong:?}");
        }
    }
}
