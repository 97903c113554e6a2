use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::http::Info;
use super::tcp::{BANNER, last_line};
use super::{ServeArgs, Server, Service};

struct Running {
    ports: Vec<(Service, u16)>,
    stop: oneshot::Sender<()>,
    ended: tokio::task::JoinHandle<()>,
}

fn start() -> Running {
    let args = ServeArgs {
        http: vec![0],
        tcp: vec![0],
        speaks_first: vec![0],
        close_after: vec![0],
        pod: "web-0".to_owned(),
        grace: Duration::from_secs(5),
        workers: 1,
    };
    let server = Server::bind(&args).unwrap();
    let ports = server.ports.clone();
    let (stop, stopped) = oneshot::channel();
    let ended = tokio::spawn(server.run(async {
        let _ = stopped.await;
    }));
    Running { ports, stop, ended }
}

impl Running {
    async fn connect(&self, service: Service) -> TcpStream {
        self.connect_to(service, "127.0.0.1").await
    }

    async fn connect_to(&self, service: Service, host: &str) -> TcpStream {
        let port = self
            .ports
            .iter()
            .find(|(other, _)| *other == service)
            .unwrap()
            .1;
        TcpStream::connect((host, port)).await.unwrap()
    }

    async fn http1(&self) -> http1::SendRequest<Full<Bytes>> {
        let stream = self.connect(Service::Http).await;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }

    async fn http2(&self) -> http2::SendRequest<Full<Bytes>> {
        let stream = self.connect(Service::Http).await;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        sender
    }
}

fn request(method: Method, uri: &str, body: &'static str) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(uri)
        .header("host", "web")
        .body(Full::from(body))
        .unwrap()
}

#[tokio::test]
async fn info_reports_what_the_server_saw() {
    let server = start();
    let stream = server.connect(Service::Http).await;
    let (own, peer) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut asked = request(Method::GET, "/info?x=1", "");
    asked.headers_mut().insert("x-first", "1".parse().unwrap());
    asked.headers_mut().insert("x-second", "2".parse().unwrap());
    let response = sender.send_request(asked).await.unwrap();
    let info: Info =
        serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(
        (info.pod.as_str(), info.http_version.as_str()),
        ("web-0", "HTTP/1.1")
    );
    assert_eq!(
        (info.method.as_str(), info.uri.as_str()),
        ("GET", "/info?x=1")
    );
    assert_eq!((info.peer, info.local), (own, peer));
    let names: Vec<_> = info.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["host", "x-first", "x-second"]);
}

#[tokio::test]
async fn one_port_speaks_http1_and_http2() {
    let server = start();
    let mut sender = server.http2().await;
    let response = sender
        .send_request(request(Method::GET, "http://web/echo", ""))
        .await
        .unwrap();
    assert_eq!(response.version(), Version::HTTP_2);
    let info: Info =
        serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(info.http_version, "HTTP/2.0");

    let mut sender = server.http1().await;
    let response = sender
        .send_request(request(Method::GET, "/", ""))
        .await
        .unwrap();
    assert_eq!(response.version(), Version::HTTP_11);
}

#[tokio::test]
async fn bodies_have_the_size_asked_for_and_come_back() {
    let server = start();
    let mut sender = server.http1().await;
    for bytes in [0, 1024, 300_000] {
        let response = sender
            .send_request(request(Method::GET, &format!("/bytes/{bytes}"), ""))
            .await
            .unwrap();
        assert_eq!(response.headers()["content-length"], bytes.to_string());
        assert_eq!(
            response
                .into_body()
                .collect()
                .await
                .unwrap()
                .to_bytes()
                .len(),
            bytes
        );
        sender.ready().await.unwrap();
    }
    let response = sender
        .send_request(request(Method::POST, "/echo", "there and back"))
        .await
        .unwrap();
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "there and back"
    );
}

#[tokio::test]
async fn any_path_delays_and_fails_on_request() {
    let server = start();
    let mut sender = server.http1().await;
    let asked = tokio::time::Instant::now();
    let response = sender
        .send_request(request(Method::GET, "/bytes/3?delay=30ms&status=503", ""))
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(asked.elapsed() >= Duration::from_millis(30));
    response.into_body().collect().await.unwrap();

    sender.ready().await.unwrap();
    let response = sender
        .send_request(request(Method::GET, "/?delay=soon", ""))
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    response.into_body().collect().await.unwrap();

    sender.ready().await.unwrap();
    let response = sender
        .send_request(request(Method::GET, "/nowhere", ""))
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn grpc_shaped_calls_end_with_trailers() {
    let server = start();
    let mut sender = server.http2().await;
    let mut asked = request(Method::POST, "http://web/duet.Echo/Call", "\0\0\0\0\x03abc");
    asked
        .headers_mut()
        .insert("content-type", "application/grpc".parse().unwrap());
    let response = sender.send_request(asked).await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/grpc");
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(body.to_bytes(), "\0\0\0\0\x03abc");
}

#[tokio::test]
async fn an_upgraded_connection_echoes_bytes() {
    let server = start();
    let mut sender = server.http1().await;
    let mut asked = request(Method::GET, "/upgrade", "");
    asked
        .headers_mut()
        .insert("connection", "upgrade".parse().unwrap());
    asked
        .headers_mut()
        .insert("upgrade", "websocket".parse().unwrap());
    let response = sender.send_request(asked).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()["upgrade"], "websocket");
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    stream.write_all(b"frames").await.unwrap();
    let mut echoed = [0; 6];
    stream.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"frames");
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut echoed).await.unwrap(), 0);
}

#[tokio::test]
async fn byte_streams_echo_over_both_address_families() {
    let server = start();
    let mut hosts = vec!["127.0.0.1"];
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        hosts.push("::1");
    }
    for host in hosts {
        let mut stream = server.connect_to(Service::Echo, host).await;
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut echoed = String::new();
        stream.read_to_string(&mut echoed).await.unwrap();
        assert_eq!(echoed, "hello");

        let mut stream = server.connect_to(Service::SpeaksFirst, host).await;
        let mut banner = vec![0; BANNER.len()];
        stream.read_exact(&mut banner).await.unwrap();
        assert_eq!(banner, BANNER.as_bytes());
    }
}

#[tokio::test]
async fn the_half_close_probe_answers_after_the_clients_end() {
    let server = start();
    let mut stream = server.connect(Service::CloseAfter).await;
    stream.write_all(b"12345").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut received = String::new();
    stream.read_to_string(&mut received).await.unwrap();
    assert_eq!(received, format!("12345{}", last_line(5)));
}

#[tokio::test]
async fn draining_finishes_open_requests_and_accepts_no_more() {
    let server = start();
    let address: SocketAddr = server.connect(Service::Http).await.peer_addr().unwrap();
    let mut sender = server.http1().await;
    let mut idle = server.http1().await;
    idle.send_request(request(Method::GET, "/", ""))
        .await
        .unwrap()
        .into_body()
        .collect()
        .await
        .unwrap();
    let open = tokio::spawn(sender.send_request(request(Method::GET, "/?delay=600ms", "")));
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.stop.send(()).unwrap();

    assert_eq!(open.await.unwrap().unwrap().status(), StatusCode::OK);
    tokio::time::timeout(Duration::from_secs(2), server.ended)
        .await
        .expect("drains")
        .unwrap();
    assert!(TcpStream::connect(address).await.is_err());
    assert!(idle.ready().await.is_err(), "idle connections are closed");
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let args = ServeArgs {
        http: vec![port],
        ..ServeArgs::default()
    };
    let error = Server::bind(&args).err().unwrap().to_string();
    assert!(
        error.starts_with(&format!("cannot listen on 0.0.0.0:{port}: ")),
        "{error}"
    );
    assert!(
        Server::bind(&ServeArgs::default())
            .err()
            .unwrap()
            .is_usage()
    );
}

#[tokio::test]
async fn a_chain_gives_the_last_servers_answer() {
    let (first, last) = (start(), start());
    let mut sender = first.http1().await;
    let next = last.connect(Service::Http).await.peer_addr().unwrap();
    // The second goes over the connection that the first has opened.
    for _ in 0..2 {
        let asked = request(Method::GET, &format!("/via/{next}/bytes/1024"), "");
        let answer = sender.send_request(asked).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body.len(), 1024);
    }
    let asked = request(Method::GET, "/via/127.0.0.1:1/", "");
    let answer = sender.send_request(asked).await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
}
