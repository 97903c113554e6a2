//! The words in which traffic is described, in the file and in annotations alike.

use duet_core::api::StatusRange;
use duet_core::check_expression;
use std::ops::RangeInclusive;
use std::time::Duration;

/// Tries after the first; more would outlive any client's patience.
pub const MAX_ATTEMPTS: u32 = 10;
/// Requests a second, at once or under way; more is no limit.
pub const MAX_LIMIT: u32 = 1_000_000;
/// What a workload may ask for of an agent: more is more than one has.
pub const MAX_BUFFER_MIB: u32 = 65_536;
pub const MAX_WEIGHT: u32 = 100;
/// What gRPC may say, by number.
const GRPC_STATUSES: [&str; 17] = [
    "ok",
    "cancelled",
    "unknown",
    "invalid-argument",
    "deadline-exceeded",
    "not-found",
    "already-exists",
    "permission-denied",
    "resource-exhausted",
    "failed-precondition",
    "aborted",
    "out-of-range",
    "unimplemented",
    "internal",
    "unavailable",
    "data-loss",
    "unauthenticated",
];
/// As long as a Kubernetes name (RFC 1123).
const MAX_HOST: usize = 253;

/// The longest time that can be said; Gateway API's durations end there too (GEP-2257).
const LONGEST: Duration = Duration::from_secs(100 * 60 * 60);

/// A time, as "10s", "1m30s" or "250ms", in milliseconds.
///
/// # Errors
/// What it is not, and what to write instead.
pub fn millis(text: &str) -> Result<u32, String> {
    let time = humantime::parse_duration(text).ok();
    let whole = time.filter(|time| time.subsec_nanos() % 1_000_000 == 0);
    match whole {
        Some(time) if !time.is_zero() && time <= LONGEST => {
            Ok(u32::try_from(time.as_millis()).unwrap_or(u32::MAX))
        }
        _ => Err(format!(
            "{text:?} is not a time: write one from 1ms to 100h, as 250ms, 10s or 1m30s"
        )),
    }
}

/// A number in `range`.
///
/// # Errors
/// What it is not, and what to write instead.
pub fn number(text: &str, range: RangeInclusive<u32>) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| {
        format!(
            "{text:?} is not known here: write a number from {} to {}",
            range.start(),
            range.end()
        )
    })
}

/// "1/1000".
///
/// # Errors
/// What it is not, and what to write instead.
pub fn fraction(text: &str) -> Result<(u32, u32), String> {
    let read = |text: &str| text.trim().parse::<u32>().ok();
    let (part, whole) = text.split_once('/').unwrap_or((text, ""));
    match (read(part), read(whole)) {
        (Some(part), Some(whole)) if part <= whole && whole > 0 => Ok((part, whole)),
        _ => Err(format!(
            "{text:?} is no part of a whole: write one as 1/1000"
        )),
    }
}

/// "503", "500-504".
///
/// # Errors
/// What it is not, and what to write instead.
pub fn statuses(text: &str) -> Result<StatusRange, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let read = |text: &str| {
        let code = text.trim().parse().ok();
        code.filter(|code| (400..=599).contains(code))
    };
    match (read(first), read(last)) {
        (Some(first), Some(last)) if first <= last => Ok(StatusRange { first, last }),
        _ => Err(format!(
            "{text:?} is no status that can be tried again: write one from 400 to 599, or a \
             range, as 502-504"
        )),
    }
}

/// "unavailable".
///
/// # Errors
/// What it is not, and what to write instead.
pub fn grpc_status(text: &str) -> Result<u32, String> {
    let known = GRPC_STATUSES.iter().position(|name| *name == text);
    match known.and_then(|code| u32::try_from(code).ok()) {
        Some(code) if code > 0 => Ok(code),
        _ => Err(format!(
            "{text:?} is no gRPC status that can be tried again: write one of {}",
            GRPC_STATUSES[1..].join(", ")
        )),
    }
}

/// A request's path, or what it begins with.
///
/// # Errors
/// What it is not, and what to write instead.
pub fn path(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"?#\"<>\\^`{|}".contains(&byte);
    if text.starts_with('/') && text.bytes().all(plain) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "{text:?} is not a path: begin it with /, and write what is not ASCII as %XX"
        ))
    }
}

/// A regular expression.
///
/// # Errors
/// What is wrong with it.
pub fn expression(text: &str) -> Result<String, String> {
    match check_expression(text) {
        Ok(()) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// An HTTP method.
///
/// # Errors
/// What it is not, and what to write instead.
pub fn method(text: &str) -> Result<String, String> {
    match text.parse::<duet_core::policy::Method>() {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// A header that a route may speak of, in lower case.
///
/// # Errors
/// What it is not, and what to write instead.
pub fn header_name(text: &str) -> Result<String, String> {
    let name = http::HeaderName::try_from(text).map_err(|_| {
        format!("{text:?} is not a header's name: write letters, digits and hyphens")
    })?;
    // What says how a message is read, or who reads it, is not a route's to change.
    let reserved = [
        "host",
        "connection",
        "content-length",
        "transfer-encoding",
        "upgrade",
        "te",
    ];
    if reserved.contains(&name.as_str()) || name.as_str().starts_with("duet-") {
        return Err(format!(
            "{text:?} is the proxy's own: leave it out, and for a host write hosts or rewrite"
        ));
    }
    Ok(name.as_str().to_owned())
}

/// # Errors
/// What it is not, and what to write instead.
pub fn header_value(text: &str) -> Result<String, String> {
    match http::HeaderValue::try_from(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!(
            "{text:?} is not a header's value: write visible ASCII and spaces"
        )),
    }
}

/// A host's name, without a port.
///
/// # Errors
/// What it is not, and what to write instead.
pub fn host(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    let good = !text.is_empty()
        && text.len() <= MAX_HOST
        && text.bytes().all(plain)
        && !text.starts_with(['.', '-']);
    if good {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(format!(
            "{text:?} is not a host: write a name, as shop.example, without a port"
        ))
    }
}

/// A host's name, or "*.example".
///
/// # Errors
/// What it is not, and what to write instead.
pub fn host_pattern(text: &str) -> Result<String, String> {
    match text.strip_prefix("*.") {
        Some(below) => host(below).map(|below| format!("*.{below}")),
        None => host(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_or_refused_with_a_remedy() {
        assert_eq!(millis("250ms"), Ok(250));
        assert_eq!(millis("1m30s"), Ok(90_000));
        for wrong in ["", "10", "-1s", "0s", "1us", "101h", "soon"] {
            assert!(millis(wrong).unwrap_err().contains("10s"), "{wrong:?}");
        }
    }

    #[test]
    fn words_are_read_or_refused_with_a_remedy() {
        assert_eq!(number("7", 1..=10), Ok(7));
        for wrong in ["0", "11", "", "x", "-1"] {
            assert!(number(wrong, 1..=10).is_err(), "{wrong:?}");
        }
        let range = |first, last| Ok(StatusRange { first, last });
        assert_eq!(statuses("503"), range(503, 503));
        assert_eq!(statuses("500-504"), range(500, 504));
        for wrong in ["200", "504-500", "5xx", "", "500-600"] {
            assert!(statuses(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(grpc_status("cancelled"), Ok(1));
        assert_eq!(grpc_status("unavailable"), Ok(14));
        assert!(grpc_status("ok").unwrap_err().contains("unavailable"));
        assert_eq!(path("/a/%20b"), Ok("/a/%20b".to_owned()));
        for wrong in ["a", "", "/a?b", "/a b", "/ä"] {
            assert!(path(wrong).is_err(), "{wrong:?}");
        }
        assert!(expression("/v[0-9]+/.*").is_ok());
        for wrong in ["(", r"\pL", "(a{1000}){1000}"] {
            let problem = expression(wrong).unwrap_err();
            assert!(!problem.contains('\n'), "{problem}");
        }
        assert_eq!(header_name("X-Canary"), Ok("x-canary".to_owned()));
        for wrong in ["Host", "duet-client-id", "a b", ""] {
            assert!(header_name(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(host_pattern("*.Example"), Ok("*.example".to_owned()));
        for wrong in ["*", "a:80", "*.*", ""] {
            assert!(host_pattern(wrong).is_err(), "{wrong:?}");
        }
    }
}
