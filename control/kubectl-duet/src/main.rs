//! kubectl duet: who is meshed how, who talks to whom, and whether all is well.
//!
//! It asks the API server, and through it (port-forward) the proxies themselves: what
//! a proxy does is the proxy's own word, not what the manifests say it should do.
#![forbid(unsafe_code)]

mod check;
mod cli;
mod cluster;
mod connections;
mod inject;
mod mesh;
mod output;
mod pods;
mod proxy;
mod status;
mod tap;
mod target;
mod uninstall;
mod version;

use clap::Parser;
use cli::{Cli, Verb};
use cluster::{Cluster, Error};
use std::process::ExitCode;

/// sysexits.h: EX_USAGE.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(error) => Err(Error::Local(format!("no threads: {error}"))),
    };
    match outcome {
        Ok(code) => code,
        // Whoever read the output has seen enough.
        Err(Error::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("kubectl duet: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

async fn run(cli: Cli) -> Result<ExitCode, Error> {
    let Cli { global, verb } = cli;
    let connect = async || Cluster::connect(&global).await;
    match verb {
        Verb::Status => status::run(&connect().await?, &global).await,
        Verb::Pods(args) => pods::run(&connect().await?, &global, &args).await,
        Verb::Tap(args) => tap::run(&connect().await?, &global, &args).await,
        Verb::Connections(args) => connections::run(&connect().await?, &global, &args).await,
        Verb::Check(args) => check::run(&connect().await?, &global, &args).await,
        Verb::Uninstall(args) => uninstall::run(&connect().await?, &args).await,
        Verb::Inject(args) => inject::run(&args),
        Verb::Version(args) => version::run(&global, &args).await,
    }
}
