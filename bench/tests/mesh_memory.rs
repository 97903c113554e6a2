//! What connections cost that nobody uses.
#![forbid(unsafe_code)]

mod mesh;

use anyhow::{Context, Result, ensure};
use duet_bench::accounting::Rollup;
use duet_bench::cluster::{Placement, PodSpec};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::StatusCode;
use mesh::http::{Client, serve_http1};
use mesh::{Checks, Mesh};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const HTTP: u16 = 8080;
const OPAQUE: u16 = 9000;

const CONNECTIONS: usize = 2000;
/// What one may cost each of the two proxies that it passes.
const MOST: u64 = 10 * 1024;
/// What of it a proxy may keep when they are closed.
const MOST_LEFT: u64 = 2 * 1024;
/// For how long it may be more. A connection of HTTP/1 has hyper's buffers until it has been idle
/// for a while.
const PATIENCE: Duration = Duration::from_secs(20);

mesh::in_both_placements!(run);

fn run(placement: Placement) {
    let pods = [PodSpec::new("client"), PodSpec::new("server").node(2)];
    let Some(mesh) = Mesh::start(placement, pods, []) else {
        return;
    };
    mesh.block_on(async {
        let app = mesh.app("server");
        serve_http1(app, HTTP);
        let listener = app.listen(OPAQUE);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        let idle = Idle { mesh: &mesh };
        let mut checks = Checks::default();
        checks.run("of HTTP", idle.cost(|| idle.http())).await;
        checks.run("of bytes", idle.cost(|| idle.opaque())).await;
        checks.assert_all_passed();
    });
}

struct Idle<'a> {
    mesh: &'a Mesh,
}

// === impl Idle ===

impl Idle<'_> {
    async fn http(&self) -> Result<Client> {
        let to = self.mesh.app("server").at(HTTP);
        let mut client = Client::http1(self.mesh.app("client"), to).await?;
        ensure!(client.get("/").await?.status == StatusCode::OK);
        Ok(client)
    }

    async fn opaque(&self) -> Result<TcpStream> {
        let to = self.mesh.app("server").at(OPAQUE);
        let mut stream = self.mesh.app("client").connect(to).await?;
        stream.write_all(&[0]).await?;
        stream.read_exact(&mut [0]).await?;
        Ok(stream)
    }

    async fn cost<C, F: Future<Output = Result<C>>>(&self, open: impl Fn() -> F) -> Result<()> {
        let several = |count: usize| {
            let all = stream::iter(0..count).map(|_| open());
            all.buffer_unordered(20).try_collect::<Vec<_>>()
        };
        // What is there once for all of them is there.
        drop(several(20).await?);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = self.held()?;
        let connections = several(CONNECTIONS).await?;
        let each = self.falls_to(before, MOST).await?;
        println!("bytes for each idle connection, client's and server's proxy: {each:?}");
        drop(connections);
        let each = self.falls_to(before, MOST_LEFT).await?;
        println!("given back but for {each:?}");
        Ok(())
    }

    async fn falls_to(&self, before: [u64; 2], most: u64) -> Result<[u64; 2]> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let each = self.each_since(before)?;
            if each.iter().all(|bytes| *bytes <= most) {
                return Ok(each);
            }
            ensure!(Instant::now() < deadline, "still held for each: {each:?}");
        }
    }

    fn each_since(&self, before: [u64; 2]) -> Result<[u64; 2]> {
        let now = self.held()?;
        Ok([0, 1].map(|n| now[n].saturating_sub(before[n]) / CONNECTIONS as u64))
    }

    /// Anonymous memory of the two proxies.
    fn held(&self) -> Result<[u64; 2]> {
        let of = |pod| -> Result<u64> {
            let pid = self.mesh.proxy(pod).pid.context("it is dead")?;
            Ok(Rollup::read(pid)?.anonymous)
        };
        Ok([of("client")?, of("server")?])
    }
}
