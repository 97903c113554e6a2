//! One source of load that is no request after another, from its start to its report.

use super::{Bed, Failure, Lab};
use crate::cluster::{ClusterError, Running, Tool, User};
use crate::stress::{STRESS, StressReport};
use std::net::SocketAddr;
use std::time::Duration;

/// How long after its window a report may take.
const REPORTING: Duration = Duration::from_secs(15);

/// What `duet-bench stress` is to do.
#[derive(Clone, Debug)]
pub struct Press<'a> {
    /// The kind, as on its command line.
    pub kind: &'static str,
    /// The pod it runs in.
    pub pod: &'a str,
    /// Whom to do it to.
    pub to: SocketAddr,
    /// Connections at the same time.
    pub connections: u32,
    /// Handshakes per second; as many as can be by default.
    pub rate: Option<f64>,
    /// For how long is counted.
    pub window: Duration,
}

/// One at work.
pub struct Pressing {
    pod: String,
    running: Box<dyn Running>,
    window: Duration,
}

impl Press<'_> {
    /// Starts it; what it does from `begin_ns` on is counted.
    pub fn start(&self, bed: &Bed, begin_ns: u64) -> Result<Pressing, Failure> {
        let window = format!("{}ms", self.window.as_millis());
        let mut arguments = vec![STRESS.to_owned(), self.kind.to_owned()];
        for (flag, value) in [
            ("--to", self.to.to_string()),
            ("--connections", self.connections.to_string()),
            ("--duration", window),
        ] {
            arguments.extend([flag.to_owned(), value]);
        }
        if let Some(rate) = self.rate {
            arguments.extend(["--rate".to_owned(), format!("{rate:.3}")]);
        }
        let running = bed.cluster.start(&Tool {
            pod: self.pod.to_owned(),
            arguments,
            begin_ns: Some(begin_ns),
            user: User::Application,
        })?;
        Ok(Pressing {
            pod: self.pod.to_owned(),
            running,
            window: self.window,
        })
    }
}

impl Pressing {
    /// Waits for what was done.
    pub fn report(self, lab: &Lab<'_>) -> Result<StressReport, Failure> {
        let said = self
            .running
            .finish(lab.interrupt, self.window + REPORTING)?;
        serde_json::from_str(&said).map_err(|error| {
            let problem = format!("its report: {error}");
            ClusterError::Pod {
                pod: self.pod,
                problem,
            }
            .into()
        })
    }
}

/// Processor time of all proxies so far, µs.
pub fn spent(bed: &Bed) -> Result<u64, Failure> {
    let mut sum = 0;
    for node in 1..=bed.cluster.nodes() {
        sum += bed
            .cluster
            .charges(node)?
            .iter()
            .map(|one| one.cpu_us)
            .sum::<u64>();
    }
    Ok(sum)
}
