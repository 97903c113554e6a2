//! Clients that make one connection after another, through whatever happens.

#![allow(dead_code, reason = "each test file uses some of it")]

use super::world::{TestPod, Wire};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::{Scope, sleep};
use std::time::{Duration, Instant};

/// What every client says.
pub const SAID: &[u8] = b"how do you do\n";

/// What begins the story of a connection that could not be made.
const REFUSED: &str = "not connected: ";

/// A client's patience with one connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// What all clients of a test have met.
#[derive(Default)]
pub struct Load {
    stop: AtomicBool,
    served: AtomicUsize,
    failed: Mutex<Vec<String>>,
    plaintext: AtomicUsize,
    /// The longest that one took.
    slowest: Mutex<Duration>,
}

impl Load {
    /// One client: a connection from `pod` to `to` each `every`, in which what is said
    /// comes back.
    pub fn client<'scope, 'env>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        pod: &'env TestPod,
        to: SocketAddr,
        every: Duration,
    ) {
        scope.spawn(move || {
            pod.run(|| {
                while !self.stop.load(Relaxed) {
                    let began = Instant::now();
                    match exchange(to) {
                        Ok(()) => drop(self.served.fetch_add(1, Relaxed)),
                        Err(error) => self.failed.lock().unwrap().push(error.to_string()),
                    }
                    let took = began.elapsed();
                    let mut slowest = self.slowest.lock().unwrap();
                    *slowest = took.max(*slowest);
                    drop(slowest);
                    sleep(every.saturating_sub(took));
                }
            });
        });
    }

    /// Counts what the clients say that is on the wire as they say it, until they stop.
    pub fn watch<'scope, 'env>(&'env self, scope: &'scope Scope<'scope, 'env>, wire: &'env Wire) {
        scope.spawn(move || {
            while !self.stop.load(Relaxed) {
                self.plaintext.fetch_add(wire.count(SAID), Relaxed);
                sleep(Duration::from_millis(1));
            }
        });
    }

    pub fn plaintext(&self) -> usize {
        self.plaintext.load(Relaxed)
    }

    /// Waits for so many more connections to be served.
    #[track_caller]
    pub fn more(&self, connections: usize) {
        let before = self.served();
        let start = Instant::now();
        while self.served() - before < connections {
            assert!(
                start.elapsed() < 3 * PATIENCE,
                "{} of {connections} connections were served in {:?}; of all, {} have failed, the \
                 last of them: {:?}",
                self.served() - before,
                3 * PATIENCE,
                self.failed().len(),
                self.failed().last(),
            );
            sleep(Duration::from_millis(1));
        }
    }

    /// Waits for so many more connections to come to nothing.
    pub fn fails(&self, connections: usize) {
        let until = self.failed().len() + connections;
        let start = Instant::now();
        while self.failed().len() < until {
            assert!(start.elapsed() < 3 * PATIENCE);
            sleep(Duration::from_millis(1));
        }
    }

    /// The clients end after their next connection.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    pub fn served(&self) -> usize {
        self.served.load(Relaxed)
    }

    /// Those that did not even come to be.
    pub fn refused(&self) -> Vec<String> {
        let failed = self.failed().into_iter();
        failed.filter(|why| is_refusal(why)).collect()
    }

    pub fn failed(&self) -> Vec<String> {
        self.failed.lock().unwrap().clone()
    }

    /// Of all since it was asked last.
    pub fn slowest(&self) -> Duration {
        std::mem::take(&mut self.slowest.lock().unwrap())
    }
}

/// Ends the clients also where a test fails, which would otherwise wait for them.
pub struct StopAtEnd<'a>(pub &'a Load);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Whether a connection did not even come to be.
pub fn is_refusal(why: &str) -> bool {
    why.starts_with(REFUSED)
}

/// A connection that stays open and has been served.
pub fn hold(pod: &TestPod, to: SocketAddr) -> TcpStream {
    let connect = || TcpStream::connect_timeout(&to, PATIENCE);
    let mut stream = pod.run(connect).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"?").unwrap();
    let mut said = [0; 1];
    stream.read_exact(&mut said).unwrap();
    stream
}

pub fn exchange(to: SocketAddr) -> io::Result<()> {
    let connected = TcpStream::connect_timeout(&to, PATIENCE);
    let mut stream = connected.map_err(|error| io::Error::other(format!("{REFUSED}{error}")))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(SAID)?;
    stream.shutdown(Shutdown::Write)?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    match said.as_bytes().ends_with(SAID) {
        true => Ok(()),
        false => Err(io::Error::other(format!("said {said:?}"))),
    }
}
