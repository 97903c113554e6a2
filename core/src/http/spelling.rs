//! How an application of HTTP/1 spells the names of its headers.
//!
//! They have no case (RFC 9110, 5.1), and HTTP/2 writes them in lower case. But there are
//! applications that know `ETag` and not `Etag`. So whatever the proxy writes in HTTP/1
//! Begins-Each-Word-With-A-Capital, as nearly all do, and the names that came spelled in
//! another way are remembered, travel beside the message, and are spelled so again. Those
//! that say where a message ends or whose it is ([`is_ours`]) are not: nobody but the proxy
//! has a say in what others read there.
//!
//! hyper tells nobody what it read, so heads are read here once more, as they come by. Should
//! one be taken for another's, a name is written in another case, and no more than that.

use crate::io::writes_through;
use bytes::Bytes;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, ReadBuf};

/// A head, or a queue of them, of more bytes than this is not looked at.
const MOST: usize = 16 * 1024;
/// Names of more bytes than this, in one message, are spelled as usual.
const MOST_SPELLED: usize = 1024;
/// hyper's own limit.
const MOST_NAMES: usize = 100;
/// Spellings that a thread knows, of 8 KiB each, which is what hyper reads into.
const MOST_KNOWN: usize = 64;

/// Names that are spelled in a way of their own, separated by commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spelling(pub HeaderValue);

/// The heads that come in on one connection of HTTP/1.
#[derive(Default)]
pub struct Heads(Mutex<Read>);

#[derive(Default)]
struct Read {
    expects: Expects,
    /// Of a head that nobody has asked about: how many headers it has.
    next: Option<(usize, Option<Spelling>)>,
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

/// Lets hyper write names as they were spelled. Anything may come from a peer.
pub fn restore(extensions: &mut Extensions) {
    if let Some(Spelling(names)) = extensions.remove()
        && names.len() <= MOST_SPELLED
    {
        extensions.extend(known(names));
    }
}

/// hyper's own record of spellings, which only hyper can make: by reading a head.
fn known(names: HeaderValue) -> Extensions {
    thread_local! {
        static KNOWN: RefCell<HashMap<HeaderValue, Extensions>> = RefCell::default();
    }
    KNOWN.with_borrow_mut(|known| {
        if let Some(found) = known.get(&names) {
            return found.clone();
        }
        let made = read_by_hyper(names.as_bytes());
        if known.len() >= MOST_KNOWN
            && let Some(any) = known.keys().next().cloned()
        {
            known.remove(&any);
        }
        // A copy, as it is in somebody's buffer.
        if let Ok(names) = HeaderValue::from_bytes(names.as_bytes()) {
            known.insert(names, made.clone());
        }
        made
    })
}

fn read_by_hyper(names: &[u8]) -> Extensions {
    let mut head = b"GET / HTTP/1.1\r\n".to_vec();
    for name in names.split(|&byte| byte == b',').take(MOST_NAMES) {
        if HeaderName::from_bytes(name).is_ok_and(|name| !is_ours(name.as_str().as_bytes())) {
            head.extend_from_slice(name);
            head.extend_from_slice(b": \r\n");
        }
    }
    head.extend(b"\r\n");
    let read = Cell::default();
    let service = service_fn(|mut request: Request<Incoming>| {
        read.set(std::mem::take(request.extensions_mut()));
        std::future::pending::<Result<Response<String>, Infallible>>()
    });
    let io = tokio::io::join(&head[..], tokio::io::sink());
    let connection = http1::Builder::new()
        .preserve_header_case(true)
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(io), service);
    // All that there is to be read is there.
    let _ = pin!(connection).poll(&mut Context::from_waker(Waker::noop()));
    read.into_inner()
}

/// Whether a name is for the proxies to write.
fn is_ours(name: &[u8]) -> bool {
    const FRAMING: [&[u8]; 8] = [
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    ];
    FRAMING.iter().any(|ours| name.eq_ignore_ascii_case(ours))
        || name
            .get(..5)
            .is_some_and(|begin| begin.eq_ignore_ascii_case(b"duet-"))
}

/// Whether hyper writes the name so without being told.
fn is_usual(name: &[u8]) -> bool {
    let mut begins = true;
    name.iter().all(|&byte| {
        let usual = match begins {
            true => !byte.is_ascii_lowercase(),
            false => !byte.is_ascii_uppercase(),
        };
        begins = byte == b'-';
        usual
    })
}

// === impl Heads ===

impl Heads {
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
    pub fn take(&self, headers: &HeaderMap) -> Option<Spelling> {
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
                let ends = bytes.contains(&b'\n');
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
        let mut spelled = Vec::new();
        let mut ends = !answer;
        let mut count = 0;
        for name in head.names() {
            count += 1;
            let leads_to_else = match name.len() {
                7 => name.eq_ignore_ascii_case(b"upgrade"),
                14 => name.eq_ignore_ascii_case(b"content-length"),
                17 => name.eq_ignore_ascii_case(b"transfer-encoding"),
                _ => false,
            };
            ends &= !leads_to_else;
            if !is_usual(name) && !is_ours(name) {
                if !spelled.is_empty() {
                    spelled.push(b',');
                }
                spelled.extend_from_slice(name);
            }
        }
        if !ends {
            self.expects = Expects::Else;
        }
        let spelling = (1..=MOST_SPELLED)
            .contains(&spelled.len())
            .then(|| HeaderValue::from_maybe_shared(Bytes::from(spelled)).ok())
            .flatten();
        self.next = Some((count, spelling.map(Spelling)));
    }
}

// === impl Head ===

impl<'a> Head<'a> {
    fn first_of(bytes: &'a [u8]) -> Option<Self> {
        let empty = |line: &[u8]| matches!(line, b"\n" | b"\r\n");
        let mut lines = bytes.split_inclusive(|&byte| byte == b'\n');
        // RFC 9112, 2.2: empty lines before it are passed over.
        let mut at = 0;
        let mut begins = None;
        loop {
            let line = lines.next().filter(|line| line.ends_with(b"\n"))?;
            match (begins, empty(line)) {
                (None, true) => {}
                (None, false) => begins = Some(at),
                (Some(_), false) => {}
                (Some(begins), true) => {
                    return Some(Self {
                        lines: &bytes[begins..at],
                        rest: &bytes[at + line.len()..],
                    });
                }
            }
            at += line.len();
        }
    }

    fn names(&self) -> impl Iterator<Item = &'a [u8]> {
        let lines = self.lines.split(|&byte| byte == b'\n').skip(1);
        lines.filter_map(|line| {
            let colon = line.iter().position(|&byte| byte == b':')?;
            Some(&line[..colon])
        })
    }
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
mod tests {
    use super::*;

    fn spelled(names: &str) -> Option<Spelling> {
        (!names.is_empty()).then(|| Spelling(names.parse().expect("names")))
    }

    impl Heads {
        /// Of a head with `count` headers.
        fn taken(&self, count: usize) -> Option<Spelling> {
            let mut headers = HeaderMap::new();
            for _ in 0..count {
                headers.append("x", HeaderValue::from_static(""));
            }
            self.take(&headers)
        }
    }

    /// A request that ends with its head.
    fn request(name: &str) -> String {
        format!("GET / HTTP/1.1\r\nHost: shop\r\n{name}: X-a:b\r\n\r\n")
    }

    #[test]
    fn only_what_is_not_usual_is_told() {
        let told = [
            ("Accept", ""),
            ("X-Request-ID", "X-Request-ID"),
            ("ETag", "ETag"),
            ("etag", "etag"),
            ("SOAPAction", "SOAPAction"),
            ("Sec-WebSocket-Key", "Sec-WebSocket-Key"),
            ("X_a-3d", ""),
            ("content-LENGTH", ""),
            ("dUET-client-id", ""),
        ];
        for (name, told) in told {
            let heads = Heads::default();
            heads.hear(request(name).as_bytes());
            assert_eq!(heads.taken(2), spelled(told), "{name}");
        }
    }

    #[test]
    fn a_head_is_found_in_any_pieces_and_after_another() {
        let all = request("aB") + "\r\n" + &request("Usual") + &request("cD");
        for size in 1..all.len() {
            let heads = Heads::default();
            let mut told = Vec::new();
            for piece in all.as_bytes().chunks(size) {
                heads.hear(piece);
                // hyper asks for the next when it has answered the last, at any time later.
                if size % 2 == 0 {
                    told.extend(heads.taken(2));
                }
            }
            while told.len() < 2 {
                let next = heads.taken(2);
                assert!(next.is_some() || heads.0.lock().ahead.len() > 30, "{size}");
                told.extend(next);
            }
            assert_eq!(Some(&told[0]), spelled("aB").as_ref(), "{size}");
            assert_eq!(Some(&told[1]), spelled("cD").as_ref(), "{size}");
            assert!(heads.0.lock().ahead.is_empty());
        }
    }

    #[test]
    fn a_body_is_no_head() {
        let heads = Heads::default();
        let with_body = "PUT / HTTP/1.1\r\naB: c\r\ncontent-Length: 30\r\n\r\n";
        heads.hear(with_body.as_bytes());
        heads.hear(request("inBody").as_bytes());
        assert_eq!(heads.taken(2), spelled("aB"));
        assert_eq!(heads.taken(2), None);
        heads.expect();
        heads.hear(request("behindIt").as_bytes());
        assert_eq!(heads.taken(2), spelled("behindIt"));
        // One that was answered before it had come, and that hyper throws away.
        heads.hear(b"a\r\nB: c\r\n\r\nd");
        heads.hear(request("takenForIt").as_bytes());
        assert_eq!(heads.taken(2), None);
        heads.hear(request("behindIt").as_bytes());
        assert_eq!(heads.taken(2), spelled("behindIt"));
        heads.leave();
        heads.expect();
        heads.hear(request("noHttp").as_bytes());
        assert_eq!(heads.taken(2), None);
    }

    #[test]
    fn an_answer_follows_those_that_come_before_it() {
        let heads = Heads::default();
        heads.hear(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n");
        heads.hear(b"HTTP/1.1 200 OK\r\nETag: x\r\n\r\nHTTP/1.1 200 OK\r\nbody: x\r\n\r\n");
        assert_eq!(heads.taken(1), spelled("ETag"));
        assert_eq!(heads.taken(1), None);
    }

    #[test]
    fn what_is_too_long_is_let_go_and_the_next_is_not() {
        let heads = Heads::default();
        heads.hear(b"GET / HTTP/1.1\r\nlong: ");
        for _ in 0..100 {
            heads.hear(&[b'x'; 1000]);
            assert!(heads.0.lock().ahead.capacity() <= 2 * MOST);
        }
        assert_eq!(heads.taken(2), None);
        heads.expect();
        heads.hear(request("nExt").as_bytes());
        assert_eq!(heads.taken(2), spelled("nExt"));
    }

    /// What hyper writes of an answer with these headers, whose names were spelled so.
    async fn written(names: &str, headers: &[&'static str]) -> String {
        let (io, mut far) = tokio::io::duplex(4096);
        let service = service_fn(async |_: Request<Incoming>| {
            let mut response = Response::new(String::new());
            for name in headers {
                response
                    .headers_mut()
                    .append(*name, HeaderValue::from_static("1"));
            }
            if let Some(spelling) = spelled(names) {
                response.extensions_mut().insert(spelling);
            }
            restore(response.extensions_mut());
            Ok::<_, Infallible>(response)
        });
        let connection = http1::Builder::new()
            .auto_date_header(false)
            .title_case_headers(true)
            .serve_connection(TokioIo::new(io), service);
        let asked = async {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            far.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
            let mut read = String::new();
            far.read_to_string(&mut read).await.unwrap();
            read
        };
        tokio::join!(connection, asked).1
    }

    #[tokio::test]
    async fn names_are_written_as_they_were_spelled() {
        // The second time it is known.
        for _ in 0..2 {
            let names = "ETag,content-length,transfer-encoding,no name,x-LOW,DUET-client-id";
            let got = written(names, &["etag", "x-low", "x-other", "duet-client-id"]).await;
            let head = "HTTP/1.0 200 OK\r\nETag: 1\r\nx-LOW: 1\r\nX-Other: 1\r\n";
            let rest = "Duet-Client-Id: 1\r\nContent-Length: 0\r\n\r\n";
            assert_eq!(got, head.to_owned() + rest);
        }
        // Anything may come from a peer.
        for index in 0..10 * MOST_KNOWN {
            known(HeaderValue::from_str(&format!("{},x{index}", "a,".repeat(500))).unwrap());
        }
        assert!(written("eTag", &["etag"]).await.contains("\r\neTag: 1\r\n"));
    }
}
