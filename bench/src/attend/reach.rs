//! Asking an HTTP server until it answers, as an application does that cannot
//! start without it.

use crate::cluster::monotonic_ns;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

/// From one attempt to the next.
const AGAIN: Duration = Duration::from_millis(20);
/// How long one attempt may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// As much of an answer as is looked at.
const ANSWER_MAX: u64 = 64 << 10;

/// How it went. Times are CLOCK_MONOTONIC in ns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// The first attempt.
    pub began_ns: u64,
    /// Attempts that failed before the first one that did not.
    pub failures: u32,
    /// What the first failed attempt met.
    pub first_failure: Option<String>,
    /// The first answer; absent if there was none in time.
    pub success_ns: Option<u64>,
}

/// Tries until it is answered with 200, or `within` has passed.
pub fn reach(url: &str, within: Duration) -> Result<Reached, String> {
    let (authority, path) =
        parts(url).ok_or_else(|| format!("{url}: write http://host:port/path"))?;
    let deadline = Instant::now() + within;
    let mut reached = Reached {
        began_ns: monotonic_ns(),
        ..Reached::default()
    };
    loop {
        match ask(authority, path) {
            Ok(()) => {
                reached.success_ns = Some(monotonic_ns());
                return Ok(reached);
            }
            Err(error) => {
                reached.failures += 1;
                reached.first_failure.get_or_insert(error.to_string());
            }
        }
        if Instant::now() + AGAIN >= deadline {
            return Ok(reached);
        }
        thread::sleep(AGAIN);
    }
}

fn parts(url: &str) -> Option<(&str, &str)> {
    let rest = url.strip_prefix("http://")?;
    let at = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(at);
    (!authority.is_empty()).then_some((authority, if path.is_empty() { "/" } else { path }))
}

fn ask(authority: &str, path: &str) -> io::Result<()> {
    let address = resolve(authority)?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).unwrap_or("nothing");
    match status {
        "200" => Ok(()),
        other => Err(io::Error::other(format!("answered with {other}"))),
    }
}

fn resolve(authority: &str) -> io::Result<SocketAddr> {
    let with_port = match authority.parse::<SocketAddr>() {
        Ok(address) => return Ok(address),
        Err(_) if authority.contains(':') => authority.to_owned(),
        Err(_) => format!("{authority}:80"),
    };
    with_port
        .to_socket_addrs()?
        .next()
        .ok_or_else(|| io::Error::other("the name has no address"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn server(answers: &'static [&'static str]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().expect("a connection");
                // What is closed unread is reset, and takes the answer with it.
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).expect("a whole request");
                    request.extend(byte);
                }
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        format!("http://{address}/x")
    }

    #[test]
    fn failures_are_counted_until_the_first_success() {
        let url = server(&[
            "HTTP/1.1 503 Service Unavailable\r\n\r\n",
            "",
            "HTTP/1.1 200 OK\r\n\r\nhello",
        ]);
        let reached = reach(&url, Duration::from_secs(5)).expect("a URL");
        assert_eq!(reached.failures, 2);
        assert_eq!(reached.first_failure.as_deref(), Some("answered with 503"));
        assert!(reached.success_ns.is_some_and(|at| at > reached.began_ns));
    }

    #[test]
    fn nobody_there_is_no_success() {
        let unused = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/", unused.local_addr().expect("bound"));
        drop(unused);
        let reached = reach(&url, Duration::from_millis(60)).expect("a URL");
        assert_eq!(reached.success_ns, None);
        assert!(reached.failures >= 1);
        assert!(reach("tcp://x", Duration::ZERO).is_err());
    }
}
