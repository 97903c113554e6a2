use super::classify::grpc_status;
use super::copied::Copied;
use super::deadline::Deadline;
use super::replay::Replayed;
use crate::admission::Admitted;
use crate::upstream::{Answer, Slot, UpstreamError};
use bytes::Bytes;
use h2::RecvStream;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// Why a body ended before its time.
pub(super) type Failed = Box<dyn Error + Send + Sync>;
/// What a body gives when it is asked for its next frame.
pub(super) type Polled = Poll<Option<Result<Frame<Bytes>, Failed>>>;

/// A request's or response's body on its way through. What is attached to it with
/// [`Body::until_end`] lives until its last byte has gone by.
pub struct Body {
    source: Source,
    held: Option<Box<dyn Send>>,
    admitted: Option<Box<Admitted>>,
    tells: Option<Box<Tells>>,
    deadline: Option<Box<Deadline>>,
}

/// Whom its end is told to.
#[derive(Default)]
struct Tells {
    end: Option<OnEnd>,
    /// The first piece is end enough for `end`.
    begins: bool,
    status: Option<OnStatus>,
}

/// How a body ended, or that it has begun to come.
pub enum End<'a> {
    /// There is a first piece.
    Begun,
    /// With these trailers, if any.
    Whole(Option<&'a http::HeaderMap>),
    Failed,
}

type OnEnd = Box<dyn FnOnce(End<'_>) + Send>;
type OnStatus = Box<dyn FnOnce(Option<u8>) + Send>;

enum Source {
    Full(Option<Bytes>),
    Hyper(Incoming),
    H1(Box<Answer>),
    H2(RecvStream, Option<Slot>),
    Replayed(Box<Replayed>),
    Copied(Box<Copied>),
    #[cfg(test)]
    Pieces(tokio::sync::mpsc::Receiver<Bytes>),
}

impl Body {
    pub fn empty() -> Self {
        Self::from(Source::Full(None))
    }

    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self::from(Source::Full(Some(bytes.into())))
    }

    /// What comes on an HTTP/2 stream, which has this place.
    pub fn streamed(stream: RecvStream, slot: Slot) -> Self {
        Self::from(Source::H2(stream, Some(slot)))
    }

    /// What an application answers over HTTP/1.
    pub fn answered(answer: Answer) -> Self {
        Self::from(Source::H1(Box::new(answer)))
    }

    /// What a request's body was, once more.
    pub fn replayed(body: Replayed) -> Self {
        Self::from(Source::Replayed(Box::new(body)))
    }

    /// What is copied as it goes by.
    pub fn copied(body: Copied) -> Self {
        Self::from(Source::Copied(Box::new(body)))
    }

    #[cfg(test)]
    pub fn pieces(pieces: tokio::sync::mpsc::Receiver<Bytes>) -> Self {
        Self::from(Source::Pieces(pieces))
    }

    /// Ends when it is too late.
    pub fn until(mut self, deadline: Deadline) -> Self {
        // What has ended already was in time.
        if !self.is_end_stream() {
            self.deadline = Some(Box::new(deadline));
        }
        self
    }

    /// Fails as soon as what it belongs to is admitted no more.
    pub fn while_admitted(&mut self, admitted: impl FnOnce() -> Box<Admitted>) {
        // What has ended already needs nobody to watch it.
        if !self.is_end_stream() {
            self.admitted = Some(admitted());
        }
    }

    pub fn until_end(mut self, held: impl Send + 'static) -> Self {
        self.held = Some(match self.held.take() {
            Some(before) => Box::new((before, held)),
            None => Box::new(held),
        });
        self
    }

    /// Tells how it ended, unless nobody wanted to know.
    pub fn on_end(mut self, tell: impl FnOnce(End<'_>) + Send + 'static) -> Self {
        self.tells.get_or_insert_default().end = Some(Box::new(tell));
        self
    }

    /// Tells that it has begun, or how it ended if it never did.
    pub fn on_begin(mut self, tell: impl FnOnce(End<'_>) + Send + 'static) -> Self {
        self.tells.get_or_insert_default().begins = true;
        self.on_end(tell)
    }

    /// Tells which gRPC status it ended with; `None`: it did not come to that.
    pub fn on_status(mut self, tell: impl FnOnce(Option<u8>) + Send + 'static) -> Self {
        self.tells.get_or_insert_default().status = Some(Box::new(tell));
        self
    }

    fn poll_in_time(&mut self, cx: &mut Context<'_>) -> Polled {
        // A client that is slower than the server finds the next piece always there.
        if let Some(deadline) = &mut self.deadline
            && let late @ Poll::Ready(_) = deadline.poll_whole(cx)
        {
            if deadline.is_clients() {
                // What the client waited for says nothing of the server.
                self.tells.iter_mut().for_each(|tells| tells.end = None);
            }
            return late;
        }
        let polled = self.poll_source(cx);
        match &mut self.deadline {
            Some(deadline) if polled.is_pending() => deadline.poll_idle(cx),
            Some(deadline) => {
                deadline.moved();
                polled
            }
            None => polled,
        }
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Polled {
        let frame = match &mut self.source {
            Source::Full(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Source::Hyper(incoming) => {
                ready!(Pin::new(incoming).poll_frame(cx)).map(|frame| frame.map_err(Into::into))
            }
            Source::H1(answer) => {
                ready!(answer.poll_frame(cx)).map(|frame| frame.map_err(Into::into))
            }
            Source::H2(stream, _) => match ready!(stream.poll_data(cx)) {
                Some(Ok(bytes)) => {
                    // What was taken is on its way: the sender may send as much again.
                    let _ = stream.flow_control().release_capacity(bytes.len());
                    Some(Ok(Frame::data(bytes)))
                }
                Some(Err(error)) => Some(Err(error.into())),
                None => match ready!(stream.poll_trailers(cx)) {
                    Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
                    Err(error) => Some(Err(error.into())),
                },
            },
            Source::Replayed(replayed) => ready!(replayed.poll_frame(cx)),
            Source::Copied(copied) => ready!(copied.poll_frame(cx)),
            #[cfg(test)]
            Source::Pieces(pieces) => ready!(pieces.poll_recv(cx)).map(|it| Ok(Frame::data(it))),
        };
        Poll::Ready(frame)
    }

    fn cut(&mut self, reason: UpstreamError) -> Failed {
        if let Some(admitted) = self.admitted.take() {
            admitted.tell(&reason);
        }
        reason.into()
    }
}

// === impl Tells ===

impl Tells {
    fn tell(&mut self, frame: Option<&Result<Frame<Bytes>, Failed>>) {
        let end = match frame {
            None => End::Whole(None),
            Some(Err(_)) => End::Failed,
            Some(Ok(frame)) => match frame.trailers_ref() {
                Some(trailers) => End::Whole(Some(trailers)),
                None if self.begins => End::Begun,
                None => return,
            },
        };
        if !matches!(end, End::Begun)
            && let Some(tell) = self.status.take()
        {
            tell(match end {
                End::Whole(Some(trailers)) => grpc_status(trailers),
                _ => None,
            });
        }
        if let Some(tell) = self.end.take() {
            tell(end);
        }
    }
}

impl Drop for Tells {
    fn drop(&mut self) {
        if let Some(tell) = self.status.take() {
            tell(None);
        }
    }
}

impl From<Source> for Body {
    fn from(source: Source) -> Self {
        Self {
            source,
            held: None,
            admitted: None,
            tells: None,
            deadline: None,
        }
    }
}

impl From<Incoming> for Body {
    fn from(incoming: Incoming) -> Self {
        Source::Hyper(incoming).into()
    }
}

impl From<RecvStream> for Body {
    fn from(stream: RecvStream) -> Self {
        Source::H2(stream, None).into()
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Failed;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if let Some(admitted) = &mut this.admitted
            && let Err(reason) = admitted.check()
        {
            return Poll::Ready(Some(Err(this.cut(reason))));
        }
        let polled = match &mut this.deadline {
            Some(deadline) if deadline.is_over() => Poll::Ready(None),
            None => this.poll_source(cx),
            Some(_) => this.poll_in_time(cx),
        };
        match polled {
            Poll::Ready(frame) => {
                if let Some(tells) = &mut this.tells {
                    tells.tell(frame.as_ref());
                }
                if frame.is_none() {
                    if let Source::H2(_, slot) = &mut this.source {
                        *slot = None;
                    }
                    this.held = None;
                    this.admitted = None;
                    this.deadline = None;
                }
                Poll::Ready(frame)
            }
            Poll::Pending => match &mut this.admitted {
                Some(admitted) => {
                    let reason = ready!(admitted.poll_revoked(cx));
                    Poll::Ready(Some(Err(this.cut(reason))))
                }
                None => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Full(bytes) => bytes.is_none(),
            Source::Hyper(incoming) => incoming.is_end_stream(),
            Source::H1(answer) => answer.body().is_end_stream(),
            Source::H2(stream, _) => stream.is_end_stream(),
            Source::Replayed(replayed) => replayed.is_end_stream(),
            Source::Copied(copied) => copied.body().is_end_stream(),
            #[cfg(test)]
            Source::Pieces(pieces) => pieces.is_closed() && pieces.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Source::Hyper(incoming) => incoming.size_hint(),
            Source::H1(answer) => answer.body().size_hint(),
            Source::H2(..) => SizeHint::default(),
            Source::Copied(copied) => copied.body().size_hint(),
            Source::Replayed(replayed) => replayed
                .exact_size()
                .map_or_else(SizeHint::default, SizeHint::with_exact),
            #[cfg(test)]
            Source::Pieces(_) => SizeHint::default(),
        }
    }
}
