//! Proxies, as far as they watch the mesh.

use crate::{PATIENCE, PROBES, say};
use bytes::{Buf, Bytes};
use duet_core::api::{Update, WatchRequest};
use prost::Message;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status, Streaming};

pub struct Shared {
    /// When a probe's change was asked for.
    pub asked: Vec<Mutex<Option<Instant>>>,
    pub latencies: Mutex<Vec<Duration>>,
    /// Sizes of first updates, by watcher; 0 before.
    snapshots: Vec<AtomicU64>,
    bytes: AtomicU64,
    updates: AtomicUsize,
}

pub struct Watchers {
    pub shared: Arc<Shared>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    began: Instant,
}

impl Watchers {
    pub fn start(api: SocketAddr, root: &str, tokens: &[String]) -> Self {
        let shared = Arc::new(Shared {
            asked: (0..PROBES).map(|_| Mutex::default()).collect(),
            latencies: Mutex::default(),
            snapshots: tokens.iter().map(|_| AtomicU64::new(0)).collect(),
            bytes: AtomicU64::new(0),
            updates: AtomicUsize::new(0),
        });
        let tasks = tokens.iter().enumerate().map(|(index, token)| {
            let tls = ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(root))
                .domain_name("duet-control");
            let channel = Endpoint::from_shared(format!("https://{}", api))
                .unwrap()
                .tls_config(tls)
                .unwrap()
                .connect_lazy();
            tokio::spawn(follow(channel, token.clone(), index, shared.clone()))
        });
        Self {
            tasks: tasks.collect(),
            shared,
            began: Instant::now(),
        }
    }

    pub async fn all_have_a_snapshot(&self) {
        let missing = || {
            let sizes = self.shared.snapshots.iter();
            sizes
                .filter(|size| size.load(Ordering::Relaxed) == 0)
                .count()
        };
        while missing() > 0 {
            assert!(
                self.began.elapsed() < PATIENCE,
                "{} watch nothing",
                missing()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        say!(
            "{} watchers have a snapshot after {:.1} s",
            self.tasks.len(),
            self.began.elapsed().as_secs_f64()
        );
    }

    pub fn forget(&self) {
        for size in &self.shared.snapshots {
            size.store(0, Ordering::Relaxed);
        }
    }

    pub fn begin(&self) {
        self.shared.latencies.lock().unwrap().clear();
        self.shared.bytes.store(0, Ordering::Relaxed);
        self.shared.updates.store(0, Ordering::Relaxed);
    }

    pub fn snapshot_of(&self, index: usize) -> u64 {
        self.shared.snapshots[index].load(Ordering::Relaxed)
    }

    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    pub fn updates(&self) -> usize {
        self.shared.updates.load(Ordering::Relaxed)
    }

    pub fn count(&self) -> u64 {
        self.tasks.len() as u64
    }
}

impl Drop for Watchers {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// A proxy's watch, for ever; what it is told is weighed, and decoded if it is little.
async fn follow(channel: Channel, token: String, index: usize, shared: Arc<Shared>) {
    loop {
        let opened = watch(channel.clone(), &token).await;
        if let Err(status) = &opened {
            // One line is enough for a person.
            static SAID: AtomicUsize = AtomicUsize::new(0);
            if SAID.fetch_add(1, Ordering::Relaxed).is_multiple_of(1000) {
                say!(
                    "   watcher {index}: {}: {}",
                    status.code(),
                    status.message()
                );
            }
        }
        if let Ok(mut updates) = opened {
            let mut first = true;
            while let Ok(Some(update)) = updates.message().await {
                let arrived = Instant::now();
                let length = update.len() as u64;
                if std::mem::take(&mut first) {
                    shared.snapshots[index].store(length, Ordering::Relaxed);
                    continue;
                }
                shared.bytes.fetch_add(length, Ordering::Relaxed);
                shared.updates.fetch_add(1, Ordering::Relaxed);
                for workload in Update::decode(update).unwrap().workloads {
                    let asked = workload.opaque_ports.first().and_then(|port| {
                        let number = usize::try_from(*port).ok()?.checked_sub(1)?;
                        *shared.asked.get(number)?.lock().unwrap()
                    });
                    let latency = asked.map(|asked| arrived - asked);
                    shared.latencies.lock().unwrap().extend(latency);
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn watch(channel: Channel, token: &str) -> Result<Streaming<Bytes>, Status> {
    let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(256 << 20);
    let ready = client.ready().await;
    ready.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut request = Request::new(WatchRequest::default());
    let value = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    let path = http::uri::PathAndQuery::from_static("/duet.v1alpha1.Discovery/Watch");
    let answer = client.server_streaming(request, path, Whole).await?;
    Ok(answer.into_inner())
}

/// Gives messages as they are on the wire.
#[derive(Clone, Copy)]
struct Whole;

impl Codec for Whole {
    type Encode = WatchRequest;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Whole {
    type Item = WatchRequest;
    type Error = Status;

    fn encode(&mut self, item: WatchRequest, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Whole {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
