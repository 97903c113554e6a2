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

use bytes::Bytes;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::convert::Infallible;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::pin::pin;
use std::task::{Context, Waker};

/// Names of more bytes than this, in one message, are spelled as usual.
pub(super) const MOST_SPELLED: usize = 1024;
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
pub(super) const LOWER: &str = "-";

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

pub(super) fn listed<'a>(
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
pub(super) fn is_ours(name: &[u8]) -> bool {
    FRAMING.iter().any(|ours| name.eq_ignore_ascii_case(ours))
        || name
            .get(..5)
            .is_some_and(|begin| begin.eq_ignore_ascii_case(b"duet-"))
}

/// Whether hyper writes the name so without being told.
pub(super) fn is_usual(name: &[u8]) -> bool {
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

pub(super) fn is_lower(name: &[u8]) -> bool {
    !name.iter().any(u8::is_ascii_uppercase)
}

#[cfg(test)]
#[path = "spelling_tests.rs"]
mod tests;
