//! A responder that says exactly what it did: blocking threads, and its own record of every request.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::load::clock::now_ns;

/// When the answer to one frame was handed to the kernel, CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug)]
pub struct Handled {
    /// The frame's number in the schedule.
    pub number: u64,
    pub done_ns: u64,
}

/// Frames read in this window are held until it ends.
#[derive(Clone, Copy, Debug)]
pub struct Stall {
    pub from_ns: u64,
    pub until_ns: u64,
}

pub struct Responder {
    pub address: SocketAddr,
    handled: Arc<Mutex<Vec<Handled>>>,
}

impl Responder {
    /// Echoes each frame of 64 bytes after `delay`, and after `stall` if it was read in that.
    pub fn start(delay: Duration, stall: Option<Stall>) -> Self {
        let handled = Arc::new(Mutex::new(Vec::new()));
        let record = handled.clone();
        let address = serve_each(move |mut stream| {
            let mut frame = [0; 64];
            while stream.read_exact(&mut frame).is_ok() {
                let read_ns = now_ns();
                if let Some(stall) = stall
                    && (stall.from_ns..stall.until_ns).contains(&read_ns)
                {
                    sleep_until(stall.until_ns);
                }
                if !delay.is_zero() {
                    std::thread::sleep(delay);
                }
                let number = u64::from_be_bytes(frame[..8].try_into().unwrap());
                record.lock().unwrap().push(Handled {
                    number,
                    done_ns: now_ns(),
                });
                if stream.write_all(&frame).is_err() {
                    return;
                }
            }
        });
        Self { address, handled }
    }

    pub fn handled(&self) -> Vec<Handled> {
        self.handled.lock().unwrap().clone()
    }
}

/// Listens on a free loopback port and gives every connection a thread.
pub fn serve_each(handle: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            stream.set_nodelay(true).unwrap();
            let handle = handle.clone();
            std::thread::spawn(move || handle(stream));
        }
    });
    address
}

/// Reads one HTTP/1.1 request without a body; `None` at the end of the connection.
pub fn read_request(stream: &mut TcpStream) -> Option<()> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut part) {
            Ok(0) | Err(_) => return None,
            Ok(read) => head.extend_from_slice(&part[..read]),
        }
    }
    Some(())
}

pub fn sleep_until(due_ns: u64) {
    std::thread::sleep(Duration::from_nanos(due_ns.saturating_sub(now_ns())));
}

/// An address on which nothing listens.
pub fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}
