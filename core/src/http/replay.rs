//! A request's body that may be sent more than once.
//!
//! What goes by is kept, up to [`MOST`], and the next try begins with it. A body that
//! grows past that is sent on as before, and is not kept: then there is no next try.

use super::Body;
use super::body::Polled;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Bytes that are kept of one body; linkerd2-proxy's limit.
const MOST: usize = 64 * 1024;
/// Pieces: a body of single bytes costs more than its bytes.
const MOST_PIECES: usize = 1024;

/// What makes one body after another.
pub struct Replay(Arc<Mutex<Kept>>);

/// One try's body.
pub struct Replayed {
    kept: Arc<Mutex<Kept>>,
    /// Which try it is of: an older one gets nothing any more.
    turn: u32,
    /// Pieces that it has given.
    given: usize,
}

struct Kept {
    source: Body,
    pieces: VecDeque<Bytes>,
    bytes: usize,
    trailers: Option<HeaderMap>,
    /// All of it is kept, or was.
    ended: bool,
    /// It is too long to be kept, or it failed.
    lost: bool,
    turn: u32,
    /// Of the try that waits for more of it.
    waiting: Option<Waker>,
}

// === impl Replay ===

impl Replay {
    pub fn new(source: Body) -> Self {
        Self(Arc::new(Mutex::new(Kept {
            ended: source.is_end_stream(),
            source,
            pieces: VecDeque::new(),
            bytes: 0,
            trailers: None,
            lost: false,
            turn: 0,
            waiting: None,
        })))
    }

    /// Whether there can be another body, as far as it is known.
    pub fn can_repeat(&self) -> bool {
        !self.0.lock().lost
    }

    /// Takes the body from the try that has it, which may be sending it still. False
    /// if there can be no other: then that one keeps it.
    pub fn take_back(&self) -> bool {
        let mut kept = self.0.lock();
        if kept.lost {
            return false;
        }
        kept.turn += 1;
        if let Some(waiting) = kept.waiting.take() {
            waiting.wake();
        }
        true
    }

    /// The next try's body, from the beginning.
    pub fn body(&self) -> Body {
        let mut kept = self.0.lock();
        debug_assert!(!kept.lost, "what is lost cannot be sent again");
        kept.turn += 1;
        Body::replayed(Replayed {
            kept: self.0.clone(),
            turn: kept.turn,
            given: 0,
        })
    }
}

// === impl Replayed ===

impl Replayed {
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Polled {
        let mut kept = self.kept.lock();
        let kept = &mut *kept;
        if kept.turn != self.turn {
            return Poll::Ready(Some(Err("another try has the body".into())));
        }
        if let Some(piece) = kept.pieces.get(self.given) {
            self.given += 1;
            return Poll::Ready(Some(Ok(Frame::data(piece.clone()))));
        }
        if kept.ended {
            // Trailers come once, as the last piece.
            let trailers = (self.given == kept.pieces.len())
                .then(|| kept.trailers.clone())
                .flatten();
            self.given = usize::MAX;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let Poll::Ready(frame) = Pin::new(&mut kept.source).poll_frame(cx) else {
            kept.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        };
        match &frame {
            None => kept.ended = true,
            Some(Err(_)) => kept.lost = true,
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.given += usize::from(kept.keep(data));
                } else if let Some(trailers) = frame.trailers_ref() {
                    kept.trailers = Some(trailers.clone());
                    kept.ended = true;
                    self.given = usize::MAX;
                }
            }
        }
        Poll::Ready(frame)
    }

    pub fn is_end_stream(&self) -> bool {
        let kept = self.kept.lock();
        let all_given = self.given >= kept.pieces.len();
        let no_trailers = kept.trailers.is_none() || self.given == usize::MAX;
        (kept.ended || kept.source.is_end_stream()) && all_given && no_trailers
    }

    /// What is left, if that is known.
    pub fn exact_size(&self) -> Option<u64> {
        let kept = self.kept.lock();
        let given: usize = kept.pieces.iter().take(self.given).map(Bytes::len).sum();
        let rest = if kept.ended {
            0
        } else {
            kept.source.size_hint().exact()?
        };
        Some((kept.bytes - given) as u64 + rest)
    }
}

// === impl Kept ===

impl Kept {
    /// Whether it is.
    fn keep(&mut self, piece: &Bytes) -> bool {
        if self.lost {
            return false;
        }
        if self.bytes + piece.len() > MOST || self.pieces.len() == MOST_PIECES {
            self.lost = true;
            self.pieces = VecDeque::new();
            self.bytes = 0;
            return false;
        }
        self.bytes += piece.len();
        self.pieces.push_back(piece.clone());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use std::future::poll_fn;

    async fn all(body: Body) -> Vec<u8> {
        body.collect().await.unwrap().to_bytes().to_vec()
    }

    /// Half-way through: `count` frames.
    async fn begin(body: &mut Body, count: usize) {
        for _ in 0..count {
            let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
            frame.unwrap().unwrap();
        }
    }

    fn pieces(count: usize, size: usize) -> Body {
        // Each try's body is a source itself.
        let (sender, receiver) = tokio::sync::mpsc::channel(count.max(1));
        for n in 0..count {
            let piece = vec![u8::try_from(n % 251).unwrap(); size];
            sender.try_send(Bytes::from(piece)).unwrap();
        }
        Body::pieces(receiver)
    }

    #[tokio::test]
    async fn every_try_gets_the_whole_body_wherever_the_last_one_stopped() {
        let expected = all(pieces(16, 4096)).await;
        assert_eq!(expected.len(), MOST);
        let replay = Replay::new(pieces(16, 4096));
        for stop in [0, 3, 16, 1] {
            let mut half = replay.body();
            begin(&mut half, stop).await;
            assert!(replay.can_repeat());
        }
        let mut old = replay.body();
        let body = replay.body();
        assert_eq!(all(body).await, expected);
        let late = poll_fn(|cx| Pin::new(&mut old).poll_frame(cx)).await;
        assert!(late.unwrap().is_err(), "it is over for an older try");
        assert_eq!(all(replay.body()).await, expected);
    }

    #[tokio::test]
    async fn a_body_that_is_too_long_goes_on_and_is_not_repeated() {
        for (count, size) in [(17, 4096), (MOST_PIECES + 1, 1), (1, MOST + 1)] {
            let replay = Replay::new(pieces(count, size));
            let mut body = replay.body();
            begin(&mut body, count - 1).await;
            assert!(replay.can_repeat());
            assert_eq!(all(body).await.len(), size, "the rest");
            assert!(!replay.can_repeat());
        }
    }

    /// An answer may come while the body is still being sent.
    #[tokio::test]
    async fn a_body_that_is_taken_back_grows_no_longer() {
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let replay = Replay::new(Body::pieces(receiver));
        let mut old = replay.body();
        sender.send(Bytes::from(vec![7; MOST])).await.unwrap();
        begin(&mut old, 1).await;
        let sending = tokio::spawn(async move { old.collect().await.map(drop) });
        tokio::task::yield_now().await;
        assert!(replay.take_back());
        assert!(sending.await.unwrap().is_err(), "it is woken, and told");
        sender.send(Bytes::from(vec![8; 1])).await.unwrap();
        drop(sender);
        assert_eq!(all(replay.body()).await.len(), MOST + 1);
        assert!(!replay.take_back(), "now it is too long");
    }

    #[tokio::test]
    async fn what_is_left_is_known_where_it_was() {
        let replay = Replay::new(Body::full("hello"));
        let mut body = replay.body();
        assert_eq!(body.size_hint().exact(), Some(5));
        assert!(!body.is_end_stream());
        begin(&mut body, 1).await;
        assert_eq!(body.size_hint().exact(), Some(0));
        assert!(body.is_end_stream());
        let again = replay.body();
        assert_eq!(again.size_hint().exact(), Some(5));
        assert!(!again.is_end_stream());
        assert_eq!(all(again).await, b"hello");
        let nothing = Replay::new(Body::empty());
        assert!(nothing.body().is_end_stream());
    }
}
