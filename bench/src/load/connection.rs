//! Connections that carry one request at a time: HTTP/1.1 and the echo over TCP.
//!
//! The HTTP connection is driven by the task that uses it, not by one of its own: a request then costs no
//! hand-over between tasks.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::clock::now_ns;
use super::error::ErrorKind;
use super::target::{Protocol, Target};

/// A correct answer.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    pub bytes: u64,
    pub first_byte_ns: u64,
    pub done_ns: u64,
}

/// Opens a TCP connection, without a deadline of its own.
pub async fn connect(target: &Target) -> Result<TcpStream, ErrorKind> {
    let stream = TcpStream::connect(target.address)
        .await
        .map_err(|e| ErrorKind::of_connect(&e))?;
    stream.set_nodelay(true).map_err(|e| ErrorKind::of_io(&e))?;
    Ok(stream)
}

/// An established connection that carries one request at a time.
pub enum Connection {
    Http1(Http1),
    Tcp(Echo),
}

impl Connection {
    /// Opens a connection; `closing` means that the one request on it asks the server to close afterwards.
    pub async fn open(target: &Target, closing: bool) -> Result<Self, ErrorKind> {
        let stream = connect(target).await?;
        match target.protocol {
            Protocol::Tcp => Ok(Self::Tcp(Echo { stream })),
            _ => Ok(Self::Http1(Http1::handshake(stream, closing).await?)),
        }
    }

    /// Sends one request and reads its answer. After an error the connection is of no further use.
    pub async fn exchange(&mut self, target: &Target, number: u64) -> Result<Answer, ErrorKind> {
        match self {
            Self::Http1(http1) => http1.exchange(target).await,
            Self::Tcp(echo) => echo.exchange(target, number).await,
        }
    }

    /// Whether the connection can carry another request once its last answer is complete.
    pub async fn reusable(&mut self) -> bool {
        match self {
            Self::Http1(http1) => http1.reusable().await,
            Self::Tcp(_) => true,
        }
    }

    /// Returns once the idle connection is closed or sends what nobody asked for.
    pub async fn closed(&mut self) {
        match self {
            Self::Http1(http1) => poll_fn(|context| http1.driver.poll(context)).await,
            Self::Tcp(echo) => {
                let mut byte = [0];
                // Readiness outlives the data that caused it; only a read tells.
                while echo.stream.readable().await.is_ok() {
                    match echo.stream.try_read(&mut byte) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        _ => return,
                    }
                }
            }
        }
    }
}

pub struct Http1 {
    sender: SendRequest<Full<Bytes>>,
    driver: Driver,
    closing: bool,
}

impl Http1 {
    async fn handshake(stream: TcpStream, closing: bool) -> Result<Self, ErrorKind> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| ErrorKind::of_http(&e))?;
        Ok(Self {
            sender,
            driver: Driver(Some(Box::pin(connection))),
            closing,
        })
    }

    async fn exchange(&mut self, target: &Target) -> Result<Answer, ErrorKind> {
        let response = self.sender.send_request(target.http1_request(self.closing));
        let mut answer = pin!(async {
            let response = response.await.map_err(|e| ErrorKind::of_http(&e))?;
            let first_byte_ns = now_ns();
            let status = response.status();
            let bytes = drain(response.into_body()).await?;
            check_status(status)?;
            Ok(Answer {
                bytes,
                first_byte_ns,
                done_ns: now_ns(),
            })
        });
        poll_fn(|context| {
            if let Poll::Ready(answer) = answer.as_mut().poll(context) {
                return Poll::Ready(answer);
            }
            let _ = self.driver.poll(context);
            answer.as_mut().poll(context)
        })
        .await
    }

    async fn reusable(&mut self) -> bool {
        poll_fn(|context| {
            if self.driver.poll(context).is_ready() {
                return Poll::Ready(false);
            }
            self.sender.poll_ready(context).map(|ready| ready.is_ok())
        })
        .await
    }
}

/// What moves the connection's bytes; `None` once it has ended. It is dropped at its end, because a request
/// that it never picked up fails only then.
struct Driver(Option<Pin<Box<HttpConnection>>>);

type HttpConnection = http1::Connection<TokioIo<TcpStream>, Full<Bytes>>;

impl Driver {
    /// Ready once the connection has ended. Its error reaches the exchange through the exchange's own future.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(connection) = &mut self.0 {
            let _ = std::task::ready!(connection.as_mut().poll(context));
            self.0 = None;
        }
        Poll::Ready(())
    }
}

/// Reads a body to its end and counts it.
async fn drain<B>(body: B) -> Result<u64, ErrorKind>
where
    B: Body<Data = Bytes, Error = hyper::Error>,
{
    let mut body = pin!(body);
    let mut bytes = 0;
    while let Some(frame) = poll_fn(|context| body.as_mut().poll_frame(context)).await {
        if let Some(data) = frame.map_err(|e| ErrorKind::of_http(&e))?.data_ref() {
            bytes += data.len() as u64;
        }
    }
    Ok(bytes)
}

/// Any status but 4xx and 5xx counts as an answer.
pub fn check_status(status: http::StatusCode) -> Result<(), ErrorKind> {
    match status.as_u16() {
        400..=499 => Err(ErrorKind::Status4xx),
        500.. => Err(ErrorKind::Status5xx),
        _ => Ok(()),
    }
}

pub struct Echo {
    stream: TcpStream,
}

impl Echo {
    async fn exchange(&mut self, target: &Target, number: u64) -> Result<Answer, ErrorKind> {
        let frame = target.frame(number);
        let mut answer = vec![0; frame.len()];
        let first_byte_ns = self
            .write_and_read(&frame, &mut answer)
            .await
            .map_err(|e| ErrorKind::of_io(&e))?;
        if answer != frame {
            return Err(ErrorKind::Protocol);
        }
        Ok(Answer {
            bytes: answer.len() as u64,
            first_byte_ns,
            done_ns: now_ns(),
        })
    }

    async fn write_and_read(&mut self, frame: &[u8], answer: &mut [u8]) -> io::Result<u64> {
        let (mut reader, mut writer) = self.stream.split();
        // Both at once: an echo of a large frame would otherwise block on full buffers.
        let write = writer.write_all(frame);
        let read = async {
            let first = reader.read(answer).await?;
            let first_byte_ns = now_ns();
            if first == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            reader.read_exact(&mut answer[first..]).await?;
            Ok(first_byte_ns)
        };
        let ((), first_byte_ns) = tokio::try_join!(write, read)?;
        Ok(first_byte_ns)
    }
}

/// Runs a step of a request within its deadline.
pub async fn within<T>(
    limit: Duration,
    late: ErrorKind,
    step: impl Future<Output = Result<T, ErrorKind>>,
) -> Result<T, ErrorKind> {
    tokio::time::timeout(limit, step).await.unwrap_or(Err(late))
}
