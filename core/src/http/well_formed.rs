//! What a request must not be, beside what hyper and h2 refuse already: what two
//! servers could read in two ways.
//!
//! hyper refuses Content-Length that differs, folded lines, space before a colon, a bare
//! CR, and Transfer-Encoding that does not end in chunked or is HTTP/1.0's. Where a
//! request has Content-Length too, Transfer-Encoding counts, the other goes, and the
//! connection ends with the answer (RFC 9112 §6.3). h2 refuses misplaced pseudo-headers
//! and every header of a connection (RFC 9113 §8.2.2).

use http::header::{HOST, HeaderValue, TRANSFER_ENCODING};
use http::{Request, StatusCode, Version};

/// Why a request is refused, as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// RFC 9112 §3.2.
    #[error("an HTTP/1.1 request has exactly one Host")]
    Hosts,
    /// RFC 9110 §4.2.4, §7.2.
    #[error("the request's host is none")]
    Host,
    /// RFC 9113 §8.3.1.
    #[error("Host and :authority differ")]
    Authority,
    /// RFC 9112 §6.1: what is not understood would be passed on as if it were not there.
    #[error("the one transfer coding that is understood is chunked")]
    TransferCoding,
}

impl Malformed {
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Hosts | Self::Host | Self::Authority => StatusCode::BAD_REQUEST,
            Self::TransferCoding => StatusCode::NOT_IMPLEMENTED,
        }
    }
}

/// # Errors
/// What is wrong with it.
pub fn well_formed<B>(request: &Request<B>) -> Result<(), Malformed> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = hosts.next();
    let http1 = request.version() <= Version::HTTP_11;
    if hosts.next().is_some() || (host.is_none() && request.version() == Version::HTTP_11) {
        return Err(Malformed::Hosts);
    }
    let authority = request
        .uri()
        .authority()
        .map(|authority| authority.as_str());
    let named = host.map(HeaderValue::as_bytes);
    let mut names = [named, authority.map(str::as_bytes)].into_iter().flatten();
    if !names.all(is_host) {
        return Err(Malformed::Host);
    }
    if let (false, Some(authority), Some(host)) = (http1, authority, named)
        && !authority.as_bytes().eq_ignore_ascii_case(host)
    {
        return Err(Malformed::Authority);
    }
    let mut codings = request.headers().get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(one), None) if one.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(Malformed::TransferCoding),
    }
}

/// Of a name or address and a port; nothing at all where the target has none.
fn is_host(text: &[u8]) -> bool {
    let part = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:[]".contains(byte);
    text.iter().all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        build: impl FnOnce(http::request::Builder) -> http::request::Builder,
    ) -> Option<Malformed> {
        let request = build(Request::builder().uri("/")).body(()).expect("static");
        well_formed(&request).err()
    }

    #[test]
    fn a_request_is_for_one_host() {
        assert_eq!(check(|it| it), Some(Malformed::Hosts));
        assert_eq!(check(|it| it.version(Version::HTTP_10)), None);
        let two = check(|it| it.header("host", "a").header("host", "a"));
        assert_eq!(two, Some(Malformed::Hosts));
        for good in ["", "a.example", "a.example:81", "[fd00::1]:80", "10.0.0.1"] {
            assert_eq!(check(|it| it.header("host", good)), None, "{good}");
        }
        for bad in ["a b", "a,b", "a/b", "me@a", "a\tb", "a?b"] {
            let refused = check(|it| it.header("host", bad));
            assert_eq!(refused, Some(Malformed::Host), "{bad}");
        }
        let http2 = |uri: &str, host: &str| {
            check(|it| it.version(Version::HTTP_2).uri(uri).header("host", host))
        };
        assert_eq!(http2("http://a.example/", "A.example"), None);
        assert_eq!(http2("http://a/", "b"), Some(Malformed::Authority));
        assert_eq!(http2("http://me@a/", "me@a"), Some(Malformed::Host));
    }

    #[test]
    fn chunked_is_the_one_transfer_coding() {
        let coded = |codings: &[&str]| {
            check(|it| {
                let it = it.header("host", "a");
                codings
                    .iter()
                    .fold(it, |it, one| it.header("transfer-encoding", *one))
            })
        };
        assert_eq!(coded(&["chunked"]), None);
        assert_eq!(coded(&["Chunked"]), None);
        for bad in [
            &["gzip, chunked"][..],
            &["gzip", "chunked"],
            &["chunked", "chunked"],
            &["xchunked"],
            &["chunked;a=b"],
        ] {
            assert_eq!(coded(bad), Some(Malformed::TransferCoding), "{bad:?}");
        }
    }
}
