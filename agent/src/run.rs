//! A life of the agent: what it inherits, when it begins to accept, what it leaves.

use crate::api::Api;
use crate::bpffs;
use crate::cni::{self, Install, Installed, unchain};
use crate::enrolment::{Enrolment, Openness, Tenure};
use crate::handover::{Estate, Predecessor};
use crate::interception::{Before, Interception};
use crate::keeper::{BEAT, Keeper, Left};
use crate::passing::Inherited;
use crate::programs::Costs;
use crate::put;
use crate::reconcile::Reconciler;
use crate::succession::{Parts, Succession, aside};
use crate::tally::{Counters, Tally};
use crate::watch::Watch;
use duet_core::{Error, Ports, Proxy, ProxyArgs, ReadyGuard, TenancyArgs, WorkloadName, vital};
use duet_ebpf::NetnsCookie;
use std::collections::{BTreeSet, HashMap};
use std::future::pending;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long a successor waits for the certificates that its predecessor has. With
/// duet-control there, as it was a moment before, all come within a second.
const CERTIFIED_WITHIN: Duration = Duration::from_secs(5);

/// How often it looks whether it has them all.
const LOOK: Duration = Duration::from_millis(10);

/// Before one whose predecessor hands nothing over asks again, or looks whether it is gone.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// So many times in a row something may be amiss with the CNI plugin at once after a change.
/// Then it is looked at by the clock again: somebody else may insist on another chain.
const AT_ONCE: u32 = 10;

pub struct Settings {
    pub node: String,
    pub socket: PathBuf,
    pub bpffs: PathBuf,
    pub cgroup: Option<PathBuf>,
    /// Standard input is a supervisor's socket.
    pub is_supervised: bool,
    /// After a handover it waits for SIGTERM.
    pub stays: bool,
    pub instance: Option<String>,
    pub handover_drain_timeout: Duration,
    pub cni: Option<Install>,
    /// Whose workloads' connections go around an agent that is away; `*` is all.
    pub fail_open_namespaces: Vec<String>,
    pub tenancy: TenancyArgs,
    pub proxy: ProxyArgs,
}

/// What there is when an agent begins.
struct Inheritance {
    before: Before,
    doors: HashMap<NetnsCookie, Inherited>,
    api: Option<OwnedFd>,
    tally: Tally,
    /// The workloads that the predecessor serves, and its name.
    served: BTreeSet<WorkloadName>,
    came_from: Option<String>,
}

/// Runs an agent until SIGTERM, or until another has taken over.
pub async fn run(settings: Settings) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| wrong(&error))?;
    let (keeper, left) = match settings.is_supervised {
        true => Keeper::begin().map(|(keeper, left)| (Some(Arc::new(keeper)), left)),
        false => Ok((None, Left::default())),
    }
    .map_err(|error| wrong(&error))?;
    // Its own last life still has the API's socket.
    let predecessor = match left.api {
        Some(_) => None,
        None => Predecessor::find(&settings.socket).map_err(|error| wrong(&error))?,
    };
    let node = settings.node.clone();
    let args = settings.proxy.clone();
    let tenancy = Some(&settings.tenancy);
    let proxy = Proxy::start_on(Ports::Shared, tenancy, args, "agent", node).await?;
    let starting = proxy.not_ready_until("eBPF programs in effect");
    let counters = Arc::new(OnceLock::new());
    if let Some(keeper) = &keeper {
        let beat = beat(keeper.clone(), proxy.clone(), left.tally, counters.clone());
        tokio::spawn(vital(beat));
    }
    let before_it = "handover: the agent before this one has everything still";
    let waiting = predecessor
        .as_ref()
        .map(|_| proxy.not_ready_until(before_it));
    let succeeded = match predecessor {
        Some(predecessor) => {
            proxy.hold_back();
            tokio::select! {
                succeeded = succeed(&settings, &proxy, predecessor) => succeeded?,
                _ = terminate.recv() => return Ok(()),
            }
        }
        None => None,
    };
    let (predecessor, inheritance) = match succeeded {
        Some((predecessor, estate)) => (Some(predecessor), Inheritance::of_agent(estate)),
        None => (None, Inheritance::of_process(left)),
    };
    let registered = Counters::new(proxy.registry(), inheritance.tally);
    let registered = registered.map_err(|error| wrong(&error))?;
    let counters = counters.get_or_init(|| registered);
    let cgroup = settings.cgroup.as_deref();
    let interception = Interception::after(inheritance.before, &settings.bpffs, cgroup);
    let interception = Arc::new(interception.map_err(|error| wrong(&error))?);
    let costs = Costs::new(interception.clone());
    let costs = costs.and_then(|costs| proxy.registry().register(Box::new(costs)));
    costs.map_err(|error| wrong(&error))?;
    let tenure = match predecessor {
        Some(_) => Tenure::Coming,
        None => Tenure::Holding,
    };
    let openness = Openness::new(settings.fail_open_namespaces.clone(), proxy.registry());
    let openness = openness.map_err(|error| wrong(&error))?;
    let doors = inheritance.doors;
    let enrolment = Enrolment::start(interception, proxy.clone(), doors, tenure, openness);
    let enrolment = enrolment.await.map_err(|error| wrong(&error))?;
    drop(starting);
    if let Some(predecessor) = predecessor {
        take(&enrolment, predecessor, inheritance.served, counters).await?;
    }
    enrolment.hold(keeper.clone()).await;
    proxy.accept();
    let api = match inheritance.api {
        Some(listener) => Api::inherit(listener, &settings.socket),
        None => Api::bind(&settings.socket),
    };
    let api = api.map_err(|error| wrong(&error))?;
    if let Some(keeper) = keeper {
        let listener = api.share().map_err(|error| wrong(&error))?;
        let kept = keeper.keep_api(listener.as_fd());
        kept.map_err(|error| wrong(&error))?;
    }
    let parts = Parts {
        enrolment,
        proxy,
        counters: counters.clone(),
        instance: settings.instance.clone(),
        came_from: inheritance.came_from,
        drain_timeout: settings.handover_drain_timeout,
    };
    drop(waiting);
    serve(&settings, terminate, parts, api).await
}

/// What a running agent does, to its end.
async fn serve(
    settings: &Settings,
    terminate: Signal,
    parts: Parts,
    api: Api,
) -> Result<(), Error> {
    let proxy = parts.proxy.clone();
    let reconciler = Reconciler::new(parts.enrolment.clone(), proxy.clone());
    let reconciler = reconciler.map_err(|error| wrong(&error))?;
    let reconciling = proxy.draining().run_until_cancelled_owned(reconciler.run());
    tokio::spawn(vital(reconciling));
    let succession = Succession::new(parts, &api).map_err(|error| wrong(&error))?;
    let plugin = settings.cni.clone().map(|install| {
        let ready = proxy.not_ready_until("CNI: not installed yet");
        tokio::spawn(look_after_plugin(install, ready, succession.clone()))
    });
    let serving = api.serve(succession.clone());
    let serving = succession.over().run_until_cancelled_owned(serving);
    let serving = tokio::spawn(vital(serving));
    end(settings, terminate, proxy, &succession).await;
    if let Some(plugin) = plugin {
        let _ = plugin.await;
    }
    serving.abort();
    let _ = serving.await;
    Ok(())
}

/// Is given what the agent has that runs, or waits until it has ended. Before that it
/// makes sure of duet-control, without which it would be worse than what there is.
async fn succeed(
    settings: &Settings,
    proxy: &Proxy,
    predecessor: Predecessor,
) -> Result<Option<(Predecessor, Estate)>, Error> {
    tracing::info!("an agent runs already: taking over from it once duet-control has answered");
    let mut discovered = proxy.discovered();
    let known = discovered.wait_for(|version| *version > 0).await;
    known.map_err(|error| wrong(&error))?;
    let mut waiting: Option<(String, ReadyGuard)> = None;
    let mut next = Some(predecessor);
    while let Some(predecessor) = next {
        let (instance, without_cni) = (settings.instance.clone(), settings.cni.is_none());
        let asked = move || predecessor.succeed(instance.as_deref(), without_cni);
        let asked = aside(asked).await;
        let why = match asked.map_err(|error| wrong(&error))? {
            Ok(succeeded) => return Ok(Some(succeeded)),
            Err(why) => why.to_string(),
        };
        if waiting.as_ref().is_none_or(|(known, _)| *known != why) {
            tracing::warn!(why, "not taking over yet");
            waiting = Some((
                why.clone(),
                proxy.not_ready_until(format!("handover: {why}")),
            ));
        }
        sleep(ASK_AGAIN).await;
        next = Predecessor::find(&settings.socket).map_err(|error| wrong(&error))?;
    }
    // Its socket goes first, and then it drains.
    while bpffs::is_taken(&settings.bpffs) {
        sleep(LOOK).await;
    }
    tracing::info!("the agent before this one has ended, and handed nothing over");
    Ok(None)
}

/// Takes over, as soon as it can do for the workloads what the predecessor does. One that
/// it cannot take up, or get a certificate for in time, must not keep the others from a
/// new agent: its connections wait or are refused, which `duet-agent list` and
/// `duet_agent_workloads` tell.
async fn take(
    enrolment: &Arc<Enrolment>,
    predecessor: Predecessor,
    wanted: BTreeSet<WorkloadName>,
    counters: &Counters,
) -> Result<(), Error> {
    let until = Instant::now() + CERTIFIED_WITHIN;
    let left_out = loop {
        let left_out = enrolment.unserved(&wanted).await;
        let is_late = Instant::now() >= until;
        if is_late && left_out.uncertified.len() == wanted.len() {
            return Err(Error::Passing(format!(
                "not taking over: no workload has got a certificate within {CERTIFIED_WITHIN:?}, \
                 and the agent before this one has them"
            )));
        }
        if is_late || left_out.uncertified.is_empty() {
            break left_out;
        }
        sleep(LOOK).await;
    };
    for workload in &left_out.uncertified {
        tracing::warn!(%workload, "taken over without a certificate: its connections wait");
    }
    for workload in &left_out.missing {
        tracing::warn!(%workload, "not taken over: its connections wait, and are refused in the end");
    }
    let taken = aside(move || predecessor.take().map(|()| predecessor)).await;
    let predecessor = taken.map_err(|error| wrong(&error))?;
    let predecessor = predecessor.map_err(|error| Error::Passing(error.to_string()))?;
    counters.handed_over();
    let left_out = left_out.uncertified.len() + left_out.missing.len();
    tracing::info!(workloads = wanted.len(), left_out, "taken over");
    let counters = counters.clone();
    tokio::spawn(async move {
        if let Ok(cut @ 1..) = aside(move || predecessor.cut()).await {
            counters.cut_by_handover(cut);
            tracing::warn!(
                cut,
                "the agent before this one has cut connections at its end"
            );
        }
    });
    Ok(())
}

/// Waits for the end, and drains.
async fn end(settings: &Settings, mut terminate: Signal, proxy: Proxy, succession: &Succession) {
    let over = succession.over();
    let silence = proxy.clone();
    let stays = settings.stays;
    tokio::spawn(async move {
        over.cancelled().await;
        // Another's probes and scrapes must not come here. A pod's own still do.
        if !stays {
            silence.silence();
        }
    });
    let cut = proxy.run_until_shutdown().await;
    if let Some(successor) = succession.successor().await {
        if let Err(error) = successor.cut(cut as u64) {
            tracing::warn!(%error, cut, "the other agent does not know of what was cut");
        }
        if settings.stays {
            terminate.recv().await;
        }
    }
}

/// Says that this process is well, though it may be waiting for duet-control.
async fn beat(keeper: Arc<Keeper>, proxy: Proxy, before: Tally, counters: Arc<OnceLock<Counters>>) {
    let mut ticks = tokio::time::interval(BEAT);
    loop {
        ticks.tick().await;
        let tally = counters.get().map_or(before, Counters::tally);
        if let Err(error) = keeper.beat(proxy.open_connections() as u64, tally) {
            return tracing::error!(%error, "the supervisor does not hear this process");
        }
    }
}

/// Keeps the CNI plugin in the runtime's chain until this agent ends. It stays there, for
/// the next agent; but one that does without it cannot take it out, for it does not see
/// the runtime's directories, so this one does.
async fn look_after_plugin(install: Install, ready: ReadyGuard, succession: Arc<Succession>) {
    let place = install.configurations.clone();
    keep_installed(install, ready, &succession.proxy().draining()).await;
    if !succession.is_without_cni() {
        return;
    }
    let unchained = tokio::task::spawn_blocking(move || unchain(&place)).await;
    match unchained.map_err(std::io::Error::other).flatten() {
        Ok(_) => tracing::info!("CNI plugin taken out: the next agent does without it"),
        Err(error) => tracing::error!(%error, "CNI plugin not taken out: run duet-agent cleanup"),
    }
}

/// Has the CNI plugin where it belongs, whoever else writes there. A runtime that has
/// no network yet is no reason to be unready: its network's own pods may wait for this.
async fn keep_installed(install: Install, ready: ReadyGuard, until: &CancellationToken) {
    let mut ready = Some(ready);
    let mut trouble = None;
    let mut watch = Watch::new();
    let (mut is_early, mut at_once) = (false, AT_ONCE);
    loop {
        watch.on([install.configurations.as_path()]);
        let work = install.clone();
        let looked = tokio::task::spawn_blocking(move || work.look()).await;
        match looked.map_err(std::io::Error::other).flatten() {
            Ok(installed) => {
                if installed == Installed::Now {
                    let place = install.configurations.display();
                    tracing::info!(configurations = %place, "CNI plugin installed");
                    at_once = at_once.saturating_sub(1);
                }
                ready.take();
                trouble = None;
            }
            // Most likely it is being written just now.
            Err(_) if is_early => at_once = at_once.saturating_sub(1),
            Err(error) => {
                let error = error.to_string();
                if trouble.as_ref() != Some(&error) {
                    tracing::error!(error, "CNI plugin not installed");
                    trouble = Some(error);
                }
            }
        }
        let changed = async {
            match at_once {
                0 => pending().await,
                _ => watch.changed(|name| !put::is_unfinished(name)).await,
            }
        };
        let next = until.run_until_cancelled(timeout(cni::LOOK, changed)).await;
        is_early = match next {
            None => return,
            Some(changed) => changed.is_ok(),
        };
        if !is_early {
            at_once = AT_ONCE;
        }
    }
}

fn wrong(error: &dyn std::error::Error) -> Error {
    Error::Mode(error.to_string())
}

// === impl Inheritance ===

impl Inheritance {
    /// From the life before, by way of the supervisor; or nothing.
    fn of_process(left: Left) -> Self {
        Self {
            before: match left.doors.is_empty() {
                true => Before::Nothing,
                false => Before::Listeners,
            },
            doors: left.doors,
            api: left.api,
            tally: left.tally,
            served: BTreeSet::new(),
            came_from: None,
        }
    }

    fn of_agent(estate: Estate) -> Self {
        Self {
            before: Before::Agent(estate.lock),
            doors: estate.doors,
            api: Some(estate.api),
            tally: estate.tally,
            served: estate.served,
            came_from: estate.instance,
        }
    }
}
