//! Answers that the proxy makes itself. A client is told in its own protocol that,
//! and why, there is no answer from the server; `duet-proxy-error` tells a person.

use super::Body;
use super::classify::{
    GRPC_DEADLINE_EXCEEDED, GRPC_PERMISSION_DENIED, GRPC_RESOURCE_EXHAUSTED, GRPC_UNAVAILABLE,
    GRPC_UNIMPLEMENTED, grpc_status,
};
use crate::upstream::UpstreamError;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use http::{HeaderValue, Request, Response, StatusCode, Version};

/// Why the proxy, and not the server, answers.
const PROXY_ERROR: HeaderName = HeaderName::from_static("duet-proxy-error");

/// Whether a proxy on the way answered in the server's place, because the server is
/// not to be had. A refusal says nothing against the server.
pub fn is_failure<B>(response: &Response<B>) -> bool {
    response.headers().contains_key(PROXY_ERROR) && !refuses(response)
}

/// Whether a proxy on the way refused in the server's place.
pub fn is_refusal<B>(response: &Response<B>) -> bool {
    response.headers().contains_key(PROXY_ERROR) && refuses(response)
}

fn refuses<B>(response: &Response<B>) -> bool {
    matches!(
        response.status(),
        StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS
    ) || matches!(
        grpc_status(response.headers()),
        Some(GRPC_PERMISSION_DENIED | GRPC_RESOURCE_EXHAUSTED)
    )
}

/// An application that passes on what another one's proxy said must not seem to be
/// that proxy.
pub fn from_application<B>(response: &mut Response<B>) {
    response.headers_mut().remove(PROXY_ERROR);
}

pub fn failure(error: &UpstreamError, grpc: bool) -> Response<Body> {
    let status = match error {
        UpstreamError::ConnectTimeout(_) | UpstreamError::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
        UpstreamError::NoEndpoints
        | UpstreamError::NotReady(_)
        | UpstreamError::Unknown(_)
        | UpstreamError::Connect { .. } => StatusCode::SERVICE_UNAVAILABLE,
        UpstreamError::OutOfReach(_) | UpstreamError::Denied(_) | UpstreamError::Plaintext => {
            StatusCode::FORBIDDEN
        }
        UpstreamError::NotLocal(_) => StatusCode::MISDIRECTED_REQUEST,
        UpstreamError::Malformed(why) => why.status(),
        UpstreamError::RateLimited(_) => StatusCode::TOO_MANY_REQUESTS,
        UpstreamError::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
        UpstreamError::NoRoute => StatusCode::NOT_FOUND,
        UpstreamError::NoBackend(_) => StatusCode::INTERNAL_SERVER_ERROR,
        UpstreamError::ConnectMethod => StatusCode::NOT_IMPLEMENTED,
        UpstreamError::Handshake { .. }
        | UpstreamError::Identity { .. }
        | UpstreamError::Http(_) => StatusCode::BAD_GATEWAY,
    };
    let reason = match error {
        // Which policy it was is for those who wrote it: they have log and metrics.
        UpstreamError::Denied(_) => "denied by policy".to_owned(),
        error => error.to_string(),
    };
    let mut response = if grpc {
        let code = match status {
            StatusCode::GATEWAY_TIMEOUT => GRPC_DEADLINE_EXCEEDED,
            StatusCode::FORBIDDEN => GRPC_PERMISSION_DENIED,
            StatusCode::NOT_FOUND => GRPC_UNIMPLEMENTED,
            StatusCode::TOO_MANY_REQUESTS => GRPC_RESOURCE_EXHAUSTED,
            _ => GRPC_UNAVAILABLE,
        };
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from(u16::from(code)));
        headers.insert("grpc-message", header(&reason));
        response
    } else {
        let text = format!("{reason}\n");
        let length = HeaderValue::from(text.len());
        let mut response = Response::new(Body::full(text));
        response.headers_mut().insert(CONTENT_LENGTH, length);
        *response.status_mut() = status;
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, plain);
        response
    };
    if let UpstreamError::RateLimited(wait) = error {
        let headers = response.headers_mut();
        if grpc {
            let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            headers.insert("grpc-retry-pushback-ms", HeaderValue::from(millis));
        } else {
            // Whole seconds, and not before the time.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
    }
    response.headers_mut().insert(PROXY_ERROR, header(&reason));
    response
}

/// Refuses a request of which nothing is certain, not even where the next one begins:
/// HTTP/1 ends its connection.
pub fn malformed(error: &UpstreamError, version: Version) -> Response<Body> {
    let mut response = failure(error, false);
    if version <= Version::HTTP_11 {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    *response.version_mut() = version;
    response
}

fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("unprintable"))
}

/// Whoever asks in gRPC wants to be refused in gRPC.
pub fn is_grpc<B>(request: &Request<B>) -> bool {
    request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"))
        // gRPC-Web, "application/grpc-web", has its trailers in the body.
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}
