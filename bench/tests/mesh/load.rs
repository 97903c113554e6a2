//! Requests without a pause, to find out whether one of them fails.

use super::app::App;
use super::http::Client;
use anyhow::{Context, Result, ensure};
use http::StatusCode;
use http::header::{CONNECTION, HeaderValue};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

const PAUSE: Duration = Duration::from_millis(5);

/// One client that keeps its connection and one that never does.
pub struct Load {
    stop: Arc<AtomicBool>,
    succeeded: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

// === impl Load ===

impl Load {
    pub fn start(app: &Arc<App>, to: SocketAddr) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let succeeded = Arc::<AtomicU64>::default();
        let clients = [true, false].into_iter().map(|keep| {
            let (app, stop, succeeded) = (app.clone(), stop.clone(), succeeded.clone());
            tokio::spawn(async move {
                let (start, mut failed) = (Instant::now(), Vec::new());
                let mut kept = None;
                while !stop.load(Ordering::Relaxed) {
                    match request(&app, to, kept.take()).await {
                        Ok(client) => {
                            succeeded.fetch_add(1, Ordering::Relaxed);
                            kept = client.filter(|_| keep);
                        }
                        Err(error) => failed.push(format!(
                            "after {:?}, {}: {error:#}",
                            start.elapsed(),
                            if keep {
                                "kept connection"
                            } else {
                                "new connection"
                            },
                        )),
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                failed
            })
        });
        let clients = clients.collect();
        Self {
            stop,
            succeeded,
            clients,
        }
    }

    pub fn succeeded(&self) -> u64 {
        self.succeeded.load(Ordering::Relaxed)
    }

    /// Waits until `more` further requests have succeeded.
    pub async fn progress(&self, more: u64) -> Result<()> {
        let goal = self.succeeded() + more;
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.succeeded() < goal {
            ensure!(Instant::now() < deadline, "requests no longer succeed");
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// What failed.
    pub async fn stop(mut self) -> Result<Vec<String>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut failed = Vec::new();
        for client in self.clients.drain(..) {
            failed.extend(client.await?);
        }
        Ok(failed)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The client again, unless the server wants it no more.
async fn request(app: &App, to: SocketAddr, kept: Option<Client>) -> Result<Option<Client>> {
    let request = async {
        let mut client = match kept {
            Some(client) => client,
            None => Client::http1(app, to).await.context("connect")?,
        };
        let answer = client.get("/hello").await?;
        ensure!(answer.status == StatusCode::OK, "{answer:?}");
        let is_last = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"close");
        let is_last = answer.headers.get(CONNECTION).is_some_and(is_last);
        Ok((!is_last).then_some(client))
    };
    let patience = Duration::from_secs(5);
    tokio::time::timeout(patience, request)
        .await
        .context("no answer")?
}
