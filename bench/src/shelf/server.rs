//! A small server of pages: reads, never writes, and on loopback unless told otherwise.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, Request, Response, StatusCode, uri::Authority};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, Semaphore};

use super::entry::Shelf;
use super::pages;
use crate::analysis::analyse;
use crate::{report, results};

/// A browser opens six.
const MOST_CONNECTIONS: usize = 32;
const HEADERS_WITHIN: Duration = Duration::from_secs(5);
/// Rendering a large run anew takes seconds.
const CONNECTION_LASTS: Duration = Duration::from_secs(120);
/// A page brings everything with it.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

/// `duet-bench serve-report`
#[derive(Args, Clone, Debug)]
pub struct ServeReportArgs {
    /// Folder of directories that `run --out` wrote
    pub dir: PathBuf,

    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8765")]
    pub listen: SocketAddr,

    /// Lets others than this machine read the reports, which is what a --listen beyond loopback means
    #[arg(long)]
    pub expose: bool,
}

/// Why nothing is served; the message is one line.
#[derive(Debug, thiserror::Error)]
pub enum ServeReportError {
    #[error("{dir}: {source}", dir = dir.display())]
    Dir {
        dir: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "--listen {0}: not a loopback address, so everybody who reaches it could read the reports; add --expose if that is meant"
    )]
    Exposed(SocketAddr),
    #[error("--listen {address}: {source}")]
    Listen {
        address: SocketAddr,
        source: std::io::Error,
    },
}

struct Server {
    shelf: Shelf,
    expose: bool,
    /// One at a time is rendered.
    rendering: Mutex<()>,
}

/// Serves until SIGTERM or SIGINT.
pub async fn serve(args: ServeReportArgs) -> Result<(), ServeReportError> {
    let (listener, server) = bind(&args).await?;
    let listen = |source| ServeReportError::Listen {
        address: args.listen,
        source,
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(listen)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(listen)?;
    println!("http://{}/", listener.local_addr().map_err(listen)?);
    tokio::select! {
        () = accept(listener, server) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

async fn bind(args: &ServeReportArgs) -> Result<(TcpListener, Arc<Server>), ServeReportError> {
    if !args.listen.ip().is_loopback() && !args.expose {
        return Err(ServeReportError::Exposed(args.listen));
    }
    let shelf = Shelf::at(&args.dir);
    shelf.list().map_err(|source| ServeReportError::Dir {
        dir: args.dir.clone(),
        source,
    })?;
    let listener =
        TcpListener::bind(args.listen)
            .await
            .map_err(|source| ServeReportError::Listen {
                address: args.listen,
                source,
            })?;
    let server = Server {
        shelf,
        expose: args.expose,
        rendering: Mutex::default(),
    };
    Ok((listener, Arc::new(server)))
}

async fn accept(listener: TcpListener, server: Arc<Server>) {
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let server = server.clone();
                tokio::spawn(async move {
                    // A reader who goes away, or never asks, is nobody's trouble.
                    let _ = tokio::time::timeout(CONNECTION_LASTS, talk(stream, server)).await;
                    drop(permit);
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn talk(stream: TcpStream, server: Arc<Server>) -> hyper::Result<()> {
    let answer = service_fn(move |request| {
        let server = server.clone();
        async move { Ok::<_, Infallible>(server.answer(request).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .serve_connection(TokioIo::new(stream), answer)
        .await
}

impl Server {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return page(
                StatusCode::METHOD_NOT_ALLOWED,
                pages::line("Pages are to be read: GET."),
            );
        }
        if !self.expose && !names_this_machine(request.headers().get(HOST)) {
            // Somebody else's page, by a name that leads here, must not read them.
            return page(
                StatusCode::FORBIDDEN,
                pages::line("Ask for localhost or a loopback address."),
            );
        }
        let path = request.uri().path().trim_start_matches('/').to_owned();
        let rendering = self.rendering.lock().await;
        let here = self.clone();
        let made = tokio::task::spawn_blocking(move || here.make(&path)).await;
        drop(rendering);
        let (status, text) = made.unwrap_or_else(|_| {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            (status, pages::line("This page cannot be made."))
        });
        page(status, text)
    }

    fn make(&self, path: &str) -> (StatusCode, String) {
        let path = path.trim_end_matches('/');
        if path.is_empty() {
            return match self.shelf.list() {
                Ok(runs) => (StatusCode::OK, pages::list(&runs)),
                Err(error) => (
                    StatusCode::INTERNAL_SERVER_ERROR,
                    pages::line(&error.to_string()),
                ),
            };
        }
        let Some(dir) = pages::decoded(path).and_then(|name| self.shelf.find(&name)) else {
            return (
                StatusCode::NOT_FOUND,
                pages::line("There is no such run here."),
            );
        };
        // What this version makes of it, whichever version wrote it.
        match results::read(&dir) {
            Ok(mut results) => {
                analyse(&mut results);
                (StatusCode::OK, report::html(&results))
            }
            Err(error) => (
                StatusCode::UNPROCESSABLE_ENTITY,
                pages::line(&error.to_string()),
            ),
        }
    }
}

fn names_this_machine(host: Option<&HeaderValue>) -> bool {
    let Some(authority) = host.and_then(|host| host.to_str().ok()?.parse::<Authority>().ok())
    else {
        return false;
    };
    let name = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']');
    let address = name.parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

fn page(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    );
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
pub(super) async fn start(args: &ServeReportArgs) -> Result<SocketAddr, ServeReportError> {
    let (listener, server) = bind(args).await?;
    let address = listener.local_addr().expect("it listens");
    tokio::spawn(accept(listener, server));
    Ok(address)
}
