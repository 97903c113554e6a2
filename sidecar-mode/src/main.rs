//! duet-sidecar: `init` redirects the pod's connections, `run` proxies them.
#![forbid(unsafe_code)]

use clap::{Args, Parser, Subcommand};
use duet_core::{CORE_FINGERPRINT, OPT_LEVEL, Proxy, ProxyArgs, WorkloadName};
use duet_sidecar::redirect::Redirect;
use duet_sidecar::wait::wait_ready;
use duet_sidecar::{PROXY_UID, capture};
use nix::unistd::geteuid;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::LazyLock;
use std::time::Duration;

/// sysexits.h: EX_USAGE and EX_CONFIG.
const USAGE: u8 = 64;
const CONFIGURATION: u8 = 78;

static VERSION: LazyLock<String> = LazyLock::new(|| {
    format!(
        "{} core={CORE_FINGERPRINT} opt={OPT_LEVEL}",
        env!("CARGO_PKG_VERSION")
    )
});

/// Duet's proxy, one per pod.
#[derive(Parser)]
#[command(name = "duet-sidecar", version = VERSION.as_str())]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Redirect this network namespace's TCP connections to the proxy.
    Init(InitArgs),
    /// Proxy one workload's connections, until SIGTERM.
    Run(Box<RunArgs>),
    /// Return when the proxy beside this process is ready: the postStart hook of a
    /// proxy that is an ordinary container.
    WaitReady(WaitArgs),
}

#[derive(Args)]
struct InitArgs {
    /// Take the redirection away again.
    #[arg(long)]
    remove: bool,

    #[command(flatten)]
    proxy_uid: ProxyUid,

    /// Destination ports that the pod's connections to are left alone.
    #[arg(
        long,
        env = "DUET_EXCLUDE_OUTBOUND_PORTS",
        value_delimiter = ',',
        value_name = "PORTS"
    )]
    exclude_outbound_ports: Vec<u16>,

    /// Ports of the pod that are reached without the proxy.
    #[arg(
        long,
        env = "DUET_EXCLUDE_INBOUND_PORTS",
        value_delimiter = ',',
        value_name = "PORTS"
    )]
    exclude_inbound_ports: Vec<u16>,

    /// Uids whose connections are left alone.
    #[arg(
        long,
        env = "DUET_EXCLUDE_UIDS",
        value_delimiter = ',',
        value_name = "UIDS"
    )]
    exclude_uids: Vec<u32>,
}

#[derive(Args)]
struct RunArgs {
    /// The workload this pod is, namespace/name.
    #[arg(long, env = "DUET_WORKLOAD", value_name = "NS/NAME")]
    workload: WorkloadName,

    #[command(flatten)]
    proxy_uid: ProxyUid,

    /// The node this pod is on, for duet-control's information.
    #[arg(long, env = "DUET_NODE", default_value = "", value_name = "NODE")]
    node: String,

    #[command(flatten)]
    proxy: ProxyArgs,
}

#[derive(Args)]
struct WaitArgs {
    /// Where the proxy serves /ready.
    #[arg(
        long,
        env = "DUET_HEALTH",
        default_value = "127.0.0.1:15021",
        value_name = "ADDR"
    )]
    health: SocketAddr,

    /// How long to wait.
    #[arg(long, default_value = "2m", value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

#[derive(Args)]
struct ProxyUid {
    /// The uid that the proxy runs as. Its connections are not redirected.
    #[arg(long, env = "DUET_PROXY_UID", default_value_t = PROXY_UID, value_name = "UID")]
    proxy_uid: u32,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let (verb, outcome) = match cli.verb {
        Verb::Init(args) => ("init", init(args)),
        Verb::Run(args) => ("run", run(*args)),
        Verb::WaitReady(args) => (
            "wait-ready",
            wait_ready(args.health, args.timeout).map_err(Into::into),
        ),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("duet-sidecar {verb}: {error}");
            ExitCode::from(CONFIGURATION)
        }
    }
}

fn init(args: InitArgs) -> Result<(), Box<dyn std::error::Error>> {
    if args.remove {
        return Ok(Redirect::remove()?);
    }
    Ok(Redirect {
        proxy_uid: args.proxy_uid.proxy_uid,
        exclude_uids: args.exclude_uids.into_iter().collect(),
        exclude_outbound_ports: args.exclude_outbound_ports.into_iter().collect(),
        exclude_inbound_ports: args.exclude_inbound_ports.into_iter().collect(),
    }
    .apply()?)
}

fn run(args: RunArgs) -> Result<(), Box<dyn std::error::Error>> {
    let expected = args.proxy_uid.proxy_uid;
    let uid = geteuid().as_raw();
    if uid != expected {
        return Err(format!(
            "runs as uid {uid}, but only uid {expected} is exempt from redirection: its own \
             connections would come back to it for ever; run it as {expected}, or give both \
             init and run --proxy-uid {uid}"
        )
        .into());
    }
    let RunArgs {
        workload,
        node,
        proxy: proxy_args,
        ..
    } = args;
    Ok(duet_core::run(&proxy_args.clone(), || async move {
        let proxy = Proxy::start(proxy_args, "sidecar", node).await?;
        let capture =
            capture::listen().map_err(|error| duet_core::Error::Config(error.to_string()))?;
        let uncertified = proxy.not_ready_until(format!("identity: no certificate for {workload}"));
        let certified = proxy.add(workload, capture).ready();
        tokio::spawn(async move {
            certified.await;
            drop(uncertified);
        });
        proxy.run_until_shutdown().await;
        Ok(())
    })?)
}
