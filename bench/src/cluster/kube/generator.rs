//! A generator, or another program of this suite, in a pod, as its attendant runs it.

use super::bed::Standing;
use super::nodes::PROMPT;
use super::objects::LOAD;
use super::pods::Observed;
use super::session::{Pending, Session};
use crate::attend::protocol::{Ask, Look};
use crate::cluster::clock::monotonic_ns;
use crate::cluster::error::{ClusterError, Result};
use crate::cluster::site::{Counters, Generator, Load, Running, Tool, User};
use crate::cluster::spec::Placement;
use crate::load::LoadReport;
use crate::run::Interrupt;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// How long after the window's end a report may take: the time-out of the last
/// request and some.
const REPORTING: Duration = Duration::from_secs(20);

pub struct KubeGenerator {
    bed: Rc<Standing>,
    session: Rc<Session>,
    load: Load,
    /// The number of its node.
    node: u32,
    id: u64,
    report: RefCell<Option<Pending<LoadReport>>>,
}

impl KubeGenerator {
    pub fn start(bed: &Rc<Standing>, load: &Load) -> Result<Self> {
        let node = bed.placed(&load.pod)?.node;
        let clock = bed.node(node).clock(&bed.site.kube)?;
        let session = bed.session(&load.pod)?;
        let report = session.ask::<LoadReport>(Ask::Load {
            arguments: load.arguments.clone(),
            begin_ns: clock.theirs(load.begin_ns),
        })?;
        Ok(Self {
            bed: bed.clone(),
            session,
            load: load.clone(),
            node,
            id: report.id,
            report: RefCell::new(Some(report)),
        })
    }

    fn end_ns(&self) -> u64 {
        self.load.begin_ns + self.load.window.as_nanos() as u64
    }

    /// How long an answer may take that is due at an instant.
    fn until(instant_ns: u64) -> Duration {
        Duration::from_nanos(instant_ns.saturating_sub(monotonic_ns())) + PROMPT
    }
}

/// A program that has been started.
pub struct KubeTool {
    bed: Rc<Standing>,
    session: Rc<Session>,
    pod: String,
    id: u64,
    said: Option<Pending<String>>,
}

impl KubeTool {
    pub fn start(bed: &Rc<Standing>, tool: &Tool) -> Result<Self> {
        if tool.user != User::Application {
            return Err(ClusterError::Unsupported(format!(
                "programs of other users in {}: only with --cluster netns",
                tool.pod
            )));
        }
        let node = bed.node(bed.placed(&tool.pod)?.node);
        let clock = node.clock(&bed.site.kube)?;
        let session = bed.session(&tool.pod)?;
        let said = session.ask::<String>(Ask::Run {
            arguments: tool.arguments.clone(),
            begin_ns: tool.begin_ns.map(|at| clock.theirs(at)),
        })?;
        Ok(Self {
            bed: bed.clone(),
            session,
            pod: tool.pod.clone(),
            id: said.id,
            said: Some(said),
        })
    }
}

impl Running for KubeTool {
    fn finish(mut self: Box<Self>, interrupt: &Interrupt, within: Duration) -> Result<String> {
        interrupt.check()?;
        let said = self
            .said
            .take()
            .ok_or_else(|| ClusterError::Unsupported("it has ended".to_owned()))?;
        said.wait(&self.bed.site.kube, within + PROMPT)
            .map_err(|error| failed_in(&self.pod, error))
    }
}

/// It must not go on beside the next trial.
impl Drop for KubeTool {
    fn drop(&mut self) {
        if self.said.is_some() {
            let _ = self.session.ask::<()>(Ask::StopLoad { load: self.id });
        }
    }
}

/// What a program in a pod complains of is the pod's.
fn failed_in(pod: &str, error: ClusterError) -> ClusterError {
    match error {
        ClusterError::Kubernetes { said, .. } => ClusterError::Generator {
            pod: pod.to_owned(),
            problem: said,
        },
        error => error,
    }
}

/// What was asked at one end of the window, and of which node.
type End = Vec<(u32, Pending<Look>)>;

impl KubeGenerator {
    fn ask(&self, at_ns: u64) -> Result<End> {
        let kube = &self.bed.site.kube;
        let observed = self.bed.observed()?;
        let stationed = self.bed.stationed()?;
        let mut looks = Vec::new();
        for node in &self.bed.site.nodes {
            let proxies: Vec<String> = stationed
                .iter()
                .filter(|one| one.node == node.number)
                .map(|one| one.container.clone())
                .collect();
            // A sidecar is in one of the bed's pods, an agent is a pod of its own.
            let pods = observed
                .iter()
                .filter(|(placed, _)| placed.node == node.number)
                .map(|(_, pod)| pod.uid())
                .chain(
                    stationed
                        .iter()
                        .filter(|one| one.node == node.number)
                        .map(|one| one.pod.uid()),
                );
            let mut pods: Vec<String> = pods.map(str::to_owned).collect();
            pods.sort_unstable();
            pods.dedup();
            let generator = observed
                .iter()
                .find(|(placed, _)| placed.node == node.number && placed.spec.name == self.load.pod)
                .and_then(|(_, pod)| pod.container_id(LOAD))
                .map(str::to_owned);
            let look = node.reader().ask::<Look>(Ask::Look {
                at_ns: Some(node.clock(kube)?.theirs(at_ns)),
                proxies,
                generator,
                pods,
                programs: self.bed.placement() == Placement::Agent,
            })?;
            looks.push((node.number, look));
        }
        Ok(looks)
    }

    fn hear(&self, end: End, at_ns: u64) -> Result<Counters> {
        let kube = &self.bed.site.kube;
        let mut counters = Counters::default();
        for (number, look) in end {
            let node = self.bed.node(number);
            let look = look.wait(kube, Self::until(at_ns))?;
            if node.first_of_machine {
                counters.machine = counters.machine + look.machine;
            }
            if number == self.node {
                counters.at_ns = node.clock(kube)?.ours(look.at_ns);
                counters.pressure = look.pressure;
                counters.generator_throttled = look.generator_throttled;
            }
            counters.proxies_us += look.proxies_us;
            counters.proxies_throttled += look.proxies_throttled;
            counters.arm_us += look.pods_us;
            counters.bpf = counters.bpf + look.bpf;
        }
        Ok(counters)
    }
}

impl Generator for KubeGenerator {
    fn watch(&self, interrupt: &Interrupt) -> Result<[Counters; 2]> {
        interrupt.check()?;
        let (begin, end) = (self.load.begin_ns, self.end_ns());
        let (first, second) = (self.ask(begin)?, self.ask(end)?);
        Ok([self.hear(first, begin)?, self.hear(second, end)?])
    }

    fn stop(&self) -> Result<()> {
        self.session.call(Ask::StopLoad { load: self.id }, PROMPT)
    }

    fn report(self: Box<Self>, interrupt: &Interrupt) -> Result<LoadReport> {
        interrupt.check()?;
        let pending = self
            .report
            .take()
            .ok_or_else(|| ClusterError::Unsupported("this report was read".to_owned()))?;
        let kube = &self.bed.site.kube;
        let within = Self::until(self.end_ns()) + REPORTING;
        let mut report = pending
            .wait(kube, within)
            .map_err(|error| failed_in(&self.load.pod, error))?;
        let clock = self.bed.node(self.node).clock(kube)?;
        report.start_ns = clock.ours(report.start_ns);
        report.timeline.start_ns = clock.ours(report.timeline.start_ns);
        Ok(report)
    }
}
