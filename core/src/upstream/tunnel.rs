//! Bytes in an HTTP/2 stream: a tunnel (CONNECT, RFC 9113 §8.5) and a body.

use super::h2::Slot;
use crate::identity::Standing;
use crate::relay::Abort;
use ::h2::{Reason, RecvStream, SendStream};
use bytes::{Buf, Bytes};
use http_body::Body;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream to read from and write to. Shutting it down is END_STREAM; dropping it
/// before that is a reset, as the peer must not take a cut for an end.
pub struct Tunnel {
    send: SendStream<Bytes>,
    recv: RecvStream,
    read: Bytes,
    finished: bool,
    /// Its place on the connection, where this side made it.
    slot: Option<Slot>,
}

impl Tunnel {
    pub fn new(send: SendStream<Bytes>, recv: RecvStream) -> Self {
        Self {
            send,
            recv,
            read: Bytes::new(),
            finished: false,
            slot: None,
        }
    }

    pub fn on(mut self, slot: Slot) -> Self {
        self.slot = Some(slot);
        self
    }

    /// Whether what was checked when its connection was made is still true.
    pub fn standing(&self) -> Option<Arc<Standing>> {
        self.slot.as_ref()?.standing()
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.read.is_empty() {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(bytes)) => self.read = bytes,
                Some(Err(error)) => return Poll::Ready(Err(to_io(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.read.len().min(buf.remaining());
        buf.put_slice(&self.read[..count]);
        self.read.advance(count);
        let _ = self.recv.flow_control().release_capacity(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.send.reserve_capacity(buf.len());
        loop {
            let capacity = self.send.capacity();
            if capacity > 0 {
                let count = capacity.min(buf.len());
                let bytes = Bytes::copy_from_slice(&buf[..count]);
                self.send.send_data(bytes, false).map_err(to_io)?;
                return Poll::Ready(Ok(count));
            }
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(to_io(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.finished {
            self.finished = true;
            self.send.send_data(Bytes::new(), true).map_err(to_io)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl Abort for Tunnel {
    fn abort(&mut self) {
        self.finished = true;
        self.send.send_reset(Reason::CONNECT_ERROR);
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if !self.finished {
            self.send.send_reset(Reason::CANCEL);
        }
    }
}

fn to_io(error: ::h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().expect("is_io");
    }
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

/// Sends `body` on `stream` at the pace the receiver allows. If the body fails, the
/// stream is reset: half a body must not look whole.
pub async fn send_body<B>(body: B, mut stream: SendStream<Bytes>) -> Result<(), SendBodyError>
where
    B: Body<Data = Bytes, Error = Box<dyn std::error::Error + Send + Sync>>,
{
    let mut body = pin!(body);
    loop {
        let frame = poll_fn(|cx| {
            if let Poll::Ready(reset) = stream.poll_reset(cx) {
                return Poll::Ready(Err(SendBodyError::Reset(reset)));
            }
            body.as_mut().poll_frame(cx).map(Ok)
        });
        match frame.await? {
            None => {
                stream.send_data(Bytes::new(), true)?;
                return Ok(());
            }
            Some(Err(error)) => {
                stream.send_reset(Reason::INTERNAL_ERROR);
                return Err(SendBodyError::Body(error));
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    let last = body.is_end_stream();
                    send_data(data, last, &mut stream).await?;
                    if last {
                        return Ok(());
                    }
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        stream.send_trailers(trailers)?;
                        return Ok(());
                    }
                }
            },
        }
    }
}

async fn send_data(
    mut data: Bytes,
    last: bool,
    stream: &mut SendStream<Bytes>,
) -> Result<(), SendBodyError> {
    if data.is_empty() && last {
        return Ok(stream.send_data(data, true)?);
    }
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let mut capacity = stream.capacity();
        while capacity == 0 {
            match poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(granted) => capacity = granted?,
                None => return Err(SendBodyError::Gone),
            }
        }
        let piece = data.split_to(capacity.min(data.len()));
        stream.send_data(piece, last && data.is_empty())?;
    }
    Ok(())
}

#[derive(Debug, thiserror::Error)]
pub enum SendBodyError {
    #[error("the receiver does not want it: {0:?}")]
    Reset(Result<Reason, ::h2::Error>),
    #[error("the sender failed: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error(transparent)]
    H2(#[from] ::h2::Error),
    #[error("the stream is gone")]
    Gone,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Body as Answer;
    use ::http::{Request, Response};
    use std::time::Duration;
    use tokio::io::DuplexStream;
    use tokio::sync::mpsc;

    /// Three requests, and the connection that they came on.
    async fn asked() -> (
        ::h2::server::Connection<DuplexStream, Bytes>,
        Vec<::h2::server::SendResponse<Bytes>>,
    ) {
        let (near, far) = tokio::io::duplex(64 * 1024);
        tokio::spawn(async move {
            let (mut sender, connection) = ::h2::client::handshake(near).await.unwrap();
            // Nothing is read of what is answered, so that the window is used up.
            let answers: Vec<_> = (0..3)
                .map(|_| sender.send_request(Request::new(()), true).unwrap().0)
                .collect();
            let _ = connection.await;
            drop(answers);
        });
        let mut connection = ::h2::server::handshake(far).await.unwrap();
        let mut streams = Vec::new();
        while streams.len() < 3 {
            streams.push(connection.accept().await.unwrap().unwrap().1);
        }
        (connection, streams)
    }

    #[tokio::test]
    async fn who_answers_hears_that_the_connection_is_cut() {
        let (mut connection, mut streams) = asked().await;
        let mut waits = streams.pop().unwrap();
        let [silent, large] = [streams.pop().unwrap(), streams.pop().unwrap()]
            .map(|mut respond| respond.send_response(Response::new(()), false).unwrap());
        let (_silence, pieces) = mpsc::channel(1);
        let mut works = tokio::task::JoinSet::new();
        works.spawn(async move {
            let _ = poll_fn(|cx| waits.poll_reset(cx)).await;
        });
        works.spawn(async move {
            let _ = send_body(Answer::pieces(pieces), silent).await;
        });
        works.spawn(async move {
            let _ = send_body(Answer::full(vec![0; 1 << 20]), large).await;
        });
        let carried = tokio::time::timeout(Duration::from_millis(50), connection.accept()).await;
        assert!(carried.is_err(), "the client goes on");
        assert!(works.try_join_next().is_none(), "all of them wait");
        drop(connection);
        let ended = tokio::time::timeout(Duration::from_secs(5), works.join_all()).await;
        assert!(ended.is_ok(), "they wait for a client that is gone");
    }
}
