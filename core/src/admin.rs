//! The proxy's own HTTP endpoints.
//!
//! | server | default | paths |
//! |---|---|---|
//! | admin | 127.0.0.1:15000 | `GET /config`, `GET /identity`, `GET /connections`, `GET /tap`, `GET`/`PUT /log-level`, `POST /shutdown`, and all below |
//! | metrics | 0.0.0.0:15020 | `GET /metrics` |
//! | health | 0.0.0.0:15021 | `GET /ready`, `GET /live` |
//!
//! `/connections` takes `workload=namespace/name` (may be repeated), `direction` and
//! `limit`; `/tap` takes the same but `limit`, and `path` (how it begins), `method`,
//! `peer` (a trailing `*` is any rest) and `rate`, in records a second.

use crate::capture::Direction;
use crate::proxy::{Error, Ports, Shared};
use crate::runtime::LogLevel;
use crate::telemetry::connections::Wanted;
use crate::telemetry::tap::{DEFAULT_RATE, Filter, MAX_RATE, TapBody};
use ::http::header::{CONTENT_TYPE, HOST};
use ::http::{Method, Request, Response, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder, TextEncoder};
use serde::Serialize;
use serde_json::json;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use tokio::net::{TcpListener, TcpSocket};

const MAX_BODY: usize = 4096;
/// Connections that a page tells of, unless asked otherwise: about 4 MB.
const CONNECTIONS: usize = 10_000;
/// Workloads that a question may name.
const MAX_WORKLOADS: usize = 256;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that may wait to be accepted: scrapes and probes. tokio's own default.
const BACKLOG: u32 = 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Server {
    Admin,
    Metrics,
    Health,
}

pub(crate) fn serve(shared: &Arc<Shared>, ports: Ports) -> Result<(), Error> {
    let servers = [
        (Server::Admin, "--admin", shared.args.admin),
        (Server::Metrics, "--metrics", shared.args.metrics),
        (Server::Health, "--health", shared.args.health),
    ];
    for (server, what, address) in servers {
        let listener = listen(address, ports).map_err(|reason| Error::Listen {
            what,
            address,
            reason,
        })?;
        let silent = shared.silent.clone();
        let accept = accept(shared.clone(), server, listener);
        tokio::spawn(silent.run_until_cancelled_owned(accept));
    }
    Ok(())
}

fn listen(address: SocketAddr, ports: Ports) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // An earlier proxy's connections may be in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(ports == Ports::Shared)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn accept(shared: Arc<Shared>, server: Server, listener: TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let shared = shared.clone();
        let service = service_fn(move |request| {
            let shared = shared.clone();
            async move { Ok::<_, Infallible>(answer(&shared, server, request).await) }
        });
        tokio::spawn(async move {
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

type Answer = Response<Either<Full<Bytes>, TapBody>>;

async fn answer(shared: &Shared, server: Server, request: Request<Incoming>) -> Answer {
    let admin = server == Server::Admin;
    if admin && !is_local_host(&request) {
        return text(
            StatusCode::FORBIDDEN,
            "the Host must be a loopback address or localhost\n",
        );
    }
    let path = request.uri().path().to_owned();
    match (request.method(), path.as_str()) {
        (&Method::GET, "/live") if server != Server::Metrics => text(StatusCode::OK, "live\n"),
        (&Method::GET, "/ready") if server != Server::Metrics => ready(shared),
        (&Method::GET, "/metrics") if server != Server::Health => metrics(shared),
        (&Method::GET, "/config") if admin => config(shared),
        (&Method::GET, "/identity") if admin => json_page(&identity(shared)),
        (&Method::GET, "/connections") if admin => connections(shared, request.uri().query()),
        (&Method::GET, "/tap") if admin => tap(shared, request.uri().query()),
        (&Method::GET, "/log-level") if admin => {
            text(StatusCode::OK, format!("{}\n", LogLevel::current().get()))
        }
        (&Method::PUT, "/log-level") if admin => set_log_level(request).await,
        (&Method::POST, "/shutdown") if admin => {
            shared.shutdown.notify_one();
            text(StatusCode::ACCEPTED, "draining\n")
        }
        _ => text(
            StatusCode::NOT_FOUND,
            format!("{} {path} is not served here\n", request.method()),
        ),
    }
}

/// A page in a browser may not reach this through a name of its own.
fn is_local_host(request: &Request<Incoming>) -> bool {
    let Some(host) = request
        .headers()
        .get(HOST)
        .and_then(|host| host.to_str().ok())
    else {
        return true;
    };
    let by_address = host
        .parse::<SocketAddr>()
        .is_ok_and(|address| address.ip().is_loopback());
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    by_address || name == "localhost" || name == "127.0.0.1" || host == "[::1]"
}

fn ready(shared: &Shared) -> Answer {
    let missing = shared.readiness.missing();
    if missing.is_empty() {
        text(StatusCode::OK, "ready\n")
    } else {
        text(StatusCode::SERVICE_UNAVAILABLE, missing.join("\n") + "\n")
    }
}

fn metrics(shared: &Shared) -> Answer {
    let encoder = TextEncoder::new();
    let mut page = Vec::new();
    match encoder.encode(&shared.metrics.registry().gather(), &mut page) {
        Ok(()) => {
            let mut answer = Response::new(Either::Left(Full::from(page)));
            if let Ok(kind) = encoder.format_type().parse() {
                answer.headers_mut().insert(CONTENT_TYPE, kind);
            }
            answer
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// What this proxy is, who it speaks for, and with which certificates.
fn identity(shared: &Shared) -> serde_json::Value {
    let seconds = |time: std::time::SystemTime| {
        time.duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs()
    };
    let identities: Vec<_> = shared
        .identities
        .list()
        .into_iter()
        .map(|(identity, certificate)| {
            json!({
                "identity": identity.as_str(),
                "notBefore": certificate.as_ref().map(|one| seconds(one.not_before)),
                "notAfter": certificate.as_ref().map(|one| seconds(one.not_after)),
                "serial": certificate.as_ref().and_then(|one| serial(one.leaf()?)),
                "roots": certificate.as_ref().map(|one| one.root_fingerprints()),
                "certificate": certificate.as_ref().and_then(|one| one.leaf()).map(|leaf| pem(leaf)),
            })
        })
        .collect();
    let workloads: Vec<_> = shared
        .locals
        .lock()
        .values()
        .map(|local| {
            json!({
                "name": local.name.to_string(),
                "identity": local.identity().map(|held| held.identity().to_string()),
                "open": local.tasks.len(),
            })
        })
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "core": crate::CORE_FINGERPRINT,
        "optLevel": crate::OPT_LEVEL,
        "mode": shared.mode,
        "node": shared.node,
        "time": seconds(std::time::SystemTime::now()),
        "missing": shared.readiness.missing(),
        "workloads": workloads,
        "identities": identities,
    })
}

/// The same, and what duet-control has told it of all others.
fn config(shared: &Shared) -> Answer {
    let mut page = identity(shared);
    page["directory"] = shared.directory.dump();
    json_page(&page)
}

/// The serial number, as `openssl x509 -serial` writes it but with colons.
fn serial(leaf: &[u8]) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).ok()?;
    Some(parsed.raw_serial_as_string())
}

fn connections(shared: &Shared, query: Option<&str>) -> Answer {
    #[derive(Serialize)]
    struct Page<L> {
        connections: L,
        /// There are so many more.
        omitted: usize,
    }
    match Question::read(query, &["workload", "direction", "limit"]) {
        Ok(asked) => {
            let wanted = Wanted {
                workloads: asked.filter.workloads,
                direction: asked.filter.direction,
            };
            let limit = asked.limit.unwrap_or(CONNECTIONS);
            let (connections, omitted) = shared.connections.list(&wanted, limit);
            json_page(&Page {
                connections,
                omitted,
            })
        }
        Err(reason) => text(StatusCode::BAD_REQUEST, reason + "\n"),
    }
}

/// Records as they come, until the client leaves.
fn tap(shared: &Shared, query: Option<&str>) -> Answer {
    let parameters = ["workload", "direction", "path", "method", "peer", "rate"];
    let asked = match Question::read(query, &parameters) {
        Ok(asked) => asked,
        Err(reason) => return text(StatusCode::BAD_REQUEST, reason + "\n"),
    };
    let rate = asked.rate.unwrap_or(DEFAULT_RATE);
    match shared.log.taps().open(asked.filter, rate) {
        Ok(lines) => {
            let mut answer = Response::new(Either::Right(lines));
            let lines = ::http::HeaderValue::from_static("application/x-ndjson");
            answer.headers_mut().insert(CONTENT_TYPE, lines);
            answer
        }
        Err(error) => text(StatusCode::TOO_MANY_REQUESTS, format!("{error}\n")),
    }
}

/// What a query asks for.
#[derive(Default)]
struct Question {
    filter: Filter,
    rate: Option<u32>,
    limit: Option<usize>,
}

impl Question {
    fn read(query: Option<&str>, known: &[&str]) -> Result<Self, String> {
        let mut asked = Self::default();
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            if !known.contains(&&*name) {
                let known = known.join(", ");
                return Err(format!("{name:?} is not known here: write {known}"));
            }
            let filter = &mut asked.filter;
            match &*name {
                "workload" if value.split('/').count() != 2 => {
                    return Err(format!("workload={value}: write namespace/name"));
                }
                "workload" if filter.workloads.len() == MAX_WORKLOADS => {
                    return Err(format!("at most {MAX_WORKLOADS} workloads may be named"));
                }
                "workload" => filter.workloads.push(value.into_owned()),
                "direction" => {
                    filter.direction = Some(match &*value {
                        "inbound" => Direction::Inbound,
                        "outbound" => Direction::Outbound,
                        _ => return Err(format!("direction={value}: write inbound or outbound")),
                    });
                }
                "path" => filter.path = Some(value.into_owned()),
                "method" => filter.method = Some(value.into_owned()),
                "peer" => filter.peer = Some(value.into_owned()),
                "rate" => match value.parse() {
                    Ok(rate @ 1..=MAX_RATE) => asked.rate = Some(rate),
                    _ => return Err(format!("rate={value}: write 1 to {MAX_RATE}")),
                },
                _ => match value.parse() {
                    Ok(limit) => asked.limit = Some(limit),
                    Err(_) => return Err(format!("{name}={value}: write a number")),
                },
            }
        }
        Ok(asked)
    }
}

fn json_page(page: &impl Serialize) -> Answer {
    let body = serde_json::to_vec_pretty(page).map(|mut body| {
        body.push(b'\n');
        body
    });
    let mut answer = text(StatusCode::OK, body.unwrap_or_default());
    let json = ::http::HeaderValue::from_static("application/json");
    answer.headers_mut().insert(CONTENT_TYPE, json);
    answer
}

/// RFC 7468.
fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines = text
        .as_bytes()
        .chunks(64)
        .map(String::from_utf8_lossy)
        .collect::<Vec<_>>();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}

async fn set_log_level(request: Request<Incoming>) -> Answer {
    let Ok(body) = Limited::new(request.into_body(), MAX_BODY).collect().await else {
        return text(
            StatusCode::BAD_REQUEST,
            "the body holds a filter, as info or duet_core=debug\n",
        );
    };
    let filter = String::from_utf8_lossy(&body.to_bytes()).trim().to_owned();
    match LogLevel::current().set(&filter) {
        Ok(()) => text(StatusCode::OK, format!("{filter}\n")),
        Err(reason) => text(StatusCode::BAD_REQUEST, format!("{filter:?}: {reason}\n")),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Either::Left(Full::new(body.into())));
    *answer.status_mut() = status;
    let plain = ::http::HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, plain);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_says_what_is_wrong_with_it() {
        let known = ["workload", "direction", "path", "rate", "limit"];
        let read = |query| Question::read(Some(query), &known);
        let asked = read("workload=a/b&workload=a%2Fc&direction=inbound&path=%2Fcart+1&rate=5");
        let asked = asked.expect("good");
        assert_eq!(asked.filter.workloads, ["a/b", "a/c"]);
        assert_eq!(asked.filter.direction, Some(Direction::Inbound));
        assert_eq!(asked.filter.path.as_deref(), Some("/cart 1"));
        assert_eq!(asked.rate, Some(5));
        for (query, reason) in [
            ("workload=web", "workload=web: write namespace/name"),
            ("direction=up", "direction=up: write inbound or outbound"),
            ("rate=0", "rate=0: write 1 to 10000"),
            ("limit=x", "limit=x: write a number"),
            (
                "method=GET",
                "\"method\" is not known here: write workload, direction, path, rate, limit",
            ),
        ] {
            assert_eq!(read(query).err().as_deref(), Some(reason));
        }
    }
}
