//! A body that is copied as it goes by.

use super::Body;
use super::body::Polled;
use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// What is kept of a copy; of what is longer there is none.
const MAX_COPY: usize = 64 * 1024;

/// Told once: the whole body, or `None` if it was too long. Not at all if it failed.
type Tell = Box<dyn FnOnce(Option<Bytes>) + Send>;

pub struct Copied {
    body: Body,
    copy: BytesMut,
    tell: Option<Tell>,
}

// === impl Copied ===

impl Copied {
    pub fn new(body: Body, tell: impl FnOnce(Option<Bytes>) + Send + 'static) -> Self {
        let mut copied = Self {
            body,
            copy: BytesMut::new(),
            tell: Some(Box::new(tell)),
        };
        if copied.body.is_end_stream() {
            copied.ended();
        }
        copied
    }

    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Polled {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.keep(data);
                }
                // Whoever sends it may not ask for more.
                if frame.is_trailers() || self.body.is_end_stream() {
                    self.ended();
                }
            }
            Some(Err(_)) => self.tell = None,
            None => self.ended(),
        }
        Poll::Ready(frame)
    }

    fn keep(&mut self, data: &Bytes) {
        if self.tell.is_none() {
            return;
        }
        if self.copy.len() + data.len() > MAX_COPY {
            self.copy = BytesMut::new();
            if let Some(tell) = self.tell.take() {
                tell(None);
            }
        } else {
            self.copy.extend_from_slice(data);
        }
    }

    fn ended(&mut self) {
        if let Some(tell) = self.tell.take() {
            tell(Some(std::mem::take(&mut self.copy).freeze()));
        }
    }

    pub fn body(&self) -> &Body {
        &self.body
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use std::sync::{Arc, Mutex};

    /// What was passed on of these pieces, and what was told of them.
    async fn copy(pieces: &[usize]) -> (usize, Vec<Option<usize>>) {
        let (sender, receiver) = tokio::sync::mpsc::channel(pieces.len().max(1));
        for piece in pieces {
            sender.send(Bytes::from(vec![0; *piece])).await.unwrap();
        }
        drop(sender);
        let told = Arc::<Mutex<Vec<_>>>::default();
        let tell = told.clone();
        let copied = Copied::new(Body::pieces(receiver), move |body: Option<Bytes>| {
            tell.lock().unwrap().push(body.map(|body| body.len()));
        });
        let passed = Body::copied(copied).collect().await.unwrap();
        (passed.to_bytes().len(), told.lock().unwrap().clone())
    }

    #[tokio::test]
    async fn a_copy_is_whole_or_none() {
        assert_eq!(copy(&[]).await, (0, vec![Some(0)]));
        assert_eq!(copy(&[10, 20]).await, (30, vec![Some(30)]));
        assert_eq!(copy(&[MAX_COPY]).await, (MAX_COPY, vec![Some(MAX_COPY)]));
        assert_eq!(copy(&[MAX_COPY, 1, 1]).await, (MAX_COPY + 2, vec![None]));
    }

    #[tokio::test]
    async fn of_half_a_body_nothing_is_told() {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        sender.send(Bytes::from_static(b"half")).await.unwrap();
        let copied = Copied::new(Body::pieces(receiver), |_| panic!("it has not ended"));
        let mut body = Body::copied(copied);
        assert!(body.frame().await.unwrap().is_ok());
        drop(body);
        drop(sender);
    }
}
