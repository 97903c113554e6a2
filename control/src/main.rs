//! The command line of duet-control.
#![forbid(unsafe_code)]

use anyhow::Context;
use clap::{ArgGroup, Args, Parser, Subcommand};
use duet_control::ca::MIN_CERT_LIFETIME;
use duet_control::{
    Caller, ControlPlane, FileSource, Settings, StartError, StateDir, StateDirError,
};
use duet_core::WorkloadName;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// sysexits.h: the command was used incorrectly.
const EX_USAGE: u8 = 64;
/// sysexits.h: something in the configuration is wrong.
const EX_CONFIG: u8 = 78;
/// Default of `--state-dir`.
const STATE_DIR: &str = "/var/lib/duet-control";
/// Signing and diffing are short; waiting is most of it.
const WORKER_THREADS: usize = 2;

static VERSION: LazyLock<String> = LazyLock::new(|| {
    format!(
        "{} core={} opt={}",
        env!("CARGO_PKG_VERSION"),
        duet_core::CORE_FINGERPRINT,
        duet_core::OPT_LEVEL
    )
});

/// The mesh's control plane: certificates and discovery for every proxy.
#[derive(Parser)]
#[command(
    name = "duet-control",
    version = VERSION.as_str(),
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Option<ServeArgs>,
}

#[derive(Subcommand)]
enum Command {
    /// Prints a bearer token for a proxy. Needs no running server, and may come
    /// before the first start.
    Token(TokenArgs),
}

#[derive(Args)]
struct ServeArgs {
    /// The mesh, YAML. Read again whenever it changes.
    #[arg(long, env = "DUET_SOURCE", value_name = "FILE")]
    source: PathBuf,

    /// Where proxies connect.
    #[arg(
        long,
        env = "DUET_LISTEN",
        default_value = "0.0.0.0:15010",
        value_name = "ADDR"
    )]
    listen: SocketAddr,

    /// Where the mesh root and the token key are kept. Made if it is not there.
    #[arg(long, env = "DUET_STATE_DIR", default_value = STATE_DIR, value_name = "DIR")]
    state_dir: PathBuf,

    /// How long a workload's certificate is valid. Proxies renew at 70 % of it.
    #[arg(long, env = "DUET_CERT_LIFETIME", default_value = "24h", value_name = "TIME", value_parser = cert_lifetime)]
    cert_lifetime: Duration,

    /// Where /ready, /live and /metrics are served.
    #[arg(
        long,
        env = "DUET_CONTROL_HEALTH",
        default_value = "127.0.0.1:15011",
        value_name = "ADDR"
    )]
    health: SocketAddr,

    /// Log filter, as in tracing-subscriber's EnvFilter: "info",
    /// "warn,duet_control=debug".
    #[arg(long, env = "DUET_LOG", default_value = "info", value_name = "FILTER", value_parser = log_filter)]
    log: String,
}

#[derive(Args)]
#[command(group = ArgGroup::new("caller").required(true))]
struct TokenArgs {
    /// Where the mesh root and the token key are kept. Made if it is not there.
    #[arg(long, env = "DUET_STATE_DIR", default_value = STATE_DIR, value_name = "DIR")]
    state_dir: PathBuf,

    /// For a sidecar: the one workload it speaks for.
    #[arg(long, group = "caller", value_name = "NAMESPACE/NAME")]
    workload: Option<WorkloadName>,

    /// For an agent: the node whose workloads it speaks for.
    #[arg(long, group = "caller", value_name = "NODE", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    node: Option<String>,

    /// How long the token is valid. Default: as long as the state directory's
    /// token key.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    lifetime: Option<Duration>,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are errors to clap, for standard output.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EX_USAGE } else { 0 });
        }
    };
    let outcome = match (cli.command, cli.serve) {
        (Some(Command::Token(args)), _) => token(&args),
        (None, Some(args)) => serve(&args),
        (None, None) => {
            eprintln!("duet-control: what mesh? write --source FILE");
            return ExitCode::from(EX_USAGE);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("duet-control: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&args.log)?)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build()
        .context("the runtime could not be started")?;
    runtime.block_on(async {
        // Before anything is written: a signal at any time ends in good order.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let state_dir = StateDir::open(&args.state_dir)?;
        let control = ControlPlane::start(
            Settings {
                listen: args.listen,
                health: args.health,
                cert_lifetime: args.cert_lifetime,
            },
            state_dir.authority()?,
            Arc::new(state_dir.token_key()?),
            FileSource::new(&args.source),
        )
        .await?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        control.stop().await;
        Ok(())
    })
}

fn token(args: &TokenArgs) -> anyhow::Result<()> {
    let caller = match (&args.workload, &args.node) {
        (Some(workload), _) => Caller::Workload(workload.clone()),
        (None, Some(node)) => Caller::Node(node.clone()),
        (None, None) => unreachable!("clap requires one of the two"),
    };
    let key = StateDir::open(&args.state_dir)?.token_key()?;
    writeln!(std::io::stdout(), "{}", key.sign(&caller, args.lifetime)).context("standard output")
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref() {
        Some(StartError::Source(_)) => EX_CONFIG,
        _ if error.is::<StateDirError>() => EX_CONFIG,
        _ => 1,
    }
}

fn cert_lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if lifetime < MIN_CERT_LIFETIME {
        return Err(format!("at least {MIN_CERT_LIFETIME:?}"));
    }
    Ok(lifetime)
}

fn log_filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text)
        .map(|_| text.to_owned())
        .map_err(|error| error.to_string())
}
