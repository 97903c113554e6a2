//! What ends an answer in time whose client has stopped reading it.
//!
//! A body's [`super::Deadline`] is looked at when somebody asks for the next piece. Once the
//! client's window is full nobody does, and the answer would hold its server's stream for as
//! long as the client likes. So whatever carries an answer to its client, a connection of
//! HTTP/1 or a stream of HTTP/2, is run in a [`Carrier`], which drops it when the answer that
//! it carries is overdue. Where there is no deadline that costs two accesses to the thread.

use pin_project_lite::pin_project;
use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// A client that reads hears of the end by itself, and must have had the time to.
const GRACE: Duration = Duration::from_millis(500);

thread_local! {
    /// Of what is being polled on this thread: when its answer must be over.
    static UNTIL: Cell<Option<Instant>> = const { Cell::new(None) };
}

pin_project! {
    /// Carries one answer after the other.
    pub struct Carrier<F> {
        until: Option<Instant>,
        sleep: Option<Pin<Box<Sleep>>>,
        #[pin]
        carried: F,
    }
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
        let polled = this.carried.poll(cx);
        *this.until = UNTIL.take();
        if let Poll::Ready(output) = polled {
            return Poll::Ready(Some(output));
        }
        let Some(until) = *this.until else {
            *this.sleep = None;
            return Poll::Pending;
        };
        let until = until + GRACE;
        let sleep = this
            .sleep
            .get_or_insert_with(|| Box::pin(sleep_until(until)));
        if sleep.deadline() != until {
            sleep.as_mut().reset(until);
        }
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(None)
    }
}

#[cfg(test)]
mod tests {
    use super::super::deadline::{Deadline, Timeout};
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

    /// Answers "/long" with a body that has no end and two seconds, all else with a word.
    fn serving<S>(io: S, protocol: Protocol) -> (tokio::task::JoinHandle<()>, Told)
    where
        S: AsyncRead + AsyncWrite + Abort + Unpin + Send + 'static,
    {
        let told = Told::default();
        let tell = told.clone();
        let handle = move |request: Request<_>| {
            let tell = tell.clone();
            let long = request.uri().path() == "/long";
            drop(request);
            async move {
                if !long {
                    return Response::new(Body::full("short"));
                }
                let (sender, receiver) = tokio::sync::mpsc::channel(1);
                tokio::spawn(async move {
                    while sender.send(Bytes::from(vec![0; 1024])).await.is_ok() {}
                });
                let tell = move |which| tell.lock().unwrap().push(which);
                let whole = Some((Instant::now() + LIMIT, Timeout::Request));
                let deadline = Deadline::new(whole, None, false, tell).unwrap();
                Response::new(Body::pieces(receiver).until(deadline))
            }
        };
        let served = tokio::spawn(async move {
            let drain = CancellationToken::new();
            let _ = serve(io, protocol, &drain, &Tenant::default(), handle).await;
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
