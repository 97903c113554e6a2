//! Which trace a request belongs to, as its headers say.
//!
//! W3C's `traceparent` counts first, then B3's single header, then its several ones. What a
//! request came with it goes on with, in the same words, but for the parent, which is this
//! proxy's span; one that came with nothing gets W3C's. What cannot be understood is as if
//! it were not there, and is passed on as it is.

use http::{HeaderMap, HeaderName, HeaderValue};
use std::fmt;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// Where in which trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    pub trace: u128,
    pub span: u64,
    /// `None`: whoever comes next may decide, as B3 allows.
    pub sampled: Option<bool>,
    words: Words,
}

/// How it was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Words {
    W3c,
    /// One header; whether its trace ID has 64 bits.
    B3 {
        short: bool,
    },
    B3Several {
        short: bool,
    },
}

/// Digits, as many as the type has.
struct Hex<T>(T);

// === impl Context ===

impl Context {
    pub fn new(trace: u128, span: u64, sampled: bool) -> Self {
        Self {
            trace,
            span,
            sampled: Some(sampled),
            words: Words::W3c,
        }
    }

    pub fn read(headers: &HeaderMap) -> Option<Self> {
        // As nearly always with a client that traces nothing: three looks at the map.
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        w3c(text(TRACEPARENT)).or_else(|| b3(text(B3))).or_else(|| {
            let trace = text(B3_TRACE)?;
            let debug = text(B3_FLAGS) == Some("1");
            let sampled = match text(B3_SAMPLED) {
                _ if debug => Some(true),
                Some("1" | "true") => Some(true),
                Some("0" | "false") => Some(false),
                _ => None,
            };
            Some(Self {
                trace: id(trace, &[16, 32])?,
                span: u64::try_from(id(text(B3_SPAN)?, &[16])?).ok()?,
                sampled,
                words: Words::B3Several {
                    short: trace.len() == 16,
                },
            })
        })
    }

    /// What vendors say beside it.
    pub fn state(headers: &HeaderMap) -> Option<&str> {
        headers.get(TRACESTATE)?.to_str().ok()
    }

    /// The request goes on as the child of `span`.
    pub fn write(&self, span: u64, sampled: bool, headers: &mut HeaderMap) {
        let flag = u8::from(sampled);
        let trace = |short: bool| {
            let mut text = Hex(self.trace).to_string();
            if short {
                text.drain(..16);
            }
            text
        };
        let mut set = |name: HeaderName, text: String| {
            if let Ok(value) = HeaderValue::try_from(text) {
                headers.insert(name, value);
            }
        };
        match self.words {
            Words::W3c => {
                let text = format!("00-{}-{}-0{flag}", trace(false), Hex(span));
                set(TRACEPARENT, text);
            }
            Words::B3 { short } => {
                let text = format!("{}-{}-{flag}-{}", trace(short), Hex(span), Hex(self.span));
                set(B3, text);
            }
            Words::B3Several { short } => {
                set(B3_TRACE, trace(short));
                set(B3_SPAN, Hex(span).to_string());
                set(B3_PARENT, Hex(self.span).to_string());
                set(B3_SAMPLED, flag.to_string());
            }
        }
    }
}

/// <https://www.w3.org/TR/trace-context/#traceparent-header>
fn w3c(said: Option<&str>) -> Option<Context> {
    let mut parts = said?.split('-');
    let version = parts.next().filter(|version| version.len() == 2)?;
    let version = u8::from_str_radix(version, 16).ok()?;
    let trace = id(parts.next()?, &[32])?;
    let span = u64::try_from(id(parts.next()?, &[16])?).ok()?;
    let flags = parts.next().filter(|flags| flags.len() == 2)?;
    let flags = u8::from_str_radix(flags, 16).ok()?;
    // Later versions may say more; version 255 is none.
    let is_known = version < 255 && (version > 0 || parts.next().is_none());
    is_known.then_some(Context {
        trace,
        span,
        sampled: Some(flags & 1 == 1),
        words: Words::W3c,
    })
}

/// `{trace}-{span}[-{sampled}[-{parent}]]`; a lone "0" says only that nobody traces.
fn b3(said: Option<&str>) -> Option<Context> {
    let mut parts = said?.split('-');
    let trace = parts.next()?;
    let span = u64::try_from(id(parts.next()?, &[16])?).ok()?;
    let sampled = match parts.next() {
        Some("1" | "d") => Some(true),
        Some("0") => Some(false),
        _ => None,
    };
    Some(Context {
        trace: id(trace, &[16, 32])?,
        span,
        sampled,
        words: Words::B3 {
            short: trace.len() == 16,
        },
    })
}

/// A number that is not zero, in as many lower-case digits as one of these.
fn id(text: &str, digits: &[usize]) -> Option<u128> {
    let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if !digits.contains(&text.len()) || !text.bytes().all(lower) {
        return None;
    }
    u128::from_str_radix(text, 16).ok().filter(|id| *id != 0)
}

impl fmt::Display for Hex<u128> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for Hex<u64> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_fmt(format_args!("{:016x}", self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), value.parse().unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn each_language_is_understood_and_answered_in_kind() {
        let single = format!("{TRACE}-{SPAN}-1-05e3ac9a4f6e3b90");
        for (said, expected) in [
            (
                vec![("traceparent", format!("00-{TRACE}-{SPAN}-01"))],
                vec![("traceparent", format!("00-{TRACE}-00000000000000ff-01"))],
            ),
            (
                vec![("b3", single)],
                vec![("b3", format!("{TRACE}-00000000000000ff-1-{SPAN}"))],
            ),
            (
                vec![
                    ("x-b3-traceid", TRACE[16..].to_owned()),
                    ("x-b3-spanid", SPAN.to_owned()),
                    ("x-b3-flags", "1".to_owned()),
                ],
                vec![
                    ("x-b3-traceid", TRACE[16..].to_owned()),
                    ("x-b3-spanid", "00000000000000ff".to_owned()),
                    ("x-b3-parentspanid", SPAN.to_owned()),
                    ("x-b3-sampled", "1".to_owned()),
                ],
            ),
        ] {
            let pairs: Vec<_> = said.iter().map(|(name, text)| (*name, &**text)).collect();
            let mut headers = headers(&pairs);
            let context = Context::read(&headers).expect("it is well-formed");
            assert_eq!(context.sampled, Some(true));
            assert_eq!(context.span, 0x00f0_67aa_0ba9_02b7);
            context.write(0xff, true, &mut headers);
            for (name, text) in expected {
                assert_eq!(headers[name], text, "{said:?}");
            }
            let again = Context::read(&headers).unwrap();
            assert_eq!((again.trace, again.span), (context.trace, 0xff));
        }
    }

    #[test]
    fn what_is_not_well_formed_is_not_there() {
        let upper = TRACE.to_uppercase();
        for wrong in [
            String::new(),
            "00".to_owned(),
            format!("00-{TRACE}-{SPAN}"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{upper}-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", &TRACE[1..]),
        ] {
            let headers = headers(&[("traceparent", &wrong)]);
            assert_eq!(Context::read(&headers), None, "{wrong}");
        }
        // A later version may say more.
        let later = format!("01-{TRACE}-{SPAN}-00-more");
        let later = Context::read(&headers(&[("traceparent", &later)]));
        assert_eq!(later.unwrap().sampled, Some(false));
        assert_eq!(Context::read(&headers(&[("b3", "0")])), None);
        let undecided = format!("{TRACE}-{SPAN}");
        let undecided = Context::read(&headers(&[("b3", &undecided)]));
        assert_eq!(undecided.unwrap().sampled, None);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_fall_over(
            traceparent in "[0-9a-f-]{0,60}",
            b3 in "[0-9a-fd-]{0,70}",
            id in "[0-9a-f]{14,34}",
        ) {
            let headers = headers(&[
                ("traceparent", &traceparent),
                ("b3", &b3),
                ("x-b3-traceid", &id),
                ("x-b3-spanid", &id),
            ]);
            if let Some(context) = Context::read(&headers) {
                prop_assert!(context.trace != 0 && context.span != 0);
            }
        }
    }
}
