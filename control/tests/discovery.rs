//! What proxies are told, as the mesh file changes under them.

mod mesh;

use mesh::{MESH, PATIENCE, Site, eventually, get, metric, node, workload};

#[tokio::test]
async fn a_watch_begins_with_everything() {
    let site = Site::new(MESH);
    let control = site.start().await;
    let mut watch = site
        .proxy(&control, workload("web-0"))
        .await
        .watch()
        .await
        .unwrap();
    let update = watch.next().await;
    assert!(update.snapshot);
    assert_eq!(update.trust_domain, "duet.local");
    assert!(update.version > 0);
    let names: Vec<_> = watch.held.workloads.keys().map(String::as_str).collect();
    assert_eq!(names, ["default/old", "default/web-0", "default/web-1"]);
    let endpoints: Vec<_> = watch.held.services["default/web"].ports[0]
        .endpoints
        .iter()
        .map(|end| (end.address.as_str(), end.port, end.workload.as_str()))
        .collect();
    assert_eq!(
        endpoints,
        [
            ("10.71.1.2", 8080, "default/web-0"),
            ("10.71.2.2", 8080, "default/web-1")
        ]
    );
    assert_eq!(metric(&control, "duet_control_watchers").await, 1.0);
    drop(watch);
    eventually("the watcher's departure", async || {
        metric(&control, "duet_control_watchers").await == 0.0
    })
    .await;
}

#[tokio::test]
async fn a_change_arrives_as_what_changed_however_the_file_is_saved() {
    let site = Site::new(MESH);
    let control = site.start().await;
    let mut watch = site
        .proxy(&control, node("node-1"))
        .await
        .watch()
        .await
        .unwrap();
    let first = watch.next().await;

    // Written in place.
    let moved = MESH.replace("10.71.2.2", "10.71.2.3");
    site.write(&moved);
    let update = watch.next().await;
    assert!(!update.snapshot && update.version > first.version);
    let changed: Vec<_> = update
        .workloads
        .iter()
        .map(|workload| &workload.name)
        .collect();
    assert_eq!(changed, ["web-1"]);
    assert_eq!(update.services.len(), 1, "its endpoint moved along");
    assert!(update.removed_workloads.is_empty() && update.removed_services.is_empty());

    // Renamed over.
    let gone = moved.replace(
        "  - name: old\n    node: node-1\n    mesh: none\n    addresses: [10.71.1.9]\n",
        "",
    );
    assert_ne!(gone, moved);
    site.rename_over(&gone);
    let update = watch.next().await;
    assert_eq!(update.removed_workloads, ["default/old"]);
    assert!(update.workloads.is_empty() && update.services.is_empty());

    // Removed, then written anew.
    std::fs::remove_file(site.file()).unwrap();
    eventually("a complaint about the missing file", async || {
        metric(&control, "duet_control_source_reload_failures_total").await == 1.0
    })
    .await;
    site.write("trustDomain: other.local\nworkloads: []\n");
    let update = watch.next().await;
    assert_eq!(update.trust_domain, "other.local");
    assert_eq!(update.removed_services, ["default/web"]);
    assert!(watch.held.workloads.is_empty() && watch.held.services.is_empty());

    // A watcher that comes now holds the same.
    let mut late = site
        .proxy(&control, node("node-2"))
        .await
        .watch()
        .await
        .unwrap();
    late.next().await;
    assert_eq!(late.held, watch.held);
}

#[tokio::test]
async fn a_symlink_swapped_as_kubernetes_does_is_a_change() {
    let site = Site::new(MESH);
    let dir = site.dir.path();
    std::fs::remove_file(site.file()).unwrap();
    for (name, text) in [("v1", MESH), ("v2", "workloads: []\n")] {
        std::fs::create_dir(dir.join(name)).unwrap();
        std::fs::write(dir.join(name).join("mesh.yaml"), text).unwrap();
    }
    std::os::unix::fs::symlink("v1", dir.join("data")).unwrap();
    std::os::unix::fs::symlink("data/mesh.yaml", site.file()).unwrap();

    let control = site.start().await;
    let mut watch = site
        .proxy(&control, node("node-1"))
        .await
        .watch()
        .await
        .unwrap();
    assert_eq!(watch.next().await.workloads.len(), 3);
    std::os::unix::fs::symlink("v2", dir.join("next")).unwrap();
    std::fs::rename(dir.join("next"), dir.join("data")).unwrap();
    assert_eq!(watch.next().await.removed_workloads.len(), 3);
}

#[tokio::test]
async fn a_wrong_file_changes_nothing_and_a_right_one_heals_it() {
    let site = Site::new(MESH);
    let control = site.start().await;
    let proxy = site.proxy(&control, workload("web-0")).await;
    let mut watch = proxy.watch().await.unwrap();
    let first = watch.next().await;
    let failures = "duet_control_source_reload_failures_total";

    site.write(&MESH.replace("port: 80", "port: 0"));
    eventually("the refusal", async || {
        metric(&control, failures).await == 1.0
    })
    .await;
    // In force: what was good. For those who watch, for newcomers, for certificates.
    let mut late = proxy.watch().await.unwrap();
    let update = late.next().await;
    assert_eq!(update, first);
    proxy.certify("default/web-0").await.unwrap();
    assert_eq!(get(control.health_addr(), "/ready").await.0, 200);

    // Back to what it was: nothing to tell. Then a change: told.
    site.write(MESH);
    site.rename_over(&MESH.replace("node-2", "node-3"));
    let update = watch.next().await;
    assert_eq!(update.workloads.len(), 1);
    assert_eq!(watch.held.workloads["default/web-1"].node, "node-3");
    assert_eq!(metric(&control, failures).await, 1.0);
}

#[tokio::test]
async fn the_same_mesh_in_other_words_is_no_change() {
    let site = Site::new(MESH);
    let control = site.start().await;
    let version = metric(&control, "duet_control_source_version").await;
    let mut watch = site
        .proxy(&control, node("node-1"))
        .await
        .watch()
        .await
        .unwrap();
    watch.next().await;
    site.write(&format!("# a comment\n{MESH}"));
    tokio::time::sleep(duet_control::source::POLL_INTERVAL * 5).await;
    assert_eq!(
        metric(&control, "duet_control_source_version").await,
        version
    );
    site.write(&format!("trustDomain: new.local\n{MESH}"));
    assert_eq!(watch.next().await.trust_domain, "new.local");
}

#[tokio::test]
async fn a_wrong_file_at_start_is_refused() {
    let site = Site::new("workloads:\n  - nmae: web-0\n");
    let error = site.try_start().await.err().unwrap().to_string();
    assert!(
        error.contains("mesh.yaml:2: unknown field `nmae`"),
        "{error}"
    );
}

#[tokio::test]
async fn stopping_ends_the_watches_at_once() {
    let site = Site::new(MESH);
    let control = site.start().await;
    let mut watch = site
        .proxy(&control, node("node-1"))
        .await
        .watch()
        .await
        .unwrap();
    watch.next().await;
    let (health, api) = (control.health_addr(), control.api_addr());
    assert_eq!(get(health, "/ready").await, (200, "ready\n".to_owned()));
    assert_eq!(get(health, "/live").await.0, 200);
    assert_eq!(get(health, "/").await.0, 404);

    let began = std::time::Instant::now();
    control.stop().await;
    assert!(
        began.elapsed() < duet_control::server::SHUTDOWN_GRACE,
        "no call was left hanging"
    );
    let end = tokio::time::timeout(PATIENCE, watch.stream.message())
        .await
        .unwrap();
    assert!(
        matches!(end, Ok(None)),
        "the end of the stream, not an error: {end:?}"
    );
    assert!(tokio::net::TcpStream::connect(api).await.is_err());
}

#[tokio::test]
async fn a_new_life_counts_on_from_the_old_one() {
    let site = Site::new(MESH);
    let first = site.start().await;
    let before = metric(&first, "duet_control_source_version").await;
    first.stop().await;
    let second = site.start().await;
    assert!(metric(&second, "duet_control_source_version").await > before);
}
