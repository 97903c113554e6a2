//! What a proxy is told when it starts. Both modes take exactly these flags, and one that
//! serves several workloads those of [`TenancyArgs`].

use crate::tenancy::Budgets;
use clap::{Args, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Args, Clone, Debug)]
pub struct ProxyArgs {
    /// duet-control's address, https://host:port.
    #[arg(long, env = "DUET_CONTROL", value_name = "URL")]
    pub control: String,

    /// PEM file with the roots that duet-control's own certificate chains to.
    #[arg(long, env = "DUET_TRUST_BUNDLE", value_name = "FILE")]
    pub trust_bundle: PathBuf,

    /// File with the bearer token that proves to duet-control who this proxy
    /// speaks for. Read again for every request, so it may be rotated in place.
    #[arg(long, env = "DUET_TOKEN_FILE", value_name = "FILE")]
    pub token_file: PathBuf,

    /// Worker threads. Default: the cgroup's CPU limit rounded up, at most the
    /// machine's cores.
    #[arg(long, env = "DUET_WORKERS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,

    /// Where /config, /connections, /tap, /log-level and /shutdown are served. Loopback only.
    #[arg(
        long,
        env = "DUET_ADMIN",
        default_value = "127.0.0.1:15000",
        value_name = "ADDR"
    )]
    pub admin: SocketAddr,

    /// Where /metrics is served.
    #[arg(
        long,
        env = "DUET_METRICS",
        default_value = "0.0.0.0:15020",
        value_name = "ADDR"
    )]
    pub metrics: SocketAddr,

    /// Where /ready and /live are served.
    #[arg(
        long,
        env = "DUET_HEALTH",
        default_value = "0.0.0.0:15021",
        value_name = "ADDR"
    )]
    pub health: SocketAddr,

    /// How long a new connection may stay silent before it is taken for a
    /// protocol in which the server speaks first.
    #[arg(long, env = "DUET_DETECT_TIMEOUT", default_value = "250ms", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub detect_timeout: Duration,

    /// How long to wait for a TCP connection, to a peer or to the application.
    #[arg(long, env = "DUET_CONNECT_TIMEOUT", default_value = "1s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub connect_timeout: Duration,

    /// How long connections may live on after SIGTERM. Idle ones of HTTP/1 do for 2 s of it, so
    /// that a request under way still has an answer.
    #[arg(long, env = "DUET_DRAIN_TIMEOUT", default_value = "25s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub drain_timeout: Duration,

    /// One line for each request or connection, on standard output.
    #[arg(
        long,
        env = "DUET_ACCESS_LOG",
        default_value = "off",
        value_name = "FORMAT"
    )]
    pub access_log: AccessLogFormat,

    /// Where spans are sent, https://host:port: a collector that takes OTLP over gRPC.
    /// Default: there are none. With http:// they travel in plaintext, and say who asked for
    /// which path.
    #[arg(long, env = "DUET_TRACE_COLLECTOR", value_name = "URL")]
    pub trace_collector: Option<String>,

    /// PEM file with the roots that the certificate of an https:// collector chains to.
    #[arg(long, env = "DUET_TRACE_COLLECTOR_CA", value_name = "FILE")]
    pub trace_collector_ca: Option<PathBuf>,

    /// The part, of 1, of requests that is recorded if they do not say themselves whether
    /// they are.
    #[arg(long, env = "DUET_TRACE_RATIO", default_value_t = 0.01, value_name = "PART", value_parser = part)]
    pub trace_ratio: f64,

    /// Log filter, as in tracing-subscriber's EnvFilter: "info",
    /// "warn,duet_core=debug". A build for production has nothing below "debug".
    #[arg(long, env = "DUET_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
}

/// What the workloads of one proxy may have. A workload may ask for less, and for weight.
#[derive(Args, Clone, Debug)]
pub struct TenancyArgs {
    /// Whether workloads have turns on the worker threads, and the budgets below. Off,
    /// who asks most gets most.
    #[arg(
        long,
        env = "DUET_TENANCY",
        default_value = "on",
        value_name = "ON|OFF"
    )]
    pub tenancy: Switch,

    /// Connections that a workload may have open in each direction; further ones wait to
    /// be accepted. 0: any number.
    #[arg(
        long,
        env = "DUET_TENANT_CONNECTIONS",
        default_value_t = 10_000,
        value_name = "N"
    )]
    pub tenant_connections: u32,

    /// mTLS handshakes a second of a workload in each direction; further ones wait. 0:
    /// any number.
    #[arg(
        long,
        env = "DUET_TENANT_HANDSHAKES",
        default_value_t = 0,
        value_name = "N"
    )]
    pub tenant_handshakes: u32,

    /// Requests a second of a workload in each direction; further ones wait, and are
    /// refused if that would be for more than 5s. 0: any number.
    #[arg(
        long,
        env = "DUET_TENANT_REQUESTS",
        default_value_t = 0,
        value_name = "N"
    )]
    pub tenant_requests: u32,

    /// MiB that all peers of a workload together may send before it is passed on; their
    /// windows are the narrower the more they are. 0: any amount.
    #[arg(
        long,
        env = "DUET_TENANT_BUFFER",
        default_value_t = 256,
        value_name = "MIB"
    )]
    pub tenant_buffer: u32,

    /// How many times the worker time of others a workload may ask for.
    #[arg(long, env = "DUET_TENANT_WEIGHT", default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub tenant_weight: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

impl TenancyArgs {
    /// What each workload may have; `None`: they are not told apart.
    pub(crate) fn budgets(&self) -> Option<Budgets> {
        (self.tenancy == Switch::On).then(|| Budgets {
            connections: self.tenant_connections,
            handshakes_per_second: self.tenant_handshakes,
            requests_per_second: self.tenant_requests,
            buffered_bytes: u64::from(self.tenant_buffer) << 20,
            weight: self.tenant_weight,
        })
    }
}

fn part(text: &str) -> Result<f64, String> {
    let part = text.parse().ok().filter(|part| (0.0..=1.0).contains(part));
    part.ok_or_else(|| "write a number from 0 to 1, as 0.01".to_owned())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccessLogFormat {
    Off,
    Text,
    Json,
}
