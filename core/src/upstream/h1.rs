//! HTTP/1.1 connections to one target, the most recently used first.
//!
//! Whoever asks drives the connection himself, from the request to the last byte of the
//! answer: a task of its own would be woken twice for each of them. Only a request that
//! has a body gives its connection one, since the body goes on while nobody reads the
//! answer.

use super::{Driver, Io, UpstreamError};
use crate::http::{Body, Case, Heads, Overheard, spelled};
use http::{Request, Response};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::task::coop::unconstrained;

/// More connections than this are closed rather than kept.
const MAX_IDLE: usize = 64;
/// Shorter than the keep-alive of common servers (Node.js: 5 s, nginx: 75 s,
/// Go: none), where a request would meet a closing connection.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

pub type Connection = http1::Connection<TokioIo<Overheard<Box<dyn Io>>>, Body>;

#[derive(Default)]
pub struct Pool {
    idle: Mutex<Vec<Idle>>,
}

/// A connection that takes one request after the other.
pub struct Client {
    sender: SendRequest<Body>,
    driven: Driven,
    heads: Arc<Heads>,
    case: Case,
    /// Whose task drives it if one has to.
    driver: Driver,
}

/// Who drives a connection.
enum Driven {
    /// Whoever has it.
    Here(Box<Connection>),
    /// A task, or nobody, because it has ended.
    Elsewhere,
}

struct Idle {
    client: Client,
    since: Instant,
}

/// The body of an answer, and the connection that it comes from, which is given back
/// when it has been read.
pub struct Answer {
    body: Incoming,
    client: Option<Client>,
    pool: Arc<Pool>,
}

// === impl Pool ===

impl Pool {
    /// Sends `request` on `client`, or, if that was closed just now, on another.
    pub async fn request(
        self: Arc<Self>,
        mut client: Client,
        mut request: Box<Request<Body>>,
        connect: impl AsyncFnOnce() -> Result<Client, UpstreamError>,
    ) -> Result<Response<Body>, UpstreamError> {
        let (told, _) = spelled(request.headers_mut(), client.case);
        request.extensions_mut().extend(told);
        loop {
            match client.send(request).await {
                Ok(response) => return Ok(self.answer(response, client)),
                // The server closed the connection just now, and saw nothing of it.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = Box::new(unsent),
                    None => return Err(UpstreamError::http(error.into_error())),
                },
            }
            match self.take(client.case) {
                Some(idle) => client = idle,
                None => break,
            }
        }
        let mut client = Box::pin(connect()).await?;
        let sent = client.send(request).await;
        let response = sent.map_err(|error| UpstreamError::http(error.into_error()))?;
        Ok(self.answer(response, client))
    }

    fn answer(self: Arc<Self>, mut response: Response<Incoming>, client: Client) -> Response<Body> {
        client.heads.note(response.headers_mut());
        response.map(|body| {
            Body::answered(Answer {
                body,
                client: Some(client),
                pool: self,
            })
        })
    }

    /// A connection that can take a request now, and writes it in this case.
    pub fn take(&self, case: Case) -> Option<Client> {
        let mut idle = self.idle.lock();
        for at in (0..idle.len()).rev() {
            if idle[at].client.case != case {
                continue;
            }
            // One that a task drives may still be busy with the end of its last answer.
            if !idle[at].is_good() {
                idle.remove(at);
            } else if idle[at].client.sender.is_ready() {
                return Some(idle.remove(at).client);
            }
        }
        None
    }

    /// Closes what has been idle for too long. True if nothing is left.
    pub fn sweep(&self) -> bool {
        let mut idle = self.idle.lock();
        idle.retain_mut(Idle::is_good);
        idle.is_empty()
    }
}

/// A connection of HTTP/1 over `io`, with the heads of what is answered.
pub async fn handshake(
    io: Box<dyn Io>,
    case: Case,
) -> Result<(SendRequest<Body>, Connection, Arc<Heads>), UpstreamError> {
    let heads = Arc::<Heads>::default();
    let io = TokioIo::new(Overheard::new(io, heads.clone()));
    let (sender, connection) = http1::Builder::new()
        .title_case_headers(case == Case::Title)
        .handshake(io)
        .await
        .map_err(UpstreamError::http)?;
    Ok((sender, connection, heads))
}

// === impl Client ===

impl Client {
    /// A connection over `io`, until its last handle goes or it is cut.
    pub async fn connect(
        io: Box<dyn Io>,
        case: Case,
        driver: &Driver,
    ) -> Result<Self, UpstreamError> {
        let (sender, connection, heads) = handshake(io, case).await?;
        Ok(Self {
            sender,
            driven: Driven::Here(Box::new(connection)),
            heads,
            case,
            driver: driver.clone(),
        })
    }

    pub fn case(&self) -> Case {
        self.case
    }

    async fn send(
        &mut self,
        request: Box<Request<Body>>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Body>>> {
        self.heads.expect();
        if !request.body().is_end_stream() {
            self.leave_to_task();
        }
        let sending = self.sender.try_send_request(*request);
        let driven = &mut self.driven;
        if let Driven::Elsewhere = driven {
            return sending.await;
        }
        // Nothing but the connection brings the answer, which is looked for each time
        // that this has been polled: it need not wake anybody.
        let mut sending = pin!(unconstrained(sending));
        poll_fn(|cx| {
            driven.poll(cx);
            sending
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()))
        })
        .await
    }

    fn leave_to_task(&mut self) {
        if let Driven::Here(connection) = std::mem::replace(&mut self.driven, Driven::Elsewhere) {
            self.driver.drive(connection);
        }
    }

    /// A connection that nobody drives has what came for it looked at, its end above all.
    fn look(&mut self) {
        let looked = poll_fn(|cx| {
            self.driven.poll(cx);
            Poll::Ready(())
        });
        let _ = pin!(unconstrained(looked)).poll(&mut Context::from_waker(Waker::noop()));
    }
}

// === impl Driven ===

impl Driven {
    fn poll(&mut self, cx: &mut Context<'_>) {
        if let Self::Here(connection) = self
            && Pin::new(connection).poll(cx).is_ready()
        {
            // Why it ended, its last request or answer is told.
            *self = Self::Elsewhere;
        }
    }
}

// === impl Idle ===

impl Idle {
    fn is_good(&mut self) -> bool {
        self.client.look();
        !self.client.sender.is_closed() && self.since.elapsed() < IDLE_TIMEOUT
    }
}

// === impl Answer ===

impl Answer {
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &mut self.client {
            Some(client) if polled.is_pending() => {
                client.driven.poll(cx);
                Pin::new(&mut self.body).poll_frame(cx)
            }
            _ => polled,
        }
    }

    pub fn body(&self) -> &Incoming {
        &self.body
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let Some(mut client) = self.client.take() else {
            return;
        };
        // Its end may still have to be read. If there is more than that, nobody will.
        client.look();
        let busy = !client.sender.is_ready() && matches!(client.driven, Driven::Here(_));
        if busy || client.sender.is_closed() {
            return;
        }
        let mut idle = self.pool.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push(Idle {
                client,
                since: Instant::now(),
            });
        }
    }
}
