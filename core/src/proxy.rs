//! A running proxy: the workloads it serves, from their first connection to their last.

use crate::admin;
use crate::api::EnrolmentReport;
use crate::capture::{Capture, Direction, WorkloadName};
use crate::config::{ProxyArgs, TenancyArgs};
use crate::control::Control;
use crate::directory::{Directory, Transport};
use crate::identity::{Identities, Trust};
use crate::local::Local;
use crate::rarely::until;
use crate::ready::{Readiness, ReadyGuard};
use crate::runtime::vital;
use crate::telemetry::{AccessLog, Connections, Metrics, Tracer};
use crate::telemetry::{expose_endpoints, expose_threads, expose_workloads};
use crate::tenancy::Tenancy;
use crate::{heap, inbound, outbound, runtime};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Signals that come so soon after the first are the same wish: a terminal's Ctrl-C
/// reaches a supervisor, which passes it on, and its child.
const SAME_WISH: Duration = Duration::from_millis(500);
/// How long accepting pauses when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something the user wrote is wrong.
    #[error("{0}")]
    Config(String),
    #[error("{what} {address}: {reason}")]
    Listen {
        what: &'static str,
        address: SocketAddr,
        reason: std::io::Error,
    },
    /// A mode's own failure.
    #[error("{0}")]
    Mode(String),
    /// The same, of which the next attempt may know nothing.
    #[error("{0}")]
    Passing(String),
}

/// Why a report did not arrive.
#[derive(Debug, thiserror::Error)]
#[error("duet-control: {}: {}", .0.code(), .0.message())]
pub struct ReportError(tonic::Status);

impl ReportError {
    /// duet-control knows of no such workload, or of another of its name: it comes or
    /// goes just now, and one of the two has heard of that before the other.
    pub fn is_out_of_step(&self) -> bool {
        use tonic::Code::{FailedPrecondition, NotFound};
        matches!(self.0.code(), NotFound | FailedPrecondition)
    }
}

/// Everything that all workloads of this proxy share.
pub(crate) struct Shared {
    pub args: ProxyArgs,
    pub mode: &'static str,
    pub node: String,
    pub directory: Arc<Directory>,
    pub control: Control,
    pub identities: Identities,
    pub metrics: Arc<Metrics>,
    pub log: AccessLog,
    /// `None`: nobody wants to have spans.
    pub tracer: Option<Arc<Tracer>>,
    pub connections: Arc<Connections>,
    pub readiness: Readiness,
    pub locals: Mutex<BTreeMap<WorkloadName, Arc<Local>>>,
    /// Whether there is one workload for as long as the process runs.
    pub is_of_one: bool,
    /// `None` if there is one workload, or if they are not told apart.
    pub tenancy: Option<Tenancy>,
    pub drain: CancellationToken,
    pub shutdown: Notify,
    pub drain_timeout: Mutex<Duration>,
    /// Whether connections are accepted, or wait in the listeners' queues.
    pub accepting: watch::Sender<bool>,
    /// One for each listener that is open.
    pub listeners: TaskTracker,
    /// Ends the admin servers.
    pub silent: CancellationToken,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Proxy(Arc<Shared>);

/// Whose the admin ports are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// This proxy's. Somebody else's presence is an error.
    Own,
    /// This proxy's and its predecessor's (`SO_REUSEPORT`), for as long as both run.
    Shared,
}

/// A workload of this node that discovery gives to the node's agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    pub name: WorkloadName,
    /// Kubernetes' pod UID; empty elsewhere.
    pub uid: String,
    /// It is this agent's for as long as it is there, whatever discovery tells later.
    pub stamped: bool,
    /// None, while the platform has told of none.
    pub addresses: Vec<IpAddr>,
    /// Whether others are told to reach it through the mesh.
    pub meshed: bool,
}

/// A workload the proxy serves. Dropping it changes nothing; [`Workload::remove`]
/// ends it.
pub struct Workload(Arc<Local>);

impl Proxy {
    /// Starts what does not depend on a workload: the control-plane client and the
    /// admin servers. `mode` and `node` are what the proxy calls itself.
    pub async fn start(args: ProxyArgs, mode: &'static str, node: String) -> Result<Self, Error> {
        Self::start_on(Ports::Own, None, args, mode, node).await
    }

    /// As [`Self::start`]. `ports` says whether a proxy that runs already, and that
    /// this one is to succeed, may have the admin ports as well; `tenancy` what each of
    /// several workloads may have.
    pub async fn start_on(
        ports: Ports,
        tenancy: Option<&TenancyArgs>,
        args: ProxyArgs,
        mode: &'static str,
        node: String,
    ) -> Result<Self, Error> {
        if !args.admin.ip().is_loopback() {
            let admin = args.admin;
            return Err(Error::Config(format!(
                "--admin {admin}: write a loopback address, as 127.0.0.1:15000"
            )));
        }
        let trust = Trust::default();
        let control = Control::new(&args, format!("{mode} {node}"), node.clone(), trust.clone())
            .map_err(Error::Config)?;
        let workers = runtime::workers(&args);
        let metrics = Arc::new(Metrics::new(mode, workers));
        let tracer = Tracer::start(&args, metrics.registry()).map_err(Error::Config)?;
        let directory = Arc::default();
        expose_endpoints(metrics.registry(), &directory);
        expose_threads(metrics.registry());
        let shared = Arc::new(Shared {
            directory,
            control: control.clone(),
            identities: Identities::new(control.clone(), trust, metrics.clone()),
            metrics,
            log: AccessLog::new(args.access_log),
            tracer,
            connections: Arc::default(),
            readiness: Readiness::default(),
            locals: Mutex::default(),
            is_of_one: tenancy.is_none(),
            tenancy: tenancy.and_then(TenancyArgs::budgets).map(Tenancy::start),
            drain: CancellationToken::new(),
            shutdown: Notify::new(),
            drain_timeout: Mutex::new(args.drain_timeout),
            accepting: watch::Sender::new(true),
            listeners: TaskTracker::new(),
            silent: CancellationToken::new(),
            args,
            mode,
            node,
        });
        expose_workloads(&shared);
        admin::serve(&shared, ports)?;

        let discovered = shared
            .readiness
            .not_until("discovery: no snapshot from duet-control yet");
        let mut version = shared.directory.version();
        tokio::spawn(async move {
            let _ = version.wait_for(|version| *version > 0).await;
            drop(discovered);
        });
        tokio::spawn(vital(control.watch(shared.directory.clone())));
        tokio::spawn(heap::give_back(shared.connections.clone()));
        tokio::spawn(heap::give_back_program(shared.readiness.clone()));
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            core = crate::CORE_FINGERPRINT,
            mode,
            node = shared.node,
            workers,
            "duet proxy started"
        );
        Ok(Self(shared))
    }

    /// Takes charge of a workload's connections. Returns at once: they wait until
    /// the workload's identity is known.
    pub fn add(&self, name: WorkloadName, capture: Capture) -> Workload {
        let local = Local::new(name.clone(), capture.kernel, self.0.clone());
        for listener in capture.outbound {
            accept(
                local.clone(),
                Door::Outbound,
                listener,
                outbound::connection,
            );
        }
        for listener in capture.inbound {
            accept(local.clone(), Door::Plaintext, listener, inbound::plaintext);
        }
        for listener in capture.mesh {
            accept(local.clone(), Door::Mesh, listener, inbound::mesh);
        }
        let identity = vital(local.clone().follow_identity());
        local
            .tasks
            .spawn(local.cancel.clone().run_until_cancelled_owned(identity));

        let mut locals = self.0.locals.lock();
        if let Some(replaced) = locals.insert(name, local.clone()) {
            replaced.cancel.cancel();
        }
        self.0.metrics.workloads(locals.len());
        Workload(local)
    }

    /// The workloads that discovery gives to this node's agent, as of now.
    pub fn placed_here(&self) -> Vec<Placed> {
        let found = self.0.directory.of_agent(&self.0.node);
        let placed = found.iter().map(|workload| Placed {
            name: workload.name.clone(),
            uid: workload.uid.clone(),
            stamped: workload.stamped,
            addresses: workload.addresses.clone(),
            meshed: workload.transport != Transport::Plaintext,
        });
        placed.collect()
    }

    /// Changes with each update from discovery; 0 until the first.
    pub fn discovered(&self) -> watch::Receiver<u64> {
        self.0.directory.version()
    }

    /// Tells duet-control, once, whether a workload's connections are this proxy's.
    ///
    /// # Errors
    /// What duet-control answered, or that it did not.
    pub async fn report(&self, report: EnrolmentReport) -> Result<(), ReportError> {
        self.0.control.report(report).await.map_err(ReportError)
    }

    /// Adds the mode's own guard: /ready names `what` until the guard is dropped.
    pub fn not_ready_until(&self, what: impl Into<String>) -> ReadyGuard {
        self.0.readiness.not_until(what)
    }

    /// Cancelled when the proxy takes no more connections.
    pub fn draining(&self) -> CancellationToken {
        self.0.drain.clone()
    }

    /// The registry behind /metrics, for a mode's own few metrics.
    pub fn registry(&self) -> &prometheus::Registry {
        self.0.metrics.registry()
    }

    /// From now on connections wait in the listeners' queues, until
    /// [`Self::accept`].
    pub fn hold_back(&self) {
        self.0.accepting.send_replace(false);
    }

    pub fn accept(&self) {
        self.0.accepting.send_replace(true);
    }

    /// What is missing for /ready; empty when ready.
    pub fn missing(&self) -> Vec<String> {
        self.0.readiness.missing()
    }

    /// Connections that are open and that an application has an end of: clients' and
    /// servers', without those between proxies.
    pub fn open_connections(&self) -> usize {
        self.0.connections.of_applications()
    }

    /// As POST /shutdown, with another drain time-out.
    pub fn shut_down(&self, drain_timeout: Duration) {
        *self.0.drain_timeout.lock() = drain_timeout;
        self.0.shutdown.notify_one();
    }

    /// Ends when a proxy that shuts down has closed its listeners. Those that another
    /// process has as well stay open there.
    pub async fn deaf(&self) {
        self.0.listeners.close();
        self.0.listeners.wait().await;
    }

    /// Closes the admin ports, which are another proxy's from now on.
    pub fn silence(&self) {
        self.0.silent.cancel();
    }

    /// Waits for SIGTERM, SIGINT or POST /shutdown, then closes all listeners and
    /// lets what is open finish within the drain time-out, or until a second signal.
    /// Returns how many connections were cut at its end.
    pub async fn run_until_shutdown(self) -> usize {
        tokio::select! {
            () = told_to_end() => {}
            () = self.0.shutdown.notified() => {}
        }
        let timeout = *self.0.drain_timeout.lock();
        tracing::info!(?timeout, "draining");
        self.0.readiness.drain();
        self.0.drain.cancel();
        let locals: Vec<_> = self.0.locals.lock().values().cloned().collect();
        let drained = async {
            for local in &locals {
                // Identity and pooled connections are of no use to a proxy that
                // only waits for what is open.
                local.tasks.close();
                while local.tasks.len() > 1 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        };
        let told_again = async {
            tokio::time::sleep(SAME_WISH).await;
            told_to_end().await;
        };
        let why = tokio::select! {
            () = drained => None,
            () = tokio::time::sleep(timeout) => Some("drain time-out"),
            () = told_again => Some("a second signal"),
        };
        let cut = match why {
            None => {
                tracing::info!("drained");
                0
            }
            Some(why) => {
                let left = self.open_connections();
                tracing::warn!(left, "{why}: connections are cut");
                left
            }
        };
        for local in &locals {
            local.cancel.cancel();
        }
        // A process that stays must not keep the network namespaces of pods that go.
        self.0.locals.lock().clear();
        self.0.metrics.workloads(0);
        cut
    }
}

/// From now on, by a signal.
async fn told_to_end() {
    let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM can be handled");
    let mut interrupt = signal(SignalKind::interrupt()).expect("SIGINT can be handled");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

impl Workload {
    pub fn name(&self) -> &WorkloadName {
        &self.0.name
    }

    /// Ends once the workload has a certificate, or is removed. It may outlive
    /// this handle.
    pub fn ready(&self) -> impl Future<Output = ()> + Send + use<> {
        let local = self.0.clone();
        async move {
            local.cancel.run_until_cancelled(local.ready()).await;
        }
    }

    /// Closes the listeners, ends the connections, forgets the key.
    pub async fn remove(self) {
        let Self(local) = self;
        local.cancel.cancel();
        local.tasks.close();
        local.tasks.wait().await;
        local.forget_identity();
        let mut locals = local.shared.locals.lock();
        if locals
            .get(&local.name)
            .is_some_and(|known| Arc::ptr_eq(known, &local))
        {
            locals.remove(&local.name);
            local.shared.metrics.forget_workload(&local.name);
            local.shared.connections.forget(&local.name);
        }
        local.shared.metrics.workloads(locals.len());
    }
}

/// Which listener it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    Outbound,
    Plaintext,
    Mesh,
}

impl Door {
    const fn direction(self) -> Direction {
        match self {
            Self::Outbound => Direction::Outbound,
            Self::Plaintext | Self::Mesh => Direction::Inbound,
        }
    }
}

/// Accepts until the workload drains, and runs `story` for each connection. While the
/// workload may have no more of them, they wait in the listener's queue.
fn accept<F>(
    local: Arc<Local>,
    door: Door,
    listener: TcpListener,
    story: impl Fn(Arc<Local>, TcpStream, SocketAddr) -> F + Send + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let tasks = local.tasks.clone();
    let open = local.shared.listeners.token();
    let direction = door.direction();
    let share = local.tenant.share().clone();
    tasks.spawn(share.of(vital(async move {
        let mut accepting = local.shared.accepting.subscribe();
        loop {
            let accept = async {
                // The sender is in `shared`, as long as anything.
                let _ = accepting.wait_for(|accepting| *accepting).await;
                local.tenant.share().pause().await;
                local.tenant.room(direction).await;
                if door == Door::Mesh {
                    local.tenant.handshake(direction).await;
                }
                listener.accept().await
            };
            let accepted = tokio::select! {
                accepted = accept => accepted,
                () = local.drain.cancelled() => break,
                () = local.cancel.cancelled() => break,
            };
            match accepted {
                Ok((stream, client)) => {
                    let _ = stream.set_nodelay(true);
                    let client = crate::capture::canonical(client);
                    let place = local.tenant.connection(direction);
                    // Boxed: whatever it is wrapped in has room for it several times.
                    let connection = Box::pin(story(local.clone(), stream, client));
                    let connection = local.tenant.share().of(async move {
                        connection.await;
                        drop(place);
                    });
                    let cut = local.cancel.clone().cancelled_owned();
                    local.tasks.spawn(until(cut, connection));
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(workload = %local.name, %error, "accepting");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        drop(open);
    })));
}

/// The client was gone before it was accepted.
fn is_of_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}
