//! X2: what someone may do on the node who takes over a proxy.
//!
//! Read from the kernel, of the running processes: not what a manifest asks for but what they have. In the
//! netns cluster only network namespaces are apart, as a pod's would be; whether a process shares the node's process
//! or mount namespace is not asked.

use super::bed::Shape;
use super::{Experiment, Failure, Id, Lab, Visit};
use crate::accounting::Privileges as Held;
use crate::results::{Kind, Metric, Point, Trial, keys};
use crate::run::Plan;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

pub struct Privileges;

impl Privileges {
    fn shape(plan: &Plan) -> Shape {
        Shape::Fleet(plan.pace.fault_pods)
    }
}

impl Experiment for Privileges {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::X2]
    }

    fn shapes(&self, plan: &Plan) -> Vec<Shape> {
        vec![Self::shape(plan)]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        vec![
            Metric::value(
                keys::CAPABILITIES,
                "capabilities of the most privileged proxy process",
                "capabilities",
                Kind::Count,
            ),
            Metric::value(
                keys::ROOT_PROXIES,
                "proxy processes of the node that run as root",
                "processes",
                Kind::Count,
            ),
            Metric::value(
                keys::NODE_NETWORK_PROXIES,
                "proxy processes in the node's network namespace",
                "processes",
                Kind::Count,
            ),
            Metric::value(
                keys::UNFILTERED_PROXIES,
                "proxy processes without a filter of system calls",
                "processes",
                Kind::Count,
            ),
        ]
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        plan.building_fleets(Id::X2, &[Id::F1, Id::X1])
    }

    fn visit_estimate(&self, _plan: &Plan) -> Duration {
        Duration::from_millis(50)
    }

    fn parameters(&self, _scenario: Id, plan: &Plan) -> BTreeMap<String, Value> {
        BTreeMap::from([
            ("pods".to_owned(), json!(plan.pace.fault_pods)),
            (
                "read".to_owned(),
                json!("/proc/<pid>/status and /proc/<pid>/ns/net of every proxy of node 1"),
            ),
        ])
    }

    fn notes(&self, _scenario: Id) -> Vec<String> {
        vec![
            "On the netns cluster only network namespaces are apart. Process, mount and user namespaces, and seccomp \
             profiles, are a container runtime's and are not set there for either placement."
                .to_owned(),
        ]
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let bed = lab.bed(Self::shape(lab.plan), visit.arm)?;
        let began = Instant::now();
        let held = bed
            .cluster
            .proxies(1)?
            .iter()
            .map(|proxy| Ok((proxy.name.clone(), bed.cluster.privileges(&proxy.name)?)))
            .collect::<Result<Vec<_>, Failure>>()?;
        let (values, notes) = counted(&held);
        let pods = lab.plan.pace.fault_pods;
        Ok(vec![(
            Id::X2,
            Trial {
                arm: visit.arm.name().to_owned(),
                point: Point::at(format!("{pods} pods"), f64::from(pods)),
                repeat: 0,
                started_s: began.duration_since(lab.started).as_secs_f64(),
                duration_s: began.elapsed().as_secs_f64(),
                load: None,
                histograms: Default::default(),
                values,
                timelines: Vec::new(),
                voids: Vec::new(),
                notes,
            },
        )])
    }
}

/// In numbers, and the most privileged one in words.
fn counted(held: &[(String, Held)]) -> (BTreeMap<String, f64>, Vec<String>) {
    let count =
        |wanted: fn(&Held) -> bool| held.iter().filter(|(_, one)| wanted(one)).count() as f64;
    let most = held.iter().max_by_key(|(_, one)| one.names().len());
    let mut values = BTreeMap::from([
        (
            keys::CAPABILITIES.to_owned(),
            most.map_or(0.0, |(_, one)| one.names().len() as f64),
        ),
        (keys::ROOT_PROXIES.to_owned(), count(|one| one.uid == 0)),
        (
            keys::NODE_NETWORK_PROXIES.to_owned(),
            count(|one| one.node_network),
        ),
        (
            keys::UNFILTERED_PROXIES.to_owned(),
            count(|one| !one.seccomp),
        ),
        ("processes".to_owned(), held.len() as f64),
        (
            "may_gain_privileges".to_owned(),
            count(|one| !one.no_new_privileges),
        ),
        (
            "capabilities_bounding".to_owned(),
            most.map_or(0.0, |(_, one)| f64::from(one.bounding.count_ones())),
        ),
    ]);
    let mut notes = Vec::new();
    if let Some((name, one)) = most {
        for capability in one.names() {
            values.insert(format!("{}{capability}", keys::CAPABILITY_PREFIX), 1.0);
        }
        let names = one.names();
        notes.push(format!(
            "{name}: uid {}, {}",
            one.uid,
            if names.is_empty() {
                "no capabilities".to_owned()
            } else {
                names.join(", ")
            }
        ));
    }
    (values, notes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_privileged_one_counts() {
        let weak = Held {
            uid: 2102,
            no_new_privileges: true,
            ..Held::default()
        };
        let strong = Held {
            uid: 0,
            capabilities: 1 << 12 | 1 << 39,
            node_network: true,
            ..Held::default()
        };
        let (values, notes) = counted(&[
            ("sidecar:a".to_owned(), weak),
            ("agent:node-1".to_owned(), strong),
        ]);
        assert_eq!(values[keys::CAPABILITIES], 2.0);
        assert_eq!(values[keys::ROOT_PROXIES], 1.0);
        assert_eq!(values[keys::NODE_NETWORK_PROXIES], 1.0);
        assert_eq!(values["cap_bpf"], 1.0);
        assert_eq!(notes, ["agent:node-1: uid 0, net_admin, bpf"]);
    }
}
