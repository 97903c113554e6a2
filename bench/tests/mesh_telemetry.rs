//! What proxies tell of requests: spans, to a collector, and metrics, as they are documented.
#![forbid(unsafe_code)]

mod mesh;

use anyhow::{Context, Result, ensure};
use duet_bench::cluster::{Endpoint, Placement, PodSpec};
use duet_core::api::otlp::trace_service_server::{TraceService, TraceServiceServer};
use duet_core::api::otlp::{
    ExportTraceServiceRequest, ExportTraceServiceResponse, KeyValue, Span, any_value::Value,
    span::SpanKind,
};
use mesh::http::{Client, empty};
use mesh::moody::Moody;
use mesh::{Checks, Mesh};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tonic::transport::ServerTlsConfig;
use tonic::{Request, Response, Status};

const HTTP: u16 = 8080;
const OPAQUE: u16 = 9000;
const CLOSED: u16 = 9001;
const COLLECTOR: u16 = 4317;
const PATIENCE: Duration = Duration::from_secs(30);

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

#[test]
fn with_sidecars() {
    run(Placement::Sidecar);
}

#[test]
fn with_agents() {
    run(Placement::Agent);
}

fn run(placement: Placement) {
    let pods = [PodSpec::new("client"), PodSpec::new("server").node(2)];
    let collector = format!("http://127.0.0.1:{COLLECTOR}");
    let args = ["--trace-ratio", "1", "--trace-collector", &collector];
    let Some(mesh) = Mesh::start_with(placement, &args, pods, []) else {
        return;
    };
    mesh.block_on(async {
        let collector = Collector::default();
        for pod in ["client", "server"] {
            collector.listen(&mesh, pod);
        }
        let t = Telemetry {
            mesh: &mesh,
            collector,
            server: Moody::http1(mesh.app("server"), HTTP),
        };
        let mut checks = Checks::default();
        checks.run("W3C", t.w3c()).await;
        checks.run("B3", t.b3()).await;
        checks.run("none", t.nothing_said()).await;
        checks.run("not sampled", t.not_sampled()).await;
        checks.run("closes", t.closes()).await;
        checks.run("metrics", t.metrics(placement)).await;
        checks.assert_all_passed();
    });
}

#[test]
fn with_sidecars_over_tls() {
    over_tls(Placement::Sidecar);
}

#[test]
fn with_agents_over_tls() {
    over_tls(Placement::Agent);
}

fn over_tls(placement: Placement) {
    let papers = Papers::new();
    let pods = [PodSpec::new("client"), PodSpec::new("server").node(2)];
    let collector = format!("https://127.0.0.1:{COLLECTOR}");
    let roots = papers.roots.path().to_str().unwrap();
    let args = [
        ["--trace-ratio", "1"],
        ["--trace-collector", &collector],
        ["--trace-collector-ca", roots],
    ];
    let Some(mesh) = Mesh::start_with(placement, &args.concat(), pods, []) else {
        return;
    };
    mesh.block_on(async {
        let t = Telemetry {
            mesh: &mesh,
            collector: Collector::default(),
            server: Moody::http1(mesh.app("server"), HTTP),
        };
        let mut checks = Checks::default();
        checks.run("a stranger", t.stranger()).await;
        for pod in ["client", "server"] {
            t.collector.listen_with(&mesh, pod, Some(&papers));
        }
        checks.run("W3C", t.w3c()).await;
        checks.assert_all_passed();
    });
}

/// A collector's certificate, and the file with the root that it leads to.
struct Papers {
    roots: tempfile::NamedTempFile,
    identity: tonic::transport::Identity,
}

impl Papers {
    fn new() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let authority = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&authority).unwrap();
        let issuer = rcgen::Issuer::new(params, authority);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &issuer).unwrap();
        let mut roots = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut roots, root.pem().as_bytes()).unwrap();
        // A sidecar's user reads it too.
        let all_may = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(roots.path(), all_may).unwrap();
        let identity = tonic::transport::Identity::from_pem(leaf.pem(), key.serialize_pem());
        Self { roots, identity }
    }
}

/// A span, and whose it is.
type Received = (Vec<KeyValue>, Span);

/// Takes spans as collectors do.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Received>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut all = self.0.lock().unwrap();
        for of_one in request.into_inner().resource_spans {
            let resource = of_one.resource.unwrap_or_default().attributes;
            for span in of_one.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                all.push((resource.clone(), span));
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Where the proxy of a pod looks for one.
    fn listen(&self, mesh: &Mesh, pod: &str) {
        self.listen_with(mesh, pod, None);
    }

    /// The same, over TLS if it has papers.
    fn listen_with(
        &self,
        mesh: &Mesh,
        pod: &str,
        papers: Option<&Papers>,
    ) -> JoinHandle<Result<(), tonic::transport::Error>> {
        let listen = || {
            let listener = std::net::TcpListener::bind(("127.0.0.1", COLLECTOR))?;
            listener.set_nonblocking(true)?;
            Ok::<_, std::io::Error>(listener)
        };
        let listener = mesh.proxy(pod).netns.run(listen).unwrap().unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let service = TraceServiceServer::new(self.clone());
        let mut server = tonic::transport::Server::builder();
        if let Some(papers) = papers {
            let tls = ServerTlsConfig::new().identity(papers.identity.clone());
            server = server.tls_config(tls).unwrap();
        }
        let server = server.add_service(service).serve_with_incoming(incoming);
        tokio::spawn(server)
    }

    /// Those of a trace: the client's proxy's and the server's.
    async fn pair(&self, trace: &[u8]) -> Result<[(Vec<KeyValue>, Span); 2]> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let of_kind = |kind: SpanKind| {
                let all = self.0.lock().unwrap();
                let mut all = all.iter();
                all.find(|(_, span)| span.trace_id == trace && span.kind() == kind)
                    .cloned()
            };
            if let (Some(client), Some(server)) =
                (of_kind(SpanKind::Client), of_kind(SpanKind::Server))
            {
                return Ok([client, server]);
            }
            let count = self.0.lock().unwrap().len();
            ensure!(Instant::now() < deadline, "{count} spans, of others");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

struct Telemetry<'a> {
    mesh: &'a Mesh,
    collector: Collector,
    server: Moody,
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2);
    digits
        .map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap())
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn said(attributes: &[KeyValue], key: &str) -> Option<Value> {
    let found = attributes.iter().find(|one| one.key == key)?;
    found.value.clone()?.value
}

fn text(text: &str) -> Option<Value> {
    Some(Value::StringValue(text.to_owned()))
}

// === impl Telemetry ===

impl Telemetry<'_> {
    /// Asks with these headers; what the application saw.
    async fn ask(&self, path: &str, headers: &[(&'static str, &str)]) -> Result<http::HeaderMap> {
        let to = self.mesh.app("server").at(HTTP);
        let mut client = Client::http1(self.mesh.app("client"), to).await?;
        let answer = client
            .send(http::Method::GET, path, headers, empty())
            .await?;
        ensure!(answer.status == http::StatusCode::OK, "{answer:?}");
        Ok(self.server.last().headers)
    }

    async fn w3c(&self) -> Result<()> {
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let headers = [("traceparent", &*parent), ("tracestate", "shop=7")];
        let seen = self.ask("/cart?full=1", &headers).await?;
        let [(of_client, out), (of_server, inside)] = self.collector.pair(&bytes(TRACE)).await?;
        ensure!(out.parent_span_id == bytes(SPAN), "{out:?}");
        ensure!(inside.parent_span_id == out.span_id, "{inside:?}");
        let expected = format!("00-{TRACE}-{}-01", hex(&inside.span_id));
        ensure!(seen["traceparent"] == expected, "{seen:?}");
        ensure!(seen["tracestate"] == "shop=7");
        ensure!(said(&of_client, "k8s.pod.name") == text("client"));
        ensure!(said(&of_server, "k8s.pod.name") == text("server"));
        for span in [&out, &inside] {
            ensure!(
                span.trace_state == "shop=7" && span.name == "GET",
                "{span:?}"
            );
            ensure!(span.end_time_unix_nano > span.start_time_unix_nano);
            let said = |key| said(&span.attributes, key);
            ensure!(said("url.path") == text("/cart"), "{span:?}");
            ensure!(said("http.response.status_code") == Some(Value::IntValue(200)));
            ensure!(said("duet.tls") == Some(Value::BoolValue(true)));
        }
        Ok(())
    }

    /// Whoever else answers there gets nothing.
    async fn stranger(&self) -> Result<()> {
        let strangers = Papers::new();
        let serving = ["client", "server"]
            .map(|pod| self.collector.listen_with(self.mesh, pod, Some(&strangers)));
        let deadline = Instant::now() + PATIENCE;
        let failed = ["result=\"failed\"".to_owned()];
        while self.mesh.count("client", "duet_spans_total", &failed) == 0 {
            ensure!(Instant::now() < deadline, "it does not say that it failed");
            self.ask("/", &[]).await?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        for one in serving {
            one.abort();
            let _ = one.await;
        }
        ensure!(self.collector.0.lock().unwrap().is_empty(), "it got spans");
        Ok(())
    }

    async fn b3(&self) -> Result<()> {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let seen = self
            .ask("/", &[("b3", &format!("{trace}-{SPAN}-1"))])
            .await?;
        let [(_, out), (_, inside)] = self.collector.pair(&bytes(trace)).await?;
        ensure!(out.parent_span_id == bytes(SPAN));
        let own = hex(&inside.span_id);
        let expected = format!("{trace}-{own}-1-{}", hex(&out.span_id));
        ensure!(seen["b3"] == expected, "{seen:?}");
        ensure!(!seen.contains_key("traceparent"), "{seen:?}");

        let trace = "1af7651916cd43dd8448eb211c80319c";
        let several = [
            ("x-b3-traceid", trace),
            ("x-b3-spanid", SPAN),
            ("x-b3-sampled", "1"),
        ];
        let seen = self.ask("/", &several).await?;
        let [(_, out), (_, inside)] = self.collector.pair(&bytes(trace)).await?;
        ensure!(seen["x-b3-traceid"] == trace);
        ensure!(seen["x-b3-spanid"] == hex(&inside.span_id), "{seen:?}");
        ensure!(seen["x-b3-parentspanid"] == hex(&out.span_id), "{seen:?}");
        Ok(())
    }

    /// With the ratio at 1 the client's proxy begins a trace.
    async fn nothing_said(&self) -> Result<()> {
        let seen = self.ask("/", &[]).await?;
        let parent = seen.get("traceparent").context("a traceparent")?;
        let parent: Vec<_> = parent.to_str()?.split('-').collect();
        let [(_, out), (_, inside)] = self.collector.pair(&bytes(parent[1])).await?;
        ensure!(out.parent_span_id.is_empty(), "{out:?}");
        ensure!(inside.parent_span_id == out.span_id, "{inside:?}");
        ensure!(hex(&inside.span_id) == parent[2]);
        Ok(())
    }

    async fn not_sampled(&self) -> Result<()> {
        let trace = "2af7651916cd43dd8448eb211c80319c";
        let parent = format!("00-{trace}-{SPAN}-00");
        let seen = self.ask("/", &[("traceparent", &parent)]).await?;
        ensure!(seen["traceparent"] == parent, "it goes on as it came");
        // Those of a later one have arrived, so it would have been there.
        self.nothing_said().await?;
        let all = self.collector.0.lock().unwrap();
        ensure!(all.iter().all(|(_, span)| span.trace_id != bytes(trace)));
        Ok(())
    }

    /// Who ended a connection of bytes, both proxies say.
    async fn closes(&self) -> Result<()> {
        let server = self.mesh.app("server");
        let listener = server.listen(CLOSED);
        let reset = |stream: TcpStream| {
            let socket = socket2::SockRef::from(&stream);
            socket.set_linger(Some(Duration::ZERO)).unwrap();
        };
        for reason in ["done", "client", "server"] {
            let closed = || {
                [("client", "outbound"), ("server", "inbound")].map(|(pod, direction)| {
                    let labels = [
                        ("direction", direction),
                        ("workload", pod),
                        ("reason", reason),
                    ];
                    let labels = labels.map(|(label, value)| format!("{label}=\"{value}\""));
                    let metric = "duet_tcp_connections_closed_total";
                    self.mesh.count(pod, metric, &labels)
                })
            };
            let before = closed();
            let to = server.at(CLOSED);
            let mut near = self.mesh.app("client").connect(to).await?;
            near.write_all(b"\x01").await?;
            let (mut far, _) = listener.accept().await?;
            far.read_exact(&mut [0]).await?;
            match reason {
                "client" => reset(near),
                "server" => reset(far),
                _ => {
                    near.shutdown().await?;
                    ensure!(far.read(&mut [0]).await? == 0);
                    drop(far);
                    ensure!(near.read(&mut [0]).await? == 0);
                }
            }
            let deadline = Instant::now() + PATIENCE;
            while closed() != before.map(|count| count + 1) {
                ensure!(Instant::now() < deadline, "{reason}: {:?}", closed());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    /// Whatever is told is documented, with exactly these labels, and nothing is
    /// documented that is not told of anywhere.
    async fn metrics(&self, placement: Placement) -> Result<()> {
        let listener = self.mesh.app("server").listen(OPAQUE);
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await?;
            let (mut from, mut to) = stream.into_split();
            tokio::io::copy(&mut from, &mut to).await
        });
        let carried = || {
            [("client", "outbound"), ("server", "inbound")].map(|(pod, direction)| {
                let labels = [("direction", direction), ("workload", pod)];
                let labels = labels.map(|(label, value)| format!("{label}=\"{value}\""));
                ["sent", "received"].map(|way| {
                    let metric = format!("duet_tcp_{way}_bytes_total");
                    self.mesh.count(pod, &metric, &labels)
                })
            })
        };
        let detected = || {
            ["opaque", "http/1"].map(|protocol| {
                let labels = [
                    ("direction", "outbound"),
                    ("workload", "client"),
                    ("protocol", protocol),
                ];
                let labels = labels.map(|(label, value)| format!("{label}=\"{value}\""));
                let metric = "duet_detect_duration_seconds_count";
                self.mesh.count("client", metric, &labels)
            })
        };
        let (before, detected_before) = (carried(), detected());
        let to = self.mesh.app("server").at(OPAQUE);
        let mut stream = self.mesh.app("client").connect(to).await?;
        stream.write_all(b"\x01\x02\x03").await?;
        stream.read_exact(&mut [0; 3]).await?;
        // While it is open. The client may have its answer before it is counted.
        let deadline = Instant::now() + PATIENCE;
        while carried() != before.map(|ways| ways.map(|bytes| bytes + 3)) {
            ensure!(Instant::now() < deadline, "{:?}", carried());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(stream);
        // Nobody is there.
        let nowhere = self.mesh.app("server").at(1);
        let mut client = Client::http1(self.mesh.app("client"), nowhere).await?;
        let grpc = [("content-type", "application/grpc")];
        let _ = client.send(http::Method::POST, "/", &grpc, empty()).await;
        let after = detected_before.map(|connections| connections + 1);
        ensure!(detected() == after, "{:?} instead of {after:?}", detected());

        let documented = documented()?;
        let mut told = BTreeSet::new();
        for pod in ["client", "server"] {
            let (_, page) = self.mesh.proxy(pod).get(Endpoint::Metrics, "/metrics")?;
            for (name, (kind, labels)) in exposed(&page) {
                if name.starts_with("process_") {
                    continue;
                }
                let expected = documented
                    .get(&name)
                    .with_context(|| format!("{name} is not documented"))?;
                ensure!(kind == expected.0, "{name} is a {kind}");
                ensure!(labels == expected.1, "{name} has {labels:?}");
                told.insert(name);
            }
        }
        for name in [
            "duet_http_responses_total",
            "duet_grpc_responses_total",
            "duet_tcp_connections_closed_total",
            "duet_failures_total",
            "duet_identity_expiry_timestamp_seconds",
            "duet_workload_cpu_seconds_total",
            "duet_workload_sent_bytes_total",
            "duet_spans_total",
            "duet_worker_busy_seconds_total",
        ] {
            ensure!(told.contains(name), "{name} is not told");
        }
        let of_agents = told.contains("duet_tenancy_waits_total");
        ensure!(of_agents == (placement == Placement::Agent));
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let sources = ["core/src", "agent/src"].map(|dir| sources(&root.join(dir)));
        let sources = sources.concat();
        for name in documented.keys() {
            let named = sources.contains(&format!("\"{name}\""));
            ensure!(named, "{name} is documented, and there is no such metric");
        }
        Ok(())
    }
}

/// A metric's kind and labels, by its name.
type Metrics = BTreeMap<String, (String, BTreeSet<String>)>;

fn documented() -> Result<Metrics> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/METRICS.md");
    let rows = std::fs::read_to_string(path)?;
    let rows = rows.lines().filter(|line| line.starts_with("| `duet_"));
    let rows = rows.filter(|line| !line.starts_with("| `duet_control_"));
    let read = |row: &str| {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let labels = cells[3]
            .split(',')
            .map(|label| label.trim().trim_matches('`'));
        let labels = labels.filter(|label| !label.is_empty()).map(str::to_owned);
        let name = cells[1].trim_matches('`').to_owned();
        (name, (cells[2].to_owned(), labels.collect()))
    };
    Ok(rows.map(read).collect())
}

fn exposed(page: &str) -> Metrics {
    let mut all = Metrics::new();
    for line in page.lines() {
        if let Some(told) = line.strip_prefix("# TYPE ") {
            let (name, kind) = told.split_once(' ').unwrap();
            all.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
        } else if !line.starts_with('#') {
            let (name, rest) = line.split_once(['{', ' ']).unwrap();
            let of_histogram = ["_bucket", "_sum", "_count"].into_iter().find_map(|end| {
                name.strip_suffix(end)
                    .filter(|name| all.contains_key(*name))
            });
            let name = of_histogram.unwrap_or(name);
            let labels = line.contains('{').then(|| rest.split_once('}').unwrap().0);
            let names = labels.unwrap_or_default().split("\",").filter_map(|pair| {
                let name = pair.split_once('=')?.0;
                (name != "le").then(|| name.to_owned())
            });
            let names: Vec<_> = names.collect();
            all.get_mut(name).unwrap().1.extend(names);
        }
    }
    all
}

/// All that is written in a directory's files.
fn sources(dir: &Path) -> String {
    let mut all = String::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all += &sources(&path);
        } else {
            all += &std::fs::read_to_string(path).unwrap();
        }
    }
    all
}
