//! What ends an answer in time whose client has stopped reading it.
//!
//! A body's [`super::Deadline`] is looked at when somebody asks for the next piece. Once the
//! client's window is full nobody does, and the answer would hold its server's stream for as
//! long as the client likes. So whatever carries an answer to its client, a connection of
//! HTTP/1 or a stream of HTTP/2, is run in a [`Carrier`], which drops it when the answer that
//! it carries is overdue. Where there is no deadline that costs four accesses to the thread.
//!
//! Nor may a client of HTTP/2 that reads its connection and grants no window hold an answer for
//! ever: if there is more of one, and it takes no piece of that in an hour, it is dropped too
//! ([`Awaited`]). Envoy does so after five minutes (`stream_flush_timeout`).

use super::Body;
use super::body::Polled;
use super::idle::HEADER_TIMEOUT;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// A client that reads hears of the end by itself, and must have had the time to.
const GRACE: Duration = Duration::from_millis(500);
/// Bytes that are given to HTTP/2 at once: a frame, as most have it.
const PIECE: usize = 16 * 1024;

thread_local! {
    /// Of what is being polled on this thread: when its answer must be over.
    static UNTIL: Cell<Option<Instant>> = const { Cell::new(None) };
    /// When its client must have taken the next piece, if that waits for the client.
    static TAKEN: Cell<Option<Instant>> = const { Cell::new(None) };
}

pin_project! {
    /// Carries one answer after the other.
    pub struct Carrier<F> {
        until: Option<Instant>,
        taken: Option<Instant>,
        sleep: Option<Pin<Box<Sleep>>>,
        #[pin]
        carried: F,
    }
}

/// A body that its client has to ask for, in HTTP/2 by a window.
pub struct Awaited {
    body: Body,
    /// What there is of it, and was not asked for.
    rest: Bytes,
}

/// The answer that is being carried must be over by then; `None`: it is over.
pub fn until(at: Option<Instant>) {
    UNTIL.set(at);
}

// === impl Carrier ===

impl<F> Carrier<F> {
    pub fn new(carried: F) -> Self {
        Self {
            until: None,
            taken: None,
            sleep: None,
            carried,
        }
    }
}

impl<F: Future> Future for Carrier<F> {
    /// `None` if it was dropped.
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        UNTIL.set(*this.until);
        TAKEN.set(*this.taken);
        let polled = this.carried.poll(cx);
        (*this.until, *this.taken) = (UNTIL.take(), TAKEN.take());
        if let Poll::Ready(output) = polled {
            return Poll::Ready(Some(output));
        }
        let overdue = this.until.map(|until| until + GRACE);
        let Some(until) = overdue.into_iter().chain(*this.taken).min() else {
            *this.sleep = None;
            return Poll::Pending;
        };
        let sleep = this
            .sleep
            .get_or_insert_with(|| Box::pin(sleep_until(until)));
        if sleep.deadline() != until {
            sleep.as_mut().reset(until);
        }
        ready!(sleep.as_mut().poll(cx));
        if this.taken.is_some_and(|taken| taken <= until) {
            tracing::debug!("a client takes nothing of its answer");
        }
        Poll::Ready(None)
    }
}

// === impl Awaited ===

impl Awaited {
    pub fn new(body: Body) -> Self {
        TAKEN.set(Some(Instant::now() + HEADER_TIMEOUT));
        let rest = Bytes::new();
        Self { body, rest }
    }

    /// hyper hands over all that it gets once there is a window for one byte of it.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Polled {
        if self.rest.is_empty() {
            let polled = Pin::new(&mut self.body).poll_frame(cx);
            match polled {
                Poll::Ready(Some(Ok(frame)))
                    if frame.data_ref().is_some_and(|it| it.len() > PIECE) =>
                {
                    self.rest = frame.into_data().unwrap_or_default();
                }
                polled => return polled,
            }
        }
        let piece = self.rest.split_to(PIECE.min(self.rest.len()));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl http_body::Body for Awaited {
    type Data = Bytes;
    type Error = <Body as http_body::Body>::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let polled = self.poll_piece(cx);
        let more = matches!(&polled, Poll::Ready(Some(Ok(frame))) if Frame::is_data(frame));
        TAKEN.set(more.then(|| Instant::now() + HEADER_TIMEOUT));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (body, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut all = SizeHint::new();
        all.set_lower(body.lower() + rest);
        if let Some(upper) = body.upper() {
            all.set_upper(upper + rest);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::super::deadline::{Deadline, Timeout};
    use super::super::idle::HEADER_TIMEOUT;
    use super::super::{Body, serve};
    use crate::detect::Protocol;
    use crate::relay::Abort;
    use crate::tenancy::Tenant;
    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::BodyExt;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;
    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::Instant;
    use tokio_util::sync::CancellationToken;

    const LIMIT: Duration = Duration::from_secs(2);

    type Told = Arc<Mutex<Vec<Timeout>>>;

    /// Answers "/long" with a body that has no end and two seconds, "/longer" with one that has
    /// no end, "/silent" with one that does not go on either, all else with a word.
    fn serving<S>(io: S, protocol: Protocol) -> (tokio::task::JoinHandle<()>, Told)
    where
        S: AsyncRead + AsyncWrite + Abort + Unpin + Send + 'static,
    {
        let told = Told::default();
        let tell = told.clone();
        let handle = move |request: Request<_>| {
            let tell = tell.clone();
            let path = request.uri().path().to_owned();
            drop(request);
            async move {
                if !["/long", "/longer", "/silent"].contains(&&*path) {
                    return Response::new(Body::full("short"));
                }
                let (sender, receiver) = tokio::sync::mpsc::channel(1);
                let silent = path == "/silent";
                tokio::spawn(async move {
                    while sender.send(Bytes::from(vec![0; 1024])).await.is_ok() {
                        if silent {
                            sender.closed().await;
                        }
                    }
                });
                if path != "/long" {
                    return Response::new(Body::pieces(receiver));
                }
                let tell = move |which| tell.lock().unwrap().push(which);
                let whole = Some((Instant::now() + LIMIT, Timeout::Request));
                let deadline = Deadline::new(whole, None, false, tell).unwrap();
                Response::new(Body::pieces(receiver).until(deadline))
            }
        };
        let served = tokio::spawn(async move {
            let drain = CancellationToken::new();
            let server = ([10, 0, 0, 1], 80).into();
            let _ = serve(io, protocol, server, &drain, &Tenant::default(), handle).await;
        });
        (served, told)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_of_http1_that_stops_reading_is_cut_in_time() {
        let (mut near, far) = tokio::io::duplex(4096);
        let (served, told) = serving(far, Protocol::Http1);
        let asked = b"GET /long HTTP/1.1\r\nhost: shop\r\n\r\n";
        near.write_all(asked).await.unwrap();
        let began = Instant::now();
        let cut = tokio::time::timeout(LIMIT * 5, served).await;
        cut.expect("it holds the answer still").unwrap();
        assert!(began.elapsed() >= LIMIT, "it was in time");
        assert_eq!(*told.lock().unwrap(), [Timeout::Request]);
    }

    /// Of HTTP/1.0, whose answers may end with the connection, a cut one must not seem whole.
    #[tokio::test]
    async fn a_client_that_stopped_reading_sees_a_reset_when_it_reads_on() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut near, (far, _)) = (near.unwrap(), far.unwrap());
        let (served, told) = serving(far, Protocol::Http1);
        near.write_all(b"GET /long HTTP/1.0\r\n\r\n").await.unwrap();
        served.await.unwrap();
        assert_eq!(*told.lock().unwrap(), [Timeout::Request]);
        let mut read = Vec::new();
        let end = near.read_to_end(&mut read).await;
        assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }

    #[tokio::test(start_paused = true)]
    async fn of_http2_one_stream_is_cut_and_the_others_are_not() {
        let (near, far) = tokio::io::duplex(256 * 1024);
        let (_served, told) = serving(far, Protocol::Http2);
        let (mut client, connection) = h2::client::handshake(near).await.unwrap();
        tokio::spawn(connection);
        let mut ask = |path: &str| {
            let uri = format!("http://shop{path}");
            let request = Request::get(uri).body(()).unwrap();
            client.send_request(request, true).unwrap().0
        };
        let mut long = ask("/long").await.unwrap().into_body();
        tokio::time::sleep(LIMIT * 2).await;
        assert_eq!(*told.lock().unwrap(), [Timeout::Request]);
        let mut ended = Ok(0);
        while let (Ok(_), Some(piece)) = (&ended, long.data().await) {
            ended = piece.map(|piece| piece.len());
        }
        assert!(ended.unwrap_err().is_reset(), "half of it is not all");
        // What it has of the connection's window it gives back.
        drop(long);
        let short = ask("/short").await.unwrap().into_body();
        let short = Body::from(short).collect().await.unwrap().to_bytes();
        assert_eq!(short, "short");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_cut_whose_client_reads_and_grants_no_window() {
        let (near, far) = tokio::io::duplex(256 * 1024);
        let (_served, _) = serving(far, Protocol::Http2);
        let (mut client, connection) = h2::client::Builder::new()
            .initial_connection_window_size(1 << 20)
            .handshake::<_, Bytes>(near)
            .await
            .unwrap();
        tokio::spawn(connection);
        let mut ask = |path: &str| {
            let uri = format!("http://shop{path}");
            let request = Request::get(uri).body(()).unwrap();
            client.send_request(request, true).unwrap().0
        };
        let mut silent = ask("/silent").await.unwrap().into_body();
        silent.data().await.unwrap().unwrap();
        let mut deaf = ask("/longer").await.unwrap().into_body();
        let mut slow = ask("/longer").await.unwrap().into_body();
        let began = Instant::now();
        let taking = async {
            for _ in 0..20 {
                let piece = slow.data().await.unwrap().unwrap();
                slow.flow_control().release_capacity(piece.len()).unwrap();
                tokio::time::sleep(Duration::from_secs(600)).await;
            }
        };
        let waiting = async { while deaf.data().await.is_some_and(|piece| piece.is_ok()) {} };
        tokio::select! {
            () = taking => {}
            () = waiting => {}
        }
        let waited = began.elapsed();
        assert!((HEADER_TIMEOUT..HEADER_TIMEOUT + Duration::from_secs(60)).contains(&waited));
        // The other two may go on.
        slow.data().await.unwrap().unwrap();
        let more = tokio::time::timeout(HEADER_TIMEOUT * 3, silent.data());
        assert!(more.await.is_err(), "it waits for its application");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_hears_of_the_end_and_may_go_on() {
        let (near, far) = tokio::io::duplex(256 * 1024);
        let (served, told) = serving(far, Protocol::Http1);
        let io = hyper_util::rt::TokioIo::new(near);
        let (mut client, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        for _ in 0..2 {
            let request = Request::get("/short").header("host", "shop");
            let request = request.body(Body::empty()).unwrap();
            let answer = client.send_request(request).await.unwrap();
            answer.into_body().collect().await.unwrap();
            tokio::time::sleep(LIMIT * 2).await;
        }
        assert!(!served.is_finished());
        assert!(told.lock().unwrap().is_empty());
    }
}
