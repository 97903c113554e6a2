//! What a proxy must change in a message, and nothing more (RFC 9110 §7.6).
//!
//! Between two proxies every HTTP request is HTTP/2. What the receiving proxy
//! needs to restore it travels in `duet-` headers, which are taken off wherever
//! they come from an application, except `duet-client-id`, which tells it who
//! called. That holds for what is known to be HTTP: a client that is taken for
//! opaque bytes, because it said nothing until detection timed out, can send any
//! header, so an application must not rest authorization on that one alone.

use super::spelling::SPELLING;
use crate::identity::Identity;
use http::header::{
    CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, Uri, Version};
use hyper::ext::ReasonPhrase;
use std::net::SocketAddr;

/// The address, one of the receiving workload's own, that a request is for.
pub const DESTINATION: HeaderName = HeaderName::from_static("duet-destination");
/// On CONNECT: what is inside the tunnel, if not opaque bytes.
pub const APP_PROTOCOL: HeaderName = HeaderName::from_static("duet-app-protocol");
/// The version that the client's application spoke.
const ORIGINAL_VERSION: HeaderName = HeaderName::from_static("duet-original-version");
/// For the application: its caller's verified SPIFFE ID.
const CLIENT_ID: HeaderName = HeaderName::from_static("duet-client-id");

/// On an answer: what an application of HTTP/1 says beside the status, if it is not what
/// the status is called.
const REASON: HeaderName = HeaderName::from_static("duet-reason");

/// But for [`SPELLING`], which a message of HTTP/1 has from whoever reads it to whoever writes it.
const OURS: [HeaderName; 6] = [
    DESTINATION,
    APP_PROTOCOL,
    ORIGINAL_VERSION,
    CLIENT_ID,
    REASON,
    // CGI and WSGI cannot tell it from the one with hyphens.
    HeaderName::from_static("duet_client_id"),
];

const HOP_BY_HOP: [HeaderName; 4] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TRANSFER_ENCODING,
    UPGRADE,
];

/// What an application spoke before its request became HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginalVersion {
    Http10,
    Http11,
    Http2,
}

impl OriginalVersion {
    fn of(version: Version) -> Self {
        match version {
            Version::HTTP_09 | Version::HTTP_10 => Self::Http10,
            Version::HTTP_2 | Version::HTTP_3 => Self::Http2,
            _ => Self::Http11,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "1.0",
            Self::Http11 => "1.1",
            Self::Http2 => "2",
        }
    }
}

/// RFC 9110 §7.8: both headers, and only HTTP/1.1.
pub fn is_upgrade<B>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_11
        && request.headers().contains_key(UPGRADE)
        // HTTP/2 inside HTTP/1 (RFC 9113 §3.1 has done away with it) would hide the
        // requests that follow.
        && request.headers().get_all(UPGRADE).iter().all(|protocol| protocol != "h2c")
        && connection_options(request.headers())
            .any(|option| option.eq_ignore_ascii_case("upgrade"))
}

/// An application's request becomes one between proxies.
pub fn for_mesh<B>(request: &mut Request<B>, destination: SocketAddr) {
    let original = OriginalVersion::of(request.version());
    let authority = authority(request, destination);
    let target = absolute(request.uri(), authority);
    strip(request.headers_mut());
    request.headers_mut().remove(HOST);
    *request.uri_mut() = target;
    *request.version_mut() = Version::HTTP_2;
    let headers = request.headers_mut();
    if original == OriginalVersion::Http2 {
        headers.remove(SPELLING);
    }
    if let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(destination.to_string())) {
        headers.insert(DESTINATION, value);
    }
    headers.insert(
        ORIGINAL_VERSION,
        HeaderValue::from_static(original.as_str()),
    );
}

/// A request between proxies becomes the application's again.
pub fn for_application<B>(
    request: &mut Request<B>,
    client: Option<&HeaderValue>,
) -> OriginalVersion {
    let original = match request
        .headers()
        .get(ORIGINAL_VERSION)
        .map(HeaderValue::as_bytes)
    {
        Some(b"1.0") => OriginalVersion::Http10,
        Some(b"1.1") => OriginalVersion::Http11,
        _ => OriginalVersion::Http2,
    };
    strip(request.headers_mut());
    if original == OriginalVersion::Http2 {
        request.headers_mut().remove(SPELLING);
    } else {
        to_http1(request);
    }
    name_client(request, client);
    original
}

/// A client's identity, as the application is told of it; `None` if no header can say it.
pub fn client_id(client: &Identity) -> Option<HeaderValue> {
    HeaderValue::from_str(client.as_str()).ok()
}

/// Tells the application who called.
pub fn name_client<B>(request: &mut Request<B>, client: Option<&HeaderValue>) {
    if let Some(client) = client {
        request.headers_mut().insert(CLIENT_ID, client.clone());
    }
}

/// A request that goes on in plaintext, in the version it came in.
pub fn for_plaintext<B>(request: &mut Request<B>, destination: SocketAddr) {
    let upgrade = is_upgrade(request)
        .then(|| request.headers().get(UPGRADE).cloned())
        .flatten();
    let original = OriginalVersion::of(request.version());
    let authority = authority(request, destination);
    strip(request.headers_mut());
    *request.uri_mut() = absolute(request.uri(), authority);
    if original == OriginalVersion::Http2 {
        // :authority says it.
        request.headers_mut().remove(HOST);
        request.headers_mut().remove(SPELLING);
    } else {
        to_http1(request);
    }
    if let Some(protocol) = upgrade {
        request
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("upgrade"));
        request.headers_mut().insert(UPGRADE, protocol);
    }
}

/// A response on its way back to a client that spoke `version`.
pub fn response<B>(response: &mut Response<B>, version: Version) {
    back(response, version);
    if version >= Version::HTTP_2 {
        response.headers_mut().remove(SPELLING);
    }
}

fn back<B>(response: &mut Response<B>, version: Version) {
    let reason = response.headers_mut().remove(REASON);
    if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        strip(response.headers_mut());
    }
    // To a client of HTTP/1.0 hyper says so itself, and keeps its connection if it may.
    *response.version_mut() = version.max(Version::HTTP_11);
    if let Some(reason) = reason
        && let Ok(reason) = ReasonPhrase::try_from(reason.as_bytes())
    {
        response.extensions_mut().insert(reason);
    }
}

/// A response on its way to the client's proxy. HTTP/2 has no place for what an application of
/// HTTP/1 says beside the status, nor for how it spells.
pub fn answer_for_mesh<B>(response: &mut Response<B>) {
    back(response, Version::HTTP_2);
    if let Some(reason) = response.extensions().get::<ReasonPhrase>()
        && let Ok(reason) = HeaderValue::from_bytes(reason.as_bytes())
    {
        response.headers_mut().insert(REASON, reason);
    }
}

/// Origin form with a Host header (RFC 9112 §3.2.1).
fn to_http1<B>(request: &mut Request<B>) {
    if let Some(authority) = request.uri().authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        request.headers_mut().insert(HOST, host);
    }
    let path = request.uri().path_and_query().cloned();
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
    *request.version_mut() = Version::HTTP_11;
    // RFC 9110 §10.1.4: for the next hop only.
    if request.headers().contains_key(TE) {
        let te = HeaderValue::from_static("te");
        request.headers_mut().insert(CONNECTION, te);
    }
}

/// RFC 9112 §3.2.2: the target's authority wins over Host.
fn authority<B>(request: &Request<B>, destination: SocketAddr) -> Authority {
    let from_uri = request.uri().authority().cloned();
    let from_host = || {
        let host = request.headers().get(HOST)?;
        Authority::try_from(host.as_bytes()).ok()
    };
    from_uri.or_else(from_host).unwrap_or_else(|| {
        Authority::try_from(destination.to_string()).expect("an address is an authority")
    })
}

fn absolute(target: &Uri, authority: Authority) -> Uri {
    let mut parts = http::uri::Parts::default();
    parts.scheme = target.scheme().cloned().or(Some(Scheme::HTTP));
    parts.authority = Some(authority);
    let path = target.path_and_query().cloned();
    parts.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    Uri::from_parts(parts).unwrap_or_default()
}

/// Takes off what concerns one hop only, and what only Duet may say.
fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = connection_options(headers)
            // It is looked at below.
            .filter(|option| !option.eq_ignore_ascii_case("te"))
            .filter_map(|option| option.parse().ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    // Most messages have none of these, or two, and to look each of them up would be ten
    // hashes, four times a request.
    let goes = |name: &&HeaderName| match name.as_str().starts_with("duet") {
        true => OURS.contains(name),
        false => HOP_BY_HOP.contains(name),
    };
    while let Some(name) = headers.keys().find(goes).cloned() {
        headers.remove(name);
    }
    // RFC 9113 §8.2.2: "trailers" is the one TE that HTTP/2 has.
    if headers.get_all(TE).iter().any(|te| te != "trailers") {
        headers.remove(TE);
    }
}

fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination() -> SocketAddr {
        "10.0.0.1:8080".parse().expect("static")
    }

    fn request(
        build: impl FnOnce(http::request::Builder) -> http::request::Builder,
    ) -> Request<()> {
        build(Request::builder()).body(()).expect("static")
    }

    #[test]
    fn http1_survives_the_mesh() {
        let mut message = request(|b| {
            b.uri("/a?b=c")
                .header("host", "web.example:81")
                .header("connection", "keep-alive, x-private")
                .header("x-private", "1")
                .header("x-public", "2")
                .header("duet-client-id", "spiffe://forged")
        });
        for_mesh(&mut message, destination());
        assert_eq!(message.uri(), "http://web.example:81/a?b=c");
        assert_eq!(message.version(), Version::HTTP_2);
        assert!(!message.headers().contains_key("x-private"));
        assert!(!message.headers().contains_key("duet-client-id"));
        assert_eq!(message.headers()[DESTINATION], "10.0.0.1:8080");

        let caller = Identity::new("duet.local", "shop", "cart");
        assert_eq!(
            for_application(&mut message, client_id(&caller).as_ref()),
            OriginalVersion::Http11
        );
        assert_eq!(message.uri(), "/a?b=c");
        assert_eq!(message.headers()["host"], "web.example:81");
        assert_eq!(message.headers()["x-public"], "2");
        assert_eq!(message.headers()["duet-client-id"], caller.as_str());
        assert!(!message.headers().contains_key(DESTINATION));
    }

    #[test]
    fn the_target_wins_over_host_and_a_missing_host_is_the_destination() {
        let mut absolute = request(|b| b.uri("http://right/x").header("host", "wrong"));
        for_mesh(&mut absolute, destination());
        assert_eq!(absolute.uri(), "http://right/x");
        let mut bare = request(|b| b.uri("/x").version(Version::HTTP_10));
        for_mesh(&mut bare, destination());
        assert_eq!(bare.uri(), "http://10.0.0.1:8080/x");
    }

    #[test]
    fn only_te_trailers_passes() {
        for (te, passes) in [("trailers", true), ("gzip", false)] {
            let mut message = request(|b| b.uri("/").header("te", te));
            for_mesh(&mut message, destination());
            assert_eq!(message.headers().contains_key("te"), passes);
        }
    }

    #[test]
    fn an_upgrade_needs_both_headers() {
        let upgrade = |connection: &str| {
            request(|b| {
                b.uri("/")
                    .header("upgrade", "websocket")
                    .header("connection", connection)
            })
        };
        assert!(is_upgrade(&upgrade("keep-alive, Upgrade")));
        assert!(!is_upgrade(&upgrade("keep-alive")));
        let mut kept = upgrade("Upgrade");
        for_plaintext(&mut kept, destination());
        assert!(is_upgrade(&kept));
    }
}
