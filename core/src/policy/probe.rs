//! What a kubelet asks for.
//!
//! A kubelet has no identity and speaks plaintext, so where mTLS is strict or a
//! policy would refuse it, exactly what the pod declares as its probes is let in:
//! a GET for that path and query, the gRPC health check, or a connection on which
//! nothing is sent. Anyone can ask for these; nothing else comes with them. A probe
//! with `scheme: HTTPS` cannot be told from other TLS, so it is not one of them.

use crate::api;
use http::uri::PathAndQuery;
use http::{Method, Request};

/// <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>
const GRPC_HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    port: u16,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// Path and query, as a kubelet writes them.
    Get(String),
    Grpc,
    Connect,
}

// === impl Probe ===

impl Probe {
    pub fn read(probe: &api::Probe) -> Option<Self> {
        let port = u16::try_from(probe.port).ok().filter(|port| *port != 0)?;
        let kind = match probe.path.as_str() {
            _ if probe.grpc => Kind::Grpc,
            "" => Kind::Connect,
            path => Kind::Get(as_a_kubelet_writes(path)),
        };
        Some(Self { port, kind })
    }

    pub const fn port(&self) -> u16 {
        self.port
    }

    /// A connection alone.
    pub fn is_connect(&self, port: u16) -> bool {
        self.port == port && self.kind == Kind::Connect
    }

    /// `bodiless`: the request has no body. Only then is a GET a probe's; nor may it
    /// want to leave HTTP, which the caller has seen to.
    pub fn is<B>(&self, port: u16, request: &Request<B>, bodiless: bool) -> bool {
        self.port == port
            && match &self.kind {
                Kind::Get(path) => {
                    let asked = request.uri().path_and_query().map(PathAndQuery::as_str);
                    request.method() == Method::GET && bodiless && asked == Some(path)
                }
                Kind::Grpc => {
                    request.method() == Method::POST
                        && request.uri().path_and_query().map(PathAndQuery::as_str)
                            == Some(GRPC_HEALTH_CHECK)
                        && crate::http::is_grpc(request)
                }
                Kind::Connect => false,
            }
    }

    /// For /config.
    pub fn dump(&self) -> String {
        let Self { port, kind } = self;
        match kind {
            Kind::Get(path) => format!("GET :{port}{path}"),
            Kind::Grpc => format!("gRPC health check :{port}"),
            Kind::Connect => format!("connection :{port}"),
        }
    }
}

/// Go's `url.Parse` and `URL.RequestURI`: without fragment, with a slash at the
/// beginning, and what is not allowed in a target is escaped.
fn as_a_kubelet_writes(path: &str) -> String {
    let path = path.split('#').next().unwrap_or_default();
    let mut written = String::with_capacity(path.len() + 1);
    if !path.starts_with('/') {
        written.push('/');
    }
    for byte in path.bytes() {
        if byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte) {
            written.push(byte.into());
        } else {
            written.push_str(&format!("%{byte:02X}"));
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(port: u32, path: &str, grpc: bool) -> Probe {
        let path = path.to_owned();
        Probe::read(&api::Probe { port, path, grpc }).unwrap()
    }

    fn request(method: &str, uri: &str) -> Request<()> {
        Request::builder().method(method).uri(uri).body(()).unwrap()
    }

    #[test]
    fn a_get_is_a_probe_only_as_declared() {
        let healthz = probe(8080, "/healthz?full=1", false);
        let is = |port, method, uri| healthz.is(port, &request(method, uri), true);
        assert!(is(8080, "GET", "/healthz?full=1"));
        assert!(is(8080, "GET", "http://10.0.0.1:8080/healthz?full=1"));
        assert!(!is(8081, "GET", "/healthz?full=1"));
        for (method, uri) in [
            ("HEAD", "/healthz?full=1"),
            ("POST", "/healthz?full=1"),
            ("get", "/healthz?full=1"),
            ("GET", "/healthz"),
            ("GET", "/healthz?full=12"),
            ("GET", "/healthz?full=1&x=1"),
            ("GET", "/healthz/?full=1"),
            ("GET", "//healthz?full=1"),
            ("GET", "/a/../healthz?full=1"),
            ("GET", "/%68ealthz?full=1"),
            ("GET", "/Healthz?full=1"),
        ] {
            assert!(!is(8080, method, uri), "{method} {uri}");
        }
        assert!(!healthz.is(8080, &request("GET", "/healthz?full=1"), false));
    }

    #[test]
    fn paths_are_what_a_kubelet_makes_of_them() {
        assert_eq!(as_a_kubelet_writes("healthz"), "/healthz");
        assert_eq!(as_a_kubelet_writes("/a b#c"), "/a%20b");
        assert_eq!(as_a_kubelet_writes("/ä"), "/%C3%A4");
        assert_eq!(as_a_kubelet_writes("/a%2fb?c={d}"), "/a%2fb?c=%7Bd%7D");
    }

    #[test]
    fn the_health_check_is_one_method_of_grpc() {
        let grpc = probe(50051, "", true);
        let check = |uri: &str| {
            let mut request = request("POST", uri);
            let grpc = "application/grpc".parse().unwrap();
            request.headers_mut().insert("content-type", grpc);
            request
        };
        assert!(grpc.is(50051, &check("/grpc.health.v1.Health/Check"), false));
        assert!(!grpc.is(50051, &check("/grpc.health.v1.Health/Watch"), false));
        assert!(!grpc.is(50051, &check("/grpc.health.v1.Health/Check?"), false));
        let plain = request("POST", "/grpc.health.v1.Health/Check");
        assert!(!grpc.is(50051, &plain, false));
    }

    #[test]
    fn a_connection_is_no_request() {
        let connect = probe(5432, "", false);
        assert!(connect.is_connect(5432) && !connect.is_connect(5433));
        assert!(!connect.is(5432, &request("GET", "/"), true));
        let no_port = api::Probe::default();
        assert_eq!(Probe::read(&no_port), None);
    }
}
