//! The heads that come in on connections of HTTP/1, and how their names are spelled.
//!
//! hyper tells nobody what it read, so heads are read here once more, as they come by. Should
//! one be taken for another's, a name is written in another case, and no more than that.

use super::spelling::{LOWER, MOST_SPELLED, SPELLING, is_lower, is_ours, is_usual, listed};
use crate::io::writes_through;
use http::{HeaderMap, HeaderValue};
use memchr::{memchr, memchr_iter, memchr2};
use parking_lot::Mutex;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};

/// A head, or a queue of them, of more bytes than this is not looked at.
const MOST: usize = 16 * 1024;

/// The heads that come in on one connection of HTTP/1.
#[derive(Default)]
pub struct Heads(Mutex<Read>);

#[derive(Default)]
struct Read {
    expects: Expects,
    /// Of a head that nobody has asked about: how many headers it has.
    next: Option<(usize, Option<HeaderValue>)>,
    /// Half a head, or what was sent before it was asked for.
    ahead: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expects {
    #[default]
    Heads,
    /// A body, until it is said that it is over.
    Else,
    /// It has left HTTP.
    Nothing,
}

/// One whole head.
struct Head<'a> {
    lines: &'a [u8],
    rest: &'a [u8],
}

/// A stream whose heads are looked at.
pub struct Overheard<S> {
    io: S,
    heads: Arc<Heads>,
}

// === impl Heads ===

impl Heads {
    /// Notes beside what hyper has read how it was spelled.
    pub fn note(&self, headers: &mut HeaderMap) {
        match self.take(headers) {
            Some(names) => drop(headers.insert(SPELLING, names)),
            None => drop(headers.remove(SPELLING)),
        }
    }

    /// What comes next begins with a head.
    pub fn expect(&self) {
        let mut read = self.0.lock();
        if read.expects == Expects::Else {
            read.expects = Expects::Heads;
        }
    }

    /// It is no HTTP any more.
    pub fn leave(&self) {
        *self.0.lock() = Read {
            expects: Expects::Nothing,
            ..Read::default()
        };
    }

    /// What has come and is not asked about comes again.
    pub fn again(&self) {
        let mut read = self.0.lock();
        (read.next, read.ahead) = (None, Vec::new());
    }

    /// Of the head that hyper has read, which has so many headers, if it is not the usual.
    fn take(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let mut read = self.0.lock();
        if read.next.is_none() && !read.ahead.is_empty() {
            let ahead = std::mem::take(&mut read.ahead);
            read.hear(&ahead);
        }
        let (count, spelling) = read.next.take()?;
        if count != headers.len() {
            // It was a body, of which hyper has got rid in between.
            read.ahead = Vec::new();
            return None;
        }
        spelling
    }

    /// Reads from `io`, and sees what it brings.
    pub fn poll_read<S: AsyncRead + Unpin>(
        &self,
        io: &mut S,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(io).poll_read(cx, buf))?;
        self.hear(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }

    fn hear(&self, bytes: &[u8]) {
        self.0.lock().hear(bytes);
    }
}

// === impl Read ===

impl Read {
    fn hear(&mut self, mut bytes: &[u8]) {
        while self.expects == Expects::Heads && !bytes.is_empty() {
            if self.next.is_none()
                && self.ahead.is_empty()
                && let Some(head) = Head::first_of(bytes)
            {
                bytes = head.rest;
                self.see(&head);
            } else if self.ahead.len() + bytes.len() > MOST {
                (self.expects, self.ahead) = (Expects::Else, Vec::new());
            } else {
                self.ahead.extend_from_slice(bytes);
                let ends = memchr(b'\n', bytes).is_some();
                bytes = &[];
                if ends && self.next.is_none() && Head::first_of(&self.ahead).is_some() {
                    let ahead = std::mem::take(&mut self.ahead);
                    return self.hear(&ahead);
                }
            }
        }
    }

    fn see(&mut self, head: &Head<'_>) {
        let answer = head.lines.starts_with(b"HTTP/");
        // 1xx, of which hyper tells nobody.
        if answer && head.lines.get(9) == Some(&b'1') && head.lines.get(11) != Some(&b'1') {
            return;
        }
        let mut ends = !answer;
        let mut count = 0;
        let (mut lower, mut usual) = (true, true);
        for name in names_in(head.lines) {
            count += 1;
            let leads_to_else = match name.len() {
                7 => name.eq_ignore_ascii_case(b"upgrade"),
                14 => name.eq_ignore_ascii_case(b"content-length"),
                17 => name.eq_ignore_ascii_case(b"transfer-encoding"),
                _ => false,
            };
            ends &= !leads_to_else;
            lower &= is_lower(name);
            usual &= is_usual(name) || is_ours(name);
        }
        if !ends {
            self.expects = Expects::Else;
        }
        let spelling = if usual {
            None
        } else if lower {
            Some(HeaderValue::from_static(LOWER))
        } else {
            let unusual = |name: &&[u8]| !is_usual(name) && !is_ours(name);
            listed(
                names_in(head.lines).filter(unusual),
                MOST_SPELLED,
                |name, list| {
                    list.extend_from_slice(name);
                },
            )
        };
        self.next = Some((count, spelling));
    }
}

// === impl Head ===

impl<'a> Head<'a> {
    fn first_of(bytes: &'a [u8]) -> Option<Self> {
        // RFC 9112, 2.2: empty lines before it are passed over.
        let mut begins = None;
        let mut at = 0;
        for end in memchr_iter(b'\n', bytes) {
            let is_empty = matches!(&bytes[at..end], b"" | b"\r");
            match begins {
                Some(begins) if is_empty => {
                    return Some(Self {
                        lines: &bytes[begins..at],
                        rest: &bytes[end + 1..],
                    });
                }
                None if !is_empty => begins = Some(at),
                _ => {}
            }
            at = end + 1;
        }
        None
    }
}

/// The names in a head, whose first line is no header.
fn names_in(lines: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut begins = memchr_iter(b'\n', lines).map(|end| end + 1);
    std::iter::from_fn(move || {
        loop {
            let line = &lines[begins.next()?..];
            if let Some(at) = memchr2(b':', b'\n', line)
                && line[at] == b':'
            {
                return Some(&line[..at]);
            }
        }
    })
}

// === impl Overheard ===

impl<S> Overheard<S> {
    pub fn new(io: S, heads: Arc<Heads>) -> Self {
        Self { io, heads }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Overheard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { io, heads } = &mut *self;
        heads.poll_read(io, cx, buf)
    }
}

writes_through!(Overheard);

#[cfg(test)]
#[path = "heads_tests.rs"]
mod tests;
