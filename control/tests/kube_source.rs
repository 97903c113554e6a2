//! What proxies are told, as objects change in a real API server.

mod mesh;
mod simulated;

use duet_control::Caller;
use duet_control::state::View;
use duet_core::WorkloadName;
use duet_core::api::{MeshProtocol, Mtls, Placement};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use simulated::{address, endpoints, in_lab, now, until};

#[tokio::test]
async fn pods_and_services_become_the_mesh() {
    in_lab("mesh", async |lab| {
        let ns = lab.namespace("a", json!({}), json!({})).await;
        let vip = ns
            .service("web", json!({ "spec": { "ports": [
                { "name": "http", "port": 80, "targetPort": "web", "appProtocol": "http" },
                { "name": "dns", "port": 53, "protocol": "UDP" },
            ] } }))
            .await;
        let control = lab.control().await;
        let mut watch = control.watch(&lab.node).await;
        let one = ns.sidecar("web-1", "web").await;
        let native = json!({
            "metadata": { "labels": { "app": "web" } },
            "spec": { "serviceAccountName": "default", "initContainers": [
                { "name": "duet-proxy", "image": "example.invalid/proxy:1", "restartPolicy": "Always" },
            ] },
        });
        let two = ns.pod("web-2", native).await;
        let outside = ns.pod("other", json!({ "metadata": { "labels": { "app": "web" } } })).await;
        let host = json!({
            "metadata": { "annotations": { "duet.dev/placement": "sidecar" } },
            "spec": { "hostNetwork": true },
        });
        ns.pod("host", host).await;

        let web = ns.key("web");
        until(&mut watch, "three endpoints", |view| endpoints(view, &web).len() == 3).await;
        let mut expected = [
            (one.clone(), 8080, ns.key("web-1")),
            (two, 8080, ns.key("web-2")),
            (outside, 8080, String::new()),
        ];
        let mut found = endpoints(&watch.held, &web);
        expected.sort();
        found.sort();
        assert_eq!(found, expected);
        let service = &watch.held.services[&web];
        assert_eq!(service.addresses, vip);
        assert_eq!(service.ports.len(), 1, "UDP is not ours");
        assert_eq!(service.ports[0].app_protocol, "http");

        let workload = &watch.held.workloads[&ns.key("web-1")];
        assert_eq!(workload.addresses, [one]);
        assert_eq!(workload.service_account, "default");
        assert_eq!(workload.node, lab.node);
        assert_eq!(workload.placement(), Placement::Sidecar);
        assert_eq!(workload.protocol(), MeshProtocol::Duet);
        let pod = ns.api::<Pod>().get("web-1").await.unwrap();
        assert_eq!(Some(&workload.uid), pod.metadata.uid.as_ref());
        for outsider in ["other", "host"] {
            assert!(!watch.held.workloads.contains_key(&ns.key(outsider)));
        }
        assert_eq!(watch.held.trust_domain, "cluster.local");

        // Whoever comes now is told the same.
        let late = control.watch(&lab.node).await;
        assert_eq!(late.held.services[&web], watch.held.services[&web]);

        ns.api::<Pod>().delete("web-1", &now()).await.unwrap();
        ns.api::<Service>().delete("web", &now()).await.unwrap();
        until(&mut watch, "their end", |view| {
            !view.services.contains_key(&web) && !view.workloads.contains_key(&ns.key("web-1"))
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn endpoints_follow_readiness() {
    in_lab("ready", async |lab| {
        let ns = lab.namespace("a", json!({}), json!({})).await;
        ns.service("web", json!({})).await;
        ns.service(
            "early",
            json!({ "spec": {
            "selector": { "app": "web" }, "publishNotReadyAddresses": true,
        } }),
        )
        .await;
        let one = ns.sidecar("web-1", "web").await;
        let two = ns.sidecar("web-2", "web").await;
        let control = lab.control().await;
        let mut watch = control.watch(&lab.node).await;
        let (web, early) = (ns.key("web"), ns.key("early"));
        until(&mut watch, "two endpoints", |view| {
            endpoints(view, &web).len() == 2
        })
        .await;

        ns.runs("web-1", &one, false).await;
        let of_two = vec![(two.clone(), 8080, ns.key("web-2"))];
        until(&mut watch, "one of them", |view| {
            endpoints(view, &web) == of_two
        })
        .await;
        assert_eq!(
            endpoints(&watch.held, &early).len(),
            2,
            "wanted whether ready or not"
        );

        // The last one goes, and answers until it has gone.
        ns.api::<Pod>()
            .delete("web-2", &DeleteParams::default())
            .await
            .unwrap();
        let serving = async || {
            let slices = ns
                .api::<EndpointSlice>()
                .list(&Default::default())
                .await
                .unwrap();
            let endpoints = slices.items.into_iter().filter_map(|slice| slice.endpoints);
            endpoints.flatten().any(|endpoint| {
                let conditions = endpoint.conditions.unwrap_or_default();
                conditions.terminating == Some(true) && conditions.ready == Some(false)
            })
        };
        mesh::eventually("the slice says that it goes", serving).await;
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        until(&mut watch, "still that one", |view| {
            endpoints(view, &web) == of_two
        })
        .await;
        assert!(watch.held.workloads.contains_key(&ns.key("web-2")));

        ns.runs("web-1", &one, true).await;
        let of_one = vec![(one, 8080, ns.key("web-1"))];
        until(&mut watch, "the other one", |view| {
            endpoints(view, &web) == of_one
        })
        .await;
        ns.api::<Pod>().delete("web-2", &now()).await.unwrap();
        until(&mut watch, "its end", |view| {
            !view.workloads.contains_key(&ns.key("web-2"))
        })
        .await;

        ns.status("web-1", json!({ "phase": "Succeeded" })).await;
        until(&mut watch, "nobody", |view| {
            endpoints(view, &web).is_empty() && !view.workloads.contains_key(&ns.key("web-1"))
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_label_places_pods_that_were_there_before_it() {
    in_lab("label", async |lab| {
        let ns = lab.namespace("a", json!({}), json!({})).await;
        ns.service("web", json!({})).await;
        let old = ns.pod("web", json!({})).await;
        ns.sidecar("stamped", "web").await;
        let control = lab.control().await;
        let mut watch = control.watch(&lab.node).await;
        let (web, stamped) = (ns.key("web"), ns.key("stamped"));
        until(&mut watch, "both endpoints", |view| endpoints(view, &web).len() == 2).await;
        assert!(!watch.held.workloads.contains_key(&web));

        ns.say(json!({ "labels": { "duet.dev/mode": "agent" } })).await;
        until(&mut watch, "the agent's", |view| view.workloads.contains_key(&web)).await;
        let workload = &watch.held.workloads[&web];
        assert_eq!(workload.placement(), Placement::Agent);
        assert_eq!(workload.protocol(), MeshProtocol::None, "nobody has it yet");
        assert_eq!(workload.addresses, std::slice::from_ref(&old));
        let named = (old, 8080, web.clone());
        until(&mut watch, "its endpoint", |view| endpoints(view, &web).contains(&named)).await;
        let kept = watch.held.workloads[&stamped].clone();
        assert_eq!(kept.placement(), Placement::Sidecar);

        let enrolled = |status: &str| {
            json!({ "conditions": [{ "type": "duet.dev/enrolled", "status": status }] })
        };
        ns.status("web", enrolled("True")).await;
        until(&mut watch, "enrolled", |view| {
            view.workloads[&web].protocol() == MeshProtocol::Duet
        })
        .await;
        ns.status("web", enrolled("False")).await;
        until(&mut watch, "no longer", |view| {
            view.workloads[&web].protocol() == MeshProtocol::None
        })
        .await;

        ns.say(json!({ "labels": { "duet.dev/mode": null } })).await;
        until(&mut watch, "out of the mesh", |view| !view.workloads.contains_key(&web)).await;
        assert_eq!(watch.held.workloads[&stamped], kept);
    })
    .await;
}

#[tokio::test]
async fn what_pods_say_of_themselves_is_told() {
    in_lab("says", async |lab| {
        let strict = json!({ "duet.dev/mtls": "strict" });
        let ns = lab.namespace("a", json!({}), strict).await;
        let control = lab.control().await;
        let mut watch = control.watch(&lab.node).await;
        let says = json!({
            "metadata": { "annotations": {
                "duet.dev/placement": "agent", "duet.dev/opaque-ports": "3306",
            } },
            "spec": { "containers": [{
                "name": "app", "image": "example.invalid/app:1",
                "ports": [{ "name": "web", "containerPort": 8080 }],
                "livenessProbe": { "httpGet": { "path": "/live", "port": "web" } },
                "readinessProbe": { "grpc": { "port": 9000 } },
                "startupProbe": { "tcpSocket": { "port": 5432 } },
            }] },
        });
        ns.pod("web", says).await;
        let web = ns.key("web");
        until(&mut watch, "the pod", |view| {
            view.workloads
                .get(&web)
                .is_some_and(|it| !it.addresses.is_empty())
        })
        .await;
        let workload = &watch.held.workloads[&web];
        assert_eq!(workload.placement(), Placement::Agent);
        assert_eq!(
            workload.protocol(),
            MeshProtocol::Duet,
            "stamped: never in plaintext"
        );
        assert_eq!(workload.mtls(), Mtls::Strict);
        assert_eq!(workload.opaque_ports, [3306]);
        let probes: Vec<_> = workload
            .probes
            .iter()
            .map(|it| (it.port, it.path.as_str(), it.grpc))
            .collect();
        assert_eq!(
            probes,
            [(5432, "", false), (8080, "/live", false), (9000, "", true)]
        );

        let permissive =
            json!({ "metadata": { "annotations": { "duet.dev/mtls": "permissive" } } });
        ns.patch::<Pod>("web", permissive).await;
        until(&mut watch, "the pod's own word", |view| {
            view.workloads[&web].mtls() == Mtls::Permissive
        })
        .await;
    })
    .await;
}

/// As the platform labels nodes, the slices' controller copies it, and a service asks for it.
#[tokio::test]
async fn zones_are_those_of_nodes_and_matter_where_a_service_says_so() {
    in_lab("zones", async |lab| {
        let far = format!("{}-far", lab.name);
        lab.add_nodes(std::slice::from_ref(&far)).await;
        let nodes: Api<Node> = Api::all(lab.client.clone());
        let label = async |node: &str, zone: &str| {
            let zone = json!({ "metadata": { "labels": { "topology.kubernetes.io/zone": zone } } });
            let (params, patch) = (PatchParams::default(), Patch::Merge(zone));
            nodes.patch(node, &params, &patch).await.unwrap();
        };
        label(&lab.node, "zone-a").await;
        label(&far, "zone-b").await;
        let ns = lab.namespace("a", json!({}), json!({})).await;
        let web = json!({ "spec": { "selector": { "app": "web" } } });
        ns.service("anywhere", web.clone()).await;
        ns.service("near", web).await;
        let close = json!({ "spec": { "trafficDistribution": "PreferClose" } });
        ns.patch::<Service>("near", close).await;
        let near = ns.sidecar("web-1", "web").await;
        let stamped = json!({
            "metadata": {
                "labels": { "app": "web" }, "annotations": { "duet.dev/placement": "sidecar" },
            },
            "spec": { "nodeName": far },
        });
        ns.pod("web-2", stamped).await;

        let control = lab.control().await;
        let mut watch = control.watch(&lab.node).await;
        let zones = |view: &View, service: &str| -> Vec<(bool, Vec<String>)> {
            let ports = view.services.get(&ns.key(service)).map(|it| &it.ports);
            let endpoints = ports.into_iter().flatten().flat_map(|port| &port.endpoints);
            let mut zones: Vec<_> = endpoints
                .map(|it| (it.address == near, it.zones.clone()))
                .collect();
            zones.sort();
            zones
        };
        let of = |zone: &str| vec![zone.to_owned()];
        let expected = vec![(false, of("zone-b")), (true, of("zone-a"))];
        until(&mut watch, "the zones of both", |view| {
            zones(view, "near") == expected
        })
        .await;
        assert_eq!(
            zones(&watch.held, "anywhere"),
            [(false, vec![]), (true, vec![])]
        );
        let zone = |view: &View, pod: &str| view.workloads[&ns.key(pod)].zone.clone();
        assert_eq!(zone(&watch.held, "web-1"), "zone-a");
        assert_eq!(zone(&watch.held, "web-2"), "zone-b");

        label(&lab.node, "zone-c").await;
        until(&mut watch, "the node's other zone", |view| {
            zone(view, "web-1") == "zone-c"
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn services_of_all_kinds() {
    in_lab("kinds", async |lab| {
        let ns = lab.namespace("a", json!({}), json!({})).await;
        ns.service("headless", json!({ "spec": { "clusterIP": "None" } }))
            .await;
        ns.service(
            "name",
            json!({ "spec": {
            "type": "ExternalName", "externalName": "example.org", "selector": null, "ports": null,
        } }),
        )
        .await;
        ns.service(
            "sticky",
            json!({ "spec": { "sessionAffinity": "ClientIP" } }),
        )
        .await;
        ns.service("by-hand", json!({ "spec": { "selector": null } }))
            .await;
        let pod = ns.sidecar("web", "web").await;
        let elsewhere = address();
        let slice = |name: &str, address: &str| {
            json!({
                "metadata": { "name": name, "labels": { "kubernetes.io/service-name": "by-hand" } },
                "addressType": "IPv4",
                "ports": [{ "name": "http", "port": 9090 }],
                "endpoints": [{ "addresses": [address] }],
            })
        };
        ns.create::<EndpointSlice>(slice("one", &elsewhere)).await;
        ns.create::<EndpointSlice>(slice("two", &pod)).await;
        let control = lab.control().await;
        let mut watch = control.watch(&lab.node).await;
        let by_hand = ns.key("by-hand");
        until(&mut watch, "its slices", |view| {
            endpoints(view, &by_hand).len() == 2
        })
        .await;
        let mut found = endpoints(&watch.held, &by_hand);
        found.sort();
        let mut expected = [(elsewhere, 9090, String::new()), (pod, 9090, String::new())];
        expected.sort();
        // The proxy looks the second up by its address.
        assert_eq!(found, expected);
        assert!(watch.held.services.contains_key(&ns.key("sticky")));
        for nowhere in ["headless", "name"] {
            assert!(!watch.held.services.contains_key(&ns.key(nowhere)));
        }
        // It gets an address only by being made anew; a selector may come and go.
        ns.patch::<Service>(
            "by-hand",
            json!({ "spec": { "ports": [
            { "name": "http", "port": 81, "targetPort": 8080 },
        ] } }),
        )
        .await;
        until(&mut watch, "another port", |view| {
            view.services[&by_hand].ports[0].port == 81
        })
        .await;
    })
    .await;
}

fn sidecar_of(namespace: &str, name: &str) -> Caller {
    Caller::Workload(WorkloadName::new(namespace, name))
}

#[tokio::test]
async fn reach_bounds_what_is_told_and_hides_the_rest() {
    in_lab("reach", async |lab| {
        let none = || json!({});
        let (a, b, c) = (
            lab.namespace("a", none(), none()).await,
            lab.namespace("b", none(), none()).await,
            lab.namespace("c", none(), none()).await,
        );
        let control = lab.control().await;
        let mut pods = Vec::new();
        let mut vips = Vec::new();
        for ns in [&a, &b, &c] {
            vips.push(ns.service("web", none()).await.remove(0));
            pods.push(ns.sidecar("web", "web").await);
        }
        // Nobody of the mesh is behind it.
        let plain = c.service("plain", none()).await.remove(0);
        c.pod("plain", none()).await;

        let mut everything = control.watch(&lab.node).await;
        until(&mut everything, "all of it", |view| {
            [&a, &b, &c]
                .iter()
                .all(|ns| endpoints(view, &ns.key("web")).len() == 1)
                && endpoints(view, &c.key("plain")).len() == 1
        })
        .await;
        assert!(everything.held.hidden.is_empty());

        let reaches = |names: Value| json!({ "annotations": { "duet.dev/reach": names } });
        let proxy = control.proxy(sidecar_of(&a.name, "web")).await;
        let mut watch = proxy.watch().await.unwrap();
        watch.next().await;
        let all = watch.held.clone();
        assert!(all.workloads.contains_key(&c.key("web")) && all.hidden.is_empty());
        let ip = |text: &String| text.parse().unwrap();

        a.say(reaches(json!(b.name))).await;
        until(&mut watch, "what it reaches", |view| {
            !view.workloads.contains_key(&c.key("web"))
        })
        .await;
        let namespaces: std::collections::BTreeSet<_> = watch
            .held
            .workloads
            .values()
            .map(|it| it.namespace.clone())
            .collect();
        assert_eq!(namespaces, [a.name.clone(), b.name.clone()].into());
        assert!(
            watch
                .held
                .services
                .keys()
                .all(|name| !name.starts_with(&c.name))
        );
        for hidden in [&pods[2], &vips[2]] {
            assert!(
                watch.held.hidden.contains(&ip(hidden)),
                "{hidden} in plaintext"
            );
        }
        for open in [&pods[0], &pods[1], &vips[0], &vips[1], &plain] {
            assert!(!watch.held.hidden.contains(&ip(open)), "{open} is hidden");
        }
        // A newcomer is told the same as whoever was told step by step.
        let mut late = proxy.watch().await.unwrap();
        late.next().await;
        let own = |name: &String| name.starts_with(&a.name) || name.starts_with(&b.name);
        let told = |view: &duet_control::state::View| {
            (
                view.workloads
                    .keys()
                    .filter(|name| own(name))
                    .cloned()
                    .collect::<Vec<_>>(),
                view.hidden.contains(&ip(&pods[2])),
            )
        };
        assert_eq!(told(&late.held), told(&watch.held));

        // What comes to be elsewhere is hidden, and what was hidden and goes is not.
        let new = c.sidecar("new", "web").await;
        until(&mut watch, "a new one", |view| {
            view.hidden.contains(&ip(&new))
        })
        .await;
        c.api::<Pod>().delete("new", &now()).await.unwrap();
        until(&mut watch, "its end", |view| {
            !view.hidden.contains(&ip(&new))
        })
        .await;

        // The agent of a node with all of them hears what they hear together.
        for (ns, names) in [(&b, ""), (&c, "")] {
            ns.say(reaches(json!(names))).await;
        }
        let own = [&a, &b, &c].map(|ns| ns.name.clone());
        until(&mut everything, "the node's scope", |view| {
            view.workloads
                .values()
                .all(|it| own.contains(&it.namespace))
                && view.workloads.len() == 3
        })
        .await;
        for seen in pods.iter().chain(&vips) {
            assert!(!everything.held.hidden.contains(&ip(seen)));
        }

        a.say(reaches(Value::Null)).await;
        until(&mut watch, "everything again", |view| {
            view.hidden.is_empty() && view.workloads.contains_key(&c.key("web"))
        })
        .await;
    })
    .await;
}
