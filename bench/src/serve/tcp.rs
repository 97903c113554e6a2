//! The byte-stream services: echo, server-speaks-first, and the half-close probe.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// What a server-speaks-first port sends before it reads.
pub const BANNER: &str = "220 duet-bench speaks first\r\n";

const BUFFER: usize = 64 * 1024;

/// Echoes until the client's end of file, then closes this side.
pub async fn echo(stream: TcpStream) -> io::Result<()> {
    echo_stream(stream).await.map(drop)
}

/// Sends the banner, then echoes.
pub async fn speak_first(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(BANNER.as_bytes()).await?;
    echo(stream).await
}

/// Echoes; after the client's half-close it sends [`last_line`] and closes. A path that turns a half-close into
/// a full close loses that line.
pub async fn close_after(mut stream: TcpStream) -> io::Result<()> {
    let echoed = echo_bytes(&mut stream).await?;
    stream.write_all(last_line(echoed).as_bytes()).await?;
    stream.shutdown().await
}

/// What the half-close probe sends last, after echoing `bytes`.
pub fn last_line(bytes: u64) -> String {
    format!("\nhalf-closed after {bytes} bytes\n")
}

/// Echoes any stream until its end of file, closes this side, and returns the number of bytes.
pub async fn echo_stream(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<u64> {
    let echoed = echo_bytes(&mut stream).await?;
    stream.shutdown().await?;
    Ok(echoed)
}

async fn echo_bytes(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<u64> {
    let mut buffer = vec![0; BUFFER];
    let mut echoed = 0;
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(echoed);
        }
        stream.write_all(&buffer[..read]).await?;
        echoed += read as u64;
    }
}
