//! The workload behind every load test: one server that answers in each protocol the mesh carries.
//!
//! | flag | what listens there |
//! |---|---|
//! | `--http` | HTTP/1.1 and HTTP/2 with prior knowledge, told apart by the preface; see [`http`] for the paths |
//! | `--tcp` | echoes bytes until end of file, then closes its side too |
//! | `--speaks-first` | sends a banner before it reads anything, then echoes |
//! | `--close-after` | echoes, and after the client's half-close still sends a last line |
//!
//! Every port listens on IPv4 and, where the host has it, on IPv6, with separate sockets, so that an IPv4 peer
//! is never seen as a mapped address.

pub mod http;
pub mod tcp;
mod via;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

/// Flags of `duet-bench serve`.
#[derive(Args, Clone, Debug, Default)]
pub struct ServeArgs {
    /// Port for HTTP/1.1, h2c and gRPC-shaped requests; may be repeated
    #[arg(long, value_name = "PORT")]
    pub http: Vec<u16>,

    /// Port that echoes bytes; may be repeated
    #[arg(long, value_name = "PORT")]
    pub tcp: Vec<u16>,

    /// Port that sends a banner first and then echoes; may be repeated
    #[arg(long, value_name = "PORT")]
    pub speaks_first: Vec<u16>,

    /// Port that echoes and sends one more line after the client's half-close; may be repeated
    #[arg(long, value_name = "PORT")]
    pub close_after: Vec<u16>,

    /// Name to report in /info
    #[arg(long, env = "POD_NAME", default_value = "")]
    pub pod: String,

    /// How long open requests may take after SIGTERM
    #[arg(long, value_parser = humantime::parse_duration, default_value = "5s")]
    pub grace: Duration,

    /// Event-loop threads
    #[arg(long, default_value_t = 1)]
    pub workers: usize,
}

/// Why the server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("nothing to serve: give --http, --tcp, --speaks-first or --close-after with a port")]
    NoPort,
    #[error("cannot listen on {address}: {error}")]
    Listen {
        address: SocketAddr,
        error: io::Error,
    },
    #[error("cannot start the server: {0}")]
    Start(io::Error),
    #[error("the server's thread ended unexpectedly")]
    Thread,
}

impl ServeError {
    /// Whether the command line is at fault.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::NoPort)
    }
}

/// What a port does with its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    Http,
    Echo,
    SpeaksFirst,
    CloseAfter,
}

/// `duet-bench serve`: serves until SIGTERM or SIGINT, then lets open requests finish.
pub async fn run(args: ServeArgs) -> Result<(), ServeError> {
    crate::descriptors::raise_limit();
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("serve".to_owned())
        .spawn(move || {
            let _ = sender.send(run_here(&args));
        })
        .map_err(ServeError::Start)?;
    receiver.await.map_err(|_| ServeError::Thread)?
}

fn run_here(args: &ServeArgs) -> Result<(), ServeError> {
    let mut runtime = if args.workers > 1 {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = runtime
        .worker_threads(args.workers.max(1))
        .enable_all()
        .build()
        .map_err(ServeError::Start)?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Start)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Start)?;
        let server = Server::bind(args)?;
        println!("serving {}", server.describe());
        server
            .run(async move {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            })
            .await;
        Ok(())
    })
}

/// Listeners that are bound and not yet served.
pub struct Server {
    ports: Vec<(Service, u16)>,
    listeners: Vec<(Service, TcpListener)>,
    pod: Arc<str>,
    grace: Duration,
}

impl Server {
    /// Binds every port; port 0 takes a free one. Must be called inside a tokio runtime.
    pub fn bind(args: &ServeArgs) -> Result<Self, ServeError> {
        let wanted = [
            (Service::Http, &args.http),
            (Service::Echo, &args.tcp),
            (Service::SpeaksFirst, &args.speaks_first),
            (Service::CloseAfter, &args.close_after),
        ];
        let mut server = Self {
            ports: Vec::new(),
            listeners: Vec::new(),
            pod: args.pod.as_str().into(),
            grace: args.grace,
        };
        for (service, ports) in wanted {
            for port in ports {
                server.bind_port(service, *port)?;
            }
        }
        if server.ports.is_empty() {
            Err(ServeError::NoPort)
        } else {
            Ok(server)
        }
    }

    fn bind_port(&mut self, service: Service, port: u16) -> Result<(), ServeError> {
        let v4 = listen(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
        let port = v4.local_addr().map_err(ServeError::Start)?.port();
        self.listeners.push((service, v4));
        match listen(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))) {
            Ok(v6) => self.listeners.push((service, v6)),
            Err(ServeError::Listen { error, .. }) if lacks_ipv6(&error) => {}
            Err(error) => return Err(error),
        }
        self.ports.push((service, port));
        Ok(())
    }

    /// The bound port of a service, the first if there are several.
    pub fn port(&self, service: Service) -> Option<u16> {
        self.ports
            .iter()
            .find(|(other, _)| *other == service)
            .map(|(_, port)| *port)
    }

    /// Every service and its port, in one line.
    pub fn describe(&self) -> String {
        let name = |service| match service {
            Service::Http => "http",
            Service::Echo => "tcp",
            Service::SpeaksFirst => "speaks-first",
            Service::CloseAfter => "close-after",
        };
        let ports: Vec<_> = self
            .ports
            .iter()
            .map(|(service, port)| format!("{} {port}", name(*service)))
            .collect();
        ports.join(", ")
    }

    /// Serves until `shutdown` completes, then at most the grace period longer.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let (draining, drain) = watch::channel(false);
        let mut accepting = JoinSet::new();
        for (service, listener) in self.listeners {
            accepting.spawn(accept(service, listener, self.pod.clone(), drain.clone()));
        }
        drop(drain);
        shutdown.await;
        draining.send_replace(true);
        // Every connection holds a receiver; the channel closes with the last of them.
        let _ = tokio::time::timeout(self.grace, draining.closed()).await;
    }
}

async fn accept(
    service: Service,
    listener: TcpListener,
    pod: Arc<str>,
    drain: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = draining(drain.clone()) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                tokio::spawn(serve(service, stream, peer, pod.clone(), drain.clone()));
            }
            // Out of descriptors, or a connection gone before it was accepted: neither ends the server.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn serve(
    service: Service,
    stream: TcpStream,
    peer: SocketAddr,
    pod: Arc<str>,
    drain: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    // A connection that breaks is the client's business; there is nobody here to tell.
    let _ = match service {
        Service::Http => http::serve(stream, peer, pod, drain).await,
        Service::Echo => tcp::echo(stream).await,
        Service::SpeaksFirst => tcp::speak_first(stream).await,
        Service::CloseAfter => tcp::close_after(stream).await,
    };
}

/// Returns when the server begins to drain, or is gone.
async fn draining(mut drain: watch::Receiver<bool>) {
    let _ = drain.wait_for(|draining| *draining).await;
}

fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let bound = || {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM.nonblocking().cloexec(),
            None,
        )?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    bound().map_err(|error| ServeError::Listen { address, error })
}

/// As nginx and Go choose on Linux: the kernel's own limit decides.
const BACKLOG: i32 = 4096;

fn lacks_ipv6(error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
}
