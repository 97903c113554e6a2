//! Clients that are slow on purpose.

use super::{CONNECT_WITHIN, Standing, Tally};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// From one sign of life to the next.
const EVERY: Duration = Duration::from_secs(1);
/// Of the answer that is hardly read: more than all buffers on its way hold.
const ANSWER: u64 = 1 << 26;
/// Of it, taken at once.
const SIP: usize = 1 << 10;
/// The reader's own buffer, so that it is others that have to hold the answer.
const BUFFER: u32 = 4 << 10;

/// A request's head that never ends, until it is cut.
pub async fn head(to: SocketAddr, tally: &Tally) -> io::Result<Infallible> {
    let mut stream = tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(to)).await??;
    let _standing = Standing::now(tally);
    let begin = format!("GET / HTTP/1.1\r\nhost: {to}\r\n");
    stream.write_all(begin.as_bytes()).await?;
    loop {
        let mut answer = [0];
        // An answer, or the end: the other side has had enough.
        if let Ok(read) = tokio::time::timeout(EVERY, stream.read(&mut answer)).await {
            read?;
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        stream.write_all(b"x-wait: a little\r\n").await?;
    }
}

/// An answer that is hardly read, until it is cut.
pub async fn reader(to: SocketAddr, tally: &Tally) -> io::Result<Infallible> {
    let socket = match to {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_recv_buffer_size(BUFFER)?;
    let mut stream = tokio::time::timeout(CONNECT_WITHIN, socket.connect(to)).await??;
    let _standing = Standing::now(tally);
    let ask = format!("GET /bytes/{ANSWER} HTTP/1.1\r\nhost: {to}\r\n\r\n");
    stream.write_all(ask.as_bytes()).await?;
    let mut sip = [0; SIP];
    loop {
        let read = stream.read(&mut sip).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        tally.received(read);
        tokio::time::sleep(EVERY).await;
    }
}
