//! The command line of duet-control.
#![forbid(unsafe_code)]

use anyhow::Context;
use clap::{ArgGroup, Args, Parser, Subcommand};
use duet_control::ca::{MIN_CERT_LIFETIME, ROOT_LIFETIME};
use duet_control::injector::offline::{Offline, OfflineError};
use duet_control::injector::{Config, ConfigError, Injector, Verdict};
use duet_control::kubernetes::{KubernetesControl, KubernetesError, KubernetesSettings};
use duet_control::source::kube::{Cluster, ClusterArgs, DEFAULT_TRUST_DOMAIN};
use duet_control::trust::RotateError;
use duet_control::{
    Caller, ControlPlane, Enrolments, FileSource, Settings, StartError, StateDir, StateDirError,
};
use duet_core::WorkloadName;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
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
    // Not within the above: clap takes an optional group with a group in it for absent.
    #[command(flatten)]
    kube: KubeArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Prints a bearer token for a proxy. Needs no running server, and may come
    /// before the first start.
    Token(TokenArgs),
    /// Gives the mesh a new root, where duet-control keeps it in Kubernetes. It signs
    /// when every proxy knows it; the old one is trusted until its last certificate
    /// has ended. No connection is disturbed.
    RotateRoot(RotateArgs),
    /// Prints what Duet adds to the Kubernetes API, for `kubectl apply -f -`.
    Crds,
    /// Puts pods of manifests into the mesh, as the webhook does, and prints them.
    ///
    /// Reads YAML or JSON, any number of documents. Pods are found in Pods,
    /// Deployments, StatefulSets, DaemonSets, ReplicaSets, ReplicationControllers,
    /// Jobs, CronJobs, PodTemplates and Lists; Namespaces in the same file say what
    /// becomes of their pods. A document in which nothing changes is printed as it
    /// was read. One that changes is written anew: its comments are lost, and its
    /// keys are sorted.
    Inject(InjectArgs),
}

#[derive(Args)]
struct ServeArgs {
    /// The mesh: "kube" for the cluster that this runs in, or a YAML file, which is
    /// read again whenever it changes.
    #[arg(long, env = "DUET_SOURCE", value_name = "kube|FILE")]
    source: PathBuf,

    /// Where proxies connect.
    #[arg(
        long,
        env = "DUET_LISTEN",
        default_value = "0.0.0.0:15010",
        value_name = "ADDR"
    )]
    listen: SocketAddr,

    /// Where the mesh root and the token key are kept. Made if it is not there. With
    /// a cluster, that is where they are.
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

/// With --source kube.
#[derive(Args)]
#[command(next_help_heading = "With --source kube")]
struct KubeArgs {
    /// Instead of the pod's service account, or KUBECONFIG and ~/.kube/config.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Of the kubeconfig. Default: its current one.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,

    /// duet-control's own.
    #[arg(
        long,
        env = "POD_NAMESPACE",
        default_value = "duet-system",
        value_name = "NAME"
    )]
    namespace: String,

    /// This process among its replicas.
    #[arg(
        long,
        env = "POD_NAME",
        default_value = "duet-control",
        value_name = "NAME"
    )]
    replica: String,

    /// What SPIFFE IDs begin with.
    #[arg(long, env = "DUET_TRUST_DOMAIN", default_value = DEFAULT_TRUST_DOMAIN, value_name = "NAME")]
    trust_domain: String,

    /// How long a new root is told of before anything is signed with it: kubelets
    /// have brought it into all pods by then.
    #[arg(long, env = "DUET_ROOT_OVERLAP", default_value = "10m", value_name = "TIME", value_parser = humantime::parse_duration)]
    root_overlap: Duration,

    /// Label selector of the namespaces that get the mesh's roots. Default: all. For
    /// meshes that share a cluster.
    #[arg(long, value_name = "SELECTOR")]
    trust_bundle_namespaces: Option<String>,

    /// Where pods are reviewed. Without it nobody is.
    #[arg(long, env = "DUET_INJECTOR", value_name = "ADDR")]
    injector: Option<SocketAddr>,

    /// The injector's configuration, YAML. Default: as built in.
    #[arg(long, env = "DUET_INJECTOR_CONFIG", value_name = "FILE")]
    injector_config: Option<PathBuf>,

    #[command(flatten)]
    images: ImageArgs,
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

#[derive(Args)]
struct InjectArgs {
    /// The manifests; - is standard input.
    #[arg(short, long = "filename", value_name = "FILE")]
    file: PathBuf,

    /// What pods become of which neither they nor their namespace say, if it is in
    /// the file.
    #[arg(long, default_value = "sidecar", value_name = "sidecar|agent|none", value_parser = mode)]
    mode: Verdict,

    /// Where objects go that name no namespace.
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,

    /// The injector's configuration, YAML. Default: as built in.
    #[arg(long, env = "DUET_INJECTOR_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    images: ImageArgs,
}

/// What pods are given, instead of what the injector's configuration says.
#[derive(Args)]
struct ImageArgs {
    /// The proxy's image.
    #[arg(long, env = "DUET_IMAGE_SIDECAR", value_name = "IMAGE")]
    image_sidecar: Option<String>,

    /// The image of the container that redirects a pod's connections.
    #[arg(long, env = "DUET_IMAGE_INIT", value_name = "IMAGE")]
    image_init: Option<String>,
}

#[derive(Args)]
struct RotateArgs {
    /// duet-control's own namespace.
    #[arg(
        long,
        env = "POD_NAMESPACE",
        default_value = "duet-system",
        value_name = "NAME"
    )]
    namespace: String,
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
        (Some(Command::RotateRoot(args)), _) => rotate_root(&args),
        (Some(Command::Crds), _) => {
            write!(std::io::stdout(), "{}", duet_control::crd::yaml()).context("standard output")
        }
        (Some(Command::Inject(args)), _) => inject(&args),
        (None, Some(args)) => serve(&args, &cli.kube),
        (None, None) => {
            eprintln!("duet-control: what mesh? write --source kube or --source FILE");
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

fn serve(args: &ServeArgs, kube: &KubeArgs) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(log_directives(&args.log)?)
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
        let ended = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        if args.source == Path::new("kube") {
            serve_cluster(args, kube, ended).await
        } else {
            serve_file(args, ended).await
        }
    })
}

async fn serve_file(args: &ServeArgs, ended: impl Future<Output = ()>) -> anyhow::Result<()> {
    let state_dir = StateDir::open(&args.state_dir)?;
    let control = ControlPlane::start(
        args.settings(Enrolments::Acknowledged),
        state_dir.authority()?,
        Arc::new(state_dir.token_key()?),
        FileSource::new(&args.source),
    )
    .await?;
    ended.await;
    control.stop().await;
    Ok(())
}

async fn serve_cluster(
    args: &ServeArgs,
    kube: &KubeArgs,
    ended: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let injector = match kube.injector {
        Some(listen) => {
            let config = kube.injector_config.as_deref();
            Some((listen, injector(config, &kube.images)?))
        }
        None => None,
    };
    let cluster = ClusterArgs {
        kubeconfig: kube.kubeconfig.clone(),
        context: kube.context.clone(),
    };
    let cluster = Cluster::new(&cluster).await.map_err(StartError::Source)?;
    let settings = args.settings(Enrolments::PodCondition(cluster.client.clone()));
    let start = KubernetesControl::start(
        settings,
        KubernetesSettings {
            cluster,
            namespace: kube.namespace.clone(),
            trust_domain: kube.trust_domain.clone(),
            replica: kube.replica.clone(),
            trust_bundle_namespaces: kube.trust_bundle_namespaces.clone(),
            root_overlap: kube.root_overlap,
            injector,
        },
    );
    // It may have to wait, and be told to stop meanwhile.
    let mut ended = std::pin::pin!(ended);
    let control = tokio::select! {
        control = start => control?,
        () = &mut ended => return Ok(()),
    };
    ended.await;
    control.stop().await;
    Ok(())
}

// === impl ServeArgs ===

impl ServeArgs {
    fn settings(&self, enrolments: Enrolments) -> Settings {
        Settings {
            listen: self.listen,
            health: self.health,
            cert_lifetime: self.cert_lifetime,
            enrolments,
        }
    }
}

fn rotate_root(args: &RotateArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime could not be started")?;
    let root = runtime.block_on(async {
        let client = kube::Client::try_default()
            .await
            .context("the cluster: run this in duet-control's pod, or set KUBECONFIG")?;
        let rotated = duet_control::trust::rotate_root(client, &args.namespace, ROOT_LIFETIME);
        anyhow::Ok(rotated.await?)
    })?;
    writeln!(std::io::stdout(), "the next root is {root}").context("standard output")
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

fn inject(args: &InjectArgs) -> anyhow::Result<()> {
    let offline = Offline {
        injector: injector(args.config.as_deref(), &args.images)?,
        mode: args.mode,
        namespace: args.namespace.clone(),
    };
    let (name, text) = if args.file == Path::new("-") {
        (
            "standard input".to_owned(),
            std::io::read_to_string(std::io::stdin()),
        )
    } else {
        (
            args.file.display().to_string(),
            std::fs::read_to_string(&args.file),
        )
    };
    let text = text.with_context(|| name.clone())?;
    let injected = offline.inject(&text).context(name)?;
    for warning in injected.warnings {
        eprintln!("duet-control: warning: {warning}");
    }
    write!(std::io::stdout(), "{}", injected.text).context("standard output")
}

fn injector(config: Option<&Path>, images: &ImageArgs) -> anyhow::Result<Injector> {
    let mut config = match config {
        None => Config::default(),
        Some(path) => {
            let name = || path.display().to_string();
            let text = std::fs::read_to_string(path).with_context(name)?;
            Config::from_yaml(&text).with_context(name)?
        }
    };
    for (given, image) in [
        (&images.image_sidecar, &mut config.images.sidecar),
        (&images.image_init, &mut config.images.init),
    ] {
        if let Some(given) = given {
            image.clone_from(given);
        }
    }
    config.check()?;
    Ok(Injector { config })
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref() {
        Some(StartError::Source(_)) => EX_CONFIG,
        _ if matches!(
            error.downcast_ref(),
            Some(KubernetesError::Start(StartError::Source(_)))
        ) =>
        {
            EX_CONFIG
        }
        _ if error.is::<OfflineError>() || error.is::<ConfigError>() => EX_CONFIG,
        _ if error.is::<StateDirError>() => EX_CONFIG,
        // Whose CA it is, is configuration.
        _ if error.is::<RotateError>() => EX_CONFIG,
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

fn mode(text: &str) -> Result<Verdict, String> {
    match text {
        "sidecar" => Ok(Verdict::Sidecar),
        "agent" => Ok(Verdict::Agent),
        "none" => Ok(Verdict::None),
        _ => Err("write sidecar, agent or none".to_owned()),
    }
}

/// What the user says, over what the Kubernetes client says: we say it ourselves, and
/// once.
fn log_directives(text: &str) -> anyhow::Result<EnvFilter> {
    Ok(EnvFilter::try_new(format!(
        "kube_runtime=error,kube_client=error,{text}"
    ))?)
}

fn log_filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text)
        .map(|_| text.to_owned())
        .map_err(|error| error.to_string())
}
