//! HTTP as RFC 9110 and RFC 9112 have it, byte by byte: what may change on the way, what
//! must, and what is refused ([`refusals`]).
//!
//! On each way there is: through the mesh, from a client outside of it, and to a server
//! outside of it.
#![forbid(unsafe_code)]

mod mesh;
#[path = "mesh_http/refusals.rs"]
mod refusals;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use duet_bench::cluster::{Placement, PodSpec};
use futures_util::StreamExt;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh::by_hand::{self, Way};
use mesh::http::{Client, empty, full};
use mesh::{Checks, Mesh};
use refusals::{refused_here, refused_in_body, refused_while_sending, serve};
use std::convert::Infallible;
use std::time::Duration;

mesh::in_both_placements!(run);

fn run(placement: Placement) {
    let pods = [
        PodSpec::new("client"),
        PodSpec::new("server").node(2),
        PodSpec::new("outsider").node(2).meshed(false),
    ];
    let Some(mesh) = Mesh::start(placement, pods, []) else {
        return;
    };
    mesh.block_on(async {
        let [client, server, outsider] =
            ["client", "server", "outsider"].map(|pod| &**mesh.app(pod));
        let way = |name, client, server| Way {
            name,
            client,
            server,
        };
        let ways = [
            way("through the mesh", client, server),
            way("from outside", outsider, server),
            way("to the outside", client, outsider),
        ];
        let mut checks = Checks::default();
        macro_rules! each_way {
            ($($check:ident),+) => {$(
                for way in ways {
                    let name = format!("{}, {}", stringify!($check), way.name);
                    checks.run(&name, $check(way)).await;
                }
            )+};
        }
        each_way!(
            headers,
            names,
            targets,
            http10,
            http10_cut,
            pipelined,
            chunks_and_trailers,
            expectations,
            declined_upgrade,
            connect,
            bodiless,
            cut,
            http2_hosts,
            refused_here,
            refused_in_body,
            refused_while_sending
        );
        checks
            .run("failures", failures(way("", client, server)))
            .await;
        checks.assert_all_passed();
    });
}

/// What concerns a hop ends with it, and all else arrives as it was sent.
async fn headers(way: Way<'_>) -> Result<()> {
    let (mut client, mut server) = way
        .ask(
            "GET /a%20b?c=d;e HTTP/1.1\r\nHost: Shop.Example:81\r\nX-Many: 1\r\n\
             Connection: keep-alive, X-Private , TE\r\nX-Private: 1\r\nX-Many: 2\r\n\
             Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\n\
             Duet-Client-Id: spiffe://forged\r\nDuet-Destination: 10.0.0.1:1\r\nX-Empty:\r\n\r\n",
        )
        .await?;
    let seen = server.head().await?;
    ensure!(seen.first_line() == "GET /a%20b?c=d;e HTTP/1.1", "{seen:?}");
    ensure!(seen.all("host") == ["Shop.Example:81"], "{seen:?}");
    ensure!(seen.all("x-many") == ["1", "2"], "{seen:?}");
    ensure!(seen.all("x-empty") == [""], "{seen:?}");
    ensure!(
        seen.all("te") == ["trailers"] && seen.all("connection") == ["te"],
        "{seen:?}"
    );
    for gone in [
        "x-private",
        "keep-alive",
        "proxy-connection",
        "duet-destination",
    ] {
        ensure!(!seen.has(gone), "{gone}: {seen:?}");
    }
    ensure!(!seen.0.contains("forged"), "{seen:?}");
    server
        .write(
            "HTTP/1.1 299 All Is Well\r\nContent-Length: 2\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n\
             Keep-Alive: timeout=5\r\nX-Kept: 2\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\nok",
        )
        .await?;
    let seen = client.head().await?;
    ensure!(seen.first_line() == "HTTP/1.1 299 All Is Well", "{seen:?}");
    ensure!(
        seen.all("set-cookie") == ["a", "b"] && seen.all("x-kept") == ["2"],
        "{seen:?}"
    );
    for gone in [
        "x-hop",
        "keep-alive",
        "connection",
        "duet-reason",
        "date",
        "server",
    ] {
        ensure!(!seen.has(gone), "{gone}: {seen:?}");
    }
    client.exactly("ok").await
}

/// Names have no case (RFC 9110 §5.1), and arrive as they were spelled all the same.
async fn names(way: Way<'_>) -> Result<()> {
    let spelled = |seen: &by_hand::Head, lines: &[&str]| {
        let missing = lines
            .iter()
            .find(|line| !seen.0.contains(&format!("\r\n{line}\r\n")));
        missing.map_or(Ok(()), |line| bail!("no {line:?} in {seen:?}"))
    };
    let asked = [
        // As curl and Go, as a program that writes in its own way, as Node.js, and as Rust.
        &["Host: a", "User-Agent: x", "Accept: y"][..],
        &[
            "Host: a",
            "SOAPAction: x",
            "X-Request-ID: 1",
            "x-lower: z",
            "Accept: y",
        ],
        &["Host: a", "user-agent: x", "accept: y", "etag: z"],
        &["host: a", "user-agent: x", "accept: y", "etag: z"],
    ];
    let answered = [
        &["Server: x", "Content-Type: y"][..],
        &["ETag: x", "WWW-Authenticate: y", "Content-Type: z"],
        &["server: x", "content-type: y", "x-UPPER: z"],
        &["server: x", "content-type: y", "x-lower: z"],
    ];
    let listening = way.serve();
    let mut server = None;
    let head = |first: &str, lines: &[&str], end: &str| {
        format!("{first}\r\n{}\r\n{end}", lines.join("\r\n"))
    };
    let pairs: Vec<_> = asked.into_iter().zip(answered).collect();
    // How it was answered last is a guess at how the next one will be.
    for pairs in [pairs.clone(), pairs.into_iter().rev().collect()] {
        let mut client = way.connect(listening.port).await?;
        // Alone, behind a body, and in two pieces.
        for (asked, answered) in pairs.iter().copied() {
            let is_lower = asked.concat().to_lowercase() == asked.concat();
            // What parts one message from the next is the proxy's.
            let (length, passed_on) = match is_lower {
                true => ("content-length: 4", "content-length: 4"),
                false => ("content-LENGTH: 4", "Content-Length: 4"),
            };
            let with_body = format!("{length}\r\n\r\nbody");
            for (end, pieces) in [("\r\n", 1), (&*with_body, 1), ("\r\n", 2)] {
                let request = head("POST / HTTP/1.1", asked, end);
                for piece in request.as_bytes().chunks(request.len().div_ceil(pieces)) {
                    client.write(piece).await?;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                let seen = listening.next(&mut server).await?;
                spelled(&seen, asked)?;
                let line = server.as_mut().context("a connection")?;
                if end == with_body {
                    spelled(&seen, &[passed_on])?;
                    line.exactly("body").await?;
                }
                let early = head("HTTP/1.1 103 Early Hints", &["lINK: x"], "\r\n");
                let answer = head("HTTP/1.1 200 OK", answered, "CONTENT-Length: 2\r\n\r\nok");
                line.write(early + &answer).await?;
                let seen = client.head().await?;
                spelled(&seen, answered)?;
                spelled(&seen, &["Content-Length: 2"])?;
                client.exactly("ok").await?;
            }
        }
        // All at once.
        let requests = pairs
            .iter()
            .map(|(asked, _)| head("GET / HTTP/1.1", asked, "\r\n"));
        client.write(requests.collect::<String>()).await?;
        for (asked, answered) in pairs {
            spelled(&listening.next(&mut server).await?, asked)?;
            let line = server.as_mut().context("a connection")?;
            line.write(head("HTTP/1.1 204 No Content", answered, "\r\n"))
                .await?;
            let seen = client.head().await?;
            spelled(&seen, answered)?;
            ensure!(!seen.has("duet-header-names"), "{seen:?}");
        }
    }

    let upgrade = [
        "Host: a",
        "Connection: upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Key: x",
    ];
    let (mut client, mut server) = way.ask(&head("GET / HTTP/1.1", &upgrade, "\r\n")).await?;
    spelled(&server.head().await?, &upgrade)?;
    let accepted = [
        "Connection: upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Accept: y",
    ];
    let switched = head("HTTP/1.1 101 Switching Protocols", &accepted, "\r\n");
    server.write(switched + "head: er\r\n\r\n").await?;
    spelled(&client.head().await?, &accepted)?;
    client.exactly("head: er\r\n\r\n").await
}

/// The target's authority is Host's; what Host said is nothing then (RFC 9112 §3.2.2).
async fn targets(way: Way<'_>) -> Result<()> {
    for (line, origin, host) in [
        (
            "GET http://right.example:81/x?y HTTP/1.1",
            "GET /x?y HTTP/1.1",
            "right.example:81",
        ),
        (
            "GET http://right.example HTTP/1.1",
            "GET / HTTP/1.1",
            "right.example",
        ),
        ("OPTIONS * HTTP/1.1", "OPTIONS * HTTP/1.1", "wrong"),
        ("BREW /pot HTTP/1.1", "BREW /pot HTTP/1.1", "wrong"),
    ] {
        let (mut client, mut server) = way.ask(&format!("{line}\r\nHost: wrong\r\n\r\n")).await?;
        let seen = server.head().await?;
        ensure!(
            seen.first_line() == origin && seen.all("host") == [host],
            "{seen:?}"
        );
        server.write("HTTP/1.1 204 No Content\r\n\r\n").await?;
        ensure!(client.head().await?.first_line() == "HTTP/1.1 204 No Content");
    }
    Ok(())
}

/// A client of HTTP/1.0 has no chunks, and says itself if its connection is to be kept.
async fn http10(way: Way<'_>) -> Result<()> {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let (mut client, mut server) = way.ask("GET /x HTTP/1.0\r\n\r\n").await?;
    let seen = server.head().await?;
    // A proxy speaks its own version (RFC 9110 §2.5), and that has a Host.
    ensure!(
        seen.first_line() == "GET /x HTTP/1.1" && seen.all("host").len() == 1,
        "{seen:?}"
    );
    server.write(chunked).await?;
    let seen = client.head().await?;
    ensure!(
        seen.first_line() == "HTTP/1.0 200 OK" && !seen.has("transfer-encoding"),
        "{seen:?}"
    );
    ensure!(client.rest().await? == "hello");

    let keep = "GET /x HTTP/1.0\r\nConnection: keep-alive\r\nHost: a\r\n\r\n";
    let (mut client, mut server) = way.ask(keep).await?;
    for turn in 0..2 {
        server.head().await?;
        server
            .write("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            .await?;
        let seen = client.head().await?;
        ensure!(seen.all("connection") == ["keep-alive"], "{seen:?}");
        client.exactly("hello").await?;
        if turn == 0 {
            client.write(keep).await?;
        }
    }
    Ok(())
}

/// Where the connection's end is the answer's, half of one ends in a reset.
async fn http10_cut(way: Way<'_>) -> Result<()> {
    for head in ["Transfer-Encoding: chunked", "Content-Length: 10"] {
        let (mut client, mut server) = way.ask("GET /x HTTP/1.0\r\n\r\n").await?;
        server.head().await?;
        server
            .write(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n5\r\nhel"))
            .await?;
        client.head().await?;
        drop(server);
        let rest = client.rest().await;
        ensure!(rest.is_err(), "{head}: it looks whole: {rest:?}");
    }
    // Who closes its side has left; what it was given until then is not all.
    let (mut client, mut server) = way.ask("GET /x HTTP/1.0\r\n\r\n").await?;
    server.head().await?;
    let begun = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n";
    server.write(begun).await?;
    client.head().await?;
    client.exactly("hel").await?;
    client.ends().await?;
    let rest = client.rest().await;
    ensure!(rest.is_err(), "left: it looks whole: {rest:?}");
    Ok(())
}

/// Answers come in the order of the requests, however many are sent at once.
async fn pipelined(way: Way<'_>) -> Result<()> {
    let app = serve(way.serve(), |path| {
        let early = path.trim_start_matches('/').parse().unwrap_or(0);
        Duration::from_millis(200_u64.saturating_sub(50 * early))
    });
    let mut client = way.connect(app.port).await?;
    let mut all = String::new();
    for n in 0..5 {
        all += &format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n");
        all += &format!("POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody");
    }
    client.write(all).await?;
    for n in 0..5 {
        for said in [format!("GET /{n} "), format!("POST /{n} body")] {
            client.head().await?;
            client.exactly(&said).await?;
        }
    }
    Ok(())
}

async fn chunks_and_trailers(way: Way<'_>) -> Result<()> {
    let (mut client, mut server) = way
        .ask(
            "POST /x HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\
             Trailer: X-Sum\r\n\r\n5;a=b\r\nhello\r\n00006\r\n world\r\n0\r\nX-Sum: 7\r\n\r\n",
        )
        .await?;
    let seen = server.head().await?;
    ensure!(seen.all("transfer-encoding") == ["chunked"] && !seen.has("content-length"));
    ensure!(seen.all("trailer") == ["X-Sum"], "{seen:?}");
    let body = server.until("\r\n\r\n").await?;
    ensure!(
        unchunked(&body)? == ("hello world".into(), "x-sum: 7\r\n".into()),
        "{body:?}"
    );
    server
        .write(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
             3\r\nfin\r\n0\r\nX-Sum: 8\r\nX-Unnamed: 9\r\n\r\n",
        )
        .await?;
    let seen = client.head().await?;
    ensure!(seen.all("transfer-encoding") == ["chunked"], "{seen:?}");
    ensure!(seen.all("trailer") == ["X-Sum"], "{seen:?}");
    let (body, trailers) = unchunked(&client.until("\r\n\r\n").await?)?;
    ensure!(
        body == "fin" && trailers.contains("x-sum: 8\r\n"),
        "{body:?} {trailers:?}"
    );
    Ok(())
}

/// Data, and trailers as they came.
fn unchunked(body: &str) -> Result<(String, String)> {
    let (mut data, mut rest) = (String::new(), body);
    loop {
        let (size, after) = rest.split_once("\r\n").context("a chunk's size")?;
        let size = usize::from_str_radix(size, 16)?;
        if size == 0 {
            let trailers = after.strip_suffix("\r\n").context("an end")?;
            return Ok((data, trailers.to_ascii_lowercase()));
        }
        data += after.get(..size).context("a chunk")?;
        rest = after
            .get(size..)
            .and_then(|it| it.strip_prefix("\r\n"))
            .context("its end")?;
    }
}

async fn expectations(way: Way<'_>) -> Result<()> {
    let (mut client, mut server) = way
        .ask("PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        .await?;
    let seen = client.head().await?;
    ensure!(seen.0 == "HTTP/1.1 100 Continue\r\n\r\n", "{seen:?}");
    client.write("hello").await?;
    let seen = server.head().await?;
    ensure!(seen.all("expect") == ["100-continue"], "{seen:?}");
    server.write("HTTP/1.1 100 Continue\r\n\r\n").await?;
    server.exactly("hello").await?;
    server
        .write("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
        .await?;
    let seen = client.head().await?;
    ensure!(seen.first_line() == "HTTP/1.1 201 Created", "{seen:?}");
    Ok(())
}

/// Who is refused an upgrade goes on in HTTP.
async fn declined_upgrade(way: Way<'_>) -> Result<()> {
    let ask = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n";
    let listening = way.serve();
    let mut client = way.connect(listening.port).await?;
    for _ in 0..2 {
        client.write(ask).await?;
        let mut server = listening.accept().await?;
        let seen = server.head().await?;
        ensure!(seen.all("upgrade") == ["other"] && seen.all("connection") == ["upgrade"]);
        server
            .write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno")
            .await?;
        client.head().await?;
        client.exactly("no").await?;
    }
    Ok(())
}

/// It asks for a tunnel of whoever it is sent to. A proxy on the way is not asked.
async fn connect(way: Way<'_>) -> Result<()> {
    let asked = "CONNECT db.example:3306 HTTP/1.1\r\nHost: db.example:3306\r\n\r\n";
    let (mut client, mut server) = way.ask(asked).await?;
    server.exactly(asked).await?;
    server.write("HTTP/1.1 200 Connected\r\n\r\nhello").await?;
    client
        .exactly("HTTP/1.1 200 Connected\r\n\r\nhello")
        .await?;
    client.write("\0 anything").await?;
    server.exactly("\0 anything").await?;

    let (mut client, mut server) = way.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await?;
    server.head().await?;
    server
        .write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        .await?;
    client.head().await?;
    client.write(asked).await?;
    let seen = client.head().await?;
    ensure!(
        seen.first_line() == "HTTP/1.1 501 Not Implemented",
        "{seen:?}"
    );
    Ok(())
}

/// What has no body may say how long it would be.
async fn bodiless(way: Way<'_>) -> Result<()> {
    let listening = way.serve();
    let mut client = way.connect(listening.port).await?;
    let mut server = None;
    for (method, answer, length) in [
        ("HEAD", "200 OK\r\nContent-Length: 500", Some("500")),
        ("HEAD", "200 OK\r\nTransfer-Encoding: chunked", None),
        (
            "GET",
            "304 Not Modified\r\nContent-Length: 500\r\nETag: \"x\"",
            None,
        ),
        ("GET", "204 No Content", None),
        ("GET", "200 OK\r\nContent-Length: 0", Some("0")),
        ("HEAD", "200 OK\r\nContent-Length: 0", Some("0")),
    ] {
        let request = format!("{method} /x HTTP/1.1\r\nHost: a\r\n\r\n");
        client.write(request).await?;
        let asked = listening.next(&mut server).await?;
        ensure!(
            asked.first_line() == format!("{method} /x HTTP/1.1"),
            "{asked:?}"
        );
        let server = server.as_mut().context("it was asked")?;
        server.write(format!("HTTP/1.1 {answer}\r\n\r\n")).await?;
        let seen = client.head().await?;
        let status = answer.lines().next().unwrap_or_default();
        ensure!(
            seen.first_line() == format!("HTTP/1.1 {status}"),
            "{seen:?}"
        );
        if let Some(length) = length {
            ensure!(seen.all("content-length") == [length], "{seen:?}");
        }
    }
    Ok(())
}

/// Half an answer looks like half of one in HTTP/2 as well.
async fn cut(way: Way<'_>) -> Result<()> {
    let port = way.serve().port;
    let listener = way.server.listen(port);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|_: Request<Incoming>| async {
                let half = futures_util::stream::once(async {
                    Ok(http_body::Frame::data(Bytes::from_static(b"half")))
                });
                // Once the head has left.
                let gone = futures_util::stream::once(async {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    Err(std::io::Error::other("gone"))
                });
                let body = http_body_util::StreamBody::new(Box::pin(half.chain(gone)));
                Ok::<_, Infallible>(Response::new(body))
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    let mut client = Client::http2(way.client, way.server.at(port)).await?;
    let answer = client.get("/").await;
    ensure!(answer.is_err(), "it looks whole: {answer:?}");
    Ok(())
}

/// A request is for one host.
async fn http2_hosts(way: Way<'_>) -> Result<()> {
    let port = way.serve().port;
    mesh::http::serve_http2(way.server, port);
    let mut client = Client::http2(way.client, way.server.at(port)).await?;
    let same = [("host", "shop.example:81")];
    let answer = client.send(Method::GET, "/", &same, empty()).await?;
    ensure!(answer.status == StatusCode::OK && answer.seen().host == "shop.example:81");
    let other = [("host", "other.example")];
    let answer = client.send(Method::GET, "/", &other, empty()).await?;
    ensure!(answer.status == StatusCode::BAD_REQUEST, "{answer:?}");
    ensure!(
        answer.headers.contains_key("duet-proxy-error"),
        "{answer:?}"
    );
    Ok(())
}

/// There is nobody: the client hears so in its own protocol, and who says it.
async fn failures(way: Way<'_>) -> Result<()> {
    const NOBODY: u16 = 9999;
    for (request, version) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1"),
        ("GET / HTTP/1.0\r\n\r\n", "HTTP/1.0"),
    ] {
        let mut client = way.connect(NOBODY).await?;
        client.write(request).await?;
        let head = client.head().await?;
        ensure!(
            head.first_line() == format!("{version} 503 Service Unavailable"),
            "{head:?}"
        );
        let [why] = head.all("duet-proxy-error")[..] else {
            anyhow::bail!("nobody says why: {head:?}");
        };
        ensure!(
            head.all("content-type") == ["text/plain; charset=utf-8"],
            "{head:?}"
        );
        client.exactly(&format!("{why}\n")).await?;
    }
    let mut client = way.connect(NOBODY).await?;
    client.write("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await?;
    ensure!(client.head().await?.has("content-length"));
    client
        .write("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await?;
    ensure!(
        client.head().await?.first_line().contains(" 503 "),
        "HEAD has no body"
    );

    let mut client = Client::http2(way.client, way.server.at(NOBODY)).await?;
    let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
    let answer = client.send(Method::POST, "/a.B/C", &grpc, full("")).await?;
    ensure!(answer.status == StatusCode::OK, "{answer:?}");
    ensure!(answer.headers["grpc-status"] == "14", "{answer:?}");
    ensure!(
        answer.headers["content-type"] == "application/grpc",
        "{answer:?}"
    );
    ensure!(answer.headers.contains_key("grpc-message"), "{answer:?}");
    ensure!(
        answer.headers.contains_key("duet-proxy-error"),
        "{answer:?}"
    );
    Ok(())
}
