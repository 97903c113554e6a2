//! Who gets which certificate from whom, with a real API server: its tokens, its
//! Secrets, its Leases, its ConfigMaps.

mod cluster;
mod identity_bed;
mod mesh;

use duet_control::ca::{Issuer, NewRoot, fingerprint};
use duet_control::kube_auth::KubeAuthenticator;
use duet_control::leader::{LEASE, Leader};
use duet_control::trust::{CONFIG_MAP, CONFIG_MAP_KEY, RotateError, SECRET, rotate_root};
use duet_control::{Authenticator, Caller};
use duet_core::api::Placement;
use identity_bed::{
    CONTROL, Pod, Replica, SHOP, is_believed, loopback, mesh_of, metric, settings, spiffe_id,
};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use mesh::{PATIENCE, eventually, get};
use prometheus::Registry;
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Code;

#[test]
fn nobody_gets_what_is_anothers() {
    cluster::run("forgery", async |cluster| {
        let control = cluster.namespace(CONTROL).await;
        let client = cluster.control(&control).await;
        let shop = cluster.namespace(SHOP).await;
        cluster.service_account(&control, "duet-agent").await;
        for account in ["web", "app", "admin", "duet-agent"] {
            cluster.service_account(&shop, account).await;
        }
        let pod = async |what, placement| Pod::create(cluster, &shop, what, placement).await;
        let web_0 = pod(("web-0", "web", "node-1"), Placement::Sidecar).await;
        let web_1 = pod(("web-1", "web", "node-2"), Placement::Sidecar).await;
        let app_0 = pod(("app-0", "app", "node-1"), Placement::Agent).await;
        let app_1 = pod(("app-1", "app", "node-2"), Placement::Agent).await;
        let old = pod(("old", "app", "node-1"), Placement::Unplaced).await;
        let impostor = pod(("impostor", "duet-agent", "node-1"), Placement::Sidecar).await;
        let agent = ("agent-1", "duet-agent", "node-1");
        let agent = Pod::create(cluster, &control, agent, Placement::Unplaced).await;

        let pods = [&web_0, &web_1, &app_0, &app_1, &old, &impostor].map(Clone::clone);
        let mesh = watch::Sender::new(mesh_of(&shop, &pods));
        let replica = Replica::start(
            &client,
            &control,
            "a",
            loopback(),
            &settings(cluster),
            &mesh,
        )
        .await;
        let name = |pod: &str| format!("{shop}/{pod}");
        let refused = async |token: &str, pod: &str| {
            let answer = replica.proxy(token).await.certify(&name(pod)).await;
            let status = answer.err().unwrap_or_else(|| panic!("{pod}: accepted"));
            (status.code(), status.message().to_owned())
        };

        // What is one's own.
        let token = web_0.token(cluster, &shop).await;
        let answer = replica.proxy(&token).await.certify(&name("web-0")).await;
        let id = format!("spiffe://duet.test/ns/{shop}/sa/web");
        assert_eq!(spiffe_id(&answer.unwrap()), id);
        let agents_token = agent.token(cluster, &control).await;
        let proxy = replica.proxy(&agents_token).await;
        let answer = proxy.certify(&name("app-0")).await;
        let id = format!("spiffe://duet.test/ns/{shop}/sa/app");
        assert_eq!(spiffe_id(&answer.unwrap()), id);
        let mut watch = replica.proxy(&token).await.watch().await.unwrap();
        let roots = watch.next().await.roots;
        let held = replica.trust.trust().current();
        assert_eq!(roots, [held.bundle()[0].to_vec()]);

        // A sidecar for its neighbour, of its own account even.
        let (code, why) = refused(&token, "web-1").await;
        assert_eq!(code, Code::PermissionDenied, "{why}");
        // An agent for a pod elsewhere, for one with a proxy of its own, for one that
        // is nobody's.
        for (pod, reason) in [
            ("app-1", "is on node-2"),
            ("web-0", "a proxy of its own"),
            ("old", "not in the care"),
        ] {
            let (code, why) = refused(&agents_token, pod).await;
            assert_eq!(code, Code::PermissionDenied, "{why}");
            assert!(why.contains(reason), "{why}");
        }
        // An application for its agent's business.
        let own = app_0.token(cluster, &shop).await;
        let (code, why) = refused(&own, "app-0").await;
        assert_eq!(code, Code::PermissionDenied, "{why}");
        // An agent by name only, in a namespace that anybody may have.
        let fake = impostor.token(cluster, &shop).await;
        let (code, why) = refused(&fake, "app-0").await;
        assert_eq!(code, Code::PermissionDenied, "{why}");
        assert!(why.contains("speaks for"), "{why}");

        // For somebody else, and for everybody.
        let bound = Some((web_0.name, &*web_0.uid));
        for audience in ["somebody-else", "https://kubernetes.default.svc"] {
            let token = cluster.try_token(&shop, "web", bound, audience).await;
            let (code, why) = refused(&token.unwrap(), "web-0").await;
            assert_eq!(code, Code::Unauthenticated, "{why}");
            assert!(why.contains("another audience"), "{why}");
        }
        // Bound to no pod.
        for (namespace, account) in [(&shop, "web"), (&control, "duet-agent")] {
            let token = cluster.try_token(namespace, account, None, cluster::AUDIENCE);
            let (code, why) = refused(&token.await.unwrap(), "web-0").await;
            assert_eq!(code, Code::Unauthenticated, "{why}");
            assert!(why.contains("bound to no pod"), "{why}");
        }
        // Of an account that is not the pod's: the API server makes no such token.
        let other = cluster.try_token(&shop, "admin", bound, cluster::AUDIENCE);
        assert!(other.await.is_err());
        // With another pod's name in it, and with another's signature.
        let parts: Vec<_> = token.split('.').collect();
        let others = web_1.token(cluster, &shop).await;
        let claims = others.split('.').nth(1).unwrap();
        for forged in [
            format!("{}.{claims}.{}", parts[0], parts[2]),
            format!("{}.{}.", parts[0], parts[1]),
            format!("{token}x"),
        ] {
            let (code, why) = refused(&forged, "web-1").await;
            assert_eq!(code, Code::Unauthenticated, "{why}");
        }

        // Of a pod that is gone: asked about anew, and remembered.
        let late = cluster.token(&shop, "web", (web_0.name, &web_0.uid)).await;
        cluster.delete_pod(&shop, "web-0").await;
        let (code, why) = refused(&late, "web-0").await;
        assert_eq!(code, Code::Unauthenticated, "{why}");
        let again = pod(("web-0", "web", "node-1"), Placement::Sidecar).await;
        mesh.send_replace(mesh_of(&shop, std::slice::from_ref(&again)));
        let another = async || {
            let (code, why) = refused(&token, "web-0").await;
            assert_eq!(code, Code::PermissionDenied, "{why}");
            why.contains("another pod")
        };
        eventually("the new pod is known", another).await;
        let token = again.token(cluster, &shop).await;
        let answer = replica.proxy(&token).await.certify(&name("web-0")).await;
        answer.unwrap();
        replica.stop().await;
    });
}

#[test]
fn one_question_is_enough_for_many_callers() {
    cluster::run("questions", async |cluster| {
        let shop = cluster.namespace(SHOP).await;
        cluster.service_account(&shop, "web").await;
        let web = Pod::create(
            cluster,
            &shop,
            ("web-0", "web", "node-1"),
            Placement::Sidecar,
        )
        .await;
        let token = web.token(cluster, &shop).await;
        let registry = Registry::new();
        let authenticator =
            KubeAuthenticator::new(cluster.client.clone(), "duet-nobody", &registry);
        let all = (0..100).map(|_| authenticator.authenticate(&token));
        for outcome in futures_util::future::join_all(all).await {
            outcome.unwrap();
        }
        let accepted = r#"duet_control_token_reviews_total{outcome="accepted"}"#;
        assert_eq!(metric(&registry, accepted), 1.0);

        // An API server that does not say where the agent's pod is is asked for the pod.
        let agent = ("agent-1", "duet-agent", "node-1");
        cluster.service_account(&shop, "duet-agent").await;
        let agent = Pod::create(cluster, &shop, agent, Placement::Unplaced).await;
        let client = cluster.client.clone();
        let authenticator = KubeAuthenticator::new(client, shop.clone(), &Registry::new());
        let found = async |uid: &str| {
            let status = json!({
                "authenticated": true,
                "audiences": ["duet-control"],
                "user": {
                    "username": format!("system:serviceaccount:{shop}:duet-agent"),
                    "extra": {
                        "authentication.kubernetes.io/pod-name": ["agent-1"],
                        "authentication.kubernetes.io/pod-uid": [uid],
                    },
                },
            });
            let status = serde_json::from_value(status).unwrap();
            authenticator.caller(status).await.unwrap()
        };
        let verified = found(&agent.uid).await.unwrap();
        assert_eq!(verified.caller, Caller::Node("node-1".to_owned()));
        assert!(found("another").await.is_err());

        // An API server that is away says nothing of the token.
        let nowhere = kube::Config::new("http://127.0.0.1:9".parse().unwrap());
        let nowhere = Client::try_from(nowhere).unwrap();
        let authenticator = KubeAuthenticator::new(nowhere, "duet-nobody", &Registry::new());
        let mut metadata = tonic::metadata::MetadataMap::new();
        metadata.insert("authorization", format!("Bearer {token}").parse().unwrap());
        let status = duet_control::auth::authenticate(&authenticator, &metadata).await;
        assert_eq!(status.unwrap_err().code(), Code::Unavailable);
    });
}

#[test]
fn replicas_agree_and_stand_in_for_each_other() {
    cluster::run("replicas", async |cluster| {
        let control = cluster.namespace(CONTROL).await;
        let client = cluster.control(&control).await;
        let shop = cluster.namespace(SHOP).await;
        cluster.service_account(&shop, "web").await;
        let web = Pod::create(
            cluster,
            &shop,
            ("web-0", "web", "node-1"),
            Placement::Sidecar,
        )
        .await;
        let mesh = watch::Sender::new(mesh_of(&shop, std::slice::from_ref(&web)));
        let settings = settings(cluster);
        let replica = |name| Replica::start(&client, &control, name, loopback(), &settings, &mesh);
        let (a, b) = tokio::join!(replica("a"), replica("b"));
        assert_eq!(a.bundle(), b.bundle(), "one root");
        assert_ne!(a.leader.is_leader(), b.leader.is_leader(), "one leader");
        let leads = |replica: &Replica| replica.metric("duet_control_leader") == 1.0;
        assert_eq!(leads(&a), a.leader.is_leader());

        // Either one's certificates are good with the other's roots.
        let token = web.token(cluster, &shop).await;
        let name = format!("{shop}/web-0");
        let of_a = a.proxy(&token).await.certify(&name).await.unwrap();
        let of_b = b.proxy(&token).await.certify(&name).await.unwrap();
        assert!(is_believed(&of_a, &of_b.roots) && is_believed(&of_b, &of_a.roots));

        // A leader that leaves lets go: nobody waits until the Lease has run out.
        let (first, second) = if a.leader.is_leader() { (a, b) } else { (b, a) };
        let root = first.bundle();
        let (began, mut terms) = tokio::sync::mpsc::unbounded_channel();
        let work = second.leader.while_leading(|| {
            began.send(()).unwrap();
            std::future::pending()
        });
        let left = Instant::now();
        tokio::select! {
            () = work => unreachable!(),
            _ = async { first.stop().await; terms.recv().await } => {}
        }
        assert!(
            left.elapsed() < Duration::from_secs(10),
            "{:?}",
            left.elapsed()
        );
        assert!(second.leader.is_leader() && terms.is_empty(), "one term");

        // A new process finds the same root.
        let third = replica("a").await;
        assert_eq!(third.bundle(), root);
        let again = third.proxy(&token).await.certify(&name).await.unwrap();
        assert!(is_believed(&of_a, &again.roots) && is_believed(&again, &of_a.roots));

        // A Lease that somebody else has taken is respected.
        let leases = Api::<Lease>::namespaced(cluster.client.clone(), &control);
        let other = json!({"spec": {"holderIdentity": "somebody", "leaseDurationSeconds": 3600}});
        let parameters = PatchParams::default();
        leases
            .patch(LEASE, &parameters, &Patch::Merge(other))
            .await
            .unwrap();
        tokio::time::timeout(PATIENCE, second.leader.deposed())
            .await
            .expect("it notices");
        assert!(!second.leader.is_leader() && !third.leader.is_leader());
        third.stop().await;
        second.stop().await;
        let lease = leases.get(LEASE).await.unwrap().spec.unwrap();
        assert_eq!(lease.holder_identity.as_deref(), Some("somebody"));
    });
}

#[test]
fn a_silent_leader_is_succeeded_whatever_its_clock_said() {
    cluster::run("succession", async |cluster| {
        let leases = async |namespace: &str, renewed: &str| {
            let lease: Lease = serde_json::from_value(json!({
                "metadata": {"name": LEASE},
                "spec": {
                    "holderIdentity": "somebody",
                    "leaseDurationSeconds": 4,
                    "renewTime": renewed,
                },
            }))
            .unwrap();
            let leases = Api::<Lease>::namespaced(cluster.client.clone(), namespace);
            leases.create(&PostParams::default(), &lease).await.unwrap();
            leases
        };
        let shutdown = CancellationToken::new();
        let elect = |namespace: &str| {
            let client = cluster.client.clone();
            Leader::elect(client, namespace, "a", &Registry::new(), shutdown.clone())
        };
        // By a clock that is ahead by a lifetime, and by one that is behind by one.
        for (name, renewed) in [
            ("ahead", "2099-01-01T00:00:00.000000Z"),
            ("behind", "2001-01-01T00:00:00.000000Z"),
        ] {
            let namespace = cluster.namespace(name).await;
            leases(&namespace, renewed).await;
            let leader = elect(&namespace);
            let early = tokio::time::timeout(Duration::from_secs(3), leader.elected()).await;
            assert!(early.is_err(), "{name}: the holder may still be there");
            let late = tokio::time::timeout(PATIENCE, leader.elected()).await;
            late.unwrap_or_else(|_| panic!("{name}: the holder is gone"));
        }
        // One that renews stays, though nobody knows its clock.
        let namespace = cluster.namespace("alive").await;
        let alive = leases(&namespace, "2001-01-01T00:00:00.000000Z").await;
        let renews = async {
            let parameters = PatchParams::default();
            for second in 0.. {
                let renewed = format!("2001-01-01T00:00:{second:02}.000000Z");
                let patch = Patch::Merge(json!({"spec": {"renewTime": renewed}}));
                alive.patch(LEASE, &parameters, &patch).await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let leader = elect(&namespace);
        tokio::select! {
            () = renews => unreachable!(),
            () = leader.elected() => panic!("it took a Lease that is being renewed"),
            () = tokio::time::sleep(Duration::from_secs(9)) => {}
        }
        shutdown.cancel();
        leader.released().await;
    });
}

/// An operator's or cert-manager's hand in the Secret.
async fn supply(secrets: &Api<Secret>, root: &NewRoot) {
    let data = json!({"stringData": {
        "tls.crt": root.certificate,
        "tls.key": root.key,
        "ca.crt": root.certificate,
    }});
    let parameters = PatchParams::default();
    secrets
        .patch(SECRET, &parameters, &Patch::Merge(data))
        .await
        .unwrap();
}

fn root_of(root: &NewRoot) -> String {
    let issuer = Issuer::from_pem(&root.certificate, &root.key, "").unwrap();
    fingerprint(issuer.root())
}

#[test]
fn a_broken_secret_harms_nobody() {
    cluster::run("broken", async |cluster| {
        let control = cluster.namespace(CONTROL).await;
        let client = cluster.control(&control).await;
        let mesh = watch::Sender::new(mesh_of("default", &[]));
        let settings = settings(cluster);
        let replica = Replica::start(&client, &control, "a", loopback(), &settings, &mesh).await;
        let root = replica.bundle();
        let secrets = Api::<Secret>::namespaced(cluster.client.clone(), &control);
        let made = secrets.get(SECRET).await.unwrap();
        assert_eq!(made.type_.as_deref(), Some("kubernetes.io/tls"));
        let keys: Vec<_> = made.data.as_ref().unwrap().keys().collect();
        let expected = [
            "ca.crt",
            "signing-ca.crt",
            "signing.crt",
            "signing.key",
            "tls.crt",
            "tls.key",
        ];
        assert_eq!(keys, expected);

        let broken = json!({"stringData": {"tls.key": "nonsense"}});
        let parameters = PatchParams::default();
        secrets
            .patch(SECRET, &parameters, &Patch::Merge(broken))
            .await
            .unwrap();
        let good = "duet_control_ca_secret_good";
        eventually("the metric says so", async || replica.metric(good) == 0.0).await;
        let (status, page) = get(replica.control.health_addr(), "/ready").await;
        assert_eq!(status, 200, "what was served still is: {page}");
        assert!(page.contains("tls.key holds no private key"), "{page}");
        assert_eq!(replica.bundle(), root);
        // One that starts now signs with what signed before.
        let late = Replica::start(&client, &control, "b", loopback(), &settings, &mesh).await;
        assert_eq!(late.bundle(), root);
        late.stop().await;

        let everything = made.data.clone();
        let mended = json!({"data": everything});
        secrets
            .patch(SECRET, &parameters, &Patch::Merge(mended))
            .await
            .unwrap();
        eventually("it is good again", async || replica.metric(good) == 1.0).await;

        // Deleted, it is there again.
        secrets
            .delete(SECRET, &DeleteParams::default())
            .await
            .unwrap();
        let back = async || secrets.get_opt(SECRET).await.unwrap().is_some();
        eventually("the Secret is back", back).await;
        assert_eq!(replica.bundle(), root);
        let again = secrets.get(SECRET).await.unwrap();
        assert_eq!(
            again.data.unwrap()["signing.key"],
            made.data.unwrap()["signing.key"]
        );
        replica.stop().await;
    });
}

#[test]
fn cert_managers_ca_is_taken_as_it_is() {
    cluster::run("supplied", async |cluster| {
        let control = cluster.namespace(CONTROL).await;
        let client = cluster.control(&control).await;
        let secrets = Api::<Secret>::namespaced(cluster.client.clone(), &control);
        let root = NewRoot::generate().unwrap();
        let secret: Secret = serde_json::from_value(json!({
            "metadata": {
                "name": SECRET,
                "annotations": {"cert-manager.io/certificate-name": "duet-ca"},
            },
            "type": "kubernetes.io/tls",
            "stringData": {
                "tls.crt": root.certificate,
                "tls.key": root.key,
                "ca.crt": root.certificate,
            },
        }))
        .unwrap();
        secrets
            .create(&PostParams::default(), &secret)
            .await
            .unwrap();
        let mesh = watch::Sender::new(mesh_of("default", &[]));
        let settings = settings(cluster);
        let replica = Replica::start(&client, &control, "a", loopback(), &settings, &mesh).await;
        assert_eq!(replica.bundle(), [root_of(&root)]);
        // Noted, so that it can be signed with when cert-manager has replaced it.
        let noted = async || {
            let data = secrets.get(SECRET).await.unwrap().data.unwrap();
            data.get("signing.key") == data.get("tls.key")
        };
        eventually("what signs is noted", noted).await;
        let refused = rotate_root(client.clone(), &control, Duration::from_secs(3600)).await;
        assert!(
            matches!(refused, Err(RotateError::CertManager { .. })),
            "{refused:?}"
        );

        let next = NewRoot::generate().unwrap();
        supply(&secrets, &next).await;
        let both = [root_of(&root), root_of(&next)];
        eventually("the new root is told of", async || replica.bundle() == both).await;
        replica.stop().await;
    });
}

#[test]
fn every_namespace_has_the_bundle() {
    cluster::run("bundles", async |cluster| {
        let control = cluster.namespace(CONTROL).await;
        let client = cluster.control(&control).await;
        let early = cluster.namespace("early").await;
        let mesh = watch::Sender::new(mesh_of("default", &[]));
        let settings = settings(cluster);
        let replica = Replica::start(&client, &control, "a", loopback(), &settings, &mesh).await;
        let pem = replica.trust.trust().current().bundle_pem();
        let maps =
            |namespace: &str| Api::<ConfigMap>::namespaced(cluster.client.clone(), namespace);
        let has = async |namespace: &str| {
            let found = maps(namespace).get_opt(CONFIG_MAP).await.unwrap();
            found.and_then(|map| map.data?.remove(CONFIG_MAP_KEY)) == Some(pem.clone())
        };
        eventually("one that was there", async || has(&early).await).await;
        let late = cluster.namespace("late").await;
        eventually("one that came later", async || has(&late).await).await;
        let stale = "duet_control_trust_bundle_stale_namespaces";
        eventually("none is left", async || replica.metric(stale) == 0.0).await;

        // Whatever is done to it.
        let parameters = PatchParams::default();
        let altered = Patch::Merge(json!({"data": {"root.pem": "mine", "other": "stays"}}));
        maps(&late)
            .patch(CONFIG_MAP, &parameters, &altered)
            .await
            .unwrap();
        eventually("it is mended", async || has(&late).await).await;
        let map = maps(&late).get(CONFIG_MAP).await.unwrap();
        assert_eq!(map.data.unwrap()["other"], "stays");
        maps(&early)
            .delete(CONFIG_MAP, &DeleteParams::default())
            .await
            .unwrap();
        eventually("it is made again", async || has(&early).await).await;
        let frozen = Patch::Merge(json!({"data": {"root.pem": "mine"}, "immutable": true}));
        maps(&early)
            .patch(CONFIG_MAP, &parameters, &frozen)
            .await
            .unwrap();
        eventually("it is replaced", async || has(&early).await).await;

        // Somebody who insists is not joined in a race.
        let written = r#"duet_control_trust_bundle_writes_total{outcome="written"}"#;
        let before = replica.metric(written);
        let until = Instant::now() + Duration::from_secs(4);
        let mut times = 0;
        while Instant::now() < until {
            let altered = Patch::Merge(json!({"data": {"root.pem": format!("mine {times}")}}));
            maps(&late)
                .patch(CONFIG_MAP, &parameters, &altered)
                .await
                .unwrap();
            times += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let answers = replica.metric(written) - before;
        assert!(
            times > 50 && answers <= 4.0,
            "{answers} answers to {times} changes"
        );

        // One that is on its way out is left alone.
        let namespaces = Api::<Namespace>::all(cluster.client.clone());
        namespaces
            .delete(&early, &DeleteParams::default())
            .await
            .unwrap();
        let gone = async || namespaces.get_opt(&early).await.unwrap().is_none();
        let failed = r#"duet_control_trust_bundle_writes_total{outcome="failed"}"#;
        let deadline = Instant::now() + Duration::from_secs(60);
        while !gone().await {
            assert!(Instant::now() < deadline, "{early} never goes");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        assert_eq!(replica.metric(failed), 0.0);
        replica.stop().await;
    });
}
