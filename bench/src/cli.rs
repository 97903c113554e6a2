//! The command line.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | fine |
//! | 1 | a regression was found |
//! | 2 | the run is void, or cannot be made on this machine |
//! | 3 | the command line or a file named on it is wrong |
//! | 130 | interrupted |

use crate::arm::Arm;
use crate::results::{self, Profile, Results, State};
use crate::run::{self, Options, Pace, Plan, RunError};
use crate::scenario::{self, HOLD_KEY, Id};
use crate::{cluster, doctor, load, report, serve};
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};
use comfy_table::{ContentArrangement, Table, presets};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::LazyLock;
use time::macros::format_description;

const VOID: u8 = 2;
const USAGE: u8 = 3;
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
    /// Says what this machine lacks
    Doctor,
    /// Lists the scenarios, what they ask, need and cost
    List(ListArgs),
    /// Measures, and writes results.json, report.html and summary.md
    Run(RunArgs),
    /// Makes the reports of a results directory anew
    Report(ReportArgs),
    /// Sets two or more results against each other
    Compare(crate::compare::CompareArgs),
    /// Removes what a killed run left behind
    Clean(CleanArgs),
    /// Prints the JSON Schema of results.json, or checks files against it
    Schema(SchemaArgs),
    /// The application that every pod runs
    Serve(serve::ServeArgs),
    /// The load generator
    Load(load::LoadArgs),
    /// Holds a private key in memory: the key scan's own control
    #[command(name = HOLD_KEY, hide = true)]
    HoldKey,
}

#[derive(Args, Debug)]
struct ListArgs {
    /// Whose costs to show
    #[arg(long, value_enum, default_value = "quick")]
    profile: ProfileName,
}

#[derive(Args, Debug)]
struct RunArgs {
    /// What nodes and pods are made of
    #[arg(long, value_enum, default_value = "netns")]
    cluster: ClusterKind,

    /// How much to measure, and so what may be claimed
    #[arg(long, value_enum, default_value = "quick")]
    profile: ProfileName,

    /// Everything random follows from it; a new one each time by default
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Directory for the files; out/<time> by default
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Scenarios to run, as in L1,I1; all by default
    #[arg(long, value_delimiter = ',', value_name = "IDS")]
    scenarios: Vec<Id>,

    /// Arms to run, as in none,sidecar,agent,aa; all by default
    #[arg(long, value_delimiter = ',', value_name = "ARMS")]
    arms: Vec<Arm>,

    /// Lets through binaries without optimisation, for a run that claims nothing
    #[arg(long)]
    allow_debug: bool,
}

#[derive(Args, Debug)]
struct ReportArgs {
    /// A directory that `run --out` wrote, or a results.json
    results: PathBuf,
}

#[derive(Args, Debug)]
struct CleanArgs {
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
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ProfileName {
    /// One block, under two minutes: shows that everything works
    Smoke,
    /// Six blocks, under eight minutes on two cores
    Quick,
    /// Twelve blocks, all points: takes hours
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
        Command::Doctor => examine(),
        Command::List(args) => {
            list(args.profile.into());
            Ok(0)
        }
        Command::Run(args) => measure(args),
        Command::Report(args) => render(&args),
        Command::Compare(args) => crate::compare::run(&args).map_err(Trouble::usage),
        Command::Clean(args) => cluster::clean_all(args.force)
            .map(|report| {
                println!("{report}");
                0
            })
            .map_err(Trouble::void),
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
        Command::HoldKey => scenario::hold_key().map(|()| 0).map_err(Trouble::void),
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

fn list(profile: Profile) {
    let plan = plan(profile, 0, Vec::new(), Vec::new());
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_HORIZONTAL_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(["", "question", "arms", "blocks", "time", "needs"]);
    let mut total = std::time::Duration::ZERO;
    for experiment in scenario::experiments() {
        let ids = experiment.scenarios();
        let alone = [experiment];
        let cost = run::estimate(&plan, &alone);
        total += cost;
        for (at, id) in ids.iter().enumerate() {
            let arms: Vec<&str> = plan.arms_of(*id).iter().map(|arm| arm.name()).collect();
            table.add_row([
                id.name().to_owned(),
                id.question().to_owned(),
                arms.join(" "),
                plan.blocks(*id).to_string(),
                match at {
                    0 => span(cost),
                    _ => format!("with {}", ids[0]),
                },
                id.needs().to_owned(),
            ]);
        }
    }
    println!("{table}");
    println!("all together, about {}", span(total));
}

fn span(time: std::time::Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds.div_ceil(60)),
        _ => format!("{:.1} h", seconds as f64 / 3600.0),
    }
}

fn plan(profile: Profile, seed: u64, scenarios: Vec<Id>, arms: Vec<Arm>) -> Plan {
    let chosen = |all: &[Id]| -> Vec<Id> {
        all.iter()
            .copied()
            .filter(|id| scenarios.is_empty() || scenarios.contains(id))
            .collect()
    };
    Plan {
        profile,
        seed,
        arms: Arm::ALL
            .into_iter()
            .filter(|arm| arms.is_empty() || arms.contains(arm))
            .collect(),
        scenarios: chosen(&Id::ALL),
        pace: Pace::of(profile),
    }
}

fn measure(args: RunArgs) -> Result<u8, Trouble> {
    let ClusterKind::Netns = args.cluster;
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
    let plan = plan(args.profile.into(), seed, args.scenarios, args.arms);
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
        out,
        allow_debug: args.allow_debug,
        command: std::env::args().collect(),
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
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn names_are_checked_while_parsing() {
        let parse = |arguments: &[&str]| {
            Cli::try_parse_from(["duet-bench"].iter().chain(arguments)).map(|_| ())
        };
        assert!(parse(&["run", "--scenarios", "L1,i1", "--arms", "none,aa"]).is_ok());
        let wrong = parse(&["run", "--scenarios", "L9"])
            .unwrap_err()
            .to_string();
        assert!(wrong.contains("L9") && wrong.contains("X1"), "{wrong}");
        assert!(parse(&["run", "--arms", "both"]).is_err());
        assert!(parse(&["run", "--profile", "huge"]).is_err());
    }

    #[test]
    fn arms_and_scenarios_keep_the_reports_order() {
        let plan = plan(
            Profile::Quick,
            1,
            vec![Id::X1, Id::L1],
            vec![Arm::Agent, Arm::None],
        );
        assert_eq!(plan.scenarios, [Id::L1, Id::X1]);
        assert_eq!(plan.arms, [Arm::None, Arm::Agent]);
    }
}
