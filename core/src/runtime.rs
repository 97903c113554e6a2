//! The process around a proxy: threads, logging, the file descriptor limit.

use crate::config::ProxyArgs;
use crate::proxy::Error;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs;
use std::io::IsTerminal;
use tracing_subscriber::{
    EnvFilter, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

/// What a panic of the main thread exits with.
pub const PANIC: i32 = 101;

/// Changes the log filter of a running proxy; see /log-level.
#[derive(Clone)]
pub struct LogLevel(Option<reload::Handle<EnvFilter, Registry>>);

static LOG_LEVEL: std::sync::OnceLock<LogLevel> = std::sync::OnceLock::new();

impl LogLevel {
    pub fn current() -> Self {
        LOG_LEVEL.get().cloned().unwrap_or(Self(None))
    }

    pub fn get(&self) -> String {
        self.0
            .as_ref()
            .and_then(|handle| handle.with_current(ToString::to_string).ok())
            .unwrap_or_default()
    }

    pub fn set(&self, filter: &str) -> Result<(), String> {
        let filter = EnvFilter::try_new(filter).map_err(|error| error.to_string())?;
        match &self.0 {
            Some(handle) => handle.reload(filter).map_err(|error| error.to_string()),
            None => Err("logging was not set up by this process".to_owned()),
        }
    }
}

/// Runs `main` on a tokio runtime with the configured number of workers, after
/// setting up logging and raising the file descriptor limit as far as allowed.
pub fn run<F>(args: &ProxyArgs, main: impl FnOnce() -> F) -> Result<(), Error>
where
    F: Future<Output = Result<(), Error>>,
{
    let filter = EnvFilter::try_new(&args.log)
        .map_err(|error| Error::Config(format!("--log {:?}: {error}", args.log)))?;
    let (filter, handle) = reload::Layer::new(filter);
    let _ = LOG_LEVEL.set(LogLevel(Some(handle)));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .init();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    raise_fd_limit();

    // One worker needs no stealing; and in its one queue, who writes for many comes after them.
    match workers(args) {
        1 => tokio::runtime::Builder::new_current_thread(),
        workers => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(workers);
            builder
        }
    }
    .enable_all()
    .build()
    .map_err(|error| Error::Config(format!("no threads: {error}")))?
    .block_on(main())
}

/// Work without which the process is of no use to anybody. A panic ends one task, be it a
/// connection's; if it is this one's, it ends the process as one of the main thread would, and
/// whoever looks after that starts another.
pub async fn vital<T>(work: impl Future<Output = T>) -> T {
    struct Unwound;
    impl Drop for Unwound {
        fn drop(&mut self) {
            if std::thread::panicking() {
                std::process::exit(PANIC);
            }
        }
    }
    let _unwound = Unwound;
    work.await
}

/// As configured, or the cgroup's CPU limit rounded up, at most the machine's cores.
pub fn workers(args: &ProxyArgs) -> usize {
    match args.workers {
        Some(workers) => usize::from(workers),
        None => {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            cgroup_cpus().map_or(cores, |limit| limit.clamp(1, cores))
        }
    }
}

/// The CPU limit of this process's cgroup, v2's `cpu.max` or v1's
/// `cpu.cfs_quota_us`, in whole CPUs rounded up.
fn cgroup_cpus() -> Option<usize> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        let (quota, period) = if controllers.is_empty() {
            let max = fs::read_to_string(format!("/sys/fs/cgroup/{path}/cpu.max")).ok()?;
            let (quota, period) = max.trim().split_once(' ')?;
            (quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?)
        } else if controllers.split(',').any(|controller| controller == "cpu") {
            let read = |file: &str| {
                let text = fs::read_to_string(format!("/sys/fs/cgroup/cpu/{path}/{file}")).ok()?;
                text.trim().parse::<u64>().ok()
            };
            (read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?)
        } else {
            return None;
        };
        (period > 0).then(|| usize::try_from(quota.div_ceil(period)).ok())?
    })
}

fn raise_fd_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "file descriptor limit stays at {:?}", limit.current);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::Duration;

    /// In a process of its own, whose end is looked at by the other test.
    #[tokio::test]
    #[ignore = "it ends its process"]
    async fn ends() {
        let _ = tokio::spawn(async { panic!("a connection's") }).await;
        println!("goes on");
        tokio::spawn(vital(async {
            tokio::task::yield_now().await;
            panic!("what accepts");
        }));
        tokio::time::sleep(Duration::from_secs(60)).await;
    }

    #[test]
    fn what_is_vital_takes_the_process_along_when_it_panics_and_nothing_else_does() {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args([
            "--exact",
            "runtime::tests::ends",
            "--ignored",
            "--nocapture",
        ]);
        let output = child.output().unwrap();
        let [said, why] = [&output.stdout, &output.stderr].map(|it| String::from_utf8_lossy(it));
        assert!(said.contains("goes on"), "{said}");
        assert!(why.contains("what accepts"), "{why}");
        assert_eq!(output.status.code(), Some(PANIC));
        assert!(!said.contains("test result"), "it had not ended: {said}");
    }
}
