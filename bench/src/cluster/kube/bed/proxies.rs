//! Where a bed's proxies are, and what becomes of them.

use super::{Death, Standing, Stationed};
use crate::attend::protocol::{Ask, Page, Succession};
use crate::cluster::error::{ClusterError, Result};
use crate::cluster::kube::nodes::PROMPT;
use crate::cluster::kube::pods::{Observed, PROXY};
use crate::cluster::site::ProxyRef;
use crate::cluster::spec::Placement;
use k8s_openapi::api::core::v1::Pod;
use std::time::Duration;

impl Standing {
    /// The proxies of all nodes, as they are now.
    pub fn stationed(&self) -> Result<Vec<Stationed>> {
        match self.wish.placement {
            Placement::None => Ok(Vec::new()),
            Placement::Sidecar => self
                .observed()?
                .into_iter()
                .filter(|(placed, _)| placed.spec.meshed)
                .map(|(placed, pod)| {
                    let container = running(&pod, PROXY)?;
                    Ok(Stationed {
                        proxy: ProxyRef {
                            name: format!("sidecar:{}", placed.spec.name),
                            pods: vec![placed.spec.name.clone()],
                        },
                        node: placed.node,
                        pod,
                        container,
                        program: "duet-sidecar",
                    })
                })
                .collect(),
            Placement::Agent => {
                let agents = self.site.agents.as_ref().ok_or_else(|| {
                    ClusterError::Unsupported("no agents are installed".to_owned())
                })?;
                let pods = agents.pods(&self.site.kube)?;
                self.site
                    .nodes
                    .iter()
                    .map(|node| {
                        let pod = pods
                            .iter()
                            .find(|pod| pod.on_node() == node.name && !pod.is_leaving())
                            .cloned()
                            .ok_or_else(|| {
                                ClusterError::Unsupported(format!("{} has no agent", node.name))
                            })?;
                        Ok(Stationed {
                            proxy: ProxyRef {
                                name: format!("agent:{}", node.name),
                                pods: self.meshed_on(node.number),
                            },
                            node: node.number,
                            container: running(&pod, &agents.container)?,
                            pod,
                            program: "duet-agent",
                        })
                    })
                    .collect()
            }
        }
    }

    pub(super) fn meshed_on(&self, node: u32) -> Vec<String> {
        self.pods
            .borrow()
            .iter()
            .filter(|pod| pod.node == node && pod.spec.meshed)
            .map(|pod| pod.spec.name.clone())
            .collect()
    }

    pub(super) fn stationed_on(&self, node: u32) -> Result<Vec<Stationed>> {
        let mut all = self.stationed()?;
        all.retain(|one| one.node == node);
        Ok(all)
    }

    pub fn stationed_as(&self, proxy: &str) -> Result<Stationed> {
        let all = self.stationed()?;
        all.iter()
            .find(|one| one.proxy.name == proxy)
            .cloned()
            .ok_or_else(|| {
                ClusterError::unknown(
                    "proxy",
                    proxy,
                    all.iter().map(|one| one.proxy.name.as_str()),
                )
            })
    }

    pub(super) fn page(&self, of: &Stationed, port: u16, path: &str) -> Result<Page> {
        self.node(of.node).reader().call(
            Ask::Get {
                container: of.container.clone(),
                port,
                path: path.to_owned(),
            },
            PROMPT,
        )
    }

    pub(super) fn containers_on(&self, node: u32) -> Result<Vec<String>> {
        let all = self.stationed_on(node)?;
        Ok(all.into_iter().map(|one| one.container).collect())
    }

    /// Workloads that a proxy's successor must serve to count as ready: an agent's
    /// pods. A sidecar says so itself.
    pub(super) fn awaited(&self, proxy: &Stationed) -> Vec<String> {
        if self.wish.placement != Placement::Agent {
            return Vec::new();
        }
        proxy
            .proxy
            .pods
            .iter()
            .map(|pod| format!("{}/{}", self.space, self.named(pod)))
            .collect()
    }

    /// Stops a proxy's process, or lets it go on; returns when that was.
    pub(super) fn pause(&self, proxy: &str, over: bool) -> Result<u64> {
        let one = self.stationed_as(proxy)?;
        let node = self.node(one.node);
        let ask = Ask::Pause {
            container: one.container,
            over,
        };
        let at = node.reader().call(ask, PROMPT)?;
        Ok(node.clock(&self.site.kube)?.ours(at))
    }

    pub(super) fn death(&self, proxy: &str) -> Result<Death> {
        self.deaths
            .borrow()
            .get(proxy)
            .copied()
            .ok_or_else(|| ClusterError::Unsupported(format!("{proxy} was not killed")))
    }

    pub(super) fn succession(&self, proxy: &str, within: Duration) -> Result<Succession> {
        let death = self.death(proxy)?;
        self.node(death.node).reader().call(
            Ask::Lives {
                kill: death.kill,
                within_ms: within.as_millis() as u64,
            },
            within + PROMPT,
        )
    }

    pub(super) fn replace_agent(&self, node: u32) -> Result<()> {
        let agents = self
            .site
            .agents
            .as_ref()
            .ok_or_else(|| ClusterError::Unsupported("no agents are installed".to_owned()))?;
        agents.replace_on(&self.site.kube, &self.node(node).name)
    }

    /// Puts a fresh proxy where one was killed: a kubelet waits ten seconds before it
    /// restarts a container for the second time, and longer each time after.
    pub(super) fn renew(&self, proxy: &str) -> Result<()> {
        let Some(death) = self.deaths.borrow_mut().remove(proxy) else {
            return Ok(());
        };
        let () = self
            .node(death.node)
            .reader()
            .call(Ask::Release { kill: death.kill }, PROMPT)?;
        match proxy.strip_prefix("sidecar:") {
            Some(pod) => {
                let placed = self.take_away(pod)?;
                self.make_pods(vec![placed.spec])?;
            }
            None => self.replace_agent(death.node)?,
        }
        self.await_complete()
    }
}

/// The id of a container that runs.
fn running(pod: &Pod, container: &str) -> Result<String> {
    pod.container_id(container)
        .map(str::to_owned)
        .ok_or_else(|| ClusterError::Pod {
            pod: pod.called().to_owned(),
            problem: format!("it has no container {container} that runs: is the injector at work?"),
        })
}
