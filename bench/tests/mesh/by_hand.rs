//! HTTP/1 byte by byte, on both sides of the mesh.

use super::app::App;
use anyhow::{Context, Result, bail, ensure};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PATIENCE: Duration = Duration::from_secs(10);
/// Why there is no rest.
pub const STAYS_OPEN: &str = "it stays open";

/// From a client to a server's application.
#[derive(Clone, Copy)]
pub struct Way<'a> {
    pub name: &'static str,
    pub client: &'a App,
    pub server: &'a App,
}

/// One end of a connection, and what was read of it and is not used yet.
pub struct Line {
    stream: TcpStream,
    read: Vec<u8>,
}

/// The server's application, which takes connections as they come.
pub struct Server {
    listener: TcpListener,
    pub port: u16,
}

// === impl Way ===

impl Way<'_> {
    /// On a port that no connection of another check is kept for.
    pub fn serve(&self) -> Server {
        static NEXT: AtomicU16 = AtomicU16::new(20_000);
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        let listener = self.server.listen(port);
        Server { listener, port }
    }

    pub async fn connect(&self, port: u16) -> Result<Line> {
        let to = self.server.at(port);
        Ok(Line::new(self.client.connect(to).await.context("connect")?))
    }

    /// A connection on which a request was sent, and the server's end where it arrived.
    pub async fn ask(&self, request: &str) -> Result<(Line, Line)> {
        let server = self.serve();
        let mut client = self.connect(server.port).await?;
        client.write(request).await?;
        let server = server.accept().await?;
        Ok((client, server))
    }
}

// === impl Server ===

impl Server {
    pub async fn accept(&self) -> Result<Line> {
        let accepted = within("nobody came", self.listener.accept()).await?;
        Ok(Line::new(accepted?.0))
    }

    /// The next request's head, on the connection that there is or on a new one.
    pub async fn next(&self, line: &mut Option<Line>) -> Result<Head> {
        loop {
            let Some(kept) = line else {
                *line = Some(self.accept().await?);
                continue;
            };
            tokio::select! {
                head = kept.head() => match head {
                    Ok(head) => return Ok(head),
                    Err(_) => *line = None,
                },
                new = self.accept() => *line = Some(new?),
            }
        }
    }

    /// For an application that speaks HTTP for itself.
    pub async fn accept_forever(&self) -> std::io::Result<TcpStream> {
        Ok(self.listener.accept().await?.0)
    }
}

// === impl Line ===

impl Line {
    fn new(stream: TcpStream) -> Self {
        let read = Vec::new();
        Self { stream, read }
    }

    pub async fn write(&mut self, text: impl AsRef<[u8]>) -> Result<()> {
        Ok(self.stream.write_all(text.as_ref()).await?)
    }

    /// Nothing more is sent.
    pub async fn ends(&mut self) -> Result<()> {
        Ok(self.stream.shutdown().await?)
    }

    /// Something has come, which is not read yet.
    pub async fn heard(&self) -> Result<()> {
        Ok(within("silence", self.stream.readable()).await??)
    }

    /// Up to and with `end`.
    pub async fn until(&mut self, end: &str) -> Result<String> {
        loop {
            let found = self
                .read
                .windows(end.len())
                .position(|it| it == end.as_bytes());
            if let Some(at) = found {
                let rest = self.read.split_off(at + end.len());
                return Ok(String::from_utf8(std::mem::replace(&mut self.read, rest))?);
            }
            let read = within("silence", self.stream.read_buf(&mut self.read)).await??;
            if read == 0 {
                bail!("the end comes before {end:?}: {:?}", self.text());
            }
        }
    }

    /// A message's head.
    pub async fn head(&mut self) -> Result<Head> {
        self.until("\r\n\r\n").await.map(Head)
    }

    pub async fn exactly(&mut self, expected: &str) -> Result<()> {
        while self.read.len() < expected.len() {
            let read = within("silence", self.stream.read_buf(&mut self.read)).await??;
            ensure!(read > 0, "the end, and not {expected:?}: {:?}", self.text());
        }
        let rest = self.read.split_off(expected.len());
        let read = std::mem::replace(&mut self.read, rest);
        let read = String::from_utf8_lossy(&read);
        ensure!(read == expected, "{read:?}, and not {expected:?}");
        Ok(())
    }

    /// All that there still is. A reset is an error.
    pub async fn rest(&mut self) -> Result<String> {
        within(STAYS_OPEN, self.stream.read_to_end(&mut self.read)).await??;
        Ok(self.text())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.read).into_owned()
    }
}

async fn within<T>(what: &'static str, work: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(PATIENCE, work).await.context(what)
}

/// As it came.
#[derive(Debug)]
pub struct Head(pub String);

// === impl Head ===

impl Head {
    pub fn first_line(&self) -> &str {
        self.0.lines().next().unwrap_or_default()
    }

    /// All values of a header, in their order.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let lines = self.0.lines().skip(1);
        lines
            .filter_map(|line| line.split_once(':'))
            .filter(|(given, _)| given.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .collect()
    }

    pub fn has(&self, name: &str) -> bool {
        !self.all(name).is_empty()
    }
}
