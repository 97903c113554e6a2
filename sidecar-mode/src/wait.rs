//! `duet-sidecar wait-ready`: returns when the proxy beside it is ready.
//!
//! For pods in which the proxy is an ordinary container, the first of them: as its
//! `postStart` hook this keeps the kubelet from starting the next one. Native
//! sidecars have a startup probe instead and no use for it.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often the proxy is asked. It is on the same loopback and answers at once.
const PAUSE: Duration = Duration::from_millis(20);
/// An answer that takes longer is none.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Of an answer, as much as is read: a status line and what is waited for.
const MAX_ANSWER_BYTES: u64 = 4096;

/// The proxy did not become ready in time.
#[derive(Debug, thiserror::Error)]
#[error("not ready after {patience:?}: {last}; the proxy's log says more")]
pub struct NotReady {
    patience: Duration,
    last: String,
}

/// Asks `health`, where the proxy serves /ready, until the answer is yes.
///
/// # Errors
/// When it is not within `patience`.
pub fn wait_ready(health: SocketAddr, patience: Duration) -> Result<(), NotReady> {
    let health = reachable(health);
    let end = Instant::now() + patience;
    loop {
        let last = match ask(health) {
            Ok(answer) if answer.starts_with("HTTP/1.1 200") => return Ok(()),
            Ok(answer) => match answer.split_once("\r\n\r\n") {
                Some((_, body)) => body.trim().replace('\n', ", "),
                None => "an answer that is no HTTP".to_owned(),
            },
            Err(error) => format!("{health}: {error}"),
        };
        if Instant::now() >= end {
            return Err(NotReady { patience, last });
        }
        sleep(PAUSE);
    }
}

/// Who listens on all addresses is asked on loopback.
fn reachable(mut health: SocketAddr) -> SocketAddr {
    if health.ip().is_unspecified() {
        health.set_ip(match health {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    health
}

fn ask(health: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&health, ANSWER_TIMEOUT)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    let request = format!("GET /ready HTTP/1.1\r\nhost: {health}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;
    use std::thread;

    /// Gives these answers, one for each connection, then listens no more.
    fn answering(answers: &'static [&'static str]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                // The whole of it: what is left unread would reset the connection.
                let mut request = String::new();
                let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
                while let Some(line) = lines.next().filter(|line| !line.is_empty()) {
                    request.push_str(&line);
                }
                assert!(request.starts_with("GET /ready HTTP/1.1"), "{request}");
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    const WAITING: &str = "HTTP/1.1 503 Service Unavailable\r\n\r\nidentity\ndirectory\n";

    #[test]
    fn it_asks_until_the_answer_is_yes() {
        let address = answering(&[WAITING, WAITING, "HTTP/1.1 200 OK\r\n\r\nready\n"]);
        wait_ready(address, Duration::from_secs(10)).unwrap();
    }

    #[test]
    fn it_says_what_was_missing() {
        let address = answering(&[WAITING]);
        let error = wait_ready(address, Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("identity, directory"), "{error}");
        // Nobody listens any more, or not yet.
        let error = wait_ready(address, Duration::from_millis(50))
            .unwrap_err()
            .to_string();
        assert!(error.contains(&address.to_string()), "{error}");
    }
}
