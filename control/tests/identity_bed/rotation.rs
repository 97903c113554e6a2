//! A root is succeeded by another one, while everybody talks.

use super::{CONTROL, Pod, Replica, SHOP, loopback, settings};
use crate::cluster::traffic::{self, Outcome, Sidecar, free};
use crate::cluster::{self, Cluster};
use crate::mesh::eventually;
use duet_control::MeshState;
use duet_control::ca::fingerprint;
use duet_control::trust::{self, CONFIG_MAP, CONFIG_MAP_KEY, RotateError, rotate_root};
use duet_core::api::{Placement, Workload};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Certificates that end soon, so that a whole rotation fits into a test.
fn short(cluster: &Cluster) -> trust::Settings {
    trust::Settings {
        cert_lifetime: Duration::from_secs(12),
        overlap: Duration::from_secs(5),
        slack: Duration::from_secs(4),
        ..settings(cluster)
    }
}

/// Whose root each proxy's certificate leads to, by its place among `roots`.
async fn signed_by(sidecar: &Sidecar, roots: &[CertificateDer<'_>]) -> Option<usize> {
    let mut stream = tokio::net::TcpStream::connect(sidecar.admin).await.unwrap();
    let request = b"GET /config HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let body = &body[body.find('{').unwrap()..=body.rfind('}').unwrap()];
    let config: serde_json::Value = serde_json::from_str(body).unwrap();
    let pem = config["identities"][0]["certificate"].as_str()?;
    let leaf = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    roots.iter().position(|root| {
        let (_, root) = x509_parser::parse_x509_certificate(root).unwrap();
        root.subject().as_raw() == leaf.issuer().as_raw()
    })
}

#[test]
fn a_root_is_rotated_and_nobody_notices() {
    cluster::run("rotation", async |cluster| {
        let control = cluster.namespace(CONTROL).await;
        let client = cluster.control(&control).await;
        let shop = cluster.namespace(SHOP).await;
        let names = ["one", "two", "three", "four"];
        let net = (std::process::id() & 0xff) as u8;
        let address =
            |number: usize| IpAddr::from([127, 77, net, u8::try_from(number).unwrap() + 1]);
        let mut pods = Vec::new();
        for (number, name) in names.into_iter().enumerate() {
            cluster.service_account(&shop, name).await;
            let pod = (name, name, "node-1");
            let mut pod = Pod::create(cluster, &shop, pod, Placement::Sidecar).await;
            pod.address = address(number).to_string().leak();
            pods.push(pod);
        }
        let mut state = MeshState::new("duet.test");
        for pod in &pods {
            state.put_workload(Workload {
                opaque_ports: vec![u32::from(traffic::ECHO)],
                ..pod.workload(&shop)
            });
        }
        let mesh = watch::Sender::new(state);
        let settings = short(cluster);
        let ports = [free(loopback().ip()), free(loopback().ip())];
        let replica = async |number: usize| {
            let name = ["a", "b"][number];
            Replica::start(&client, &control, name, ports[number], &settings, &mesh).await
        };
        let mut a = replica(0).await;
        let mut b = replica(1).await;
        let old = a.trust.trust().current().bundle()[0].clone();

        // The files of a pod: a token, and a trust bundle that is never brought up to
        // date, as with `subPath`.
        let files = tempfile::tempdir().unwrap();
        let (mut apps, mut load) = (JoinSet::new(), JoinSet::new());
        let outcome = Outcome::default();
        let start = async |number: usize, bundle: String, control: SocketAddr| {
            let pod = &pods[number];
            let (token, trust) = (
                files.path().join(pod.name),
                files.path().join(format!("{}.pem", pod.name)),
            );
            std::fs::write(&token, pod.token(cluster, &shop).await).unwrap();
            std::fs::write(&trust, bundle).unwrap();
            let others = (0..names.len()).filter(|other| *other != number);
            let destinations: Vec<_> = others
                .flat_map(|other| {
                    [traffic::HTTP, traffic::ECHO].map(|port| SocketAddr::new(address(other), port))
                })
                .collect();
            let name = format!("{shop}/{}", pod.name).parse().unwrap();
            let ready = Sidecar::start(
                name,
                address(number),
                &destinations,
                control,
                (&trust, &token),
            );
            tokio::time::timeout(Duration::from_secs(30), ready)
                .await
                .expect("a certificate")
        };
        for number in 0..names.len() {
            traffic::serve(address(number), &mut apps).await;
        }
        let bundle = || a.trust.trust().current().bundle_pem();
        let mut sidecars = vec![
            start(0, bundle(), ports[0]).await,
            start(1, bundle(), ports[0]).await,
            start(2, bundle(), ports[1]).await,
        ];
        let talk = |from: &Sidecar, to: usize, load: &mut JoinSet<()>| {
            let to = |port| from.way_to(SocketAddr::new(address(to), port));
            traffic::requests(to(traffic::HTTP), &outcome, load);
            traffic::conversation(to(traffic::ECHO), &outcome, load);
        };
        for (from, sidecar) in sidecars.iter().enumerate() {
            for to in (0..3).filter(|to| *to != from) {
                talk(sidecar, to, &mut load);
            }
        }
        let progress = async |more: u64| {
            let wanted = outcome.answered() + more;
            eventually("traffic", async || outcome.answered() >= wanted).await;
        };
        progress(500).await;

        let lifetime = Duration::from_secs(3600);
        let new = rotate_root(client.clone(), &control, lifetime)
            .await
            .unwrap();
        let under_way = rotate_root(client.clone(), &control, lifetime).await;
        assert!(
            matches!(under_way, Err(RotateError::UnderWay(_))),
            "{under_way:?}"
        );
        let old_name = fingerprint(&old);
        let told = [old_name.clone(), new.clone()];
        eventually("both are told of", async || {
            a.bundle() == told && b.bundle() == told
        })
        .await;
        let roots = [old, a.trust.trust().current().bundle()[1].clone()];
        // A replica that comes now goes on where the other one stopped.
        a.stop().await;
        a = replica(0).await;
        assert_eq!(a.bundle(), told);
        progress(100).await;

        let signs = [new.clone(), old_name];
        eventually("the new root signs", async || {
            a.bundle() == signs && b.bundle() == signs
        })
        .await;
        b.stop().await;
        b = replica(1).await;
        // A pod that comes now; its namespace's ConfigMap has both roots.
        let maps = Api::<ConfigMap>::namespaced(cluster.client.clone(), &shop);
        let map = maps.get(CONFIG_MAP).await.unwrap().data.unwrap();
        sidecars.push(start(3, map[CONFIG_MAP_KEY].clone(), ports[1]).await);
        for to in 0..3 {
            talk(&sidecars[3], to, &mut load);
        }
        // Old certificates and new ones side by side, until there are only new ones.
        let mut side_by_side = false;
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let mut signed = Vec::new();
            for sidecar in &sidecars {
                signed.push(signed_by(sidecar, &roots).await.expect("one of the two"));
            }
            side_by_side |= signed.contains(&0) && signed.contains(&1);
            if !signed.contains(&0) {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "some keep their old certificate: {signed:?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(side_by_side, "the test was too slow to see it");

        let only = [new];
        let deadline = Instant::now() + Duration::from_secs(30);
        while a.bundle() != only || b.bundle() != only {
            assert!(Instant::now() < deadline, "the old root stays");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // For more than the life of a certificate.
        tokio::time::sleep(settings.cert_lifetime + Duration::from_secs(2)).await;
        progress(100).await;
        load.shutdown().await;
        let failed = outcome.failed.lock().unwrap().clone();
        assert_eq!(failed, [""; 0], "of {} answered", outcome.answered());
        println!("{} answers, none failed", outcome.answered());
        apps.shutdown().await;
        drop(sidecars);
        a.stop().await;
        b.stop().await;
    });
}
