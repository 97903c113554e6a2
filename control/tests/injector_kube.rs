//! Pods as a real API server admits them when it asks the webhook.

mod injector_bed;

use duet_control::Authority;
use duet_control::injector::{Config, Injector, Namespace, names};
use injector_bed::{Bed, PATIENCE, authority, names_of, pod, run};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// As `--root-overlap` of duet-control: the API server hears of a root a moment after
/// it was written.
const OVERLAP: Duration = Duration::from_secs(2);

fn placement(pod: &Value) -> &Value {
    &pod["metadata"]["annotations"][names::PLACEMENT]
}

/// What the API server stored, given to the injector again: nothing to do.
fn assert_settled(pod: &Value, namespace: &str, mode: &str) {
    let namespace = Namespace {
        name: namespace.to_owned(),
        labels: [(names::MODE.to_owned(), mode.to_owned())].into(),
        ..Namespace::default()
    };
    let injector = Injector {
        config: Config::default(),
    };
    let again = injector.decide(pod, &namespace, None).unwrap();
    assert_eq!(again.patch.0, [], "{pod:#}");
}

#[test]
fn pods_are_admitted_as_their_labels_say() {
    run("labels", Config::default(), async |bed: &Bed| {
        let sidecars = bed.namespace("sidecar", "sidecar").await;
        let app = json!({"spec": {"initContainers": [{"name": "migrate", "image": "x"}]}});
        let made = bed.create(&sidecars, &pod(app)).await;
        assert_eq!(
            names_of(&made.pod, "initContainers"),
            ["duet-init", "duet-proxy", "migrate"]
        );
        assert_eq!(
            made.pod["spec"]["initContainers"][1]["restartPolicy"],
            "Always"
        );
        assert_eq!(placement(&made.pod), "sidecar");
        let first = &made.pod["metadata"]["annotations"][names::DEFAULT_CONTAINER];
        assert_eq!(first, "web");
        assert_eq!(made.warnings, Vec::<String>::new());
        assert_settled(&made.pod, &sidecars, "sidecar");

        let agents = bed.namespace("agent", "agent").await;
        let made = bed.create(&agents, &pod(json!({}))).await;
        assert_eq!(placement(&made.pod), "agent");
        assert_eq!(
            made.pod["spec"]["readinessGates"],
            json!([{"conditionType": names::ENROLLED}])
        );
        assert_eq!(names_of(&made.pod, "initContainers"), Vec::<String>::new());
        assert_settled(&made.pod, &agents, "agent");

        let labelled = |mode: &str| pod(json!({"metadata": {"labels": {names::MODE: mode}}}));
        let made = bed.create(&agents, &labelled("sidecar")).await;
        assert_eq!(placement(&made.pod), "sidecar", "the pod wins");
        let made = bed.create(&agents, &labelled("none")).await;
        assert_eq!(placement(&made.pod), &Value::Null);

        let plain = bed.make_namespace("plain", &json!({})).await;
        let made = bed.create(&plain, &pod(json!({}))).await;
        assert_eq!(placement(&made.pod), &Value::Null);
        let made = bed.create(&plain, &labelled("agent")).await;
        assert_eq!(placement(&made.pod), "agent", "without its namespace");
        let none = bed.namespace("none", "none").await;
        let made = bed.create(&none, &labelled("sidecar")).await;
        assert_eq!(placement(&made.pod), "sidecar", "against its namespace");
        let why = bed
            .try_create(&plain, &labelled("sidcar"), false)
            .await
            .unwrap_err();
        assert!(
            why.contains("label duet.dev/mode: \"sidcar\" is not known"),
            "{why}"
        );

        // A namespace is labelled, and its pods come in the same moment.
        for number in 0..5 {
            let fresh = bed.namespace(&format!("fresh-{number}"), "agent").await;
            let made = bed.create(&fresh, &pod(json!({}))).await;
            assert_eq!(placement(&made.pod), "agent", "{fresh}");
        }
    });
}

#[test]
fn mistakes_are_refused_and_oddities_are_told() {
    run("mistakes", Config::default(), async |bed: &Bed| {
        let namespace = bed.namespace("ns", "sidecar").await;
        let annotated =
            |name: &str, value: &str| pod(json!({"metadata": {"annotations": {name: value}}}));
        let why = bed
            .try_create(&namespace, &annotated(names::WAIT, "maybe"), false)
            .await
            .unwrap_err();
        assert_eq!(
            why,
            "admission webhook \"namespace.injector.duet.dev\" denied the request: annotation \
             duet.dev/wait: \"maybe\" is not known: write \"true\" or \"false\""
        );
        let typo = bed.namespace("typo", "sidcar").await;
        let why = bed
            .try_create(&typo, &pod(json!({})), false)
            .await
            .unwrap_err();
        assert!(
            why.contains(&format!("namespace {typo}, label duet.dev/mode")),
            "{why}"
        );

        let host = pod(json!({"spec": {"hostNetwork": true}}));
        let made = bed.create(&namespace, &host).await;
        assert_eq!(names_of(&made.pod, "initContainers"), Vec::<String>::new());
        assert!(
            made.warnings[0].contains("duet: the pod is not in the mesh: hostNetwork"),
            "{:?}",
            made.warnings
        );

        // Nothing is stored in a dry run, and it is answered like any other.
        let dry = bed
            .try_create(&namespace, &annotated("duet.dev/wiat", "x"), true)
            .await
            .unwrap();
        assert_eq!(placement(&dry.pod), "sidecar");
        assert!(
            dry.warnings[0].contains("duet.dev/wiat is not known"),
            "{:?}",
            dry.warnings
        );
    });
}

/// Another webhook, asked after ours, puts its own container first. So ours is asked
/// again.
#[test]
fn the_proxy_stays_first_whatever_others_do() {
    run("order", Config::default(), async |bed: &Bed| {
        bed.meddler(|pod| {
            // Asked again, it has done what it wanted.
            let inits = names_of(pod, "initContainers");
            if !inits.contains(&"duet-proxy".to_owned()) || inits.contains(&"vault".to_owned()) {
                return json!([]);
            }
            json!([
                {"op": "add", "path": "/spec/initContainers/0", "value": {"name": "vault", "image": "v"}},
                {"op": "replace", "path": "/spec/initContainers/2/image", "value": "mirror.example/sidecar:1"},
            ])
        })
        .await;
        let namespace = bed.namespace("ns", "sidecar").await;
        let began = Instant::now();
        loop {
            let made = bed.create(&namespace, &pod(json!({}))).await;
            let order = names_of(&made.pod, "initContainers");
            // The API server takes a moment to hear of a new webhook.
            if order.len() == 2 && began.elapsed() < PATIENCE {
                continue;
            }
            assert_eq!(order, ["duet-init", "duet-proxy", "vault"]);
            let image = &made.pod["spec"]["initContainers"][1]["image"];
            assert_eq!(image, "mirror.example/sidecar:1", "and is not taken back");
            break;
        }
    });
}

/// linkerd2#13033: a webhook that was built against older types.
#[test]
fn a_stripped_restart_policy_is_noticed() {
    run("strip", Config::default(), async |bed: &Bed| {
        bed.meddler(|pod| {
            if pod["spec"]["initContainers"][1]["restartPolicy"] != "Always" {
                return json!([]);
            }
            json!([{"op": "remove", "path": "/spec/initContainers/1/restartPolicy"}])
        })
        .await;
        let namespace = bed.namespace("ns", "sidecar").await;
        let began = Instant::now();
        let why = loop {
            match bed.try_create(&namespace, &pod(json!({})), false).await {
                Err(why) => break why,
                Ok(_) => assert!(began.elapsed() < PATIENCE, "it is admitted"),
            }
        };
        assert!(
            why.contains("duet-proxy has lost its restartPolicy: Always"),
            "{why}"
        );
    });
}

/// What redirects a pod's connections needs NET_ADMIN, which no standard but
/// `privileged` allows; the proxy itself passes the strictest.
#[test]
fn pod_security_minds_the_redirection_alone() {
    let restricted =
        json!({"duet.dev/mode": "sidecar", "pod-security.kubernetes.io/enforce": "restricted"});
    let secure = json!({"spec": {
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "web", "image": "duet.test/none:0",
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
        }],
    }});
    run("pss", Config::default(), async |bed: &Bed| {
        let namespace = bed.make_namespace("ns", &restricted).await;
        let why = bed
            .try_create(&namespace, &pod(secure.clone()), false)
            .await
            .unwrap_err();
        assert!(why.contains("violates PodSecurity \"restricted"), "{why}");
        assert!(
            why.contains("duet-init") && !why.contains("duet-proxy"),
            "{why}"
        );
        let agent = json!({"metadata": {"labels": {names::MODE: "agent"}}});
        let mut agent = pod(agent);
        json_patch::merge(&mut agent, &secure);
        assert_eq!(
            placement(&bed.create(&namespace, &agent).await.pod),
            "agent"
        );
    });
    let config = Config::from_yaml("{redirect: cni, allowCni: true}").unwrap();
    run("cni", config, async |bed: &Bed| {
        let namespace = bed.make_namespace("ns", &restricted).await;
        let made = bed.create(&namespace, &pod(secure)).await;
        assert_eq!(names_of(&made.pod, "initContainers"), ["duet-proxy"]);
    });
}

/// A root is told of before anything is signed with it; who overwrites the roots is
/// overwritten.
#[test]
fn a_change_of_root_is_not_noticed() {
    run("rotate", Config::default(), async |bed: &Bed| {
        let namespace = bed.namespace("ns", "sidecar").await;
        let (old, new) = (bed.current_authority(), authority());
        let root = |of: &Authority| of.issuer().root().clone();
        let both = Authority::new(old.issuer().clone(), [root(&new)]);
        let new_signs = Authority::new(new.issuer().clone(), [root(&old)]);
        let only_new = Authority::new(new.issuer().clone(), []);
        for (step, next) in [
            ("both", both),
            ("new signs", new_signs),
            ("only new", only_new),
        ] {
            let wanted = next.bundle_pem();
            bed.replace_authority(next);
            let began = Instant::now();
            let told = || async { bed.ca_bundles().await.iter().all(|it| *it == wanted) };
            while !told().await || began.elapsed() < OVERLAP {
                assert!(began.elapsed() < PATIENCE, "{step}");
                let admitted = bed.try_create(&namespace, &pod(json!({})), true).await;
                admitted.unwrap_or_else(|why| panic!("{step}: {why}"));
            }
        }
        bed.create(&namespace, &pod(json!({}))).await;
    });
}
