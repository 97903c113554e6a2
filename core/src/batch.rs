//! Fewer and larger system calls on a connection between proxies.
//!
//! h2 flushes after every frame that has a body in it, and each flush would become a
//! TLS record, a system call and a segment. What streams wrote since the connection
//! was last driven is kept here instead, and leaves in one piece when it has been
//! ([`Flush`]). And rustls reads at most 4 KiB at once: what a system call brings
//! beyond that is kept for the next read ([`ReadAhead`]). Idle connections keep nothing.

use crate::io::writes_through;
use crate::relay::Abort;
use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep};

/// What is kept at most before it is written after all.
const FULL: usize = 64 * 1024;
/// What an emptied buffer may keep.
const SPARE: usize = 4 * 1024;
/// How often it is looked whether the other end takes anything.
const LOOKS: Duration = Duration::from_secs(60);
/// Read at once.
const AHEAD: usize = 32 * 1024;

/// A stream that is written to when it is told so.
pub struct Batched<S>(Arc<Mutex<Batch<S>>>);

/// Writes what there is. Whoever drives a connection calls it after each turn.
pub struct Flush<S>(Arc<Mutex<Batch<S>>>);

struct Batch<S> {
    io: S,
    kept: Vec<u8>,
    /// Of `kept`, what has been written.
    written: usize,
    /// Of all.
    taken: u64,
    unflushed: bool,
    failed: Option<io::Error>,
}

pub fn batched<S>(io: S) -> (Batched<S>, Flush<S>) {
    let batch = Arc::new(Mutex::new(Batch {
        io,
        kept: Vec::new(),
        written: 0,
        taken: 0,
        unflushed: false,
        failed: None,
    }));
    (Batched(batch.clone()), Flush(batch))
}

// === impl Batch ===

impl<S: AsyncWrite + Unpin> Batch<S> {
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.kept.len() {
            let rest = &self.kept[self.written..];
            match ready!(Pin::new(&mut self.io).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => {
                    self.written += count;
                    self.taken += count as u64;
                }
            }
            self.unflushed = true;
        }
        self.written = 0;
        self.kept.clear();
        self.kept.shrink_to(SPARE);
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_out(cx))?;
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_keep(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        if self.kept.len() >= FULL {
            ready!(self.poll_write_out(cx))?;
        }
        let before = self.kept.len();
        for buf in bufs {
            self.kept.extend_from_slice(buf);
        }
        Poll::Ready(Ok(self.kept.len() - before))
    }
}

// === impl Flush ===

impl<S: AsyncWrite + Unpin> Flush<S> {
    /// Polls what writes, and then writes. If there is no room now, its task is woken when
    /// there is; a failure is for whoever writes next.
    pub fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let polled = poll(cx);
        let mut batch = self.0.lock();
        if let Poll::Ready(Err(error)) = batch.poll_flush(cx) {
            batch.failed = Some(error);
        }
        polled
    }

    /// The same until it ends.
    pub async fn drive<F: Future>(&self, mut driven: Pin<&mut F>) -> F::Output {
        poll_fn(|cx| self.poll(cx, |cx| driven.as_mut().poll(cx))).await
    }
}

impl<S> Flush<S> {
    /// Until the other end has for so long taken nothing of what there is for it.
    pub async fn stuck(&self, patience: Duration) {
        let look = || {
            let batch = self.0.lock();
            (batch.taken, batch.written < batch.kept.len())
        };
        let (mut last, mut since) = (0, Instant::now());
        loop {
            sleep(LOOKS).await;
            let (taken, waits) = look();
            if !waits || taken != last {
                (last, since) = (taken, Instant::now());
            } else if since.elapsed() >= patience {
                return;
            }
        }
    }
}

impl<S: Abort> Flush<S> {
    pub fn abort(&self) {
        self.0.lock().io.abort();
    }
}

// === impl Batched ===

impl<S: AsyncRead + Unpin> AsyncRead for Batched<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.lock().io).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Batched<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().poll_keep(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().poll_keep(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Not yet.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut batch = self.0.lock();
        ready!(batch.poll_flush(cx))?;
        Pin::new(&mut batch.io).poll_shutdown(cx)
    }
}

/// A stream whose reader asks for less than there is.
pub struct ReadAhead<S> {
    io: S,
    kept: Bytes,
}

// === impl ReadAhead ===

impl<S> ReadAhead<S> {
    pub fn new(io: S) -> Self {
        Self {
            io,
            kept: Bytes::new(),
        }
    }

    pub fn get_ref(&self) -> &S {
        &self.io
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.kept.is_empty() {
            let mut space = [const { MaybeUninit::uninit() }; AHEAD];
            let mut read = ReadBuf::uninit(&mut space);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))?;
            let (now, later) = read
                .filled()
                .split_at(read.filled().len().min(buf.remaining()));
            buf.put_slice(now);
            if !later.is_empty() {
                self.kept = Bytes::copy_from_slice(later);
            }
            return Poll::Ready(Ok(()));
        }
        let count = self.kept.len().min(buf.remaining());
        buf.put_slice(&self.kept[..count]);
        self.kept.advance(count);
        if self.kept.is_empty() {
            self.kept = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

writes_through!(ReadAhead);
