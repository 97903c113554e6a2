//! How much may be under way at once, so that nobody takes all of it.
//!
//! An API server shows no certificate, so whoever reaches the port is listened to.
//! What can be drawn out, connections and reading a request's body, is bounded for
//! each address by itself; what only costs time, deciding, for all together.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Connections, of everybody and of one address. API servers open one for each of the
/// requests that they have under way, 600 at most by default.
const CONNECTIONS: usize = 1024;
const CONNECTIONS_OF_ONE: usize = 640;
/// Bodies that are read at once, from everybody and from one address.
const READING: usize = 32;
const READING_FROM_ONE: usize = 8;
/// Reviews that are decided at once. Each takes a millisecond.
const DECIDING: usize = 4;

pub struct Room {
    reading: Semaphore,
    deciding: Semaphore,
    present: Mutex<Present>,
}

#[derive(Default)]
struct Present {
    connections: usize,
    addresses: HashMap<IpAddr, Address>,
}

struct Address {
    connections: usize,
    reading: Arc<Semaphore>,
}

/// One connection's place.
pub struct Share {
    room: Arc<Room>,
    address: IpAddr,
    reading: Arc<Semaphore>,
}

/// Dropped when the body has been dealt with.
pub struct Reading<'a> {
    _own: SemaphorePermit<'a>,
    _shared: SemaphorePermit<'a>,
}

// === impl Room ===

impl Room {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            reading: Semaphore::new(READING),
            deciding: Semaphore::new(DECIDING),
            present: Mutex::default(),
        })
    }

    /// A place for a connection; `None` if there is none left.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Arc<Share>> {
        let mut present = self.present.lock();
        if present.connections >= CONNECTIONS {
            return None;
        }
        let of_one = present.addresses.entry(address).or_insert_with(|| Address {
            connections: 0,
            reading: Arc::new(Semaphore::new(READING_FROM_ONE)),
        });
        if of_one.connections >= CONNECTIONS_OF_ONE {
            return None;
        }
        of_one.connections += 1;
        let reading = of_one.reading.clone();
        present.connections += 1;
        Some(Arc::new(Share {
            room: self.clone(),
            address,
            reading,
        }))
    }
}

// === impl Share ===

impl Share {
    /// Waits for a place among those whose bodies are read.
    pub async fn read(&self) -> Reading<'_> {
        // The own one first: who waits for it keeps nobody else waiting.
        let own = self.reading.acquire().await.expect("it is never closed");
        let shared = self
            .room
            .reading
            .acquire()
            .await
            .expect("it is never closed");
        Reading {
            _own: own,
            _shared: shared,
        }
    }

    /// Waits for a place among those that are decided.
    pub async fn decide(&self) -> SemaphorePermit<'_> {
        self.room
            .deciding
            .acquire()
            .await
            .expect("it is never closed")
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut present = self.room.present.lock();
        present.connections -= 1;
        if let Some(of_one) = present.addresses.get_mut(&self.address) {
            of_one.connections -= 1;
            if of_one.connections == 0 {
                present.addresses.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn address(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    #[tokio::test]
    async fn one_address_leaves_room_to_read_for_others() {
        let room = Room::new();
        let greedy = room.enter(address(1)).unwrap();
        let again = room.enter(address(1)).unwrap();
        let mut held = Vec::new();
        while let Some(reading) = greedy.read().now_or_never() {
            held.push(reading);
        }
        assert_eq!(held.len(), READING_FROM_ONE);
        assert!(
            again.read().now_or_never().is_none(),
            "by another connection as well"
        );
        let other = room.enter(address(2)).unwrap();
        assert!(other.read().now_or_never().is_some());
        held.pop();
        assert!(again.read().now_or_never().is_some());
    }

    #[test]
    fn one_address_leaves_room_to_connect_for_others() {
        let room = Room::new();
        let enter = |number| std::iter::from_fn(|| room.enter(address(number))).collect::<Vec<_>>();
        let greedy = enter(1);
        assert_eq!(greedy.len(), CONNECTIONS_OF_ONE);
        let other = enter(2);
        assert_eq!(greedy.len() + other.len(), CONNECTIONS);
        assert!(room.enter(address(3)).is_none());
        drop(greedy);
        assert_eq!(enter(3).len(), CONNECTIONS_OF_ONE);
        drop(other);
        assert!(
            room.present.lock().addresses.is_empty(),
            "who has gone is forgotten"
        );
        assert_eq!(room.present.lock().connections, 0);
    }
}
