//! duet-agent: one proxy for the workloads of a node.
#![forbid(unsafe_code)]

use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand};
use duet_agent::api::{self, Request};
use duet_agent::cni::{self, Install, uninstall};
use duet_agent::run::{self, Settings};
use duet_agent::{cleanup, doctor, privilege, supervisor};
use duet_core::{ProxyArgs, TenancyArgs, WorkloadName};
use nix::sys::signal::{SigSet, Signal};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// sysexits.h: EX_USAGE, EX_TEMPFAIL and EX_CONFIG.
const USAGE: u8 = 64;
const TRY_AGAIN: u8 = 75;
const CONFIGURATION: u8 = 78;

/// Duet's proxy, one per node.
#[derive(Parser)]
#[command(name = "duet-agent", version = duet_core::VERSION)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Proxy the connections of enrolled workloads, until SIGTERM. An agent that runs
    /// already hands over to this one, and ends.
    Run(Box<RunArgs>),
    /// The same in a process of its own, which is started again when it crashes or
    /// hangs; new connections wait meanwhile.
    Supervise(Box<RunArgs>),
    /// Redirect a network namespace's connections to the running agent.
    Enrol(EnrolArgs),
    /// End the redirection of a workload's connections.
    Remove(RemoveArgs),
    /// Show the workloads that are enrolled, and those that should be.
    List(SocketArg),
    /// The CNI plugin, as a container runtime runs it, under the name duet-cni.
    Cni,
    /// Remove all that agents have left in the kernel. Connections are then
    /// neither redirected nor refused.
    Cleanup(CleanupArgs),
    /// Say whether this machine has what the agent needs.
    Doctor(PlaceArgs),
    /// Print the seccomp profile that the agent's container can do with, for the node's
    /// container runtime.
    SeccompProfile(ProfileArgs),
}

#[derive(Args)]
struct ProfileArgs {
    /// The kubelet's directory of profiles, to put it in as duet-agent-VERSION.json,
    /// instead of printing it.
    #[arg(long, value_name = "DIRECTORY")]
    install: Option<PathBuf>,
}

#[derive(Args)]
struct SocketArg {
    /// The agent's Unix socket.
    #[arg(
        long,
        env = "DUET_SOCKET",
        default_value = "/run/duet/agent.sock",
        value_name = "FILE"
    )]
    socket: PathBuf,
}

#[derive(Args)]
struct PlaceArgs {
    /// Where links and maps are pinned, one directory per agent. A BPF file system
    /// is mounted if there is none.
    #[arg(
        long,
        env = "DUET_BPFFS",
        default_value = "/sys/fs/bpf/duet",
        value_name = "DIR"
    )]
    bpffs: PathBuf,

    /// The cgroup, of version 2, whose processes may be redirected. Default: the
    /// root, that is all processes. One that may be removed and made again while pods are
    /// enrolled is not for it: until the agent has followed, milliseconds if it runs, its
    /// processes go around the mesh. Pods that wait for the CNI plugin wait for that too.
    #[arg(long, env = "DUET_CGROUP", value_name = "DIR")]
    cgroup: Option<PathBuf>,
}

#[derive(Args)]
struct RunArgs {
    /// This node's name, as duet-control knows it.
    #[arg(long, env = "DUET_NODE", value_name = "NODE")]
    node: String,

    #[command(flatten)]
    socket: SocketArg,

    #[command(flatten)]
    place: PlaceArgs,

    /// Once another agent has taken over, wait for SIGTERM instead of ending, as a
    /// DaemonSet's pod has to.
    #[arg(long, env = "DUET_STAY", value_parser = BoolishValueParser::new(), num_args = 0..=1, default_value = "false", default_missing_value = "true", value_name = "BOOL")]
    stay: bool,

    /// This agent's own name among those of its node, such as its pod's. One that has
    /// taken over does not give back to the same.
    #[arg(long, env = "DUET_INSTANCE", value_name = "NAME")]
    instance: Option<String>,

    /// How long connections may live on in this process after another agent has taken
    /// over.
    #[arg(long, env = "DUET_HANDOVER_DRAIN_TIMEOUT", default_value = "60s", value_name = "TIME", value_parser = humantime::parse_duration)]
    handover_drain_timeout: Duration,

    #[command(flatten)]
    cni: CniArgs,

    /// What becomes of a pod that is to be meshed while the agent is away: it is not
    /// started, or started outside the mesh.
    #[arg(long, env = "DUET_CNI_ON_FAILURE", default_value = "fail", value_parser = ["fail", "passthrough"], value_name = "WHAT")]
    cni_on_failure: String,

    /// Namespaces whose pods the CNI plugin lets pass unseen.
    #[arg(
        long,
        env = "DUET_CNI_EXCLUDE",
        value_delimiter = ',',
        default_value = "kube-system,duet-system,duet-cleanup",
        value_name = "NAMESPACE,…"
    )]
    cni_exclude: Vec<String>,

    /// Namespaces whose workloads are to be reached, and reach others, around the mesh and
    /// in plaintext while no agent is there to take their connections; "*" is all. It is
    /// counted in duet_agent_failed_open_total. Default: none, they are refused.
    #[arg(
        long,
        env = "DUET_FAIL_OPEN_NAMESPACES",
        value_delimiter = ',',
        value_name = "NAMESPACE,…"
    )]
    fail_open_namespaces: Vec<String>,

    /// Standard input is the supervisor's socket.
    #[arg(long, hide = true)]
    supervised: bool,

    #[command(flatten)]
    tenancy: TenancyArgs,

    #[command(flatten)]
    proxy: ProxyArgs,
}

#[derive(Args)]
struct CniArgs {
    /// Where the container runtime's network configurations are, /etc/cni/net.d as a
    /// rule: the CNI plugin is chained into the first of them. Default: no plugin.
    #[arg(
        long,
        env = "DUET_CNI_CONF_DIR",
        value_name = "DIR",
        requires = "cni_bin_dir"
    )]
    cni_conf_dir: Option<PathBuf>,

    /// Where the container runtime's plugins are, /opt/cni/bin as a rule.
    #[arg(
        long,
        env = "DUET_CNI_BIN_DIR",
        value_name = "DIR",
        requires = "cni_conf_dir"
    )]
    cni_bin_dir: Option<PathBuf>,
}

#[derive(Args)]
struct EnrolArgs {
    #[command(flatten)]
    socket: SocketArg,

    /// The workload that the namespace belongs to.
    #[arg(long, value_name = "NS/NAME")]
    workload: WorkloadName,

    /// Its network namespace: /run/netns/NAME, or /proc/PID/ns/net.
    #[arg(long, value_name = "FILE")]
    netns: PathBuf,
}

#[derive(Args)]
struct RemoveArgs {
    #[command(flatten)]
    socket: SocketArg,

    #[arg(long, value_name = "NS/NAME")]
    workload: WorkloadName,
}

#[derive(Args)]
struct CleanupArgs {
    #[command(flatten)]
    socket: SocketArg,

    #[command(flatten)]
    place: PlaceArgs,

    #[command(flatten)]
    cni: CniArgs,

    /// The kubelet's directory of profiles, to remove from it what agents have installed.
    #[arg(long, env = "DUET_SECCOMP_DIR", value_name = "DIRECTORY")]
    seccomp_dir: Option<PathBuf>,

    /// Then wait for SIGTERM, as a DaemonSet's pod has to.
    #[arg(long)]
    stay: bool,
}

type Outcome = Result<ExitCode, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    // A container runtime gives no arguments.
    if std::env::args_os().len() == 1 && std::env::var_os("CNI_COMMAND").is_some() {
        return cni::run();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let (verb, outcome) = match cli.verb {
        Verb::Run(args) => ("run", run(*args)),
        Verb::Supervise(_) => ("supervise", supervise()),
        Verb::Enrol(args) => ("enrol", enrol(args)),
        Verb::Remove(args) => ("remove", remove(args)),
        Verb::List(args) => ("list", list(args)),
        Verb::Cni => return cni::run(),
        Verb::Cleanup(args) => ("cleanup", clean(args)),
        Verb::Doctor(args) => ("doctor", examine(args)),
        Verb::SeccompProfile(args) => ("seccomp-profile", profile(args)),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("duet-agent {verb}: {error}");
        ExitCode::from(match error.downcast_ref() {
            Some(duet_core::Error::Passing(_)) => TRY_AGAIN,
            _ => CONFIGURATION,
        })
    })
}

fn run(args: RunArgs) -> Outcome {
    privilege::give_up_capabilities()?;
    privilege::give_up_system_calls()?;
    if args.supervised {
        // The supervisor waits for them by other means, and its mask is inherited.
        ending().thread_unblock()?;
    }
    let cni = args.cni.places().map(|(configurations, programs)| Install {
        configurations,
        programs,
        socket: args.socket.socket.clone(),
        on_failure: args.cni_on_failure,
        exclude: args.cni_exclude,
        known: Arc::default(),
    });
    let settings = Settings {
        node: args.node,
        socket: args.socket.socket,
        bpffs: args.place.bpffs,
        cgroup: args.place.cgroup,
        is_supervised: args.supervised,
        stays: args.stay,
        instance: args.instance,
        handover_drain_timeout: args.handover_drain_timeout,
        cni,
        fail_open_namespaces: args.fail_open_namespaces,
        tenancy: args.tenancy,
        proxy: args.proxy,
    };
    let proxy_args = settings.proxy.clone();
    duet_core::run(&proxy_args, || run::run(settings))?;
    Ok(ExitCode::SUCCESS)
}

impl CniArgs {
    fn places(self) -> Option<(PathBuf, PathBuf)> {
        self.cni_conf_dir.zip(self.cni_bin_dir)
    }
}

fn supervise() -> Outcome {
    privilege::give_up_capabilities()?;
    // Whatever it is, the child has understood it: both are of one version.
    let arguments: Vec<OsString> = std::env::args_os().skip(2).collect();
    Ok(supervisor::supervise(&arguments)?.into())
}

fn enrol(args: EnrolArgs) -> Outcome {
    // The agent may have been started in another directory.
    let netns = std::path::absolute(&args.netns)?;
    let workload = args.workload.to_string();
    api::ask(&args.socket.socket, &Request::Enrol { workload, netns })?;
    Ok(ExitCode::SUCCESS)
}

fn remove(args: RemoveArgs) -> Outcome {
    let workload = args.workload.to_string();
    api::ask(&args.socket.socket, &Request::Remove { workload })?;
    Ok(ExitCode::SUCCESS)
}

fn list(args: SocketArg) -> Outcome {
    let response = api::ask(&args.socket, &Request::List)?;
    for listed in response.workloads.unwrap_or_default() {
        let netns = listed.netns.unwrap_or_else(|| "-".into());
        let state = listed.state.as_str();
        let why = listed.why.map(|why| format!(": {why}")).unwrap_or_default();
        println!("{}\t{}\t{state}{why}", listed.workload, netns.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn clean(args: CleanupArgs) -> Outcome {
    cleanup::check(&args.place.bpffs)?;
    // First: a pod that starts must not wait for an agent that is gone.
    let plugin = args.cni.places();
    let plugin = plugin.map(|(configurations, programs)| uninstall(&configurations, &programs));
    let mut removed = plugin.transpose()?.unwrap_or_default();
    removed.extend(cleanup::cleanup(&args.place.bpffs, &args.socket.socket)?);
    if let Some(directory) = &args.seccomp_dir {
        removed.extend(cleanup::remove_profiles(directory)?);
    }
    if removed.is_empty() {
        println!("nothing to remove");
    }
    for what in removed {
        println!("removed {what}");
    }
    if args.stay {
        let signals = ending();
        signals.thread_block()?;
        signals.wait()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The signals that end a process in good order.
fn ending() -> SigSet {
    SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM])
}

fn profile(args: ProfileArgs) -> Outcome {
    match args.install {
        None => println!("{:#}", privilege::profile()),
        Some(directory) => {
            let put = privilege::install_profile(&directory)
                .map_err(|error| format!("{}: {error}", directory.display()))?;
            println!("installed {}", put.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn examine(args: PlaceArgs) -> Outcome {
    let mut outcome = ExitCode::SUCCESS;
    for finding in doctor::examine(&args.bpffs, args.cgroup.as_deref()) {
        match finding.missing {
            None => println!("ok       {}", finding.what),
            Some(why) => {
                println!("missing  {}: {why}", finding.what);
                outcome = ExitCode::FAILURE;
            }
        }
    }
    Ok(outcome)
}
