//! X3: does the mesh believe somebody who claims to be another?
//!
//! A client has been taken over, and its proxy with it: there is the token, a certificate, and the
//! place from which the proxy speaks. Everything that these are good for has to work (or nothing would
//! be shown), and everything beyond has to be refused:
//!
//! * duet-control is asked for a certificate of a workload on another node;
//! * a proxy is asked, with a good certificate, for an address that is not its own workload's;
//! * the same certificate is shown from another pod's address;
//! * the application marks its sockets as proxies do, to get round the redirection in plaintext.

use super::bed::Shape;
use super::{Bed, Experiment, Failure, Id, Lab, Visit};
use crate::cluster::{ClusterError, Tool, User};
use crate::forge::{FORGE, Told};
use crate::results::{Kind, Metric, Point, Trial, Void, keys};
use crate::run::Plan;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const MESH_PORT: u16 = 15008;
const APP_PORT: u16 = 8080;
/// As meshes mark their proxies' sockets: none, 1, Istio's, Linkerd's port, all bits.
const MARKS: [Option<u32>; 5] = [None, Some(1), Some(1337), Some(15001), Some(u32::MAX)];
const PATIENCE: Duration = Duration::from_secs(15);

pub struct Forgery;

/// What a mesh must not accept; and what it has to, so that the refusals mean something.
#[derive(Default)]
struct Tally {
    tried: u32,
    accepted: Vec<String>,
    controls: Vec<String>,
    refused: Vec<String>,
}

impl Experiment for Forgery {
    fn scenarios(&self) -> &'static [Id] {
        &[Id::X3]
    }

    fn shapes(&self, _plan: &Plan) -> Vec<Shape> {
        vec![Shape::Pair]
    }

    fn metrics(&self, _scenario: Id) -> Vec<Metric> {
        vec![
            Metric::value(
                keys::FORGERIES_ACCEPTED,
                "forgeries accepted",
                "forgeries",
                Kind::Count,
            ),
            Metric::value(keys::FORGERIES, "forgeries tried", "forgeries", Kind::Count),
            Metric::value(
                keys::PLAINTEXT_BYTES,
                "plaintext on the wire from marked sockets",
                "bytes",
                Kind::Count,
            ),
        ]
    }

    fn prepare_estimate(&self, plan: &Plan) -> Duration {
        plan.building(plan.arms_of(Id::X3).len())
    }

    fn visit_estimate(&self, _plan: &Plan) -> Duration {
        Duration::from_secs(5)
    }

    fn parameters(&self, _scenario: Id, _plan: &Plan) -> BTreeMap<String, serde_json::Value> {
        BTreeMap::from([("marks".to_owned(), json!(MARKS))])
    }

    fn notes(&self, _scenario: Id) -> Vec<String> {
        vec![
            "A process that runs as the sidecar's own user is not redirected. No container gets there without root in \
             its own image; it is the control of the capture here."
                .to_owned(),
        ]
    }

    fn visit(&mut self, lab: &Lab<'_>, visit: Visit) -> Result<Vec<(Id, Trial)>, Failure> {
        let bed = lab.bed(Shape::Pair, visit.arm)?;
        let began = Instant::now();
        let mut tally = Tally::default();
        certificates(lab, &bed, &mut tally)?;
        destinations(lab, &bed, &mut tally)?;
        let bytes = marks(lab, &bed, visit, &mut tally)?;
        let values = [
            (keys::FORGERIES, f64::from(tally.tried)),
            (keys::FORGERIES_ACCEPTED, tally.accepted.len() as f64),
            (keys::PLAINTEXT_BYTES, bytes as f64),
        ];
        let mut trial = lab.trial(visit.arm, Point::only(), began, values);
        trial.voids = tally
            .refused
            .into_iter()
            .map(|what| Void {
                gate: "forgery control".to_owned(),
                measured: 0.0,
                limit: 1.0,
                message: format!("{what}: this has to work, or the refusals show nothing"),
            })
            .collect();
        let accepted = tally
            .accepted
            .iter()
            .map(|what| format!("accepted: {what}"));
        trial.notes = accepted.chain(tally.controls).collect();
        Ok(vec![(Id::X3, trial)])
    }
}

impl Tally {
    fn forged(&mut self, what: &str, told: &Told) {
        self.tried += 1;
        if told.accepted {
            self.accepted.push(format!("{what} ({})", told.said));
        }
    }

    fn control(&mut self, what: &str, told: &Told) {
        if told.accepted {
            self.controls.push(format!("rightly accepted: {what}"));
        } else {
            self.refused.push(format!("{what} ({})", told.said));
        }
    }
}

/// For whom duet-control signs.
fn certificates(lab: &Lab<'_>, bed: &Bed, tally: &mut Tally) -> Result<(), Failure> {
    for (workload, rightly) in [("default/client", true), ("default/far", false)] {
        let mut arguments = vec!["identity".to_owned()];
        arguments.extend(credentials(bed, workload)?);
        let told = forge(lab, bed, "client", User::Proxy, arguments)?;
        let what = format!("a certificate of {workload} for the client's proxy");
        if rightly {
            tally.control(&what, &told);
        } else {
            tally.forged(&what, &told);
        }
    }
    Ok(())
}

/// For which addresses a proxy takes a tunnel, from whom.
fn destinations(lab: &Lab<'_>, bed: &Bed, tally: &mut Tally) -> Result<(), Failure> {
    let at =
        |pod: &str, port| Ok::<_, Failure>(SocketAddr::new(bed.cluster.pod_address(pod)?, port));
    // (from, what is asked of the far server's proxy, whether it may be had)
    let loopback = SocketAddr::from(([127, 0, 0, 1], 15000));
    for (from, authority, rightly) in [
        ("client", at("far", APP_PORT)?, true),
        ("client", at("near", APP_PORT)?, false),
        ("client", loopback, false),
        ("near", at("far", APP_PORT)?, false),
    ] {
        let mut arguments = vec!["destination".to_owned()];
        arguments.extend(credentials(bed, "default/client")?);
        for (flag, value) in [
            ("--proxy", at("far", MESH_PORT)?),
            ("--authority", authority),
        ] {
            arguments.extend([flag.to_owned(), value.to_string()]);
        }
        let told = forge(lab, bed, from, User::Proxy, arguments)?;
        let what =
            format!("{authority} of the far proxy, with the client's certificate, from {from}");
        if rightly {
            tally.control(&what, &told);
        } else {
            tally.forged(&what, &told);
        }
    }
    Ok(())
}

/// What leaves in plaintext from marked sockets.
fn marks(lab: &Lab<'_>, bed: &Bed, visit: Visit, tally: &mut Tally) -> Result<u64, Failure> {
    let number = lab
        .plan
        .number(&format!("X3/{}/{}", visit.arm, visit.block));
    let to = SocketAddr::new(bed.cluster.pod_address("far")?, APP_PORT);
    let mut bytes = 0;
    let tries = MARKS.iter().map(|mark| (User::Application, *mark));
    for (at, (user, mark)) in tries.chain([(User::Proxy, None)]).enumerate() {
        let text = format!("forged{number:016x}{at}");
        let capture = bed.cluster.capture(1, &[text.as_bytes()])?;
        let mut arguments = vec!["mark".to_owned()];
        for (flag, value) in [("--to", to.to_string()), ("--text", text.clone())] {
            arguments.extend([flag.to_owned(), value]);
        }
        if let Some(mark) = mark {
            arguments.extend(["--mark".to_owned(), mark.to_string()]);
        }
        forge(lab, bed, "client", user, arguments)?;
        lab.interrupt.sleep(Duration::from_millis(50))?;
        let seen = capture.stop()?;
        let told = Told {
            accepted: seen.plaintext_bytes > 0,
            said: format!("{} bytes in plaintext", seen.plaintext_bytes),
        };
        match user {
            User::Proxy => tally.control("plaintext from the proxy's own place", &told),
            _ => {
                bytes += seen.plaintext_bytes;
                tally.forged(&format!("plaintext with mark {mark:?}"), &told);
            }
        }
    }
    Ok(bytes)
}

/// Those of the client's proxy, for a workload.
fn credentials(bed: &Bed, workload: &str) -> Result<Vec<String>, Failure> {
    let at = bed
        .cluster
        .whereabouts(&bed.cluster.proxy_of("client")?.name)?;
    let flags = [
        ("--control", at.control),
        ("--trust-bundle", at.trust_bundle.display().to_string()),
        ("--token", at.token.display().to_string()),
        ("--workload", workload.to_owned()),
    ];
    Ok(flags
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect())
}

/// One attempt.
fn forge(
    lab: &Lab<'_>,
    bed: &Bed,
    pod: &str,
    user: User,
    arguments: Vec<String>,
) -> Result<Told, Failure> {
    let mut all = attempts(lab, bed, pod, user, arguments)?;
    all.pop().ok_or_else(|| nothing(pod))
}

/// All that it tried.
pub(super) fn attempts(
    lab: &Lab<'_>,
    bed: &Bed,
    pod: &str,
    user: User,
    arguments: Vec<String>,
) -> Result<Vec<Told>, Failure> {
    let running = bed.cluster.start(&Tool {
        pod: pod.to_owned(),
        arguments: std::iter::once(FORGE.to_owned()).chain(arguments).collect(),
        begin_ns: None,
        user,
    })?;
    let said = running.finish(lab.interrupt, PATIENCE)?;
    let told: Result<Vec<Told>, _> = said.lines().map(serde_json::from_str).collect();
    told.map_err(|_| nothing(pod))
}

fn nothing(pod: &str) -> Failure {
    Failure::Cluster(ClusterError::Pod {
        pod: pod.to_owned(),
        problem: "the attempt did not say what came of it".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accepted_forgery_counts_and_a_refused_control_voids() {
        let told = |accepted| Told {
            accepted,
            said: "so it was".to_owned(),
        };
        let mut tally = Tally::default();
        tally.forged("a", &told(false));
        tally.forged("b", &told(true));
        tally.control("c", &told(true));
        assert_eq!(
            (tally.tried, tally.accepted.len(), tally.refused.len()),
            (2, 1, 0)
        );
        tally.control("d", &told(false));
        assert_eq!(tally.refused, ["d (so it was)"]);
    }
}
