//! Streams around streams.

/// What is written to `$stream` is written to the stream within, its `io`; and `$wrote` is given
/// what came of each write.
macro_rules! writes_through {
    ($stream:ident) => {
        $crate::io::writes_through!($stream, |_, written| written);
    };
    ($stream:ident, $wrote:expr) => {
        impl<S: tokio::io::AsyncWrite + Unpin> tokio::io::AsyncWrite for $stream<S> {
            fn poll_write(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &[u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                let written = std::pin::Pin::new(&mut self.io).poll_write(cx, buf);
                ($wrote)(&*self, written)
            }

            fn poll_write_vectored(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                bufs: &[std::io::IoSlice<'_>],
            ) -> std::task::Poll<std::io::Result<usize>> {
                // For one piece, as a record of TLS is, send(2) is the shorter way.
                if let [one] = bufs {
                    return self.poll_write(cx, one);
                }
                let written = std::pin::Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
                ($wrote)(&*self, written)
            }

            fn is_write_vectored(&self) -> bool {
                self.io.is_write_vectored()
            }

            fn poll_flush(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::pin::Pin::new(&mut self.io).poll_flush(cx)
            }

            fn poll_shutdown(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::pin::Pin::new(&mut self.io).poll_shutdown(cx)
            }
        }
    };
}

pub(crate) use writes_through;
