//! Pods that talk to each other all the time, through real proxies, on loopback
//! addresses of their own.

use clap::Parser;
use duet_core::{Capture, Direction, Kernel, OrigDst, Proxy, ProxyArgs, WorkloadName, capture};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;

/// What the applications serve: HTTP here, bytes that come back there.
pub const HTTP: u16 = 8080;
pub const ECHO: u16 = 9000;
/// One request, however slow the machine.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    proxy: ProxyArgs,
}

/// A proxy for one workload, as a sidecar is.
pub struct Sidecar {
    _proxy: Proxy,
    pub admin: SocketAddr,
    /// Where connections to each destination are redirected to.
    redirected: Vec<(SocketAddr, SocketAddr)>,
}

/// Knows where a connection wanted to go by the listener that it came to.
struct Redirected {
    own: IpAddr,
    outbound: Vec<(SocketAddr, SocketAddr)>,
}

impl Kernel for Redirected {
    fn original_dst(&self, accepted: &TcpStream, _: Direction) -> io::Result<OrigDst> {
        let listener = accepted.local_addr()?;
        let found = self.outbound.iter().find(|(at, _)| *at == listener);
        let (_, destination) = found.ok_or(io::ErrorKind::NotFound)?;
        Ok(OrigDst::new(*destination))
    }

    fn socket(&self, _: SocketAddr) -> io::Result<TcpSocket> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(self.own, 0))?;
        Ok(socket)
    }
}

impl Sidecar {
    /// For the workload at `own`, which talks to `destinations`.
    pub async fn start(
        workload: WorkloadName,
        own: IpAddr,
        destinations: &[SocketAddr],
        control: SocketAddr,
        (trust_bundle, token): (&Path, &Path),
    ) -> Self {
        let admin = free(IpAddr::from([127, 0, 0, 1]));
        let args = Args::parse_from([
            "sidecar",
            "--control",
            &format!("https://{control}"),
            "--trust-bundle",
            &trust_bundle.display().to_string(),
            "--token-file",
            &token.display().to_string(),
            "--admin",
            &admin.to_string(),
            "--metrics",
            "127.0.0.1:0",
            "--health",
            "127.0.0.1:0",
        ]);
        let proxy = Proxy::start(args.proxy, "sidecar", "node-1".to_owned())
            .await
            .unwrap();
        let mut outbound = Vec::new();
        let mut redirected = Vec::new();
        for destination in destinations {
            let listener = TcpListener::bind((own, 0)).await.unwrap();
            redirected.push((listener.local_addr().unwrap(), *destination));
            outbound.push(listener);
        }
        let mesh = capture::listen(SocketAddr::new(own, capture::MESH_PORT)).unwrap();
        let workload = proxy.add(
            workload,
            Capture {
                outbound,
                inbound: Vec::new(),
                mesh: vec![TcpListener::from_std(mesh).unwrap()],
                kernel: Arc::new(Redirected {
                    own,
                    outbound: redirected.clone(),
                }),
            },
        );
        workload.ready().await;
        Self {
            _proxy: proxy,
            admin,
            redirected,
        }
    }

    /// Where the application's connections to `destination` end up.
    pub fn way_to(&self, destination: SocketAddr) -> SocketAddr {
        let mut found = self.redirected.iter();
        found.find(|(_, to)| *to == destination).unwrap().0
    }
}

/// An application that serves [`HTTP`] and [`ECHO`] at `own`.
pub async fn serve(own: IpAddr, tasks: &mut JoinSet<()>) {
    for port in [HTTP, ECHO] {
        let listener = TcpListener::bind((own, port)).await.unwrap();
        tasks.spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                tokio::spawn(async move {
                    let _ = match port {
                        HTTP => answer(stream).await,
                        _ => echo(stream).await,
                    };
                });
            }
        });
    }
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    stream
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello")
        .await
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let (mut read, mut write) = stream.split();
    tokio::io::copy(&mut read, &mut write).await.map(drop)
}

/// What came of all requests.
#[derive(Clone, Default)]
pub struct Outcome {
    pub answered: Arc<AtomicU64>,
    pub failed: Arc<Mutex<Vec<String>>>,
}

impl Outcome {
    fn count(&self, what: &str, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => drop(self.answered.fetch_add(1, Ordering::Relaxed)),
            Err(why) => self.failed.lock().unwrap().push(format!("{what}: {why}")),
        }
    }

    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }
}

/// One request after another, each on a new connection.
pub fn requests(way: SocketAddr, outcome: &Outcome, tasks: &mut JoinSet<()>) {
    let outcome = outcome.clone();
    tasks.spawn(async move {
        loop {
            let one = tokio::time::timeout(PATIENCE, request(way));
            let one = one.await.unwrap_or_else(|_| Err("no answer".to_owned()));
            outcome.count("request", one);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}

async fn request(way: SocketAddr) -> Result<(), String> {
    let ask = async {
        let mut stream = TcpStream::connect(way).await?;
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n")
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        io::Result::Ok(answer)
    };
    let answer = ask.await.map_err(|error| error.to_string())?;
    if answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello") {
        Ok(())
    } else {
        Err(format!("{answer:?}"))
    }
}

/// One connection for all the time, over which something goes back and forth.
pub fn conversation(way: SocketAddr, outcome: &Outcome, tasks: &mut JoinSet<()>) {
    let outcome = outcome.clone();
    tasks.spawn(async move {
        let talk = async {
            let mut stream = TcpStream::connect(way).await?;
            for number in 0u64.. {
                stream.write_all(&number.to_be_bytes()).await?;
                let back = tokio::time::timeout(PATIENCE, stream.read_u64()).await;
                if back.map_err(|_| io::ErrorKind::TimedOut)?? != number {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                outcome.count("conversation", Ok(()));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            io::Result::Ok(())
        };
        if let Err(error) = talk.await {
            outcome.count("conversation", Err(error.to_string()));
        }
    });
}

/// A port that was free just now.
pub fn free(ip: IpAddr) -> SocketAddr {
    std::net::TcpListener::bind((ip, 0))
        .unwrap()
        .local_addr()
        .unwrap()
}
