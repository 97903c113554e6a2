//! The command line.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | fine |
//! | 1 | a regression was found |
//! | 2 | the run is void, or cannot be made on this machine |
//! | 3 | the command line or a file named on it is wrong |
//! | 130 | interrupted |

use crate::accounting::{HOLD_KEY, hold_key};
use crate::arm::Arm;
use crate::results::{self, Profile, Results, State};
use crate::run::{self, Ground, KubeOptions, Options, Pace, Plan, RunError};
use crate::scenario::Id;
use crate::{
    attend, cluster, doctor, errand, export, foresee, forge, import, listing, load, peer, perf,
    report, serve, shelf, stress,
};
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::LazyLock;
use std::time::Duration;
use time::macros::format_description;

const VOID: u8 = 2;
const USAGE: u8 = 3;
/// As `deploy/images/build` calls it.
const DEFAULT_IMAGE: &str = concat!("duet/bench:", env!("CARGO_PKG_VERSION"));
const INTERRUPTED: u8 = run::INTERRUPTED_EXIT_CODE as u8;

/// One mesh, two placements, one honest report.
#[derive(Debug, Parser)]
#[command(name = "duet-bench", version = version(), disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Says what this machine lacks, or whether the generator can be trusted on it
    Doctor(DoctorArgs),
    /// Lists the scenarios, what they ask, need and cost
    List(ListArgs),
    /// Measures, and writes results.json and the reports made from it
    Run(RunArgs),
    /// Says how many blocks a wanted resolution takes, from the noise of a run
    Plan(foresee::PlanArgs),
    /// Makes the reports of a results directory anew
    Report(ReportArgs),
    /// Sets two or more results against each other
    Compare(crate::compare::CompareArgs),
    /// Makes CSV, Prometheus, JUnit or Fortio files of a run
    Export(export::ExportArgs),
    /// Measures what the proxies' work costs, against no mesh and against Envoy
    Perf(perf::PerfArgs),
    /// Shows what another load generator measured beside a run, for contrast
    Import(import::ImportArgs),
    /// Serves a folder of results as pages, with trends
    ServeReport(shelf::ServeReportArgs),
    /// Keeps a run with the project: compressed, with its reports
    Publish(shelf::PublishArgs),
    /// Removes what a killed run left behind
    Clean(CleanArgs),
    /// Prints the JSON Schema of results.json, or checks files against it
    Schema(SchemaArgs),
    /// The application that every pod runs
    Serve(serve::ServeArgs),
    /// The load generator
    Load(load::LoadArgs),
    /// Load that is no request after another
    #[command(name = stress::STRESS, hide = true)]
    Stress(stress::StressArgs),
    /// What somebody tries who is not who they say
    #[command(name = forge::FORGE, hide = true)]
    Forge(forge::ForgeArgs),
    /// Answers a run's questions inside a Kubernetes cluster
    #[command(name = attend::ATTEND, hide = true)]
    Attend(attend::AttendArgs),
    /// An application that asks a server first and ends
    #[command(name = errand::ERRAND, hide = true)]
    Errand(errand::ErrandArgs),
    /// An application that waits
    #[command(name = errand::IDLE, hide = true)]
    Idle(errand::IdleArgs),
    /// Makes mTLS handshakes
    #[command(name = perf::HANDSHAKES, hide = true)]
    Handshakes(perf::HandshakesArgs),
    /// Holds a private key in memory: the key scan's own control
    #[command(name = HOLD_KEY, hide = true)]
    HoldKey,
}

#[derive(Args, Debug)]
struct DoctorArgs {
    /// Holds the load generator against a responder whose delays and stalls are known, and says what
    /// rate one core reaches
    #[arg(long)]
    generator: bool,
}

#[derive(Args, Debug)]
struct ListArgs {
    /// On what they would run
    #[arg(long, value_enum, default_value = "netns")]
    cluster: ClusterKind,

    /// Whose costs to show
    #[arg(long, value_enum, default_value = "quick")]
    profile: ProfileName,
}

#[derive(Args, Debug)]
struct RunArgs {
    /// What nodes and pods are made of
    #[arg(long, value_enum, default_value = "netns")]
    cluster: ClusterKind,

    #[command(flatten)]
    kube: KubeArgs,

    /// How much to measure, and so what may be claimed
    #[arg(long, value_enum, default_value = "quick")]
    profile: ProfileName,

    /// Everything random follows from it; a new one each time by default
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Directory for the files; out/<time> by default
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Scenarios to run, as in L1,I1; by default all that the profile has time for
    #[arg(long, value_delimiter = ',', value_name = "IDS")]
    scenarios: Vec<Id>,

    /// Arms to run, as in none,sidecar,agent,aa; all of Duet's by default, and envoy-http in a full run where it is
    /// installed. Others: envoy-tcp, haproxy (`make peers` installs them), or a file that describes a proxy
    #[arg(long, value_delimiter = ',', value_name = "ARMS")]
    arms: Vec<Arm>,

    /// Lets through binaries without optimisation, for a run that claims nothing
    #[arg(long)]
    allow_debug: bool,

    /// Blocks of what is timed, and of the rest in proportion; the profile's by default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    blocks: Option<u32>,

    /// Makes as many blocks as fit into about that time, as in 20m
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, conflicts_with = "blocks")]
    time_budget: Option<Duration>,

    /// Goes on with the interrupted run in that directory, as it was asked for then
    #[arg(long, value_name = "DIR", conflicts_with_all = FIXED_BY_THE_FIRST_PART)]
    resume: Option<PathBuf>,
}

/// What a run that goes on takes from its first part.
const FIXED_BY_THE_FIRST_PART: [&str; 14] = [
    "cluster",
    "context",
    "image",
    "nodes",
    "disturb_others",
    "no_realtime",
    "profile",
    "seed",
    "out",
    "scenarios",
    "arms",
    "allow_debug",
    "blocks",
    "time_budget",
];

/// For `--cluster kube`.
#[derive(Args, Debug)]
struct KubeArgs {
    /// Context of the kubeconfig; its current one by default
    #[arg(long, value_name = "NAME")]
    context: Option<String>,

    /// Image that pods run: duet-bench of this version
    #[arg(long, value_name = "IMAGE", default_value = DEFAULT_IMAGE)]
    image: String,

    /// Nodes to use; the first two that take pods by default
    #[arg(long, value_delimiter = ',', value_name = "NODES")]
    nodes: Vec<String>,

    /// Kills agents even where pods of others use them
    #[arg(long)]
    disturb_others: bool,

    /// Runs generators in the ordinary scheduling class, without CAP_SYS_NICE
    #[arg(long)]
    no_realtime: bool,
}

#[derive(Args, Debug)]
struct ReportArgs {
    /// A directory that `run --out` wrote, or a results.json
    results: PathBuf,
}

#[derive(Args, Debug)]
struct CleanArgs {
    /// Where to look
    #[arg(long, value_enum, default_value = "netns")]
    cluster: ClusterKind,

    /// Context of the kubeconfig, for --cluster kube
    #[arg(long, value_name = "NAME")]
    context: Option<String>,

    /// Removes also what a living run is using
    #[arg(long)]
    force: bool,
}

#[derive(Args, Debug)]
struct SchemaArgs {
    /// Results to check against the schema; without any, the schema is printed
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ClusterKind {
    /// Network namespaces on this machine
    Netns,
    /// The cluster that a kubeconfig's context leads to
    Kube,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ProfileName {
    /// One block, under two minutes: shows that everything works
    Smoke,
    /// Six blocks, under eight minutes on two cores
    Quick,
    /// Every scenario, twelve blocks of what is compared by time: an hour
    Full,
}

impl From<ProfileName> for Profile {
    fn from(name: ProfileName) -> Self {
        match name {
            ProfileName::Smoke => Self::Smoke,
            ProfileName::Quick => Self::Quick,
            ProfileName::Full => Self::Full,
        }
    }
}

/// What went wrong, and with which code to leave.
struct Trouble {
    code: u8,
    message: String,
}

impl Trouble {
    fn usage(message: impl ToString) -> Self {
        Self {
            code: USAGE,
            message: message.to_string(),
        }
    }

    fn void(message: impl ToString) -> Self {
        Self {
            code: VOID,
            message: message.to_string(),
        }
    }
}

/// Parses the arguments and runs the command.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return misused(&error),
    };
    let result = match cli.command {
        Command::Doctor(args) if args.generator => examine_generator(),
        Command::Doctor(_) => examine(),
        Command::List(args) => {
            let of = |chosen: &[Id]| plan(args.cluster, args.profile.into(), 0, chosen, &[]);
            println!("{}", listing::table(of));
            Ok(0)
        }
        Command::Run(args) => measure(args),
        Command::Plan(args) => foresee::run(&args).map(|()| 0).map_err(Trouble::usage),
        Command::Report(args) => render(&args),
        Command::Export(args) => export::run(&args).map(|()| 0).map_err(Trouble::usage),
        Command::Import(args) => import::run(&args)
            .map_err(Trouble::usage)
            .map(|(_, written)| {
                println!("{}", written.html.display());
                0
            }),
        Command::ServeReport(args) => block_on(shelf::serve(args))
            .and_then(|result| result.map(|()| 0).map_err(Trouble::usage)),
        Command::Publish(args) => shelf::publish(&args).map_err(Trouble::usage).map(|dir| {
            println!("{}", dir.display());
            0
        }),
        Command::Compare(args) => crate::compare::run(&args).map_err(Trouble::usage),
        Command::Perf(args) => perf::run(&args).map(|()| 0).map_err(Trouble::void),
        Command::Clean(args) => clean(&args),
        Command::Schema(args) => schema(&args),
        Command::Serve(args) => block_on(serve::run(args)).and_then(|result| {
            result.map(|()| 0).map_err(|error| Trouble {
                code: if error.is_usage() { USAGE } else { VOID },
                message: error.to_string(),
            })
        }),
        Command::Load(args) => block_on(load::run(args)).and_then(|result| {
            result.map(|()| 0).map_err(|error| Trouble {
                code: if error.is_usage() { USAGE } else { VOID },
                message: error.to_string(),
            })
        }),
        Command::Stress(args) => {
            block_on(stress::run(args)).and_then(|result| result.map(|()| 0).map_err(Trouble::void))
        }
        Command::Forge(args) => {
            block_on(forge::run(args)).and_then(|result| result.map(|()| 0).map_err(Trouble::void))
        }
        Command::Attend(args) => attend::run(args).map(|()| 0).map_err(Trouble::void),
        Command::Errand(args) => errand::run(&args).map_err(Trouble::void),
        Command::Idle(args) => block_on(errand::idle(args))
            .and_then(|result| result.map(|()| 0).map_err(Trouble::void)),
        Command::Handshakes(args) => perf::make_handshakes(&args)
            .map(|()| 0)
            .map_err(Trouble::void),
        Command::HoldKey => hold_key().map(|()| 0).map_err(Trouble::void),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(trouble) => {
            eprintln!("duet-bench: {}", trouble.message.replace('\n', "; "));
            ExitCode::from(trouble.code)
        }
    }
}

/// As every binary of the project has it, so that one can be held against another.
fn version() -> &'static str {
    static LINE: LazyLock<String> = LazyLock::new(|| {
        format!(
            "{} core={} opt={}",
            env!("CARGO_PKG_VERSION"),
            duet_core::CORE_FINGERPRINT,
            duet_core::OPT_LEVEL
        )
    });
    &LINE
}

/// Help and version are no mistakes; everything else is one line and code 3.
fn misused(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(USAGE)
        }
        _ => {
            let text = error.render().to_string();
            let lines: Vec<&str> = text
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty())
                .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
                .collect();
            let line = lines.join(" ");
            eprintln!(
                "duet-bench: {}; see duet-bench --help",
                line.strip_prefix("error: ").unwrap_or(&line)
            );
            ExitCode::from(USAGE)
        }
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> Result<T, Trouble> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map(|runtime| runtime.block_on(future))
        .map_err(Trouble::void)
}

fn examine() -> Result<u8, Trouble> {
    let checks = doctor::examine();
    for check in &checks {
        println!("{check}");
    }
    Ok(if doctor::can_run(&checks) { 0 } else { VOID })
}

fn examine_generator() -> Result<u8, Trouble> {
    let findings = load::selftest::examine(Default::default()).map_err(Trouble::void)?;
    println!("{findings}");
    if duet_core::OPT_LEVEL == "0" {
        println!("built without optimisation: what one core reaches is not what it can");
    }
    Ok(if findings.trusted() { 0 } else { VOID })
}

/// What is wanted: everything that can be asked there, unless something is chosen.
fn plan(cluster: ClusterKind, profile: Profile, seed: u64, scenarios: &[Id], arms: &[Arm]) -> Plan {
    let kubelet = matches!(cluster, ClusterKind::Kube);
    let scenarios: Vec<Id> = Id::ALL
        .into_iter()
        .filter(|id| match scenarios {
            [] => id.asked_in(profile),
            chosen => chosen.contains(id),
        })
        .filter(|id| kubelet || !id.needs_kubelet())
        .filter(|id| !kubelet || !id.needs_netns())
        .collect();
    let speaks = |arm: &Arm| scenarios.iter().any(|id| id.runs_in(*arm, profile));
    let everything = profile == Profile::Full && arms.is_empty() && !kubelet;
    let envoy = everything.then(peer::envoy).flatten().map(Arm::Peer);
    Plan {
        profile,
        seed,
        arms: Arm::ALL
            .into_iter()
            .filter(|arm| match arms {
                [] => speaks(arm) && (profile == Profile::Full || !arm.explains()),
                chosen => chosen.contains(arm),
            })
            .chain(arms.iter().copied().filter(|arm| arm.peer().is_some()))
            .chain(envoy.filter(&speaks))
            // There the proxies are as they were installed.
            .filter(|arm| !kubelet || !(*arm == Arm::AgentTenancy || arm.redirects_only()))
            .collect(),
        scenarios,
        pace: if kubelet {
            Pace::with_kubelet(profile)
        } else {
            Pace::of(profile)
        },
        kubelet,
    }
}

/// The arms without the peers that are not installed, and a note for each of these.
fn present(cluster: ClusterKind, arms: Vec<Arm>) -> Result<(Vec<Arm>, Vec<String>), Trouble> {
    let peers = arms.iter().filter_map(|arm| arm.peer());
    if let (ClusterKind::Kube, Some(peer)) = (cluster, peers.clone().next()) {
        return Err(Trouble::usage(format!(
            "--arms: {} runs in network namespaces only: leave it out, or --cluster netns",
            peer.name
        )));
    }
    let is_here = |arm: &Arm| arm.peer().is_none_or(|peer| peer.program().is_some());
    let (here, absent): (Vec<_>, Vec<_>) = arms.into_iter().partition(is_here);
    let notes: Vec<_> = absent.iter().map(|arm| left_out(arm.name())).collect();
    match (&here[..], &notes[..]) {
        ([], [first, ..]) => Err(Trouble::usage(format!("--arms: nothing remains: {first}"))),
        _ => Ok((here, notes)),
    }
}

fn left_out(peer: &str) -> String {
    format!(
        "{peer} is left out: its program was not there (`make peers` installs Envoy and HAProxy)"
    )
}

fn clean(args: &CleanArgs) -> Result<u8, Trouble> {
    let report = match args.cluster {
        ClusterKind::Netns => cluster::clean_all(args.force),
        ClusterKind::Kube => {
            let interrupt = run::Interrupt::default();
            cluster::kube::Kube::connect(args.context.as_deref(), interrupt)
                .and_then(|kube| cluster::kube::clean(&kube, args.force))
        }
    };
    println!("{}", report.map_err(Trouble::void)?);
    Ok(0)
}

fn ground(cluster: ClusterKind, kube: KubeArgs) -> Ground {
    match cluster {
        ClusterKind::Netns => Ground::Netns,
        ClusterKind::Kube => Ground::Kube(KubeOptions {
            context: kube.context,
            image: kube.image,
            nodes: kube.nodes,
            disturb_others: kube.disturb_others,
            realtime: !kube.no_realtime,
        }),
    }
}

/// What was asked for when the run in that directory began, and what there is of it.
fn recall(dir: &Path) -> Result<(RunArgs, Results), Trouble> {
    let earlier = results::read(dir).map_err(Trouble::usage)?;
    let path = dir.display();
    let Ok(Cli {
        command: Command::Run(mut args),
    }) = Cli::try_parse_from(&earlier.command)
    else {
        return Err(Trouble::usage(format!(
            "--resume {path}: this version does not understand the command line that began it: {}",
            earlier.command.join(" ")
        )));
    };
    args.seed = Some(earlier.seed);
    args.out = Some(if dir.is_dir() {
        dir.to_owned()
    } else {
        dir.parent().unwrap_or(dir).to_owned()
    });
    Ok((args, earlier))
}

fn measure(args: RunArgs) -> Result<u8, Trouble> {
    let (args, earlier) = match &args.resume {
        Some(dir) => recall(dir).map(|(args, earlier)| (args, Some(earlier)))?,
        None => (args, None),
    };
    let ground = ground(args.cluster, args.kube);
    let seed = args.seed.unwrap_or_else(rand::random);
    let out = args.out.unwrap_or_else(|| {
        let now = time::OffsetDateTime::now_utc();
        let name = now
            .format(format_description!(
                "[year][month][day]-[hour][minute][second]"
            ))
            .unwrap_or_else(|_| now.unix_timestamp().to_string());
        PathBuf::from("out").join(name)
    });
    let wants_all = args.arms.is_empty() && matches!(args.cluster, ClusterKind::Netns);
    let (arms, mut notes) = present(args.cluster, args.arms)?;
    if wants_all && matches!(args.profile, ProfileName::Full) && peer::envoy().is_none() {
        notes.push(left_out("Envoy"));
    }
    for note in &notes {
        eprintln!("duet-bench: {note}");
    }
    let mut plan = plan(
        args.cluster,
        args.profile.into(),
        seed,
        &args.scenarios,
        &arms,
    );
    if let Some(blocks) = args.blocks {
        plan.pace = plan.pace.with_blocks(blocks);
    }
    if let Some(budget) = args.time_budget {
        plan = plan.within(budget).map_err(Trouble::usage)?;
        eprintln!(
            "duet-bench: {} blocks fit into {}",
            plan.pace.blocks,
            humantime::format_duration(budget)
        );
    }
    let misplaced: Vec<&str> = args
        .scenarios
        .iter()
        .filter(|id| !plan.scenarios.contains(id))
        .map(|id| id.name())
        .collect();
    if !misplaced.is_empty() {
        let (needs, instead) = match args.cluster {
            ClusterKind::Netns => ("a kubelet", "kube"),
            ClusterKind::Kube => ("network namespaces", "netns"),
        };
        return Err(Trouble::usage(format!(
            "--scenarios: {} need {needs}: add --cluster {instead}, or leave them out",
            misplaced.join(", ")
        )));
    }
    let idle: Vec<&str> = plan
        .scenarios
        .iter()
        .filter(|id| plan.arms_of(**id).is_empty())
        .map(|id| id.name())
        .collect();
    if idle.len() == plan.scenarios.len() {
        return Err(Trouble::usage(format!(
            "--arms: none of these arms has anything to say in {}",
            idle.join(", ")
        )));
    }
    let options = Options {
        plan,
        ground,
        out,
        allow_debug: args.allow_debug,
        command: std::env::args().collect(),
        notes,
        earlier,
    };
    let mut finished = run::run(&options).map_err(|error| match error {
        RunError::Out { .. } => Trouble::usage(error),
        error => Trouble::void(error),
    })?;
    let written = report::write(&mut finished.results, &finished.out).map_err(Trouble::void)?;
    show(&finished.results, &written);
    match finished.ended_early {
        Some(RunError::Interrupted) => Err(Trouble {
            code: INTERRUPTED,
            message: RunError::Interrupted.to_string(),
        }),
        Some(error) => Err(Trouble::void(error)),
        None if finished.results.status.state == State::Void => Err(Trouble::void(format!(
            "the run is void: {}",
            finished.results.status.reasons.join("; ")
        ))),
        None => Ok(0),
    }
}

fn render(args: &ReportArgs) -> Result<u8, Trouble> {
    let (results, written) = report::rerender(&args.results).map_err(Trouble::usage)?;
    show(&results, &written);
    Ok(0)
}

/// The verdicts, and last of all the path of the page.
fn show(results: &Results, written: &report::Written) {
    let mut out = std::io::stdout().lock();
    let colour = out.is_terminal();
    // A reader who has gone away has seen enough.
    let _ = writeln!(
        out,
        "{}\n{}\n{}",
        report::banner(results, colour),
        report::verdict_table(results, colour),
        written.html.display()
    );
}

fn schema(args: &SchemaArgs) -> Result<u8, Trouble> {
    if args.files.is_empty() {
        print!("{}", results::schema_text());
        return Ok(0);
    }
    let validator = jsonschema::validator_for(&results::schema()).map_err(Trouble::void)?;
    let mut wrong = 0;
    for path in &args.files {
        let file = if path.is_dir() {
            path.join("results.json")
        } else {
            path.clone()
        };
        let text = std::fs::read_to_string(&file)
            .map_err(|error| Trouble::usage(format!("{}: {error}", file.display())))?;
        let value: serde_json::Value = serde_json::from_str(&text)
            .map_err(|error| Trouble::usage(format!("{}: {error}", file.display())))?;
        match validator.iter_errors(&value).next() {
            None => println!("{}: valid", file.display()),
            Some(error) => {
                wrong += 1;
                println!("{}: {} at {}", file.display(), error, error.instance_path());
            }
        }
    }
    Ok(if wrong == 0 { 0 } else { USAGE })
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
