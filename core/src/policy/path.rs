//! Paths as servers read them.
//!
//! A proxy that compares a path byte for byte is evaded with another spelling of
//! the same path, and which spellings are the same depends on the server behind it.
//! So a path is read twice. *By the book*, as RFC 3986 §6.2.2 says: escapes of
//! unreserved characters are decoded, other escapes are in upper case, dot segments
//! are removed (§5.2.4). *Leniently*, as the most forgiving server would: every
//! escape is decoded, also one that only decoding made, `\` is `/`, what follows a
//! `;` in a segment is left out (§3.3 calls it a parameter), and so are empty and dot
//! segments, and a slash at the end.
//!
//! A DENY matches if either reading does, and without regard to case. An ALLOW
//! matches only if both do, and with regard to it. There are paths that no reading
//! makes sense of: with an escaped control character or bytes that are not UTF-8, and
//! those that depend on the order in which a server undoes things, which are a `..` beside
//! anything else to undo, and a slash in disguise after a `;`. They match every DENY that names paths, and of the
//! ALLOWs that do only `*`. The query is never looked at, and the request goes on to
//! the application as it came.

use std::borrow::Cow;
use std::str::FromStr;

/// A path, or with a trailing `*` all that begin with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    by_the_book: Box<[u8]>,
    lenient: Box<[u8]>,
    any_rest: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a path: {remedy}")]
pub struct InvalidPath {
    text: String,
    remedy: &'static str,
}

/// A request's path in both readings.
#[derive(Debug)]
pub struct RequestPath<'a> {
    by_the_book: Cow<'a, [u8]>,
    lenient: Option<Cow<'a, [u8]>>,
}

// === impl PathPattern ===

impl PathPattern {
    pub(super) fn may_be(&self, path: &RequestPath<'_>) -> bool {
        let Some(lenient) = &path.lenient else {
            return true;
        };
        let same = |a: &[u8], b: &[u8]| a.eq_ignore_ascii_case(b);
        self.matches(&self.lenient, lenient, same)
            || self.matches(&self.by_the_book, &path.by_the_book, same)
            // `/a/*` is about `/a` too, to servers to which `/a` and `/a/` are one.
            || self.any_rest
                && self
                    .lenient
                    .strip_suffix(b"/")
                    .is_some_and(|parent| same(parent, lenient))
    }

    pub(super) fn must_be(&self, path: &RequestPath<'_>) -> bool {
        if self.is_any() {
            return true;
        }
        let Some(lenient) = &path.lenient else {
            return false;
        };
        let same = |a: &[u8], b: &[u8]| a == b;
        // The slash at the end, which the lenient reading leaves out, is in the other.
        let lenient_matches = self.matches(&self.lenient, lenient, same)
            || self.any_rest && self.lenient.strip_suffix(b"/") == Some(&**lenient);
        lenient_matches && self.matches(&self.by_the_book, &path.by_the_book, same)
    }

    fn is_any(&self) -> bool {
        self.any_rest && self.by_the_book.is_empty()
    }

    fn matches(&self, pattern: &[u8], path: &[u8], same: impl Fn(&[u8], &[u8]) -> bool) -> bool {
        if self.any_rest {
            let begin = path.get(..pattern.len());
            begin.is_some_and(|begin| same(pattern, begin))
        } else {
            same(pattern, path)
        }
    }
}

impl FromStr for PathPattern {
    type Err = InvalidPath;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |remedy| {
            let text = text.to_owned();
            Err(InvalidPath { text, remedy })
        };
        if text == "*" {
            return Ok(Self {
                by_the_book: Box::default(),
                lenient: Box::default(),
                any_rest: true,
            });
        }
        if !text.starts_with('/') {
            return wrong("begin it with /, or write * for any");
        }
        if text.contains(['?', '#']) {
            return wrong("write it without query and fragment, which are not looked at");
        }
        let (path, any_rest) = match text.strip_suffix('*') {
            Some(begin) => (begin, true),
            None => (text, false),
        };
        if path.contains('*') {
            return wrong("write * at the end only");
        }
        let Some(lenient) = lenient(path.as_bytes(), any_rest) else {
            return wrong("leave out `..` and control characters, and escape UTF-8 only");
        };
        Ok(Self {
            by_the_book: by_the_book(path.as_bytes(), any_rest).into(),
            lenient: lenient.into(),
            any_rest,
        })
    }
}

// === impl RequestPath ===

impl<'a> RequestPath<'a> {
    /// `path` is a request's target without its query. Costs an allocation only
    /// where the readings differ from what was sent.
    pub fn new(path: &'a str) -> Self {
        let path = path.as_bytes();
        // The asterisk form (RFC 9112 §3.2.4) is nobody's path.
        if is_plain(path) || path == b"*" {
            return Self {
                by_the_book: path.into(),
                lenient: Some(path.into()),
            };
        }
        let absolute = path.starts_with(b"/");
        Self {
            by_the_book: by_the_book(path, false).into(),
            lenient: lenient(path, false).filter(|_| absolute).map(Cow::Owned),
        }
    }
}

/// Both readings of it are the path itself.
fn is_plain(path: &[u8]) -> bool {
    let unusual = |byte: &u8| !(b'!'..=b'~').contains(byte) || b"%\\;".contains(byte);
    let [b'/', rest @ ..] = path else {
        return false;
    };
    rest.is_empty()
        || !path.iter().any(unusual)
            && !path.ends_with(b"/")
            // An empty segment or one that begins with a dot, which may be all of it.
            && !path.windows(2).any(|two| two == b"//" || two == b"/.")
}

/// RFC 3986 §6.2.2. With `open`, the last segment is only the beginning of one.
fn by_the_book(path: &[u8], open: bool) -> Vec<u8> {
    remove_dot_segments(&unescape_unreserved(path), open)
}

/// RFC 3986 §6.2.2.1 and §6.2.2.2.
fn unescape_unreserved(path: &[u8]) -> Vec<u8> {
    let mut output = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [byte, after @ ..] = rest {
        rest = after;
        match escaped(*byte, after) {
            Some(meant) => {
                rest = &after[2..];
                if meant.is_ascii_alphanumeric() || b"-._~".contains(&meant) {
                    output.push(meant);
                } else {
                    output.push(b'%');
                    output.extend(after[..2].iter().map(u8::to_ascii_uppercase));
                }
            }
            None => output.push(*byte),
        }
    }
    output
}

/// RFC 3986 §5.2.4. Empty segments are segments.
fn remove_dot_segments(path: &[u8], open: bool) -> Vec<u8> {
    let mut output = Vec::with_capacity(path.len());
    let mut segments = path
        .strip_prefix(b"/")
        .unwrap_or(path)
        .split(|byte| *byte == b'/')
        .peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            b"." | b".." if !(last && open) => {
                if segment == b".." {
                    let parent = output.iter().rposition(|byte| *byte == b'/');
                    output.truncate(parent.unwrap_or(0));
                }
                if last {
                    output.push(b'/');
                }
            }
            _ => {
                output.push(b'/');
                output.extend_from_slice(segment);
            }
        }
    }
    output
}

/// `None`: it cannot be read. With `open`, the last segment is only the beginning
/// of one, which may be empty.
fn lenient(path: &[u8], open: bool) -> Option<Vec<u8>> {
    let decoded = unescape_all(path);
    if decoded.iter().any(u8::is_ascii_control) || std::str::from_utf8(&decoded).is_err() {
        return None;
    }
    if decoded.contains(&b';') && hides_slashes(path) {
        return None;
    }
    let segments = || {
        let segments = decoded.split(|byte| is_slash(*byte));
        segments.map(|segment| segment.split(|byte| *byte == b';').next())
    };
    if segments().any(|segment| segment == Some(b"..")) {
        let mut read = by_the_book(path, open);
        if !open && read.len() > 1 && read.ends_with(b"/") {
            read.pop();
        }
        return is_orderly(&unescape_unreserved(path)).then_some(read);
    }
    let mut output = Vec::with_capacity(decoded.len());
    let mut segments = segments().flatten().peekable();
    // What is before the first slash.
    segments.next_if(|first| first.is_empty());
    while let Some(segment) = segments.next() {
        let beginning = open && segments.peek().is_none();
        if beginning || !segment.is_empty() && segment != b"." {
            output.push(b'/');
            output.extend_from_slice(segment);
        }
    }
    if output.is_empty() {
        output.push(b'/');
    }
    Some(output)
}

/// What is a parameter to a server that knows no other slashes than `/` is a segment
/// to one that does.
fn hides_slashes(path: &[u8]) -> bool {
    path.split(|byte| *byte == b'/').any(|segment| {
        let segment = unescape_all(segment);
        let parameter = segment.iter().skip_while(|byte| **byte != b';');
        parameter.copied().any(is_slash)
    })
}

/// There is nothing in it that some servers undo and others do not.
fn is_orderly(path: &[u8]) -> bool {
    !path.iter().any(|byte| b"%\\;".contains(byte)) && !path.windows(2).any(|two| two == b"//")
}

fn is_slash(byte: u8) -> bool {
    b"/\\".contains(&byte)
}

/// Until nothing is left to decode.
fn unescape_all(path: &[u8]) -> Vec<u8> {
    let mut output = Vec::with_capacity(path.len());
    for byte in path {
        output.push(*byte);
        // What was decoded may complete another escape.
        while let [.., percent, high, low] = output.as_slice()
            && let Some(meant) = escaped(*percent, &[*high, *low])
        {
            output.truncate(output.len() - 3);
            output.push(meant);
        }
    }
    output
}

/// What `%` and the two hexadecimal digits after it mean (RFC 3986 §2.1).
fn escaped(percent: u8, after: &[u8]) -> Option<u8> {
    let [high, low, ..] = after else { return None };
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let value = digit(high)? * 16 + digit(low)?;
    (percent == b'%').then(|| u8::try_from(value).expect("two digits are a byte"))
}

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;
