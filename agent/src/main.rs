//! duet-agent: one proxy for the workloads of a node.
#![forbid(unsafe_code)]

use clap::{Args, Parser, Subcommand};
use duet_agent::api::{self, Api, Request};
use duet_agent::enrolment::Enrolment;
use duet_agent::interception::Interception;
use duet_agent::reconcile::Reconciler;
use duet_agent::{cleanup, doctor};
use duet_core::{Proxy, ProxyArgs, WorkloadName};
use nix::sys::signal::{SigSet, Signal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// sysexits.h: EX_USAGE and EX_CONFIG.
const USAGE: u8 = 64;
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
    /// Proxy the connections of enrolled workloads, until SIGTERM.
    Run(Box<RunArgs>),
    /// Redirect a network namespace's connections to the running agent.
    Enrol(EnrolArgs),
    /// End the redirection of a workload's connections.
    Remove(RemoveArgs),
    /// Show the workloads that are enrolled, and those that should be.
    List(SocketArg),
    /// Remove all that agents have left in the kernel. Connections are then
    /// neither redirected nor refused.
    Cleanup(CleanupArgs),
    /// Say whether this machine has what the agent needs.
    Doctor(PlaceArgs),
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
    /// root, that is all processes.
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

    #[command(flatten)]
    proxy: ProxyArgs,
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

    /// Then wait for SIGTERM, as a DaemonSet's pod has to.
    #[arg(long)]
    stay: bool,
}

type Outcome = Result<ExitCode, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let (verb, outcome) = match cli.verb {
        Verb::Run(args) => ("run", run(*args)),
        Verb::Enrol(args) => ("enrol", enrol(args)),
        Verb::Remove(args) => ("remove", remove(args)),
        Verb::List(args) => ("list", list(args)),
        Verb::Cleanup(args) => ("cleanup", clean(args)),
        Verb::Doctor(args) => ("doctor", examine(args)),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("duet-agent {verb}: {error}");
        ExitCode::from(CONFIGURATION)
    })
}

fn run(args: RunArgs) -> Outcome {
    let RunArgs {
        node,
        socket,
        place,
        proxy: proxy_args,
    } = args;
    duet_core::run(&proxy_args.clone(), || async move {
        let wrong = |error: &dyn std::error::Error| duet_core::Error::Mode(error.to_string());
        let interception = Interception::start(&place.bpffs, place.cgroup.as_deref())
            .map_err(|error| wrong(&error))?;
        let proxy = Proxy::start(proxy_args, "agent", node).await?;
        let enrolment = Enrolment::start(Arc::new(interception), proxy.clone())
            .await
            .map_err(|error| wrong(&error))?;
        let reconciler = Reconciler::new(enrolment.clone(), proxy.clone());
        let reconciler = reconciler.map_err(|error| wrong(&error))?;
        tokio::spawn(proxy.draining().run_until_cancelled_owned(reconciler.run()));
        let api = Api::bind(&socket.socket).map_err(|error| wrong(&error))?;
        let serving = tokio::spawn(api.serve(enrolment));
        proxy.run_until_shutdown().await;
        serving.abort();
        let _ = serving.await;
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
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
    let removed = cleanup::cleanup(&args.place.bpffs, &args.socket.socket)?;
    if removed.is_empty() {
        println!("nothing to remove");
    }
    for what in removed {
        println!("removed {what}");
    }
    if args.stay {
        let mut end = SigSet::empty();
        end.add(Signal::SIGINT);
        end.add(Signal::SIGTERM);
        end.thread_block()?;
        end.wait()?;
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
