//! Opaque bytes, both ways, until both sides are done.
//!
//! Each direction ends on its own (half-close): an end of stream is passed on as
//! one, and the other direction goes on. A failure is passed on as a failure: a
//! connection that was cut must never look like one that ended.

use crate::upstream::UpstreamError;
use bytes::{Buf, Bytes};
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Read at once; held for a direction only while the writer cannot take it.
const BUFFER: usize = 16 * 1024;

/// Ends a stream so that its peer sees a reset.
pub trait Abort {
    fn abort(&mut self);
}

impl Abort for TcpStream {
    fn abort(&mut self) {
        // Closing with unsent data discarded sends RST (RFC 9293 §3.10.4).
        let _ = socket2::SockRef::from(&*self).set_linger(Some(std::time::Duration::ZERO));
    }
}

/// Which side failed first.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error("client: {0}")]
    Client(io::Error),
    #[error("server: {0}")]
    Server(io::Error),
    #[error("{0}")]
    Revoked(UpstreamError),
}

impl RelayError {
    /// As a label.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Client(_) => "client",
            Self::Server(_) => "server",
            Self::Revoked(_) => "revoked",
        }
    }
}

/// Until both directions end, or until `revoked` is ready. `carried` hears at each turn of
/// the bytes that the client sent and received in it.
pub async fn relay<C, S>(
    client: &mut C,
    server: &mut S,
    mut carried: impl FnMut(u64, u64),
    mut revoked: impl FnMut(&mut Context<'_>) -> Poll<UpstreamError>,
) -> Result<(), RelayError>
where
    C: AsyncRead + AsyncWrite + Abort + Unpin,
    S: AsyncRead + AsyncWrite + Abort + Unpin,
{
    let mut up = OneWay::new();
    let mut down = OneWay::new();
    // Whoever stops relaying before the end cuts both sides.
    let mut ends = Ends {
        client,
        server,
        done: false,
    };
    let end = poll_fn(|cx| {
        if let Poll::Ready(reason) = revoked(cx) {
            return Poll::Ready(Err(RelayError::Revoked(reason)));
        }
        let polled = ends.poll(cx, &mut up, &mut down);
        let news = [&mut up, &mut down].map(|way| std::mem::take(&mut way.copied));
        if news != [0, 0] {
            carried(news[0], news[1]);
        }
        polled
    })
    .await;
    ends.done = end.is_ok();
    end
}

struct Ends<'a, C: Abort, S: Abort> {
    client: &'a mut C,
    server: &'a mut S,
    done: bool,
}

impl<C, S> Ends<'_, C, S>
where
    C: AsyncRead + AsyncWrite + Abort + Unpin,
    S: AsyncRead + AsyncWrite + Abort + Unpin,
{
    /// Each direction reads from one side and writes to the other; `?` needs to know which of
    /// the two failed.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        up: &mut OneWay,
        down: &mut OneWay,
    ) -> Poll<Result<(), RelayError>> {
        let Self { client, server, .. } = self;
        let sent = up.poll(cx, *client, *server).map_err(|side| match side {
            Side::Reader(error) => RelayError::Client(error),
            Side::Writer(error) => RelayError::Server(error),
        })?;
        let received = down.poll(cx, *server, *client).map_err(|side| match side {
            Side::Reader(error) => RelayError::Server(error),
            Side::Writer(error) => RelayError::Client(error),
        })?;
        if sent.is_ready() && received.is_ready() {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }
}

impl<C: Abort, S: Abort> Drop for Ends<'_, C, S> {
    fn drop(&mut self) {
        if !self.done {
            self.client.abort();
            self.server.abort();
        }
    }
}

enum Side {
    Reader(io::Error),
    Writer(io::Error),
}

enum State {
    Copying,
    ShuttingDown,
    Done,
}

/// One direction. What was read is written from the stack; only what the writer
/// cannot take at once is kept, so that an idle connection costs no buffers.
struct OneWay {
    state: State,
    kept: Bytes,
    unflushed: bool,
    /// In this turn.
    copied: u64,
}

impl OneWay {
    fn new() -> Self {
        Self {
            state: State::Copying,
            kept: Bytes::new(),
            unflushed: false,
            copied: 0,
        }
    }

    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
    ) -> Poll<Result<(), Side>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            match self.state {
                State::Copying => {
                    while !self.kept.is_empty() {
                        let count = ready!(self.write(cx, writer, None))?;
                        self.kept.advance(count);
                        if self.kept.is_empty() {
                            self.kept = Bytes::new();
                        }
                    }
                    let mut space = [const { MaybeUninit::uninit() }; BUFFER];
                    let mut read = ReadBuf::uninit(&mut space);
                    match Pin::new(&mut *reader).poll_read(cx, &mut read) {
                        Poll::Ready(Ok(())) if read.filled().is_empty() => {
                            self.state = State::ShuttingDown;
                        }
                        Poll::Ready(Ok(())) => {
                            let mut bytes = read.filled();
                            while !bytes.is_empty() {
                                match self.write(cx, writer, Some(bytes))? {
                                    Poll::Ready(count) => bytes = &bytes[count..],
                                    Poll::Pending => {
                                        self.kept = Bytes::copy_from_slice(bytes);
                                        return Poll::Pending;
                                    }
                                }
                            }
                        }
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(Side::Reader(error))),
                        Poll::Pending => {
                            if self.unflushed {
                                ready!(Pin::new(&mut *writer).poll_flush(cx))
                                    .map_err(Side::Writer)?;
                                self.unflushed = false;
                            }
                            return Poll::Pending;
                        }
                    }
                }
                State::ShuttingDown => {
                    match ready!(Pin::new(&mut *writer).poll_shutdown(cx)) {
                        // It went away by itself: what there was to say is said.
                        Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                        result => result.map_err(Side::Writer)?,
                    }
                    self.state = State::Done;
                }
                State::Done => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Writes some of `bytes`, or of what was kept.
    fn write<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
        bytes: Option<&[u8]>,
    ) -> Poll<Result<usize, Side>> {
        let bytes = bytes.unwrap_or(&self.kept);
        let count = ready!(Pin::new(writer).poll_write(cx, bytes)).map_err(Side::Writer)?;
        if count == 0 {
            return Poll::Ready(Err(Side::Writer(io::ErrorKind::WriteZero.into())));
        }
        self.copied += count as u64;
        self.unflushed = true;
        Poll::Ready(Ok(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn half_close_leaves_the_other_direction_open() {
        let ((mut client, mut near), (mut far, mut server)) = (pair().await, pair().await);
        let (tell, mut told) = tokio::sync::watch::channel((0, 0));
        let relayed = tokio::spawn(async move {
            let carried =
                |sent, received| tell.send_modify(|sum| *sum = (sum.0 + sent, sum.1 + received));
            relay(&mut near, &mut far, carried, |_| Poll::Pending).await
        });
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        server.read_to_string(&mut question).await.unwrap();
        // What is told does not wait for the end.
        told.wait_for(|sum| *sum == (8, 0)).await.unwrap();
        server.write_all(b"long answer").await.unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(
            (question.as_str(), answer.as_str()),
            ("question", "long answer")
        );
        assert!(relayed.await.unwrap().is_ok());
        assert_eq!(*told.borrow(), (8, 11));
    }

    #[tokio::test]
    async fn a_reset_is_passed_on_as_a_reset() {
        let ((mut client, mut near), (mut far, mut server)) = (pair().await, pair().await);
        let relayed =
            tokio::spawn(
                async move { relay(&mut near, &mut far, |_, _| {}, |_| Poll::Pending).await },
            );
        client.write_all(b"x").await.unwrap();
        server.read_u8().await.unwrap();
        server.abort();
        drop(server);
        let error = client.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(matches!(relayed.await.unwrap(), Err(RelayError::Server(_))));
    }

    /// The proxy's own end must not look like the server's.
    #[tokio::test]
    async fn a_relay_that_is_dropped_resets_both_sides() {
        let ((mut client, mut near), (mut far, mut server)) = (pair().await, pair().await);
        let relayed =
            tokio::spawn(
                async move { relay(&mut near, &mut far, |_, _| {}, |_| Poll::Pending).await },
            );
        client.write_all(b"x").await.unwrap();
        server.read_u8().await.unwrap();
        relayed.abort();
        for end in [&mut client, &mut server] {
            let error = end.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }

    #[tokio::test]
    async fn what_is_revoked_is_reset_on_both_sides_and_says_why() {
        let ((mut client, mut near), (mut far, mut server)) = (pair().await, pair().await);
        let (revoke, mut revoked) = tokio::sync::oneshot::channel();
        let relayed = tokio::spawn(async move {
            let revoked = |cx: &mut Context<'_>| {
                let revoked = Pin::new(&mut revoked).poll(cx);
                revoked.map(|_| UpstreamError::Denied("a policy".into()))
            };
            relay(&mut near, &mut far, |_, _| {}, revoked).await
        });
        client.write_all(b"x").await.unwrap();
        server.read_u8().await.unwrap();
        revoke.send(()).unwrap();
        for end in [&mut client, &mut server] {
            let error = end.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        let end = relayed.await.unwrap().unwrap_err();
        assert_eq!(end.as_str(), "revoked");
    }

    #[tokio::test]
    async fn a_slow_reader_gets_all_of_it() {
        let ((mut client, mut near), (mut far, mut server)) = (pair().await, pair().await);
        tokio::spawn(async move { relay(&mut near, &mut far, |_, _| {}, |_| Poll::Pending).await });
        let sent: Vec<u8> = (0..8_000_000u32).map(|n| (n % 251) as u8).collect();
        let expected = sent.clone();
        tokio::spawn(async move {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            let _ = client.read_u8().await;
        });
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let mut received = Vec::new();
        server.read_to_end(&mut received).await.unwrap();
        assert!(received == expected);
    }
}
