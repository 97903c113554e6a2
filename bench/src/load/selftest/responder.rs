//! A responder that does what it was told, and writes down when it did.
//!
//! It answers each request a fixed time after reading it, except that it stops now and then: what it reads in
//! such a stall is held until the stall ends. It waits on the kernel's high-resolution timer, because an
//! ordinary sleep is only good to a millisecond.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::super::clock::{Alarm, Waiting, now_ns};
use super::super::target::{GRPC_PREFIX, Protocol};
use super::{Waited, waited};

/// What the responder does to a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Behaviour {
    /// From reading a request to answering it.
    pub delay_ns: u64,
    pub stalls: Option<Stalls>,
}

/// Stops at a fixed rhythm.
#[derive(Clone, Copy, Debug)]
pub struct Stalls {
    /// CLOCK_MONOTONIC of the first one's beginning.
    pub first_ns: u64,
    /// From one's beginning to the next one's.
    pub every_ns: u64,
    pub length_ns: u64,
}

impl Behaviour {
    /// When a request that is read at `read_ns` is to be answered.
    pub fn answer_at(&self, read_ns: u64) -> u64 {
        let held_until = self
            .stalls
            .and_then(|stalls| {
                let since = read_ns.checked_sub(stalls.first_ns)? % stalls.every_ns;
                (since < stalls.length_ns).then(|| read_ns - since + stalls.length_ns)
            })
            .unwrap_or(read_ns);
        held_until + self.delay_ns
    }
}

/// One request, as the responder saw it; CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug)]
pub struct Handled {
    pub read_ns: u64,
    /// When the answer was handed on to be written.
    pub answered_ns: u64,
}

/// A responder in a thread of its own; it ends when this is dropped.
pub struct Responder {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    /// Dropped to end the thread.
    _life: oneshot::Sender<()>,
}

struct Shared {
    behaviour: Behaviour,
    handled: Mutex<Vec<Handled>>,
    waited: Mutex<Waited>,
}

impl Responder {
    pub fn start(protocol: Protocol, behaviour: Behaviour) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (life, ended) = oneshot::channel();
        let shared = Arc::new(Shared {
            behaviour,
            handled: Mutex::default(),
            waited: Mutex::default(),
        });
        let of_thread = shared.clone();
        std::thread::Builder::new()
            .name("responder".to_owned())
            .spawn(move || run(listener, protocol, &of_thread, ended))?;
        Ok(Self {
            address,
            shared,
            _life: life,
        })
    }

    /// Everything answered so far, in the order in which it was read.
    pub fn handled(&self) -> Vec<Handled> {
        let mut handled = lock(&self.shared.handled).clone();
        handled.sort_by_key(|one| one.read_ns);
        handled
    }

    /// For how long its thread had been ready without a processor when it last answered.
    pub fn waited(&self) -> Waited {
        *lock(&self.shared.waited)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(
    listener: std::net::TcpListener,
    protocol: Protocol,
    shared: &Arc<Shared>,
    ended: oneshot::Receiver<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(16)
        .build();
    // Without a runtime nobody answers, and the self-test says so.
    let Ok(runtime) = runtime else { return };
    runtime.block_on(async {
        let Ok(listener) = TcpListener::from_std(listener) else {
            return;
        };
        tokio::select! {
            () = accept(&listener, protocol, shared) => {}
            _ = ended => {}
        }
    });
}

async fn accept(listener: &TcpListener, protocol: Protocol, shared: &Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let shared = shared.clone();
        tokio::spawn(async move {
            // The generator counts what becomes of a connection.
            let _ = match protocol {
                Protocol::Tcp => frames(stream, &shared).await,
                Protocol::Http1 | Protocol::Http2 => http(stream, &shared, plain).await,
                Protocol::Grpc => http(stream, &shared, grpc).await,
            };
        });
    }
}

async fn frames(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    /// As the generator sends them where no size is asked for.
    const FRAME: usize = 64;
    let mut frame = [0; FRAME];
    loop {
        stream.read_exact(&mut frame).await?;
        shared.handle().await?;
        stream.write_all(&frame).await?;
    }
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

async fn http(
    stream: TcpStream,
    shared: &Arc<Shared>,
    answer: fn() -> Response<Body>,
) -> io::Result<()> {
    let service = service_fn(move |_: Request<Incoming>| {
        let shared = shared.clone();
        async move {
            let _ = shared.handle().await;
            Ok::<_, Infallible>(answer())
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(MAX_STREAMS);
    builder
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(io::Error::other)
}

fn plain() -> Response<Body> {
    Response::new(Full::new(Bytes::from_static(b"answered\n")).boxed_unsync())
}

/// An empty message, and that all went well.
fn grpc() -> Response<Body> {
    let trailers = HeaderMap::from_iter([(
        HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )]);
    let message = Full::new(Bytes::from_static(&[0; GRPC_PREFIX]));
    let message = message.with_trailers(std::future::ready(Some(Ok(trailers))));
    let mut response = Response::new(message.boxed_unsync());
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// More than the generator has under way at the highest rate, so that it never queues for a stream.
const MAX_STREAMS: u32 = 1000;

impl Shared {
    async fn handle(&self) -> io::Result<()> {
        let behaviour = self.behaviour;
        if behaviour.delay_ns == 0 && behaviour.stalls.is_none() {
            return Ok(());
        }
        let read_ns = now_ns();
        let mut alarm = Alarm::new(Waiting::Sleep)?;
        let answered_ns = alarm.wait_until(behaviour.answer_at(read_ns)).await?;
        lock(&self.handled).push(Handled {
            read_ns,
            answered_ns,
        });
        *lock(&self.waited) = waited();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_in_a_stall_waits_for_its_end() {
        let behaviour = Behaviour {
            delay_ns: 20,
            stalls: Some(Stalls {
                first_ns: 1000,
                every_ns: 500,
                length_ns: 100,
            }),
        };
        let answers = [0, 999, 1000, 1099, 1100, 1520, 1600].map(|at| behaviour.answer_at(at));
        assert_eq!(answers, [20, 1019, 1120, 1120, 1120, 1620, 1620]);
    }
}
