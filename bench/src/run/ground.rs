//! What a run stands on, and whether it can: this machine's namespaces, or a
//! Kubernetes cluster.

use super::execute::{Options, RunError};
use super::machine;
use super::preflight::{Binaries, Refusal};
use super::{Interrupt, Plan};
use crate::arm::Arm;
use crate::attend::protocol::Hello;
use crate::cluster::kube::{Kube, KubeSite, Settling, preflight};
use crate::cluster::{self, Layout, NetnsSite, Placement, Site};
use crate::doctor;
use crate::results::{Kubernetes, KubernetesNode, Machine, Pressure};

/// What nodes and pods are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ground {
    /// Network namespaces on this machine.
    Netns,
    /// Whatever a kubeconfig's context leads to.
    Kube(KubeOptions),
}

/// How a Kubernetes cluster is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeOptions {
    /// The kubeconfig's context; its current one by default.
    pub context: Option<String>,
    /// The image that pods run.
    pub image: String,
    /// Nodes to use, by name; the first two that take pods by default.
    pub nodes: Vec<String>,
    /// Kills agents even if pods of others use them.
    pub disturb_others: bool,
    /// Generators have a real-time class, and the capability that it takes.
    pub realtime: bool,
}

/// A ground that a run can begin on.
pub(super) struct Prepared {
    pub site: Box<dyn Site>,
    pub kube: Option<KubeSite>,
    pub binaries: Binaries,
    pub machine: Machine,
    pub notes: Vec<String>,
    /// Some program was built without optimisation.
    pub claims_nothing: bool,
}

impl Ground {
    /// As in the results.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Netns => "netns",
            Self::Kube(_) => "kube",
        }
    }

    /// What can be checked before a run has a place for its files: this machine and
    /// its binaries.
    pub(super) fn examine(&self, options: &Options) -> Result<Binaries, RunError> {
        if *self != Self::Netns {
            return Ok(Binaries::default());
        }
        if !nix::unistd::geteuid().is_root() {
            return Err(RunError::NotRoot);
        }
        let arms = &options.plan.arms;
        let binaries = Binaries::inspect(cluster::binary, arms)?;
        binaries.check(arms, options.allow_debug)?;
        match problem(arms) {
            Some(problem) => Err(RunError::Machine(problem)),
            None => Ok(binaries),
        }
    }

    /// Takes it into use.
    pub(super) fn prepare(
        &self,
        options: &Options,
        binaries: Binaries,
        interrupt: &Interrupt,
    ) -> Result<Prepared, RunError> {
        match self {
            Self::Netns => netns(options, binaries, interrupt),
            Self::Kube(kube) => kubernetes(options, kube, interrupt),
        }
    }
}

fn netns(
    options: &Options,
    binaries: Binaries,
    interrupt: &Interrupt,
) -> Result<Prepared, RunError> {
    let notes = binaries.check(&options.plan.arms, options.allow_debug)?;
    Ok(Prepared {
        site: Box::new(NetnsSite::new(interrupt.clone())),
        kube: None,
        machine: machine::fingerprint(&binaries, Layout::detect()?.describe()),
        claims_nothing: !notes.is_empty(),
        notes,
        binaries,
    })
}

fn has_agents(arms: &[Arm]) -> bool {
    arms.iter().any(|arm| arm.placement() == Placement::Agent)
}

/// The first thing that this machine lacks for these arms, as one line.
fn problem(arms: &[Arm]) -> Option<String> {
    let matters = |check: &doctor::Check| match check.name {
        "eBPF" => has_agents(arms),
        // The binaries have been asked already.
        name => !name.starts_with("duet-"),
    };
    doctor::examine()
        .into_iter()
        .filter(matters)
        .find(|check| check.status == doctor::Status::Problem)
        .map(|check| format!("{}: {}: {}", check.name, check.detail, check.remedy))
}

fn kubernetes(
    options: &Options,
    wanted: &KubeOptions,
    interrupt: &Interrupt,
) -> Result<Prepared, RunError> {
    let plan = &options.plan;
    let kube = Kube::connect(wanted.context.as_deref(), interrupt.clone())?;
    let version = preflight::version(&kube)?;
    let needs = needs(plan, wanted);
    preflight::permissions(&kube, &needs)?;
    preflight::mesh(&kube, &needs)?;
    let settling = Settling {
        image: wanted.image.clone(),
        nodes: wanted.nodes.clone(),
        realtime: wanted.realtime,
    };
    let site = KubeSite::settle(kube, &settling)?;
    let bench = site.node(1).hello.clone();
    if bench.version != env!("CARGO_PKG_VERSION") {
        return Err(RunError::Refused(Refusal::ImageVersion {
            image: wanted.image.clone(),
            theirs: bench.version,
            ours: env!("CARGO_PKG_VERSION"),
        }));
    }
    preflight::agents(&site, &needs)?;
    let sidecars = plan
        .arms
        .iter()
        .any(|arm| arm.placement() == Placement::Sidecar);
    let programs = preflight::programs(&site, &needs, sidecars)?;
    let binaries = Binaries::of_cluster(&programs, &bench)?;
    let mut notes = binaries.check_cluster(options.allow_debug)?;
    let claims_nothing = !notes.is_empty();
    notes.extend(caveats(&site));
    Ok(Prepared {
        machine: fingerprint(&site, version, &bench, &binaries)?,
        site: Box::new(site.clone()),
        kube: Some(site),
        binaries,
        notes,
        claims_nothing,
    })
}

fn needs(plan: &Plan, wanted: &KubeOptions) -> preflight::Needs {
    preflight::Needs {
        mesh: plan.arms.iter().any(|arm| arm.meshed()),
        agents: has_agents(&plan.arms),
        disturbs: plan.scenarios.iter().any(|id| id.disturbs_agents()),
        disturb_others: wanted.disturb_others,
    }
}

/// What a reader of the results has to know of a cluster.
fn caveats(site: &KubeSite) -> Vec<String> {
    let mut notes = Vec::new();
    if let [only] = site.nodes() {
        notes.push(format!(
            "All pods were on {}: there was no second node, so nothing crosses from one to another.",
            only.name
        ));
    }
    if site.nodes().iter().any(|node| !node.first_of_machine) {
        notes.push(
            "Nodes share one machine: its processors, which every arm's pods, the API server and the \
             kubelets compete for."
                .to_owned(),
        );
    }
    notes
}

fn fingerprint(
    site: &KubeSite,
    version: String,
    bench: &Hello,
    binaries: &Binaries,
) -> Result<Machine, RunError> {
    let own = machine::fingerprint(binaries, "");
    let nodes = site.nodes();
    let first_like = |boot: &str, before: u32| {
        nodes
            .iter()
            .find(|other| other.number < before && other.hello.boot == boot)
            .map(|other| other.name.clone())
    };
    let described = nodes
        .iter()
        .map(|node| {
            let clock = node.clock(site.kube())?;
            Ok(KubernetesNode {
                name: node.name.clone(),
                kernel: node.hello.kernel.clone(),
                cpu: node.hello.cpu.clone(),
                cores: node.hello.cores,
                memory_mib: node.hello.memory_mib,
                cgroup_layout: node.hello.cgroups.clone().unwrap_or_default(),
                runtime: node.runtime.clone(),
                system: node.system.clone(),
                same_machine_as: first_like(&node.hello.boot, node.number),
                clock_uncertainty_us: clock.uncertainty_ns as f64 / 1000.0,
            })
        })
        .collect::<Result<Vec<_>, RunError>>()?;
    Ok(Machine {
        kernel: bench.kernel.clone(),
        cpu: bench.cpu.clone(),
        cores: site.cores() as u32,
        memory_mib: bench.memory_mib,
        cgroup_layout: bench.cgroups.clone().unwrap_or_default(),
        congestion_control: bench.congestion_control.clone(),
        scheduler: site.generator_class().to_owned(),
        governor: None,
        tls_suite: own.tls_suite,
        rustc: own.rustc,
        binaries: own.binaries,
        pressure_before: Pressure::default(),
        pressure_after: Pressure::default(),
        kubernetes: Some(Kubernetes {
            version,
            nodes: described,
        }),
    })
}
