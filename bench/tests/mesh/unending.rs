//! Servers whose answers have no end, and connections on which one has begun.

use super::app::App;
use anyhow::{Result, ensure};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(5);

const ENDLESS_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";

/// Answers every request with the beginning of something.
pub fn serve_endless(app: &App, port: u16) {
    serve(app, port, ENDLESS_HEAD);
}

/// Upgrades whatever is asked for.
pub fn serve_websocket(app: &App, port: u16) {
    let head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\
        Upgrade: websocket\r\n\r\nhello";
    serve(app, port, head);
}

fn serve(app: &App, port: u16, answer: &'static [u8]) {
    let listener = app.listen(port);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    stream.read_buf(&mut request).await?;
                }
                stream.write_all(answer).await?;
                // As long as the client.
                stream.read(&mut [0]).await
            });
        }
    });
}

/// A connection on which an answer has begun.
pub async fn begin_endless(client: &App, to: SocketAddr) -> Result<TcpStream> {
    begin(client, to, "").await
}

/// A connection that has left HTTP.
pub async fn begin_websocket(client: &App, to: SocketAddr) -> Result<TcpStream> {
    let headers = "Connection: upgrade\r\nUpgrade: websocket\r\n";
    begin(client, to, headers).await
}

async fn begin(client: &App, to: SocketAddr, headers: &str) -> Result<TcpStream> {
    let mut stream = client.connect(to).await?;
    let request = format!("GET /begin HTTP/1.1\r\nHost: shop\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let begun = async {
        while !answer.windows(5).any(|five| five == b"hello") {
            ensure!(stream.read_buf(&mut answer).await? > 0, "it ended");
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, begun).await??;
    // The end of the chunk.
    if answer.ends_with(b"hello") && headers.is_empty() {
        stream.read_exact(&mut [0; 2]).await?;
    }
    Ok(stream)
}
