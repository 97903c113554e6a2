//! HTTP/2 as RFC 9113 and RFC 7541 have it, by h2spec (`make h2spec`), wherever a proxy is
//! the server: to its application, to a client outside the mesh, and to a peer.
#![forbid(unsafe_code)]

mod mesh;

use anyhow::{Result, ensure};
use duet_bench::cluster::{Placement, PodSpec, ServiceSpec};
use mesh::hbone::Papers;
use mesh::http::serve_http2;
use mesh::programs::{are_there, attempt};
use mesh::{Checks, Mesh};
use std::collections::BTreeSet;
use std::net::SocketAddr;

const HTTP2: u16 = 8080;
/// Where a peer's h2spec finds TLS done for it.
const FORWARDED: u16 = 7000;

/// What h2spec finds wrong and why it is left as it is.
const EXPLAINED: [(&str, &str); 2] = [
    (
        "http2/5.1: closed: Sends a DATA frame after sending RST_STREAM frame",
        "in some runs: the answer was on its way when the reset came, and h2spec looks at it alone",
    ),
    (
        "http2/3.5: Sends invalid connection preface",
        "the connection ends, as it must, but by a reset, which h2spec does not take for an end",
    ),
];

mesh::in_both_placements!(run);

fn run(placement: Placement) {
    if !are_there("HTTP/2 conformance", &["h2spec"]) {
        return;
    }
    let pods = [
        PodSpec::new("client"),
        PodSpec::new("server").node(2),
        PodSpec::new("outsider")
            .service_account("outsider")
            .meshed(false),
    ];
    let shop = ServiceSpec::new("shop")
        .port_as(80, HTTP2, "kubernetes.io/h2c")
        .pods(["server"]);
    let Some(mesh) = Mesh::start(placement, pods, [shop]) else {
        return;
    };
    let shop = mesh.cluster.service("shop").unwrap();
    mesh.block_on(async {
        let server = mesh.app("server");
        serve_http2(server, HTTP2);
        let papers = Papers::of(&mesh, "spiffe://duet.local/ns/default/sa/outsider").unwrap();
        papers
            .forward(mesh.app("outsider"), FORWARDED, server)
            .unwrap();

        let mut checks = Checks::default();
        let forwarded = SocketAddr::from(([127, 0, 0, 1], FORWARDED));
        for (name, pod, to, refused) in [
            ("to the application", "client", (shop.v4, 80).into(), false),
            ("to a client outside", "outsider", server.at(HTTP2), false),
            // h2spec cannot say where a peer's request is to go.
            ("to a peer", "outsider", forwarded, true),
        ] {
            let conforms = conforms(&mesh, pod, to, refused);
            checks.run_within(PATIENCE, name, conforms).await;
        }
        checks.assert_all_passed();
    });
}

/// Some of its cases wait for what must not come.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(300);

/// Where all requests are refused, at once, the whole answer may be there before what is wrong
/// with the rest of the request, which is then discarded (RFC 9113, 8.1).
async fn conforms(mesh: &Mesh, pod: &str, to: SocketAddr, refused: bool) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let report = dir.path().join("junit.xml");
    let (host, port) = (to.ip().to_string(), to.port().to_string());
    let report_at = report.display().to_string();
    let args = ["-h", &host, "-p", &port, "-o", "4", "-S", "-j", &report_at];
    let output = attempt(mesh, pod, "h2spec", &args)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let cases = cases(&std::fs::read_to_string(&report)?);
    ensure!(cases.len() > 140, "{} cases were run: {said}", cases.len());
    let failed = cases
        .iter()
        .filter_map(|(case, seen)| Some((case, seen.as_ref()?)));
    let explained = |case: &str| EXPLAINED.iter().any(|(known, _)| *known == case);
    let unexplained: BTreeSet<_> = failed
        .filter(|(case, seen)| !(explained(case) || refused && is_answer(seen)))
        .collect();
    ensure!(unexplained.is_empty(), "{unexplained:#?}\n{said}");
    Ok(())
}

/// The last of an answer, or what comes behind it: the window that its request gives back, and
/// that the rest of the request is not wanted.
fn is_answer(seen: &str) -> bool {
    let is_end = seen.contains("DATA Frame (") && seen.contains("flags:0x01");
    is_end || seen.contains("WINDOW_UPDATE Frame (") || seen.contains("RST_STREAM Frame (length:")
}

/// Each test case of a JUnit report, and if it failed, what was seen instead.
fn cases(report: &str) -> Vec<(String, Option<String>)> {
    let cases = report.split("<testcase ").skip(1);
    cases
        .map(|case| {
            let attribute = |name: &str| {
                let value = case.split(&format!("{name}=\"")).nth(1);
                value
                    .and_then(|it| it.split('"').next())
                    .unwrap_or_default()
            };
            let whole = case.split("</testcase>").next().unwrap_or_default();
            let passed = !whole.contains("<failure") && !whole.contains("<error");
            let seen = whole.rsplit("Actual:").next().unwrap_or_default();
            (
                format!("{}: {}", attribute("package"), attribute("classname")),
                (!passed).then(|| seen.to_owned()),
            )
        })
        .collect()
}
