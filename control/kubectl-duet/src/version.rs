//! `version`: this command's, the control plane's, the proxies'.

use crate::cli::{Global, Output, VersionArgs};
use crate::cluster::{Cluster, Error};
use crate::output::{print, print_json};
use crate::status::gather::{Control, Mesh};
use serde::Serialize;
use std::collections::BTreeMap;
use std::process::ExitCode;

const OWN: &str = env!("CARGO_PKG_VERSION");

#[derive(Serialize)]
struct Versions {
    client: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    control: Option<BTreeMap<String, usize>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxies: Option<BTreeMap<String, usize>>,
}

pub async fn run(global: &Global, args: &VersionArgs) -> Result<ExitCode, Error> {
    let mut versions = Versions {
        client: OWN,
        control: None,
        proxies: None,
    };
    if !args.client {
        let cluster = Cluster::connect(global).await?;
        let control = Control::gather(&cluster).await?;
        let mesh = Mesh::gather(&cluster, None).await?;
        versions.control = Some(count(control.builds.values().map(ToString::to_string)));
        let told = mesh.told.iter().filter_map(|(_, told)| told.as_ref().ok());
        let builds = told.map(|told| format!("{} core={}", told.version, told.core));
        versions.proxies = Some(count(builds));
    }
    if global.output == Output::Json {
        print_json(&versions)?;
    } else {
        print(&render(&versions))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn count(all: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counted = BTreeMap::new();
    for one in all {
        *counted.entry(one).or_default() += 1;
    }
    counted
}

fn render(versions: &Versions) -> String {
    let mut text = format!("kubectl duet: {}\n", versions.client);
    for (what, of) in [
        ("duet-control", &versions.control),
        ("proxies", &versions.proxies),
    ] {
        let Some(of) = of else { continue };
        if of.is_empty() {
            text += &format!("{what}: none answers\n");
        }
        for (version, count) in of {
            text += &format!("{what}: {version} ({count})\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixed_versions_are_told_apart() {
        let proxies = ["0.1.0 core=a", "0.1.0 core=b", "0.1.0 core=a"].map(str::to_owned);
        let versions = Versions {
            client: "0.1.0",
            control: Some(BTreeMap::new()),
            proxies: Some(count(proxies.into_iter())),
        };
        assert_eq!(
            render(&versions),
            "kubectl duet: 0.1.0\nduet-control: none answers\nproxies: 0.1.0 core=a (2)\nproxies: 0.1.0 core=b (1)\n"
        );
    }
}
