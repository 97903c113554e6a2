//! Connections of HTTP/1 that nobody uses at the moment.
//!
//! hyper holds 16 KiB of buffers for as long as it has a connection. So one that has been
//! idle for a while is taken from it ([`Pulse::stops`]), waits with its socket alone
//! ([`Watched::wakes`]), and is given back with the first byte that comes.

use super::Body;
use super::heads::Heads;
use super::spelling::Case;
use crate::detect::Replay;
use crate::heap::Dormant;
use crate::io::writes_through;
use crate::relay::Abort;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, sleep};

/// A client must have sent its next head by then, or have taken a byte of its answer. Clients
/// that keep their connections longer than the proxy would send requests into some that are
/// being closed: Envoy allows 1 h too.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// How often it is looked whether a connection is idle, which it is if nothing has happened
/// since the last time.
const LOOKS: Duration = Duration::from_secs(5);

/// What a client still sends behind its last answer is thrown away for so long.
const LEAVING: Duration = Duration::from_secs(5);

/// What goes on on a connection, for all who have to do with it.
#[derive(Default)]
pub struct Pulse {
    /// Requests whose body or answer has not gone by.
    under_way: AtomicUsize,
    /// Since the last look.
    begun: AtomicBool,
    /// Bytes have, in either direction, since the last look.
    moved: AtomicBool,
    /// hyper has something that the client does not take.
    stuck: AtomicBool,
    /// What hyper writes is in lower case.
    lower: AtomicBool,
    pub heads: Heads,
}

/// Why a connection stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It may go on later.
    Idle,
    /// The next head took too long.
    Overdue,
    /// The client takes nothing of what it was answered.
    Stuck,
}

/// A request is under way for as long as this lives.
pub struct UnderWay(Arc<Pulse>);

/// An answer's body, with which its request is over.
pub struct Answering {
    body: Body,
    _under_way: UnderWay,
}

/// A connection's stream, and what of it was read ahead.
pub struct Watched<S> {
    io: Replay<S>,
    pulse: Arc<Pulse>,
}

// === impl Pulse ===

impl Pulse {
    pub fn writes(&self, case: Case) {
        self.lower.store(case == Case::Lower, Relaxed);
    }

    pub fn case(&self) -> Case {
        match self.lower.load(Relaxed) {
            true => Case::Lower,
            false => Case::Title,
        }
    }

    pub fn begin(self: &Arc<Self>) -> UnderWay {
        self.begun.store(true, Relaxed);
        self.under_way.fetch_add(1, Relaxed);
        UnderWay(self.clone())
    }

    /// Until there is nothing to be done, and nothing in hyper that would be lost without it.
    /// `deadline` is the next head's.
    pub async fn stops(&self, deadline: &mut Instant) -> Stop {
        loop {
            sleep(LOOKS).await;
            // First: one whose body another thread lets go of in this moment has moved.
            let under_way = self.under_way.load(Acquire) > 0;
            let moved = self.moved.swap(false, Relaxed);
            let stuck = self.stuck.load(Relaxed);
            let waits = stuck && !moved;
            if (self.begun.swap(false, Relaxed) || under_way || stuck) && !waits {
                *deadline = Instant::now() + HEADER_TIMEOUT;
            } else if *deadline <= Instant::now() {
                return if waits { Stop::Stuck } else { Stop::Overdue };
            } else if !moved && !stuck {
                return Stop::Idle;
            }
        }
    }
}

// === impl UnderWay ===

impl UnderWay {
    pub fn receiving(&self, body: Incoming) -> Body {
        if body.is_end_stream() {
            return body.into();
        }
        let under_way = self.0.begin();
        Body::from(body).until_end(under_way)
    }

    pub fn answering(self, body: Body) -> Answering {
        Answering {
            body,
            _under_way: self,
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        // hyper, who has still to look what is left of a body, is given the time to.
        self.0.moved.store(true, Relaxed);
        if self.0.under_way.fetch_sub(1, Release) == 1 {
            self.0.heads.expect();
        }
    }
}

// === impl Answering ===

impl http_body::Body for Answering {
    type Data = Bytes;
    type Error = <Body as http_body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === impl Watched ===

impl<S> Watched<S> {
    pub fn new(io: S, pulse: Arc<Pulse>) -> Self {
        Self {
            io: io.into(),
            pulse,
        }
    }

    /// What hyper has read and not used.
    pub fn unread(&mut self, bytes: Bytes) {
        self.pulse.heads.again();
        self.io.unread(bytes);
    }
}

impl<S: AsyncRead + Unpin> Watched<S> {
    /// Until there is something to be read. False: nothing comes any more.
    pub async fn wakes(&mut self, deadline: Instant) -> bool {
        let _dormant = Dormant::new();
        let more = poll_fn(|cx| self.io.poll_more(cx));
        matches!(tokio::time::timeout_at(deadline, more).await, Ok(Ok(true)))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Watched<S> {
    /// Says that nothing comes any more, and waits until the client says so too. What is unread when
    /// a socket is closed resets its connection, and a client that is sending still would lose its last
    /// answer by that (RFC 9112, 9.6).
    pub async fn leaves(mut self) {
        if self.io.shutdown().await.is_ok() {
            let rest = poll_fn(|cx| self.io.poll_discard(cx));
            let _ = tokio::time::timeout(LEAVING, rest).await;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { io, pulse } = &mut *self;
        ready!(pulse.heads.poll_read(io, cx, buf))?;
        pulse.moved.store(true, Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S> Watched<S> {
    fn wrote<T>(&self, polled: Poll<T>) -> Poll<T> {
        self.pulse.stuck.store(polled.is_pending(), Relaxed);
        if polled.is_ready() {
            self.pulse.moved.store(true, Relaxed);
        }
        polled
    }
}

writes_through!(Watched, Self::wrote);

impl<S: Abort> Abort for Watched<S> {
    fn abort(&mut self) {
        self.io.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::Protocol;
    use crate::http::serve;
    use crate::tenancy::Tenant;
    use http::{Request, Response};
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio_util::sync::CancellationToken;

    const LONG: Duration = Duration::from_secs(60);
    const REQUEST: &[u8] = b"GET /word HTTP/1.1\r\nhost: shop\r\n\r\n";

    /// A client's end of a connection that is served: "/word" with a word at once, "/late"
    /// when a minute has passed, "/large" with more than fits, "/echo" with what came.
    fn serving(drain: &CancellationToken) -> (DuplexStream, tokio::task::JoinHandle<()>) {
        serving_by(Protocol::Http1, drain)
    }

    fn serving_by(
        protocol: Protocol,
        drain: &CancellationToken,
    ) -> (DuplexStream, tokio::task::JoinHandle<()>) {
        let handle = async |request: Request<Body>| match request.uri().path() {
            "/late" => {
                sleep(LONG).await;
                Body::full("late")
            }
            "/large" => Body::full(vec![b'x'; 100_000]),
            "/echo" => {
                let body = request.into_body().collect().await.unwrap();
                Body::full(body.to_bytes())
            }
            _ => Body::full("word"),
        };
        let handle = move |request| async move { Response::new(handle(request).await) };
        let (near, far) = tokio::io::duplex(4096);
        let drain = drain.clone();
        let served = tokio::spawn(async move {
            let server = ([10, 0, 0, 1], 80).into();
            let _ = serve(far, protocol, server, &drain, &Tenant::default(), handle).await;
        });
        (near, served)
    }

    /// Reads until `end` has come, and returns how many bytes that were.
    async fn read_until(near: &mut DuplexStream, end: &[u8]) -> usize {
        let mut read = Vec::new();
        while !read.ends_with(end) {
            let count = near.read_buf(&mut read).await.unwrap();
            assert!(count > 0, "{}", String::from_utf8_lossy(&read));
        }
        read.len()
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_was_idle_goes_on() {
        let (mut near, _served) = serving(&CancellationToken::new());
        for _ in 0..3 {
            near.write_all(REQUEST).await.unwrap();
            read_until(&mut near, b"word").await;
            sleep(LONG).await;
        }
        // Two heads at once, the second in three pieces.
        let (first, last) = REQUEST.split_at(9);
        near.write_all(&[REQUEST, first].concat()).await.unwrap();
        read_until(&mut near, b"word").await;
        sleep(LONG).await;
        let (middle, last) = last.split_at(7);
        near.write_all(middle).await.unwrap();
        sleep(LONG).await;
        near.write_all(last).await.unwrap();
        read_until(&mut near, b"word").await;
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_is_not_idle() {
        let (mut near, _served) = serving(&CancellationToken::new());
        near.write_all(b"GET /late HTTP/1.1\r\nhost: shop\r\n\r\n")
            .await
            .unwrap();
        read_until(&mut near, b"late").await;
        // For its client, who takes a minute to read on.
        near.write_all(b"GET /large HTTP/1.1\r\nhost: shop\r\n\r\n")
            .await
            .unwrap();
        near.read_exact(&mut [0; 1000]).await.unwrap();
        sleep(LONG).await;
        let mut rest = vec![0; 99_000];
        near.read_exact(&mut rest).await.unwrap();
        sleep(LONG).await;
        let more = near.read_buf(&mut rest).await.unwrap();
        assert!(more < 200 && rest.ends_with(b"xxxx"), "all of it");
        // And for the rest of what it is told.
        let head = b"POST /echo HTTP/1.1\r\nhost: shop\r\ncontent-length: 10\r\n\r\n01234";
        near.write_all(head).await.unwrap();
        sleep(LONG).await;
        near.write_all(b"56789").await.unwrap();
        read_until(&mut near, b"0123456789").await;
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_waited_for_longer_than_for_a_head() {
        let (mut near, served) = serving(&CancellationToken::new());
        near.write_all(REQUEST).await.unwrap();
        read_until(&mut near, b"word").await;
        sleep(HEADER_TIMEOUT - LONG).await;
        assert!(!served.is_finished());
        served.await.unwrap();
        // Nor who says one letter of it a second.
        let (mut near, served) = serving(&CancellationToken::new());
        let began = Instant::now();
        while !served.is_finished() {
            let _ = near.write_all(b"A").await;
            sleep(Duration::from_secs(1)).await;
        }
        assert!(began.elapsed() < HEADER_TIMEOUT + LONG);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_takes_nothing_of_an_answer_is_cut_and_whoever_takes_a_little_is_not() {
        let http1 = b"GET /large HTTP/1.1\r\nhost: shop\r\n\r\n";
        // The preface, settings, and the same in a frame.
        let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\
            \0\0\x10\x01\x05\0\0\0\x01\x82\x86\x44\x06/large\x41\x04shop";
        for (protocol, asked) in [(Protocol::Http1, &http1[..]), (Protocol::Http2, http2)] {
            let drain = CancellationToken::new();
            let [(mut deaf, cut), (mut slow, served)] =
                [(); 2].map(|()| serving_by(protocol, &drain));
            deaf.write_all(asked).await.unwrap();
            slow.write_all(asked).await.unwrap();
            let began = Instant::now();
            while !cut.is_finished() {
                assert!(
                    began.elapsed() < HEADER_TIMEOUT + 2 * LONG,
                    "it is still held"
                );
                slow.read_exact(&mut [0]).await.unwrap();
                sleep(LONG).await;
            }
            assert!(began.elapsed() >= HEADER_TIMEOUT, "{protocol:?}");
            assert!(!served.is_finished());
            read_until(&mut slow, b"xxxx").await;
        }
    }

    /// A head that has begun may be finished, and is not waited for.
    #[tokio::test(start_paused = true)]
    async fn half_a_head_does_not_hold_up_a_drain() {
        for wait in [Duration::ZERO, LONG] {
            let drain = CancellationToken::new();
            let (mut near, served) = serving(&drain);
            near.write_all(REQUEST).await.unwrap();
            read_until(&mut near, b"word").await;
            sleep(wait).await;
            near.write_all(&REQUEST[..9]).await.unwrap();
            sleep(Duration::from_secs(1)).await;
            drain.cancel();
            let ended = tokio::time::timeout(LONG / 2, served).await;
            ended.expect("it does not wait for the rest").unwrap();
            assert_eq!(near.read(&mut [0; 10]).await.unwrap(), 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_idle_does_not_hold_up_a_drain() {
        let drain = CancellationToken::new();
        let (mut near, served) = serving(&drain);
        let (_idle, other) = serving(&drain);
        near.write_all(REQUEST).await.unwrap();
        read_until(&mut near, b"word").await;
        sleep(LONG).await;
        drain.cancel();
        near.write_all(REQUEST).await.unwrap();
        let mut last = String::new();
        near.read_to_string(&mut last).await.unwrap();
        assert!(last.contains("Connection: close"), "{last}");
        let began = Instant::now();
        served.await.unwrap();
        other.await.unwrap();
        assert!(began.elapsed() < LONG);
    }
}
