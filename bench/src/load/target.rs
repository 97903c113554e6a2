//! Where requests go and what each one is.

use std::net::{SocketAddr, ToSocketAddrs};

use bytes::{BufMut, Bytes, BytesMut};
use clap::ValueEnum;
use http::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderName, HeaderValue, TE};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Uri, Version};
use http_body_util::Full;

use super::LoadError;

/// What is spoken to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// HTTP/1.1, one request at a time on each connection.
    Http1,
    /// HTTP/2 with prior knowledge, multiplexed over the connections.
    Http2,
    /// A unary call in gRPC's shape: HTTP/2, length-prefixed messages, grpc-status in the trailers.
    Grpc,
    /// A frame that the server echoes.
    Tcp,
}

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }
}

/// Bytes before a gRPC message: a flag and its length.
pub const GRPC_PREFIX: usize = 5;
/// Size of an echoed frame where none is asked for.
const DEFAULT_FRAME: usize = 64;
/// A frame begins with its number, so that an answer to another request is noticed.
pub const MIN_FRAME: usize = 8;

/// The resolved target and everything that is the same in each request.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: SocketAddr,
    pub protocol: Protocol,
    uri: Uri,
    path: PathAndQuery,
    headers: HeaderMap,
    body: Bytes,
}

impl Target {
    /// Resolves the URL's host; `request_bytes` is the body's, message's or frame's size.
    pub fn resolve(
        url: &str,
        protocol: Protocol,
        headers: &[(HeaderName, HeaderValue)],
        request_bytes: Option<usize>,
    ) -> Result<Self, LoadError> {
        let wrong = |reason: &str| LoadError::Usage(format!("--url {url}: {reason}"));
        let uri: Uri = url
            .parse()
            .map_err(|e: http::uri::InvalidUri| wrong(&e.to_string()))?;
        let default_port = match (uri.scheme_str(), protocol) {
            (Some("http"), _) => Some(80),
            (Some("tcp"), Protocol::Tcp) => None,
            _ if protocol == Protocol::Tcp => return Err(wrong("write tcp://host:port")),
            _ => return Err(wrong("write http://host[:port]/path")),
        };
        let host = uri.host().ok_or_else(|| wrong("it names no host"))?;
        let port = uri
            .port_u16()
            .or(default_port)
            .ok_or_else(|| wrong("it names no port"))?;
        let bare_host = host.trim_start_matches('[').trim_end_matches(']');
        let address = (bare_host, port)
            .to_socket_addrs()
            .map_err(|e| wrong(&format!("cannot resolve {host}: {e}")))?
            .next()
            .ok_or_else(|| wrong(&format!("{host} has no address")))?;
        if protocol == Protocol::Tcp && request_bytes.is_some_and(|bytes| bytes < MIN_FRAME) {
            return Err(LoadError::Usage(format!(
                "--request-bytes: a tcp frame has at least {MIN_FRAME} bytes"
            )));
        }

        let path = uri
            .path_and_query()
            .cloned()
            .unwrap_or_else(|| PathAndQuery::from_static("/"));
        let mut map = HeaderMap::new();
        let authority = uri.authority().ok_or_else(|| wrong("it names no host"))?;
        map.insert(
            HOST,
            HeaderValue::from_str(authority.as_str()).map_err(|e| wrong(&e.to_string()))?,
        );
        for (name, value) in headers {
            if name == HOST {
                map.insert(name.clone(), value.clone());
            } else {
                map.append(name.clone(), value.clone());
            }
        }
        Ok(Self {
            address,
            protocol,
            uri,
            path,
            headers: map,
            body: body(protocol, request_bytes),
        })
    }

    /// The request in HTTP/1.1's form. `close` asks the server to close the connection after its answer.
    pub fn http1_request(&self, close: bool) -> Request<Full<Bytes>> {
        let mut request = self.request(
            Uri::from(self.path.clone()),
            Version::HTTP_11,
            self.headers.clone(),
        );
        if close {
            request
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        request
    }

    /// The request in HTTP/2's form, with gRPC's headers where they belong.
    pub fn http2_request(&self) -> Request<Full<Bytes>> {
        let mut headers = self.headers.clone();
        headers.remove(HOST);
        let mut request = self.request(self.uri.clone(), Version::HTTP_2, headers);
        if self.protocol == Protocol::Grpc {
            request
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            request
                .headers_mut()
                .insert(TE, HeaderValue::from_static("trailers"));
        }
        request
    }

    /// The frame with the given number.
    pub fn frame(&self, number: u64) -> BytesMut {
        let mut frame = BytesMut::from(&self.body[..]);
        frame[..MIN_FRAME].copy_from_slice(&number.to_be_bytes());
        frame
    }

    fn request(&self, uri: Uri, version: Version, headers: HeaderMap) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = if self.body.is_empty() {
            Method::GET
        } else {
            Method::POST
        };
        *request.uri_mut() = uri;
        *request.version_mut() = version;
        *request.headers_mut() = headers;
        request
    }
}

fn body(protocol: Protocol, request_bytes: Option<usize>) -> Bytes {
    let payload = |bytes: usize| (0..bytes).map(|i| b'a' + (i % 26) as u8);
    match protocol {
        Protocol::Http1 | Protocol::Http2 => payload(request_bytes.unwrap_or(0)).collect(),
        Protocol::Tcp => payload(request_bytes.unwrap_or(DEFAULT_FRAME)).collect(),
        Protocol::Grpc => {
            let length = request_bytes.unwrap_or(0);
            let mut message = BytesMut::with_capacity(GRPC_PREFIX + length);
            message.put_u8(0);
            message.put_u32(length as u32);
            message.extend(payload(length));
            message.freeze()
        }
    }
}
