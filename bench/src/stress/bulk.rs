//! A download without end.

use super::{CONNECT_WITHIN, Standing, Tally};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Asked for at once: more than any machine sends in a trial.
const ANSWER: u64 = 1 << 40;
/// Read at once.
const BUFFER: usize = 256 << 10;

/// Until it is cut.
pub async fn download(to: SocketAddr, tally: &Tally) -> io::Result<Infallible> {
    let mut stream = tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(to)).await??;
    let ask = format!("GET /bytes/{ANSWER} HTTP/1.1\r\nhost: {to}\r\n\r\n");
    stream.write_all(ask.as_bytes()).await?;
    let _standing = Standing::now(tally);
    let mut buffer = vec![0; BUFFER];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => tally.received(read),
        }
    }
}
