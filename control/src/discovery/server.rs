//! The gRPC of `Discovery.Watch`, by hand.
//!
//! A generated service encodes each message into a buffer of its stream's own, and
//! the stream holds on to that for as long as it lives: two megabytes for each proxy
//! of a big mesh. Here the bytes of an update are shared by all streams and belong to
//! none. There is one method, and it only takes a header and a trailer.

use super::encoding::Encoded;
use super::{DiscoveryService, WATCH_PATH};
use crate::server::MAX_REQUEST_BYTES;
use bytes::{Buf, Bytes};
use duet_core::api::WatchRequest;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::StreamBody;
use hyper::body::Frame;
use prost::Message;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codec::{DecodeBuf, Decoder, Streaming};
use tonic::codegen::{Body as HttpBody, Service};
use tonic::metadata::{GRPC_CONTENT_TYPE, MetadataMap};
use tonic::server::NamedService;
use tonic::{Code, Status};

#[derive(Clone)]
pub(crate) struct DiscoveryServer(Arc<DiscoveryService>);

/// Reads the one request of a watch.
struct Requests;

// === impl DiscoveryServer ===

impl DiscoveryServer {
    pub fn new(service: DiscoveryService) -> Self {
        Self(Arc::new(service))
    }

    async fn answer<B>(&self, request: Request<B>) -> Result<Response<Body>, Status>
    where
        B: HttpBody + Send + 'static,
        B::Error: Into<tonic::codegen::StdError> + Send + 'static,
    {
        if request.uri().path() != WATCH_PATH {
            return Err(Status::unimplemented(""));
        }
        let (parts, body) = request.into_parts();
        let metadata = MetadataMap::from_headers(parts.headers);
        let mut messages = Streaming::new_request(Requests, body, None, Some(MAX_REQUEST_BYTES));
        let message = messages.message().await?;
        let message = message.ok_or_else(|| Status::internal("the request has no message"))?;
        let updates = self.0.watch(&metadata, message).await?;
        let mut response = Response::new(body_of(updates));
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
        Ok(response)
    }
}

impl NamedService for DiscoveryServer {
    const NAME: &'static str = "duet.v1alpha1.Discovery";
}

impl<B> Service<Request<B>> for DiscoveryServer
where
    B: HttpBody + Send + 'static,
    B::Error: Into<tonic::codegen::StdError> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let server = self.clone();
        Box::pin(async move {
            let answer = server.answer(request).await;
            Ok(answer.unwrap_or_else(Status::into_http))
        })
    }
}

/// The updates, and a good end after the last.
fn body_of(updates: mpsc::Receiver<Encoded>) -> Body {
    let data = ReceiverStream::new(updates)
        .flat_map(|update| stream::iter(update.pieces))
        .map(Frame::data);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(Code::Ok as i32));
    let end = stream::iter([Frame::<Bytes>::trailers(trailers)]);
    Body::new(StreamBody::new(data.chain(end).map(Ok::<_, Infallible>)))
}

// === impl Requests ===

impl Decoder for Requests {
    type Item = WatchRequest;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<WatchRequest>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        let request = WatchRequest::decode(bytes);
        let wrong = |error: prost::DecodeError| Status::invalid_argument(error.to_string());
        request.map(Some).map_err(wrong)
    }
}
