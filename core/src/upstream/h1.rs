//! Idle HTTP/1.1 connections to one target, the most recently used first.

use super::{Driver, Io, UpstreamError};
use crate::http::Body;
use http::{Request, Response};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// More connections than this are closed rather than kept.
const MAX_IDLE: usize = 64;
/// Shorter than the keep-alive of common servers (Node.js: 5 s, nginx: 75 s,
/// Go: none), where a request would meet a closing connection.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

#[derive(Default)]
pub struct Pool {
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    sender: SendRequest<Body>,
    since: Instant,
}

/// Gives a connection back when the response it carried has been read.
struct Return {
    pool: Arc<Pool>,
    sender: Option<SendRequest<Body>>,
}

impl Pool {
    /// Sends `request` on `sender`, or, if that was closed just now, on another.
    pub async fn request(
        self: Arc<Self>,
        mut sender: SendRequest<Body>,
        mut request: Request<Body>,
        connect: impl AsyncFnOnce() -> Result<SendRequest<Body>, UpstreamError>,
    ) -> Result<Response<Body>, UpstreamError> {
        loop {
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(self.answer(response, sender)),
                // The server closed the connection just now, and saw nothing of it.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(UpstreamError::http(error.into_error())),
                },
            }
            match self.take() {
                Some(idle) => sender = idle,
                None => break,
            }
        }
        let mut sender = connect().await?;
        let response = sender
            .send_request(request)
            .await
            .map_err(UpstreamError::http)?;
        Ok(self.answer(response, sender))
    }

    fn answer(
        self: Arc<Self>,
        response: Response<hyper::body::Incoming>,
        sender: SendRequest<Body>,
    ) -> Response<Body> {
        let back = Return {
            pool: self,
            sender: Some(sender),
        };
        response.map(|body| Body::from(body).until_end(back))
    }

    /// A connection that can take a request now.
    pub fn take(&self) -> Option<SendRequest<Body>> {
        let mut idle = self.idle.lock();
        // The most recent one may still be busy with the end of its last answer.
        idle.retain(Idle::is_good);
        let ready = idle.iter().rposition(|one| one.sender.is_ready())?;
        Some(idle.remove(ready).sender)
    }

    /// Closes what has been idle for too long. True if nothing is left.
    pub fn sweep(&self) -> bool {
        let mut idle = self.idle.lock();
        idle.retain(Idle::is_good);
        idle.is_empty()
    }
}

impl Idle {
    fn is_good(&self) -> bool {
        !self.sender.is_closed() && self.since.elapsed() < IDLE_TIMEOUT
    }
}

/// A connection over `io`, driven until its last handle goes or it is cut.
pub async fn connect(io: Box<dyn Io>, driver: &Driver) -> Result<SendRequest<Body>, UpstreamError> {
    let (sender, connection) = http1::handshake(TokioIo::new(io))
        .await
        .map_err(UpstreamError::http)?;
    driver.drive(connection);
    Ok(sender)
}

impl Drop for Return {
    fn drop(&mut self) {
        let Some(sender) = self.sender.take() else {
            return;
        };
        if sender.is_closed() {
            return;
        }
        let mut idle = self.pool.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push(Idle {
                sender,
                since: Instant::now(),
            });
        }
    }
}
