//! The way to a cluster's API server: one connection for the whole run, asked
//! from ordinary threads, with a deadline on every request and an ear for Ctrl-C.

use crate::cluster::error::{ClusterError, Result};
use crate::run::Interrupt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(30);
/// How long an interrupt may go unnoticed.
const NOTICE_WITHIN: Duration = Duration::from_millis(20);
/// From one look at the cluster's state to the next.
const LOOK_EVERY: Duration = Duration::from_millis(150);

/// A connection to an API server.
#[derive(Clone)]
pub struct Kube {
    /// For [`kube::Api`].
    pub client: Client,
    /// Where it leads, to make another one.
    pub config: Config,
    /// The context it was taken from.
    pub context: String,
    runtime: Arc<Runtime>,
    interrupt: Interrupt,
}

impl fmt::Debug for Kube {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kube({})", self.config.cluster_url)
    }
}

impl Kube {
    /// Connects as a kubeconfig's context says; the current one by default.
    pub fn connect(context: Option<&str>, interrupt: Interrupt) -> Result<Self> {
        // Whichever comes first decides for the process; both are the same.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let kubeconfig = Kubeconfig::read().map_err(|error| ClusterError::Kubernetes {
            what: "read the kubeconfig (KUBECONFIG, or ~/.kube/config)".to_owned(),
            said: chain(&error),
        })?;
        let known: Vec<&str> = kubeconfig
            .contexts
            .iter()
            .map(|context| context.name.as_str())
            .collect();
        let context = match (context, &kubeconfig.current_context) {
            (Some(wanted), _) if !known.contains(&wanted) => {
                return Err(ClusterError::unknown("context", wanted, known));
            }
            (Some(wanted), _) => wanted.to_owned(),
            (None, Some(current)) if known.contains(&current.as_str()) => current.clone(),
            (None, _) => {
                return Err(ClusterError::Kubernetes {
                    what: "the kubeconfig has no current context".to_owned(),
                    said: format!("choose one with --context: {}", known.join(", ")),
                });
            }
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("kubernetes")
            .enable_all()
            .build()
            .map_err(ClusterError::io("start the thread for Kubernetes"))?;
        let options = KubeConfigOptions {
            context: Some(context.clone()),
            ..KubeConfigOptions::default()
        };
        let (config, client) = runtime
            .block_on(async {
                let config = Config::from_custom_kubeconfig(kubeconfig, &options)
                    .await
                    .map_err(|error| chain(&error))?;
                let client = Client::try_from(config.clone()).map_err(|error| one_line(&error))?;
                Ok::<_, String>((config, client))
            })
            .map_err(|said| ClusterError::Kubernetes {
                what: format!("use context {context}"),
                said,
            })?;
        Ok(Self {
            client,
            config,
            context,
            runtime: Arc::new(runtime),
            interrupt,
        })
    }

    /// Makes a request. Ends early when the run does.
    pub fn ask<T>(&self, what: &str, request: impl Future<Output = kube::Result<T>>) -> Result<T> {
        self.until(what, REQUEST, async {
            request.await.map_err(|e| one_line(&e))
        })
    }

    /// The same for what has to be done even when the run is to end.
    pub fn ask_anyway<T>(
        &self,
        what: &str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T> {
        let failed = |said: String| ClusterError::Kubernetes {
            what: what.to_owned(),
            said,
        };
        self.runtime
            .block_on(async { tokio::time::timeout(REQUEST, request).await })
            .map_err(|_| failed(format!("no answer within {REQUEST:?}")))?
            .map_err(|error| failed(one_line(&error)))
    }

    /// Waits for something to complete, unless interrupted.
    pub fn until<T>(
        &self,
        what: &str,
        within: Duration,
        work: impl Future<Output = Result<T, String>>,
    ) -> Result<T> {
        let failed = |said: String| ClusterError::Kubernetes {
            what: what.to_owned(),
            said,
        };
        self.runtime.block_on(async {
            tokio::pin!(work);
            let deadline = tokio::time::Instant::now() + within;
            loop {
                tokio::select! {
                    done = &mut work => return done.map_err(failed),
                    () = tokio::time::sleep_until(deadline) => {
                        return Err(failed(format!("no answer within {within:?}")));
                    }
                    () = tokio::time::sleep(NOTICE_WITHIN) => self.interrupt.check()?,
                }
            }
        })
    }

    /// Looks again and again until there is something, or `within` has passed.
    pub fn look<T>(
        &self,
        within: Duration,
        look: impl FnMut() -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        self.look_every(LOOK_EVERY, within, look)
    }

    /// The same, as often as is asked for.
    pub fn look_every<T>(
        &self,
        every: Duration,
        within: Duration,
        mut look: impl FnMut() -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let deadline = Instant::now() + within;
        loop {
            self.interrupt.check()?;
            if let Some(found) = look()? {
                return Ok(Some(found));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            self.interrupt.sleep(every)?;
        }
    }

    /// Runs something beside, for as long as the connection lives.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(work);
    }

    /// Whether the run was asked to end.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }
}

/// What Kubernetes said, in one line.
pub fn one_line(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.replace('\n', " "),
        error => chain(error),
    }
}

/// Whether Kubernetes said that there is no such thing.
pub fn is_absent(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// An error and everything behind it, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text.replace('\n', " ")
}
