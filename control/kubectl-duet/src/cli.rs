//! What can be written behind `kubectl duet`.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Who is meshed how, who talks to whom, and whether all is well.
#[derive(Parser)]
#[command(name = "kubectl-duet", bin_name = "kubectl duet", version)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,

    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Args, Default)]
pub struct Global {
    /// The kubeconfig's context. Default: its current one.
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,

    /// Default: $KUBECONFIG, else ~/.kube/config.
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Default: the context's.
    #[arg(long, short, global = true, value_name = "NAME")]
    pub namespace: Option<String>,

    /// All namespaces.
    #[arg(long, short = 'A', global = true, conflicts_with = "namespace")]
    pub all_namespaces: bool,

    #[arg(long, short, global = true, default_value = "table")]
    pub output: Output,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    #[default]
    Table,
    Json,
    /// A table with more columns.
    Wide,
}

#[derive(Subcommand)]
pub enum Verb {
    /// The control plane, and how each namespace is meshed.
    Status,
    /// The pods, without the sidecars that kubectl counts.
    #[command(visible_alias = "pod")]
    Pods(PodsArgs),
    /// Watch requests and connections as they end.
    Tap(TapArgs),
    /// The connections that are open now.
    Connections(ConnectionsArgs),
    /// Is all well? With --pre: would it be?
    Check(CheckArgs),
    /// Print what would be deleted to remove Duet; with --yes, delete it.
    Uninstall(UninstallArgs),
    /// Write the proxy into manifests: what `duet-control inject` does.
    #[command(disable_help_flag = true)]
    Inject(InjectArgs),
    /// The versions of this command, of duet-control and of the proxies.
    Version(VersionArgs),
}

#[derive(Args)]
pub struct PodsArgs {
    /// Only pods with these labels, as kubectl's.
    #[arg(long, short = 'l', value_name = "SELECTOR")]
    pub selector: Option<String>,

    /// Count proxies as kubectl does, and name them.
    #[arg(long)]
    pub show_proxies: bool,
}

#[derive(Args)]
pub struct TapArgs {
    /// POD, deploy/NAME, sts/NAME or ds/NAME.
    #[arg(value_name = "POD|deploy/NAME")]
    pub target: String,

    /// Only connections to it, or only those that it makes.
    #[arg(long, value_name = "inbound|outbound")]
    pub direction: Option<Direction>,

    /// Only requests whose path begins so.
    #[arg(long, value_name = "PREFIX")]
    pub path: Option<String>,

    #[arg(long)]
    pub method: Option<String>,

    /// Only this other end: a service account for inbound, a pod for outbound, both
    /// NAMESPACE/NAME; a trailing * is any rest.
    #[arg(long)]
    pub peer: Option<String>,

    /// Records a second of each proxy; what is more is counted.
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rate: u32,

    /// End after so many records.
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,

    /// End after so long.
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,
}

#[derive(Args)]
pub struct ConnectionsArgs {
    /// POD, deploy/NAME, sts/NAME or ds/NAME.
    #[arg(value_name = "POD|deploy/NAME")]
    pub target: String,

    #[arg(long, value_name = "inbound|outbound")]
    pub direction: Option<Direction>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    Inbound,
    Outbound,
}

#[derive(Args)]
pub struct CheckArgs {
    /// Before it is installed: may and can it be?
    #[arg(long)]
    pub pre: bool,
}

#[derive(Args)]
pub struct UninstallArgs {
    /// Delete it.
    #[arg(long)]
    pub yes: bool,

    /// Even though pods are still in the mesh.
    #[arg(long)]
    pub force: bool,
}

#[derive(Args)]
pub struct InjectArgs {
    /// Passed on as they are.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<OsString>,
}

#[derive(Args)]
pub struct VersionArgs {
    /// Only this command's own.
    #[arg(long)]
    pub client: bool,
}

impl Direction {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}
