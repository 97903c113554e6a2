//! The connections that are open now, for `/connections`: who talks to whom, as
//! whom, and whether it is mTLS.
//!
//! What a connection costs here is one insertion, one removal, and two relaxed
//! stores for each buffer that is read or written. An entry belongs to the stream
//! that it counts ([`Counted`]), so it cannot outlive it, however that ends.

use crate::balance::Endpoint;
use crate::capture::{Direction, WorkloadName};
use crate::detect::Protocol;
use crate::identity::Identity;
use crate::io::writes_through;
use crate::relay::Abort;
use crate::upstream::Target;
use dashmap::DashMap;
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::io::{AsyncRead, ReadBuf};

/// What a connection is between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A client's own connection, as its application opened it.
    Client,
    /// Two proxies: requests and tunnels of many clients.
    Mesh,
    /// One CONNECT stream in such a connection.
    Tunnel,
}

/// How a connection's bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    Plaintext,
    /// HTTP over mTLS.
    Mtls,
    /// Opaque bytes in a tunnel over mTLS.
    Hbone,
}

/// All of a proxy.
#[derive(Default)]
pub struct Connections {
    next: AtomicU64,
    live: DashMap<u64, Arc<Connection>>,
    /// Of those, the ones that an application has an end of.
    applications: AtomicUsize,
    /// What those carried that have ended.
    ended: DashMap<Whose, Bytes>,
}

/// A workload's connections of one direction and kind.
type Whose = (WorkloadName, Direction, Kind);

/// What connections have carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// By clients.
    pub sent: u64,
    /// By servers.
    pub received: u64,
}

/// What is known of a connection when it is opened.
pub struct Opened<'a> {
    pub kind: Kind,
    pub direction: Direction,
    pub workload: &'a WorkloadName,
    pub client: SocketAddr,
    /// The address that the client asked for.
    pub destination: SocketAddr,
}

/// A connection that is open.
pub struct Connection {
    id: u64,
    kind: Kind,
    direction: Direction,
    workload: WorkloadName,
    client: SocketAddr,
    destination: SocketAddr,
    since: Instant,
    protocol: OnceLock<Protocol>,
    requests: AtomicU64,
    /// Bytes that the client sent.
    sent: AtomicU64,
    /// Bytes that the client received.
    received: AtomicU64,
    /// Which endpoint and identity `far` is, as one number, so that what was reached
    /// before costs one load.
    reached: AtomicUsize,
    far: Mutex<Option<Far>>,
}

/// The other end.
#[derive(Clone)]
struct Far {
    /// Kept, so that its address in memory stands for nobody else.
    endpoint: Option<Arc<Endpoint>>,
    identity: Option<Identity>,
    transport: Transport,
}

/// Its place in the list, until it is dropped.
pub struct Entry {
    connection: Arc<Connection>,
    all: Arc<Connections>,
}

/// A stream to one of the two ends, counted.
pub struct Counted<S> {
    io: S,
    entry: Entry,
    end: End,
}

#[derive(Clone, Copy)]
enum End {
    Client,
    Server,
}

/// Which connections are asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// "namespace/name"; none: all.
    pub workloads: Vec<String>,
    pub direction: Option<Direction>,
}

/// An entry as it is told.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    id: u64,
    kind: Kind,
    direction: &'static str,
    workload: String,
    client: SocketAddr,
    destination: SocketAddr,
    /// The address behind it; of HTTP, of the last request.
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<SocketAddr>,
    /// The other end's workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    /// The other end's SPIFFE ID, verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transport: Option<Transport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<&'static str>,
    age_ms: u64,
    sent_bytes: u64,
    received_bytes: u64,
    /// Requests and tunnels so far; the sender of a connection between proxies leaves
    /// that to the receiver.
    #[serde(skip_serializing_if = "Option::is_none")]
    requests: Option<u64>,
}

// === impl Connections ===

impl Connections {
    pub fn open(self: &Arc<Self>, opened: Opened<'_>) -> Entry {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let connection = Arc::new(Connection {
            id,
            kind: opened.kind,
            direction: opened.direction,
            workload: opened.workload.clone(),
            client: opened.client,
            destination: opened.destination,
            since: Instant::now(),
            protocol: OnceLock::new(),
            requests: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            reached: AtomicUsize::new(0),
            far: Mutex::new(None),
        });
        self.live.insert(id, connection.clone());
        if connection.kind != Kind::Mesh {
            self.applications.fetch_add(1, Ordering::Relaxed);
        }
        Entry {
            connection,
            all: self.clone(),
        }
    }

    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// How many are open that an application has an end of: all but those between
    /// proxies.
    pub fn of_applications(&self) -> usize {
        self.applications.load(Ordering::Relaxed)
    }

    /// What they have carried, those that have ended included.
    pub fn bytes(&self) -> HashMap<Whose, Bytes> {
        let ended = self.ended.iter();
        let mut all: HashMap<_, _> = ended.map(|one| (one.key().clone(), *one.value())).collect();
        for connection in &self.live {
            all.entry(connection.whose()).or_default().add(&connection);
        }
        all
    }

    /// What is told of a workload that is gone.
    pub fn forget(&self, workload: &WorkloadName) {
        self.ended.retain(|(of, ..), _| of != workload);
    }

    /// The oldest `limit` that are wanted, and how many more there are.
    pub fn list(&self, wanted: &Wanted, limit: usize) -> (Vec<Listed>, usize) {
        let mut found: Vec<_> = self
            .live
            .iter()
            .map(|entry| entry.value().clone())
            .filter(|connection| wanted.includes(connection))
            .collect();
        found.sort_unstable_by_key(|connection| connection.id);
        let more = found.len().saturating_sub(limit);
        found.truncate(limit);
        (found.iter().map(|one| one.listed()).collect(), more)
    }
}

// === impl Wanted ===

impl Wanted {
    fn includes(&self, connection: &Connection) -> bool {
        let Connection {
            workload,
            direction,
            ..
        } = connection;
        let named =
            |name: &String| name.split_once('/') == Some((workload.namespace(), workload.name()));
        (self.workloads.is_empty() || self.workloads.iter().any(named))
            && self.direction.is_none_or(|wanted| wanted == *direction)
    }
}

// === impl Kind ===

impl Kind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Mesh => "mesh",
            Self::Tunnel => "tunnel",
        }
    }
}

// === impl Bytes ===

impl Bytes {
    fn add(&mut self, connection: &Connection) {
        self.sent += connection.sent.load(Ordering::Relaxed);
        self.received += connection.received.load(Ordering::Relaxed);
    }
}

// === impl Connection ===

impl Connection {
    fn whose(&self) -> Whose {
        (self.workload.clone(), self.direction, self.kind)
    }

    pub fn speaks(&self, protocol: Protocol) {
        let _ = self.protocol.set(protocol);
    }

    pub fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Who the client is, or the application that it is delivered to.
    pub fn between(&self, peer: Option<&Identity>, transport: Transport) {
        *self.far.lock() = Some(Far {
            endpoint: None,
            identity: peer.cloned(),
            transport,
        });
    }

    /// Whom its bytes, or its last request, went to.
    pub fn reached(&self, endpoint: &Arc<Endpoint>, target: &Target, tunnel: bool) {
        let identity = target.peer.as_ref();
        let token = Arc::as_ptr(endpoint).addr()
            ^ identity.map_or(0, |one| one.as_str().as_ptr().addr().rotate_left(7))
            ^ usize::from(tunnel);
        if self.reached.load(Ordering::Relaxed) == token {
            return;
        }
        let transport = match identity {
            None => Transport::Plaintext,
            Some(_) if tunnel || !target.native_http => Transport::Hbone,
            Some(_) => Transport::Mtls,
        };
        *self.far.lock() = Some(Far {
            endpoint: Some(endpoint.clone()),
            identity: identity.cloned(),
            transport,
        });
        self.reached.store(token, Ordering::Relaxed);
    }

    fn listed(&self) -> Listed {
        let far = self.far.lock().clone();
        let far = far.as_ref();
        let endpoint = far.and_then(|far| far.endpoint.as_ref());
        Listed {
            id: self.id,
            kind: self.kind,
            direction: self.direction.as_str(),
            workload: self.workload.to_string(),
            client: self.client,
            destination: self.destination,
            server: endpoint.map(|endpoint| endpoint.address),
            peer: endpoint.and_then(|endpoint| Some(endpoint.workload.as_ref()?.to_string())),
            identity: far.and_then(|far| far.identity.as_ref().map(ToString::to_string)),
            transport: far.map(|far| far.transport),
            protocol: self.protocol.get().copied().map(Protocol::as_str),
            age_ms: u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            sent_bytes: self.sent.load(Ordering::Relaxed),
            received_bytes: self.received.load(Ordering::Relaxed),
            requests: (self.kind != Kind::Mesh || self.direction == Direction::Inbound)
                .then(|| self.requests.load(Ordering::Relaxed)),
        }
    }
}

// === impl Entry ===

impl Entry {
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// The stream to the client.
    pub fn client<S>(self, io: S) -> Counted<S> {
        let end = End::Client;
        Counted {
            io,
            entry: self,
            end,
        }
    }

    /// The stream to the server, where the proxy itself is the client.
    pub fn server<S>(self, io: S) -> Counted<S> {
        let end = End::Server;
        Counted {
            io,
            entry: self,
            end,
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let whose = self.connection.whose();
        self.all.live.remove(&self.connection.id);
        self.all
            .ended
            .entry(whose)
            .or_default()
            .add(&self.connection);
        if self.connection.kind != Kind::Mesh {
            self.all.applications.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

// === impl Counted ===

/// Whoever polls the stream has it to himself, so that no addition is lost though none
/// locks the bus.
fn add(counter: &AtomicU64, count: usize) {
    let sum = counter.load(Ordering::Relaxed).wrapping_add(count as u64);
    counter.store(sum, Ordering::Relaxed);
}

impl End {
    const fn pick<T>(self, client: T, server: T) -> T
    where
        T: Copy,
    {
        match self {
            Self::Client => client,
            Self::Server => server,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        if read > 0 {
            let Connection { sent, received, .. } = &*self.entry.connection;
            add(self.end.pick(sent, received), read);
        }
        polled
    }
}

impl<S> Counted<S> {
    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(count)) = written {
            let Connection { sent, received, .. } = &*self.entry.connection;
            add(self.end.pick(received, sent), count);
        }
        written
    }
}

writes_through!(Counted, Self::wrote);

impl<S: Abort> Abort for Counted<S> {
    fn abort(&mut self) {
        self.io.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::breaker::Accrual;
    use crate::directory;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn open(all: &Arc<Connections>, workload: &str, direction: Direction) -> Entry {
        all.open(Opened {
            kind: Kind::Client,
            direction,
            workload: &workload.parse().unwrap(),
            client: "10.0.0.1:5000".parse().unwrap(),
            destination: "10.0.0.2:80".parse().unwrap(),
        })
    }

    fn json(all: &Connections, wanted: &Wanted, limit: usize) -> Vec<serde_json::Value> {
        let (listed, _) = all.list(wanted, limit);
        listed
            .iter()
            .map(|one| serde_json::to_value(one).unwrap())
            .collect()
    }

    #[tokio::test]
    async fn an_entry_counts_both_ways_and_goes_with_its_stream() {
        let all = Arc::new(Connections::default());
        let (mut far, near) = tokio::io::duplex(64);
        let entry = open(&all, "shop/web-0", Direction::Outbound);
        entry.connection().speaks(Protocol::Http1);
        entry.connection().request();
        let mut near = entry.client(near);
        far.write_all(b"question").await.unwrap();
        near.read_exact(&mut [0; 8]).await.unwrap();
        near.write_all(b"long answer").await.unwrap();
        let listed = json(&all, &Wanted::default(), 10);
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0]["sentBytes"], 8);
        assert_eq!(listed[0]["receivedBytes"], 11);
        assert_eq!(listed[0]["requests"], 1);
        assert_eq!(listed[0]["protocol"], "http/1");
        assert_eq!(listed[0]["workload"], "shop/web-0");
        assert!(listed[0].get("transport").is_none(), "nobody was reached");
        drop(near);
        assert_eq!(json(&all, &Wanted::default(), 10).len(), 0);
    }

    #[test]
    fn whom_the_last_request_reached_is_told() {
        let all = Arc::new(Connections::default());
        let entry = open(&all, "shop/web-0", Direction::Outbound);
        let endpoint = |at: &str, name: Option<&str>| {
            let name = name.map(|name| name.parse().unwrap());
            Arc::new(Endpoint::new(at.parse().unwrap(), name, Accrual::default()))
        };
        let meshed = endpoint("10.0.0.2:8080", Some("shop/cart-0"));
        let identity = Identity::new("duet.local", "shop", "cart");
        let mesh = |transport| Target::mesh(meshed.address, identity.clone(), transport);
        let outside = endpoint("10.0.0.3:80", None);
        for (endpoint, target, tunnel, transport) in [
            (&meshed, mesh(directory::Transport::Duet), false, "mtls"),
            (&meshed, mesh(directory::Transport::Duet), true, "hbone"),
            (&meshed, mesh(directory::Transport::Hbone), false, "hbone"),
            (
                &outside,
                Target::plaintext(outside.address),
                false,
                "plaintext",
            ),
            (&meshed, mesh(directory::Transport::Duet), false, "mtls"),
        ] {
            // A second time changes nothing.
            entry.connection().reached(endpoint, &target, tunnel);
            entry.connection().reached(endpoint, &target, tunnel);
            let listed = &json(&all, &Wanted::default(), 1)[0];
            assert_eq!(listed["transport"], transport);
            assert_eq!(listed["server"], endpoint.address.to_string());
            let named = transport != "plaintext";
            assert_eq!(listed.get("peer").is_some(), named);
            assert_eq!(listed.get("identity").is_some(), named, "{listed}");
        }
    }

    #[test]
    fn a_list_is_what_was_asked_for_and_no_longer_than_allowed() {
        let all = Arc::new(Connections::default());
        let _entries: Vec<_> = (0..5)
            .flat_map(|n| {
                let name = format!("shop/web-{n}");
                [Direction::Inbound, Direction::Outbound].map(|d| open(&all, &name, d))
            })
            .collect();
        let (listed, more) = all.list(&Wanted::default(), 4);
        assert_eq!((listed.len(), more), (4, 6));
        let wanted = Wanted {
            workloads: vec!["shop/web-1".to_owned(), "shop/web".to_owned()],
            direction: Some(Direction::Inbound),
        };
        let listed = json(&all, &wanted, 10);
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0]["workload"], "shop/web-1");
        assert_eq!(listed[0]["direction"], "inbound");
    }
}
