//! HTTP/2 and gRPC-shaped requests on a multiplexed connection.

use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, Connection, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::clock::now_ns;
use super::connection::{Answer, check_status, connect};
use super::error::ErrorKind;
use super::target::{GRPC_PREFIX, Protocol, Target};

pub type Sender = SendRequest<Full<Bytes>>;
pub type Driver = Pin<Box<Connection<TokioIo<TcpStream>, Full<Bytes>, TokioExecutor>>>;

/// Opens a connection. The driver must be polled for anything to happen on it.
pub async fn open(target: &Target) -> Result<(Sender, Driver), ErrorKind> {
    let stream = connect(target).await?;
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| ErrorKind::of_http(&e))?;
    Ok((sender, Box::pin(connection)))
}

/// A request without an answer.
pub struct Unanswered {
    pub kind: ErrorKind,
    /// The connection never took it, so nobody has seen it.
    pub unsent: bool,
}

impl From<ErrorKind> for Unanswered {
    fn from(kind: ErrorKind) -> Self {
        Self {
            kind,
            unsent: false,
        }
    }
}

/// Sends one request and reads its answer, trailers included.
pub async fn exchange(sender: &mut Sender, target: &Target) -> Result<Answer, ErrorKind> {
    let outcome = try_exchange(sender, target).await;
    outcome.map_err(|unanswered| unanswered.kind)
}

/// The same, telling a request that was never sent from one without an answer.
pub async fn try_exchange(sender: &mut Sender, target: &Target) -> Result<Answer, Unanswered> {
    let response = sender
        .try_send_request(target.http2_request())
        .await
        .map_err(|mut error| Unanswered {
            unsent: error.take_message().is_some(),
            kind: ErrorKind::of_http(error.error()),
        })?;
    let first_byte_ns = now_ns();
    let (head, mut body) = response.into_parts();
    let bytes = if target.protocol == Protocol::Grpc {
        grpc_message(&mut body, &head.headers, head.status).await?
    } else {
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| ErrorKind::of_http(&e))?;
            if let Some(data) = frame.data_ref() {
                bytes += data.len() as u64;
            }
        }
        check_status(head.status)?;
        bytes
    };
    Ok(Answer {
        bytes,
        first_byte_ns,
        done_ns: now_ns(),
    })
}

/// Reads a unary answer: one length-prefixed message and `grpc-status: 0`, which stands in the headers
/// instead where there are no trailers.
async fn grpc_message(
    body: &mut Incoming,
    headers: &HeaderMap,
    status: http::StatusCode,
) -> Result<u64, ErrorKind> {
    let mut received = BytesMut::new();
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        match frame.map_err(|e| ErrorKind::of_http(&e))?.into_data() {
            Ok(data) => received.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    check_status(status)?;
    let grpc_status = trailers.as_ref().unwrap_or(headers).get("grpc-status");
    if grpc_status.is_none_or(|status| status != "0") {
        return Err(ErrorKind::GrpcStatus);
    }
    let announced = received
        .get(1..GRPC_PREFIX)
        .and_then(|length| length.try_into().ok())
        .map(u32::from_be_bytes)
        .ok_or(ErrorKind::Protocol)?;
    if received.len() != GRPC_PREFIX + announced as usize {
        return Err(ErrorKind::Protocol);
    }
    Ok(received.len() as u64)
}
