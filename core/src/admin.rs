//! The proxy's own HTTP endpoints.
//!
//! | server | default | paths |
//! |---|---|---|
//! | admin | 127.0.0.1:15000 | `GET /config`, `GET`/`PUT /log-level`, `POST /shutdown`, and all below |
//! | metrics | 0.0.0.0:15020 | `GET /metrics` |
//! | health | 0.0.0.0:15021 | `GET /ready`, `GET /live` |

use crate::proxy::{Error, Shared};
use crate::runtime::LogLevel;
use ::http::header::{CONTENT_TYPE, HOST};
use ::http::{Method, Request, Response, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder, TextEncoder};
use serde_json::json;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use tokio::net::TcpListener;

const MAX_BODY: usize = 4096;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Server {
    Admin,
    Metrics,
    Health,
}

pub(crate) async fn serve(shared: &Arc<Shared>) -> Result<(), Error> {
    let servers = [
        (Server::Admin, "--admin", shared.args.admin),
        (Server::Metrics, "--metrics", shared.args.metrics),
        (Server::Health, "--health", shared.args.health),
    ];
    for (server, what, address) in servers {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|reason| Error::Listen {
                what,
                address,
                reason,
            })?;
        tokio::spawn(accept(shared.clone(), server, listener));
    }
    Ok(())
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

type Answer = Response<Full<Bytes>>;

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
            let mut answer = Response::new(Full::from(page));
            if let Ok(kind) = encoder.format_type().parse() {
                answer.headers_mut().insert(CONTENT_TYPE, kind);
            }
            answer
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn config(shared: &Shared) -> Answer {
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
    let page = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "core": crate::CORE_FINGERPRINT,
        "optLevel": crate::OPT_LEVEL,
        "mode": shared.mode,
        "node": shared.node,
        "workloads": workloads,
        "identities": identities,
        "directory": shared.directory.dump(),
    });
    let mut answer = text(StatusCode::OK, format!("{page:#}\n"));
    answer.headers_mut().insert(
        CONTENT_TYPE,
        ::http::HeaderValue::from_static("application/json"),
    );
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
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let plain = ::http::HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, plain);
    answer
}
