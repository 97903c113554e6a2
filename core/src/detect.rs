//! What does this connection speak?
//!
//! One bounded read decides: HTTP/2 by its preface, HTTP/1 by its request line,
//! everything else is opaque bytes. A client that says nothing is waiting for the
//! server to speak first (SMTP, MySQL, SSH), so silence ends, after a short
//! time-out, in an opaque connection; or it has opened its connection for a later
//! request, so whose word is the first ([`first_word`]) may still make it HTTP.
//! Whatever was read is replayed.

use crate::io::writes_through;
use crate::relay::Abort;
use bytes::{Buf, Bytes, BytesMut};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

/// RFC 9113 §3.4.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The longest request line that is waited for. RFC 9112 §3 recommends that at
/// least 8000 octets be supported.
const MAX_REQUEST_LINE: usize = 8 * 1024;

/// Ports on which the server speaks first, or speaks nothing that detection
/// knows: SMTP, MySQL, Galera, PostgreSQL, Redis, Elasticsearch transport,
/// memcached. The same list as Linkerd's default opaque ports.
const OPAQUE_PORTS: [u16; 8] = [25, 587, 3306, 4444, 5432, 6379, 9300, 11211];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    Http1,
    Http2,
    Opaque,
}

impl Protocol {
    pub const ALL: [Self; 3] = [Self::Http1, Self::Http2, Self::Opaque];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http/1",
            Self::Http2 => "http/2",
            Self::Opaque => "opaque",
        }
    }

    /// What a Kubernetes `appProtocol` says, if it is one that is known. "http"
    /// may be either version, so it says no more than detection would.
    pub fn from_app_protocol(name: &str) -> Option<Self> {
        match name {
            "tcp" | "opaque" | "tls" | "https" | "kubernetes.io/wss" => Some(Self::Opaque),
            "kubernetes.io/h2c" | "grpc" | "http2" => Some(Self::Http2),
            _ => None,
        }
    }

    pub fn from_port(port: u16) -> Option<Self> {
        OPAQUE_PORTS.contains(&port).then_some(Self::Opaque)
    }
}

/// Where a detection ended.
pub struct Detected<S> {
    pub protocol: Protocol,
    pub io: Replay<S>,
    /// The client said too little in time.
    pub timed_out: bool,
}

pub async fn detect<S: AsyncRead + Unpin>(
    mut io: S,
    hint: Option<Protocol>,
    timeout: Duration,
) -> io::Result<Detected<S>> {
    let mut read = BytesMut::new();
    let (protocol, timed_out) = match hint {
        Some(protocol) => (protocol, false),
        None => match tokio::time::timeout(timeout, read_protocol(&mut io, &mut read)).await {
            Ok(protocol) => (protocol?, false),
            Err(_) => (Protocol::Opaque, true),
        },
    };
    Ok(Detected {
        protocol,
        io: Replay::new(read, io),
        timed_out,
    })
}

impl<S> Detected<S> {
    /// The client has not said anything at all.
    pub fn is_silent(&self) -> bool {
        self.timed_out && self.io.read.is_empty()
    }
}

async fn read_protocol<S: AsyncRead + Unpin>(
    io: &mut S,
    read: &mut BytesMut,
) -> io::Result<Protocol> {
    loop {
        if let Some(protocol) = classify(read) {
            return Ok(protocol);
        }
        read.reserve(1024);
        if io.read_buf(read).await? == 0 {
            return Ok(Protocol::Opaque);
        }
    }
}

/// Between a client that was silent until detection timed out and the server that it is
/// connected to now: opaque if the server speaks first, and otherwise what the client
/// turns out to speak, within `timeout` of its first byte.
///
/// # Errors
/// When either side fails before a word was said. Both are aborted then.
pub async fn first_word<C, S>(
    mut client: Replay<C>,
    mut server: S,
    timeout: Duration,
) -> io::Result<(Protocol, Replay<C>, Replay<S>)>
where
    C: AsyncRead + Abort + Unpin,
    S: AsyncRead + Abort + Unpin,
{
    let (mut said, mut heard) = (BytesMut::new(), BytesMut::new());
    let protocol = tokio::select! {
        biased;
        read = server.read_buf(&mut heard) => read.map(|_| Protocol::Opaque),
        read = client.read_buf(&mut said) => match read {
            Ok(0) => Ok(Protocol::Opaque),
            Ok(_) => {
                let detected = tokio::time::timeout(timeout, read_protocol(&mut client, &mut said));
                detected.await.unwrap_or(Ok(Protocol::Opaque))
            }
            Err(error) => Err(error),
        },
    };
    match protocol {
        Ok(protocol) => {
            client.unread(said.freeze());
            Ok((protocol, client, Replay::new(heard, server)))
        }
        Err(error) => {
            client.abort();
            server.abort();
            Err(error)
        }
    }
}

/// `None`: more bytes are needed.
fn classify(read: &[u8]) -> Option<Protocol> {
    if read.starts_with(H2_PREFACE) {
        return Some(Protocol::Http2);
    }
    if H2_PREFACE.starts_with(read) {
        return None;
    }
    // RFC 9112 §2.2: empty lines before a request are to be ignored.
    let blank = read
        .iter()
        .take_while(|byte| matches!(byte, b'\r' | b'\n'))
        .count();
    let read = &read[blank..];
    if read.is_empty() {
        return None;
    }
    let line = match read.iter().position(|byte| *byte == b'\n') {
        Some(end) => &read[..end],
        None if read.len() >= MAX_REQUEST_LINE || !may_become_request_line(read) => {
            return Some(Protocol::Opaque);
        }
        None => return None,
    };
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    // A CONNECT asks for a tunnel; its bytes are nobody's business.
    let http = may_become_request_line(line)
        && (line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0"))
        && !line.starts_with(b"CONNECT ");
    Some(if http {
        Protocol::Http1
    } else {
        Protocol::Opaque
    })
}

/// A method is a token (RFC 9110 §5.6.2); in practice all are upper-case
/// letters and hyphens, the longest registered one has 17 of them.
fn may_become_request_line(read: &[u8]) -> bool {
    let method = read.iter().take(24).take_while(|byte| **byte != b' ');
    let mut length = 0;
    for byte in method {
        if !byte.is_ascii_uppercase() && *byte != b'-' {
            return false;
        }
        length += 1;
    }
    length > 0 && length < 24
}

/// A stream whose first bytes were read already.
pub struct Replay<S> {
    read: Bytes,
    io: S,
}

impl<S> Replay<S> {
    pub fn new(read: BytesMut, io: S) -> Self {
        let mut replay = Self::from(io);
        // An empty buffer has room, and would keep it.
        if !read.is_empty() {
            replay.read = read.freeze();
        }
        replay
    }

    /// Puts back what was read of it and not used.
    pub fn unread(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        // A copy, as they are in somebody's buffer.
        self.read = [&*bytes, &*self.read].concat().into();
    }
}

impl<S> From<S> for Replay<S> {
    /// Of which nothing was read.
    fn from(io: S) -> Self {
        let read = Bytes::new();
        Self { read, io }
    }
}

impl<S: AsyncRead + Unpin> Replay<S> {
    /// Reads on, behind what there is. False: there is no more.
    pub fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut space = [0; 1024];
        let mut more = ReadBuf::new(&mut space);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut more))?;
        self.read = [&*self.read, more.filled()].concat().into();
        Poll::Ready(Ok(!more.filled().is_empty()))
    }

    /// Throws away what comes, until there is no more.
    pub fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut space = [0; 4096];
        loop {
            let mut more = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut more))?;
            if more.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Replay<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let count = self.read.len().min(buf.remaining());
        buf.put_slice(&self.read[..count]);
        self.read.advance(count);
        if self.read.is_empty() {
            self.read = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

writes_through!(Replay);

impl<S: Abort> Abort for Replay<S> {
    fn abort(&mut self) {
        self.io.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncWriteExt, DuplexStream};

    impl Abort for DuplexStream {
        fn abort(&mut self) {}
    }

    const PATIENCE: Duration = Duration::from_millis(250);

    #[test]
    fn request_lines_and_prefaces_are_recognised() {
        let http1: [&[u8]; 4] = [
            b"\r\nGET / HTTP/1.1\r\n",
            b"GET / HTTP/1.1\r\nhost: a\r\n",
            b"M-SEARCH * HTTP/1.1\r\n",
            b"POST http://a/b HTTP/1.0\n",
        ];
        for bytes in http1 {
            assert_eq!(classify(bytes), Some(Protocol::Http1), "{bytes:?}");
        }
        assert_eq!(classify(H2_PREFACE), Some(Protocol::Http2));
        let opaque: [&[u8]; 6] = [
            b"\x16\x03\x01\x02\x00\x01",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"HELO mail.example\r\n",
            b"get / HTTP/1.1\r\n",
            b"CONNECT db:3306 HTTP/1.1\r\n",
            b"*1\r\n$4\r\nPING\r\n",
        ];
        for bytes in opaque {
            assert_eq!(classify(bytes), Some(Protocol::Opaque), "{bytes:?}");
        }
    }

    #[test]
    fn a_prefix_is_never_decided_otherwise_than_the_whole() {
        for whole in [&b"DELETE /a/b?c=d HTTP/1.1\r\n"[..], H2_PREFACE] {
            let verdict = classify(whole).expect("whole");
            for end in 1..whole.len() {
                let early = classify(&whole[..end]);
                assert!(
                    early.is_none() || early == Some(verdict),
                    "{:?}",
                    &whole[..end]
                );
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_becomes_opaque_and_nothing_is_lost() {
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(b"GET /slow").await.unwrap();
        let mut detected = detect(server, None, PATIENCE).await.unwrap();
        assert_eq!(detected.protocol, Protocol::Opaque);
        assert!(detected.timed_out);
        client.write_all(b" rest").await.unwrap();
        drop(client);
        let mut all = Vec::new();
        detected.io.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"GET /slow rest");
    }

    /// What it turns out to be when `client` or `server` speaks after a long silence,
    /// and what there is to be read of each.
    async fn late(client: &[u8], server: &[u8]) -> (Protocol, Vec<u8>, Vec<u8>) {
        let (mut near, client_io) = tokio::io::duplex(64);
        let (mut far, server_io) = tokio::io::duplex(64);
        let first = tokio::spawn(first_word(client_io.into(), server_io, PATIENCE));
        tokio::time::sleep(PATIENCE * 40).await;
        near.write_all(client).await.unwrap();
        far.write_all(server).await.unwrap();
        let (protocol, mut client, mut server) = first.await.unwrap().unwrap();
        drop((near, far));
        let (mut said, mut heard) = (Vec::new(), Vec::new());
        client.read_to_end(&mut said).await.unwrap();
        server.read_to_end(&mut heard).await.unwrap();
        (protocol, said, heard)
    }

    #[tokio::test(start_paused = true)]
    async fn whose_word_is_the_first_decides_after_a_silence() {
        const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
        const GREETING: &[u8] = b"220 mail.example\r\n";
        for (client, server, expected) in [
            (REQUEST, &b""[..], Protocol::Http1),
            (H2_PREFACE, b"", Protocol::Http2),
            (b"\x00\x01", b"", Protocol::Opaque),
            (b"GET /never-ended", b"", Protocol::Opaque),
            (b"", GREETING, Protocol::Opaque),
            // The server was asked nothing.
            (REQUEST, GREETING, Protocol::Opaque),
        ] {
            let (protocol, said, heard) = late(client, server).await;
            assert_eq!(protocol, expected, "{client:?} {server:?}");
            assert_eq!((&said[..], &heard[..]), (client, server));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_hint_skips_reading() {
        let (_client, server) = tokio::io::duplex(64);
        let before = tokio::time::Instant::now();
        let detected = detect(server, Some(Protocol::Opaque), PATIENCE)
            .await
            .unwrap();
        assert_eq!(detected.protocol, Protocol::Opaque);
        assert!(!detected.timed_out);
        assert_eq!(before.elapsed(), Duration::ZERO);
    }
}
