//! How an application of HTTP/1 spells the names of its headers.
//!
//! They have no case (RFC 9110, 5.1), and HTTP/2 writes them in lower case. But there are
//! applications that know `ETag` and not `Etag`. So what the proxy writes in HTTP/1
//! Begins-Each-Word-With-A-Capital, as most do, and the names that came spelled in
//! another way are remembered, travel beside the message ([`SPELLING`]), and are spelled so
//! again. Those that say where a message ends or whose it is ([`is_ours`]) are not: nobody but
//! the proxy has a say in what others read there. A message that is in lower case altogether,
//! as others have it, needs no list. Nor does hyper, on a connection that writes so by itself
//! ([`Case`]): servers' connections are kept apart by it, and a client's is guessed ([`Habit`]).
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
use std::collections::hash_map::DefaultHasher;
use std::convert::Infallible;
use std::hash::{Hash, Hasher};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, ReadBuf};

/// A head, or a queue of them, of more bytes than this is not looked at.
const MOST: usize = 16 * 1024;
/// Names of more bytes than this, in one message, are spelled as usual.
const MOST_SPELLED: usize = 1024;
/// The same for a list that is made here, of all names.
const MOST_LISTED: usize = 4 * 1024;
/// hyper's own limit.
const MOST_NAMES: usize = 100;
/// Spellings that a thread knows for each case, of 8 KiB each, which is what hyper reads into.
const MOST_KNOWN: usize = 64;

/// Beside a message, from where it is read to where it is written: the names that are spelled
/// in a way of their own, separated by commas, or [`LOWER`]. Not there: all are as usual.
pub const SPELLING: HeaderName = HeaderName::from_static("duet-header-names");
/// All of them are in lower case.
const LOWER: &str = "-";

/// How a connection of HTTP/1 writes the names that nobody has said anything about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Case {
    #[default]
    Title,
    Lower,
}

/// How a server spells its answers, as a guess: servers are told apart by one bit of 64.
#[derive(Clone, Copy, Debug)]
pub struct Habit(u64);

thread_local! {
    /// Of those that have answered in lower case last.
    static HABITS: Cell<u64> = const { Cell::new(0) };
}

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

/// What has hyper write a message's names as they were spelled, on a connection of this case;
/// and the case of most of them.
pub fn spelled(headers: &mut HeaderMap, case: Case) -> (Extensions, Case) {
    // Anything may come from a peer.
    let told = headers.remove(SPELLING);
    let told = told.filter(|names| names.len() <= MOST_SPELLED);
    let own = match &told {
        Some(names) if names == LOWER => Case::Lower,
        _ => Case::Title,
    };
    let names = match (case, own) {
        (Case::Title, Case::Title) => told,
        (Case::Lower, Case::Lower) => None,
        (Case::Title, Case::Lower) => in_lower_case(headers),
        (Case::Lower, Case::Title) => in_title_case(headers, told.as_ref()),
    };
    let told = names.map(|names| known(names, case));
    (told.unwrap_or_default(), own)
}

fn in_lower_case(headers: &HeaderMap) -> Option<HeaderValue> {
    let names = headers.iter().map(|(name, _)| name.as_str().as_bytes());
    let names = names.filter(|name| !is_ours(name));
    listed(names, MOST_LISTED, |name, list| {
        list.extend_from_slice(name);
    })
}

/// All of them, but for those that are spelled in a way that was told.
fn in_title_case(headers: &HeaderMap, told: Option<&HeaderValue>) -> Option<HeaderValue> {
    let told = told.map_or(&b""[..], HeaderValue::as_bytes);
    let spell = |name: &[u8], list: &mut Vec<u8>| {
        let mut told = told.split(|&byte| byte == b',');
        match told.find(|told| told.eq_ignore_ascii_case(name)) {
            Some(told) if !is_ours(name) => list.extend_from_slice(told),
            _ => title(name, list),
        }
    };
    let names = headers.iter().map(|(name, _)| name.as_str().as_bytes());
    // hyper adds some of these. Behind a transfer-encoding it would not look at a length.
    listed(FRAMING.into_iter().chain(names), MOST_LISTED, spell)
}

fn listed<'a>(
    names: impl Iterator<Item = &'a [u8]>,
    most: usize,
    spell: impl Fn(&[u8], &mut Vec<u8>),
) -> Option<HeaderValue> {
    let mut list = Vec::new();
    for name in names {
        if !list.is_empty() {
            list.push(b',');
        }
        spell(name, &mut list);
    }
    if list.is_empty() || list.len() > most {
        return None;
    }
    HeaderValue::from_maybe_shared(Bytes::from(list)).ok()
}

fn title(name: &[u8], list: &mut Vec<u8>) {
    let mut begins = true;
    list.extend(
        name.iter()
            .map(|byte| match std::mem::replace(&mut begins, *byte == b'-') {
                true => byte.to_ascii_uppercase(),
                false => *byte,
            }),
    );
}

/// hyper's own record of spellings, which only hyper can make: by reading a head. Where a
/// connection writes in lower case, the names are of our own choice.
fn known(names: HeaderValue, case: Case) -> Extensions {
    type Known = RefCell<HashMap<HeaderValue, Extensions>>;
    thread_local! {
        static KNOWN: [Known; 2] = <[Known; 2]>::default();
    }
    KNOWN.with(|known| {
        let mut known = known[case as usize].borrow_mut();
        if let Some(found) = known.get(&names) {
            return found.clone();
        }
        let made = read_by_hyper(names.as_bytes(), |name| {
            case == Case::Title && is_ours(name)
        });
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

fn read_by_hyper(names: &[u8], passed_over: impl Fn(&[u8]) -> bool) -> Extensions {
    let mut head = b"GET / HTTP/1.1\r\n".to_vec();
    for name in names.split(|&byte| byte == b',').take(MOST_NAMES) {
        if HeaderName::from_bytes(name).is_ok() && !passed_over(name) {
            head.extend_from_slice(name);
            head.extend_from_slice(match name.len() {
                14 if name.eq_ignore_ascii_case(b"content-length") => b": 0\r\n",
                17 if name.eq_ignore_ascii_case(b"transfer-encoding") => b": chunked\r\n",
                _ => b": \r\n",
            });
        }
    }
    head.extend(b"\r\n");
    let read = Cell::default();
    let service = service_fn(|mut request: Request<Incoming>| {
        let mut told = std::mem::take(request.extensions_mut());
        told.remove::<hyper::upgrade::OnUpgrade>();
        read.set(told);
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

/// Whether a name is for the proxies to write.
fn is_ours(name: &[u8]) -> bool {
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

// === impl Case ===

impl Case {
    /// That of a message that was read.
    pub fn of(headers: &HeaderMap) -> Self {
        match headers.get(SPELLING) {
            Some(names) if names == LOWER => Self::Lower,
            _ => Self::Title,
        }
    }
}

// === impl Habit ===

impl Habit {
    pub fn of(server: SocketAddr) -> Self {
        let mut hasher = DefaultHasher::new();
        server.hash(&mut hasher);
        Self(1 << (hasher.finish() % 64))
    }

    pub fn case(self) -> Case {
        match HABITS.get() & self.0 {
            0 => Case::Title,
            _ => Case::Lower,
        }
    }

    pub fn becomes(self, case: Case) {
        HABITS.set(match case {
            Case::Title => HABITS.get() & !self.0,
            Case::Lower => HABITS.get() | self.0,
        });
    }
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
}

/// The names in a head, or in what there is of it.
fn names_in(lines: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = lines.split(|&byte| byte == b'\n').skip(1);
    let lines = lines.take_while(|line| !matches!(*line, b"" | b"\r"));
    lines.filter_map(|line| {
        let colon = line.iter().position(|&byte| byte == b':')?;
        Some(&line[..colon])
    })
}

fn is_lower(name: &[u8]) -> bool {
    !name.iter().any(u8::is_ascii_uppercase)
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

    fn so(names: &str) -> Option<HeaderValue> {
        (!names.is_empty()).then(|| names.parse().expect("names"))
    }

    impl Heads {
        /// Of a head with `count` headers.
        fn taken(&self, count: usize) -> Option<HeaderValue> {
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
            assert_eq!(heads.taken(2), so(told), "{name}");
        }
    }

    #[test]
    fn what_is_in_lower_case_needs_no_list() {
        let heads = Heads::default();
        for (head, told) in [
            ("host: shop\r\netag: x\r\n", LOWER),
            ("1: x\r\nhost: shop\r\n", ""),
            ("host: shop\r\netag: x\r\nX-One: x\r\n", "etag"),
            ("Host: shop\r\nX-One: x\r\n", ""),
        ] {
            heads.hear(format!("GET / HTTP/1.1\r\n{head}\r\n").as_bytes());
            let mut headers = HeaderMap::new();
            for _ in 0..head.matches(':').count() {
                headers.append("x", HeaderValue::from_static(""));
            }
            heads.note(&mut headers);
            assert_eq!(headers.get(SPELLING).cloned(), so(told), "{head}");
            let case = Case::of(&headers);
            assert_eq!(spelled(&mut headers, case).1, case, "{head}");
            assert!(!headers.contains_key(SPELLING), "{head}");
        }
    }

    #[test]
    fn a_server_has_a_habit() {
        let servers = [80, 81].map(|port| Habit::of(([10, 0, 0, 1], port).into()));
        servers[0].becomes(Case::Lower);
        assert_eq!(servers.map(Habit::case), [Case::Lower, Case::Title]);
        servers[0].becomes(Case::Title);
        assert_eq!(servers.map(Habit::case), [Case::Title; 2]);
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
            assert_eq!(told[0], "aB", "{size}");
            assert_eq!(told[1], "cD", "{size}");
            assert!(heads.0.lock().ahead.is_empty());
        }
    }

    #[test]
    fn a_body_is_no_head() {
        let heads = Heads::default();
        let with_body = "PUT / HTTP/1.1\r\naB: c\r\ncontent-Length: 30\r\n\r\n";
        heads.hear(with_body.as_bytes());
        heads.hear(request("inBody").as_bytes());
        assert_eq!(heads.taken(2), so("aB"));
        assert_eq!(heads.taken(2), None);
        heads.expect();
        heads.hear(request("behindIt").as_bytes());
        assert_eq!(heads.taken(2), so("behindIt"));
        // One that was answered before it had come, and that hyper throws away.
        heads.hear(b"a\r\nB: c\r\n\r\nd");
        heads.hear(request("takenForIt").as_bytes());
        assert_eq!(heads.taken(2), None);
        heads.hear(request("behindIt").as_bytes());
        assert_eq!(heads.taken(2), so("behindIt"));
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
        assert_eq!(heads.taken(1), so("ETag"));
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
        assert_eq!(heads.taken(2), so("nExt"));
    }

    /// What hyper writes of an answer with these headers, whose names were spelled so.
    async fn written(case: Case, names: &str, headers: &[&'static str]) -> String {
        let (io, mut far) = tokio::io::duplex(4096);
        let service = service_fn(async |_: Request<Incoming>| {
            let mut response = Response::new(String::new());
            for name in headers {
                response
                    .headers_mut()
                    .append(*name, HeaderValue::from_static("1"));
            }
            if let Some(spelling) = so(names) {
                response.headers_mut().insert(SPELLING, spelling);
            }
            let (told, _) = spelled(response.headers_mut(), case);
            response.extensions_mut().extend(told);
            Ok::<_, Infallible>(response)
        });
        let connection = http1::Builder::new()
            .auto_date_header(false)
            .title_case_headers(case == Case::Title)
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
        let headers = ["etag", "x-low", "x-low", "x-other", "duet-client-id"];
        // The second time it is known.
        for case in [Case::Title, Case::Lower, Case::Title, Case::Lower] {
            let names = "ETag,content-length,transfer-encoding,no name,x-LOW,x-LOW,DUET-client-id";
            let got = written(case, names, &headers).await;
            let head = "HTTP/1.0 200 OK\r\nETag: 1\r\nx-LOW: 1\r\nx-LOW: 1\r\nX-Other: 1\r\n";
            let rest = "Duet-Client-Id: 1\r\nContent-Length: 0\r\n\r\n";
            assert_eq!(got, head.to_owned() + rest);
            let usual = written(case, "", &headers).await;
            let head = "HTTP/1.0 200 OK\r\nEtag: 1\r\nX-Low: 1\r\nX-Low: 1\r\nX-Other: 1\r\n";
            assert_eq!(usual, head.to_owned() + rest);
            let lower = written(case, LOWER, &headers).await;
            let lines = "etag: 1\r\nx-low: 1\r\nx-low: 1\r\nx-other: 1\r\n";
            assert!(lower.contains(lines), "{case:?}: {lower}");
        }
        let lower = written(Case::Lower, LOWER, &headers).await;
        assert!(
            lower.ends_with("\r\nduet-client-id: 1\r\ncontent-length: 0\r\n\r\n"),
            "{lower}"
        );
        // Of names that nobody had to tell.
        let many: Vec<_> = (0..80)
            .map(|at| &*format!("x-{at}-{}", "a".repeat(30)).leak())
            .collect();
        let got = written(Case::Lower, "", &many).await;
        assert!(got.contains("\r\nX-79-Aaaaa"), "{got}");
        // Anything may come from a peer.
        for index in 0..10 * MOST_KNOWN {
            let names = format!("{},x{index}", "a,".repeat(500));
            known(names.parse().unwrap(), Case::Title);
        }
        let got = written(Case::Title, "eTag", &["etag"]).await;
        assert!(got.contains("\r\neTag: 1\r\n"), "{got}");
    }
}
