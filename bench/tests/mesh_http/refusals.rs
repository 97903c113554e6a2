//! What is refused because two servers could read it in two ways.

use crate::mesh::by_hand::{STAYS_OPEN, Server, Way};
use crate::mesh::http::{Body, full};
use anyhow::{Context, Result, ensure};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request that is not to arrive, in front of one that nobody may see.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// Refused by its head: the application hears of nothing.
pub async fn refused_here(way: Way<'_>) -> Result<()> {
    let app = serve(way.serve(), |_| Duration::ZERO);
    for head in [
        // Two lengths, or one that is none.
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5, 6",
        "Content-Length: +5",
        "Content-Length: -1",
        "Content-Length: 0x5",
        "Content-Length: 5 5",
        "Content-Length: 99999999999999999999",
        // A coding that somebody else may read otherwise.
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: \x0bchunked",
        "Content-Length: 5\r\nTransfer-Encoding: xchunked",
        // A name, or a line, that is none.
        "Transfer-Encoding : chunked",
        "Content-Length\t: 5",
        " Content-Length: 5",
        "X: y\r\n Transfer-Encoding: chunked",
        "X: y\r\n\tContent-Length: 5",
        "X y: z",
        "X\0: y",
        "X: y\0z",
        "X: y\rContent-Length: 5",
        ": nothing",
        "Content-Length",
        // Two hosts, or one that is none.
        "Host: b",
        "Host: a",
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n");
        app.refuses(way, &request)
            .await
            .with_context(|| format!("{head:?}"))?;
    }
    for whole in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        "GET http://me@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        app.refuses(way, whole)
            .await
            .with_context(|| format!("{whole:?}"))?;
    }
    Ok(())
}

/// Where it goes wrong only behind the head, the application sees no whole request; and
/// where there are two ways to read it, it is read in one and nothing follows it.
pub async fn refused_in_body(way: Way<'_>) -> Result<()> {
    let app = serve(way.serve(), |_| Duration::ZERO);
    let extension = format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(40_000));
    for chunks in [
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\n\n",
        "5\r\nhello!!0\r\n\r\n",
        "5;a=b\nc\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        &extension,
    ] {
        let head = "POST /chunks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let seen = app.asked(way, &format!("{head}{chunks}{SMUGGLED}")).await?;
        let whole = seen
            .iter()
            .find(|seen| !seen.starts_with("cut POST /chunks"));
        ensure!(whole.is_none(), "{chunks:?}: {whole:?}");
    }
    for lengths in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 60\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 60\r\nContent-Length: 5",
    ] {
        let head = format!("POST /lengths HTTP/1.1\r\nHost: a\r\n{lengths}\r\n\r\n");
        let seen = app
            .asked(way, &format!("{head}5\r\nhello\r\n0\r\n\r\n{SMUGGLED}"))
            .await?;
        let read_once = seen.is_empty() || seen == ["POST /lengths hello"];
        ensure!(read_once, "{lengths:?}: {seen:?}");
    }
    // Lines may end without CR (RFC 9112 §2.2), and the application does not see that.
    let bare = "POST /bare HTTP/1.1\nHost: a\nConnection: close\nContent-Length: 5\n\nhello";
    let seen = app.asked(way, bare).await?;
    ensure!(seen.is_empty() || seen == ["POST /bare hello"], "{seen:?}");
    Ok(())
}

/// Who reads the answer only once all is sent has it all the same: by then the proxy has said its
/// last word, and the rest of the body is nobody's.
pub async fn refused_while_sending(way: Way<'_>) -> Result<()> {
    let app = serve(way.serve(), |_| Duration::ZERO);
    let body = vec![b'x'; 8 << 20];
    // By the parser, and by what is known of messages.
    for wrong in ["X y: z", "Host: b"] {
        let length = body.len();
        let head =
            format!("POST / HTTP/1.1\r\nHost: a\r\n{wrong}\r\nContent-Length: {length}\r\n\r\n");
        let mut client = way.connect(app.port).await?;
        client.write(head).await?;
        client.heard().await.with_context(|| wrong)?;
        client.write(&body).await.with_context(|| wrong)?;
        let head = client.head().await.with_context(|| wrong)?;
        ensure!(head.first_line().contains(" 400 "), "{wrong:?}: {head:?}");
        client.rest().await.with_context(|| wrong)?;
    }
    let seen = std::mem::take(&mut *app.seen.lock().unwrap());
    ensure!(seen.is_empty(), "{seen:?}");
    Ok(())
}

/// An application that remembers what it was asked.
pub struct Remembers {
    pub port: u16,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Remembers {
    /// The answer is a refusal, the last one, and the proxy's.
    async fn refuses(&self, way: Way<'_>, request: &str) -> Result<()> {
        let mut client = way.connect(self.port).await?;
        client.write(format!("{request}{SMUGGLED}")).await?;
        let head = client.head().await?;
        let status = head.first_line().split(' ').nth(1).context("a status")?;
        ensure!(["400", "431", "501"].contains(&status), "{head:?}");
        let rest = match client.rest().await {
            Ok(rest) => rest,
            Err(error) if error.to_string() == STAYS_OPEN => return Err(error),
            Err(_) => String::new(),
        };
        ensure!(
            !rest.contains("HTTP/1.1 200"),
            "there is a further answer: {rest:?}"
        );
        let seen = std::mem::take(&mut *self.seen.lock().unwrap());
        ensure!(seen.is_empty(), "{seen:?}");
        Ok(())
    }

    /// What it saw of it, once the client's connection has ended.
    async fn asked(&self, way: Way<'_>, request: &str) -> Result<Vec<String>> {
        let mut client = way.connect(self.port).await?;
        client.write(request).await?;
        let _ = client.rest().await;
        // The application is told of the end of a body at the same time.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut seen = std::mem::take(&mut *self.seen.lock().unwrap());
        // What was cut may be told of late.
        let path = request.split(' ').nth(1).unwrap_or_default();
        seen.retain(|seen| !seen.starts_with("cut ") || seen.ends_with(path));
        Ok(seen)
    }
}

/// Says, after a while, what was asked of it.
pub fn serve(
    server: Server,
    after: impl Fn(&str) -> Duration + Send + Sync + Copy + 'static,
) -> Remembers {
    let seen = Arc::<Mutex<Vec<String>>>::default();
    let remembers = Remembers {
        port: server.port,
        seen: seen.clone(),
    };
    tokio::spawn(async move {
        while let Ok(line) = server.accept_forever().await {
            let seen = seen.clone();
            let answer = move |request: Request<Incoming>| {
                let seen = seen.clone();
                async move {
                    let (method, path) =
                        (request.method().clone(), request.uri().path().to_owned());
                    let said = match request.into_body().collect().await {
                        Ok(body) => {
                            let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
                            format!("{method} {path} {body}")
                        }
                        Err(_) => format!("cut {method} {path}"),
                    };
                    seen.lock().unwrap().push(said.clone());
                    tokio::time::sleep(after(&path)).await;
                    Ok::<Response<Body>, Infallible>(Response::new(full(said)))
                }
            };
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(line), service_fn(answer)),
            );
        }
    });
    remembers
}
