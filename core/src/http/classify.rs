//! What an answer says of the server that gave it.

use super::Body;
use http::{HeaderMap, Response};

/// <https://grpc.github.io/grpc/core/md_doc_statuscodes.html>
pub const GRPC_DEADLINE_EXCEEDED: u8 = 4;
pub const GRPC_PERMISSION_DENIED: u8 = 7;
pub const GRPC_UNAVAILABLE: u8 = 14;
pub const GRPC_RESOURCE_EXHAUSTED: u8 = 8;
pub const GRPC_UNIMPLEMENTED: u8 = 12;
const GRPC_UNKNOWN: u8 = 2;
const GRPC_INTERNAL: u8 = 13;
const GRPC_DATA_LOSS: u8 = 15;

/// What the head of an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Succeeded,
    Failed,
    /// gRPC says it at the end.
    InTrailers,
}

/// `grpc`: the request asked in gRPC.
pub fn verdict<B>(response: &Response<B>, grpc: bool) -> Verdict {
    if response.status().is_server_error() {
        return Verdict::Failed;
    }
    if !grpc {
        return Verdict::Succeeded;
    }
    match grpc_status(response.headers()) {
        Some(status) if blames_server(status) => Verdict::Failed,
        Some(_) => Verdict::Succeeded,
        None => Verdict::InTrailers,
    }
}

/// Tells which gRPC status an answer has, at once if its head says so, at its end otherwise.
pub fn tell_grpc_status(
    response: Response<Body>,
    tell: impl FnOnce(Option<u8>) + Send + 'static,
) -> Response<Body> {
    match grpc_status(response.headers()) {
        Some(status) => {
            tell(Some(status));
            response
        }
        None => response.map(|body| body.on_status(tell)),
    }
}

pub fn grpc_status(headers: &HeaderMap) -> Option<u8> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// Linkerd's choice, but for PERMISSION_DENIED: that is what a policy says.
pub const fn blames_server(grpc_status: u8) -> bool {
    matches!(
        grpc_status,
        GRPC_UNKNOWN | GRPC_DEADLINE_EXCEEDED | GRPC_INTERNAL | GRPC_UNAVAILABLE | GRPC_DATA_LOSS
    )
}
