//! What a proxy is told when it starts. Both modes take exactly these flags.

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

    /// How long connections may live on after SIGTERM.
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

    /// Log filter, as in tracing-subscriber's EnvFilter: "info",
    /// "warn,duet_core=debug".
    #[arg(long, env = "DUET_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccessLogFormat {
    Off,
    Text,
    Json,
}
