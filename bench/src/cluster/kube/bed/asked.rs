//! What an experiment asks of a bed.

use super::{Death, KubeBed, Standing};
use crate::accounting::{Certified, KeyScan, Privileges};
use crate::attend::protocol::{Ask, Charged, Held, Limited};
use crate::cluster::capture::CaptureReport;
use crate::cluster::error::{ClusterError, Result};
use crate::cluster::kube::generator::{KubeGenerator, KubeTool};
use crate::cluster::kube::mesh::Given as Share;
use crate::cluster::kube::nodes::PROMPT;
use crate::cluster::kube::pods::Observed;
use crate::cluster::netns_site::{certified, workers_in};
use crate::cluster::proxy::{Life, Restart};
use crate::cluster::site::{
    Belongings, Capture, Charge, Cluster, Generator, Given, Holding, Load, ProxyRef, Running, Tool,
};
use crate::cluster::spec::{ParityRow, Placement, PodSpec};
use crate::results;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

/// From asking for a generator to its window: exec is not in it, but the API server is.
const LEAD: Duration = Duration::from_millis(250);
const ADMIN: u16 = 15000;
const METRICS: u16 = 15020;
const MIB: f64 = 1_048_576.0;

impl Cluster for KubeBed {
    fn address(&self, service: &str) -> Result<IpAddr> {
        let known = &self.0.addresses;
        known.get(service).copied().ok_or_else(|| {
            ClusterError::unknown("service", service, known.keys().map(String::as_str))
        })
    }

    fn nodes(&self) -> u32 {
        self.0.site.nodes.len() as u32
    }

    fn lead(&self) -> Duration {
        LEAD
    }

    fn generate(&self, load: &Load) -> Result<Box<dyn Generator>> {
        Ok(Box::new(KubeGenerator::start(&self.0, load)?))
    }

    fn proxies(&self, node: u32) -> Result<Vec<ProxyRef>> {
        let all = self.0.stationed_on(node)?;
        Ok(all.into_iter().map(|one| one.proxy).collect())
    }

    fn proxy_of(&self, pod: &str) -> Result<ProxyRef> {
        self.0.placed(pod)?;
        self.0
            .stationed()?
            .into_iter()
            .map(|one| one.proxy)
            .find(|proxy| proxy.pods.iter().any(|served| served == pod))
            .ok_or_else(|| ClusterError::Unsupported(format!("pod {pod} has no proxy")))
    }

    fn service_account(&self, pod: &str) -> Result<String> {
        let placed = self.0.placed(pod)?;
        Ok(self.0.named(&placed.spec.service_account))
    }

    fn add_pods(&self, pods: Vec<PodSpec>) -> Result<()> {
        if pods.is_empty() {
            return Ok(());
        }
        self.0.make_pods(pods)?;
        self.0.await_ready()?;
        self.0.prefer_generators()
    }

    fn remove_pod(&self, pod: &str) -> Result<()> {
        self.0.take_away(pod).map(drop)
    }

    fn begin_pod(&self, pod: PodSpec) -> Result<()> {
        self.0.make_pods(vec![pod])
    }

    fn end_pod(&self, pod: &str) -> Result<bool> {
        let (_, last) = self.0.end(pod)?;
        Ok(last.is_some_and(|pod| pod.is_ready()))
    }

    fn await_ended(&self) -> Result<()> {
        self.0.await_ended()
    }

    fn ran(&self, node: u32) -> Result<Duration> {
        let containers = self.0.containers_on(node)?;
        let reader = self.0.node(node).reader();
        Ok(Duration::from_nanos(
            reader.call(Ask::Ran { containers }, PROMPT)?,
        ))
    }

    fn holdings(&self, node: u32) -> Result<Vec<Holding>> {
        let containers = self.0.containers_on(node)?;
        let reader = self.0.node(node).reader();
        let held: Vec<Held> = reader.call(Ask::Holdings { containers }, PROMPT)?;
        Ok(held
            .into_iter()
            .map(|one| Holding {
                rollup: one.rollup,
                open_files: one.open_files,
                charged: one.charged,
            })
            .collect())
    }

    fn charges(&self, node: u32) -> Result<Vec<Charge>> {
        let proxies = self.0.stationed_on(node)?;
        if proxies.is_empty() {
            return Ok(Vec::new());
        }
        let mut bed = self.0.observed()?;
        bed.retain(|(placed, _)| placed.node == node);
        let reader = self.0.node(node).reader();
        let ask = Ask::Charges {
            containers: proxies.iter().map(|one| one.container.clone()).collect(),
            pods: bed.iter().map(|(_, pod)| pod.uid().to_owned()).collect(),
        };
        let charged: Vec<Charged> = reader.call(ask, PROMPT)?;
        let named = |uid: String| {
            let found = bed.iter().find(|(_, pod)| pod.uid() == uid);
            found.map(|(placed, _)| placed.spec.name.clone())
        };
        Ok(proxies
            .into_iter()
            .zip(charged)
            .map(|(one, charged)| Charge {
                proxy: one.proxy.name,
                pod: charged.pod.and_then(named),
                cpu_us: charged.cpu_us,
                memory: charged.memory,
            })
            .collect())
    }

    fn start(&self, tool: &Tool) -> Result<Box<dyn Running>> {
        Ok(Box::new(KubeTool::start(&self.0, tool)?))
    }

    fn belongings(&self, node: u32) -> Result<Belongings> {
        let containers = self.0.containers_on(node)?;
        let reader = self.0.node(node).reader();
        let ask = Ask::Belongings {
            containers,
            programs: self.0.placement() == Placement::Agent,
        };
        reader.call(ask, PROMPT)
    }

    fn given(&self, node: u32) -> Result<Given> {
        let proxies = self.0.stationed_on(node)?;
        let shares: Vec<Share> = proxies
            .iter()
            .map(|one| match &self.0.site.agents {
                Some(agents) if self.0.wish.placement == Placement::Agent => one
                    .pod
                    .container(&agents.container)
                    .map(Share::of)
                    .unwrap_or_default(),
                _ => Share::of_sidecar(&one.pod).unwrap_or_default(),
            })
            .collect();
        let workers = proxies.iter().map(|one| {
            let page = self.0.page(one, METRICS, "/metrics").ok()?;
            workers_in(&page.body)
        });
        Ok(Given {
            proxies: proxies.len() as u32,
            workers: workers.sum(),
            limits: in_numbers(&shares),
            rows: rows(&shares),
        })
    }

    fn kill(&self, proxy: &str, restart: Restart) -> Result<u64> {
        let one = self.0.stationed_as(proxy)?;
        let node = self.0.node(one.node);
        let asked = node.reader().ask::<u64>(Ask::Kill {
            workloads: self.0.awaited(&one),
            container: one.container,
            program: one.program.to_owned(),
            hold: restart == Restart::Never,
        })?;
        let death = Death {
            node: one.node,
            kill: asked.id,
        };
        let killed = asked.wait(&self.0.site.kube, PROMPT)?;
        self.0.deaths.borrow_mut().insert(proxy.to_owned(), death);
        Ok(node.clock(&self.0.site.kube)?.ours(killed))
    }

    fn pause(&self, proxy: &str) -> Result<u64> {
        self.0.pause(proxy, false)
    }

    fn unpause(&self, proxy: &str) -> Result<()> {
        self.0.pause(proxy, true).map(drop)
    }

    fn privileges(&self, proxy: &str) -> Result<Privileges> {
        let one = self.0.stationed_as(proxy)?;
        let ask = Ask::Privileges {
            container: one.container,
        };
        self.0.node(one.node).reader().call(ask, PROMPT)
    }

    fn starve(&self, proxy: &str, headroom: u64) -> Result<()> {
        let one = self.0.stationed_as(proxy)?;
        let asked = self.0.node(one.node).reader().ask::<Limited>(Ask::Starve {
            workloads: self.0.awaited(&one),
            container: one.container,
            program: one.program.to_owned(),
            headroom,
        })?;
        let death = Death {
            node: one.node,
            kill: asked.id,
        };
        asked.wait(&self.0.site.kube, PROMPT)?;
        self.0.deaths.borrow_mut().insert(proxy.to_owned(), death);
        Ok(())
    }

    fn await_death(&self, proxy: &str, within: Duration) -> Result<bool> {
        let death = self.0.death(proxy)?;
        self.0.node(death.node).reader().call(
            Ask::Dead {
                kill: death.kill,
                within_ms: within.as_millis() as u64,
            },
            within + PROMPT,
        )
    }

    fn revive(&self, proxy: &str) -> Result<()> {
        self.0.renew(proxy)
    }

    fn await_ready(&self, proxy: &str, within: Duration) -> Result<()> {
        match self.0.succession(proxy, within)?.missing {
            None => Ok(()),
            Some(missing) => Err(ClusterError::Pod {
                pod: proxy.to_owned(),
                problem: format!("not ready {within:?} after it was killed: {missing}"),
            }),
        }
    }

    fn lives(&self, proxy: &str) -> Result<Vec<Life>> {
        let death = self.0.death(proxy)?;
        let clock = self.0.node(death.node).clock(&self.0.site.kube)?;
        let lives = self.0.succession(proxy, Duration::ZERO)?.lives;
        Ok(lives
            .into_iter()
            .map(|life| Life {
                pid: life.pid,
                spawned: clock.ours(life.spawned),
                ready: life.ready.map(|at| clock.ours(at)),
                killed: life.killed.map(|at| clock.ours(at)),
                noticed: life.noticed.map(|at| clock.ours(at)),
            })
            .collect())
    }

    fn renew_agent(&self, node: u32) -> Result<()> {
        if self.0.wish.placement != Placement::Agent {
            return Ok(());
        }
        self.0.replace_agent(node)?;
        self.0.await_complete()
    }

    fn forget_death(&self, proxy: &str) -> Result<()> {
        self.0.renew(proxy)
    }

    fn capture(&self, node: u32, markers: &[&[u8]]) -> Result<Box<dyn Capture>> {
        let markers = markers
            .iter()
            .map(|marker| String::from_utf8_lossy(marker).into_owned())
            .collect();
        let asked = self
            .0
            .node(node)
            .reader()
            .ask::<()>(Ask::Capture { markers })?;
        let capture = asked.id;
        asked.wait(&self.0.site.kube, PROMPT)?;
        Ok(Box::new(KubeCapture {
            bed: self.0.clone(),
            node,
            capture,
        }))
    }

    fn identities(&self, proxy: &str) -> Result<Vec<Certified>> {
        let one = self.0.stationed_as(proxy)?;
        certified(proxy, &self.0.page(&one, ADMIN, "/config")?.body)
    }

    fn scan(&self, proxy: &str, known: &[Certified], limit: Duration) -> Result<KeyScan> {
        let one = self.0.stationed_as(proxy)?;
        self.0.node(one.node).reader().call(
            Ask::Scan {
                container: one.container,
                known: known.to_vec(),
                limit_ms: limit.as_millis() as u64,
            },
            limit + PROMPT,
        )
    }

    fn scan_control(&self, known: &[Certified], limit: Duration) -> Result<bool> {
        self.0.node(1).reader().call(
            Ask::ScanControl {
                known: known.to_vec(),
                limit_ms: limit.as_millis() as u64,
            },
            limit + PROMPT,
        )
    }
}

struct KubeCapture {
    bed: Rc<Standing>,
    node: u32,
    capture: u64,
}

impl Capture for KubeCapture {
    fn stop(self: Box<Self>) -> Result<CaptureReport> {
        self.bed.node(self.node).reader().call(
            Ask::EndCapture {
                capture: self.capture,
            },
            PROMPT,
        )
    }
}

fn in_numbers(shares: &[Share]) -> Option<results::Limits> {
    let cpu: Vec<f64> = shares.iter().map(|s| s.cpu_millis).collect::<Option<_>>()?;
    let memory: Vec<f64> = shares.iter().map(|s| s.memory).collect::<Option<_>>()?;
    let proxies = shares.len();
    (proxies > 0).then(|| results::Limits {
        proxies: proxies as u32,
        cpu_millicores_each: cpu.iter().sum::<f64>() / proxies as f64,
        cpu_millicores_sum: cpu.iter().sum(),
        memory_mib_each: memory.iter().sum::<f64>() / proxies as f64 / MIB,
        memory_mib_sum: memory.iter().sum::<f64>() / MIB,
    })
}

/// Sums as the containers' own specifications have them.
fn rows(shares: &[Share]) -> Vec<ParityRow> {
    let row = |label, of: fn(&Share) -> Option<f64>, shown: fn(f64) -> String| {
        let each: Option<Vec<f64>> = shares.iter().map(of).collect();
        let said = |value: Option<f64>| value.map_or("no limit".to_owned(), shown);
        ParityRow {
            label,
            per_proxy: said(each.as_ref().and_then(|all| all.first().copied())),
            proxies: shares.len() as u32,
            sum: said(each.map(|all| all.iter().sum())),
        }
    };
    vec![
        row(
            "proxy CPU request per node",
            |share| share.cpu_request_millis,
            |millis| format!("{millis:.0}m"),
        ),
        row(
            "proxy CPU limit per node",
            |share| share.cpu_millis,
            |millis| format!("{millis:.0}m"),
        ),
        row(
            "proxy memory limit per node",
            |share| share.memory,
            |bytes| format!("{:.1} MiB", bytes / MIB),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_without_a_limit_makes_the_sum_unlimited() {
        let limited = Share {
            cpu_request_millis: Some(25.0),
            cpu_millis: Some(250.0),
            memory: Some(64.0 * MIB),
        };
        let free = Share {
            memory: None,
            ..limited
        };
        let table = rows(&[limited, free]);
        assert_eq!(table[0].sum, "50m");
        assert_eq!(table[1].sum, "500m");
        assert_eq!(table[2].sum, "no limit");
        assert_eq!(in_numbers(&[limited, free]), None);
        assert_eq!(
            in_numbers(&[limited; 4]).expect("limits").memory_mib_sum,
            256.0
        );
    }
}
