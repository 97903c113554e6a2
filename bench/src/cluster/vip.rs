//! Services without a mesh: each node rewrites a virtual address to one of the
//! pods behind it, at random per connection, as kube-proxy does.

use super::error::Result;
use super::netns::Netns;
use super::network::Pair;
use super::process::run_tool;
use super::spec::ServicePort;
use std::fmt::Write;

/// A service and where its pods are.
#[derive(Clone, Debug)]
pub(crate) struct Vip {
    pub address: Pair,
    pub ports: Vec<ServicePort>,
    pub endpoints: Vec<Pair>,
}

/// Replaces a node's rules, in one step.
pub(crate) fn install(node: &Netns, vips: &[Vip]) -> Result<()> {
    run_tool("nft", &["-f", "-"], &ruleset(vips), Some(node)).map(drop)
}

/// A pod that reaches *itself* through a service would answer itself directly,
/// and drop the answer: such connections take the node's address.
fn ruleset(vips: &[Vip]) -> String {
    let mut rules = String::new();
    let mut own4 = String::new();
    let mut own6 = String::new();
    for vip in vips.iter().filter(|vip| !vip.endpoints.is_empty()) {
        let count = vip.endpoints.len();
        for ServicePort {
            port, target_port, ..
        } in &vip.ports
        {
            let choices = |show: &dyn Fn(&Pair) -> String| {
                vip.endpoints
                    .iter()
                    .enumerate()
                    .map(|(n, endpoint)| format!("{n} : {}", show(endpoint)))
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            let _ = writeln!(
                rules,
                "    ip daddr {} tcp dport {port} dnat ip to numgen random mod {count} map {{ {} }} : {target_port}",
                vip.address.v4,
                choices(&|endpoint| endpoint.v4.to_string()),
            );
            let _ = writeln!(
                rules,
                "    ip6 daddr {} tcp dport {port} dnat ip6 to numgen random mod {count} map {{ {} }} : {target_port}",
                vip.address.v6,
                choices(&|endpoint| endpoint.v6.to_string()),
            );
        }
        for endpoint in &vip.endpoints {
            let _ = writeln!(
                own4,
                "    ct status dnat ip saddr {0} ip daddr {0} masquerade",
                endpoint.v4
            );
            let _ = writeln!(
                own6,
                "    ct status dnat ip6 saddr {0} ip6 daddr {0} masquerade",
                endpoint.v6
            );
        }
    }
    format!(
        "table inet duet-bench\n\
         delete table inet duet-bench\n\
         table inet duet-bench {{\n\
         \x20 chain services {{\n{rules}  }}\n\
         \x20 chain from-pods {{\n    type nat hook prerouting priority dstnat; policy accept;\n    jump services\n  }}\n\
         \x20 chain from-node {{\n    type nat hook output priority -100; policy accept;\n    jump services\n  }}\n\
         \x20 chain to-pods {{\n    type nat hook postrouting priority srcnat; policy accept;\n{own4}{own6}  }}\n\
         }}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::network::Addresses;

    #[test]
    fn every_endpoint_has_its_share() {
        let addresses = Addresses { index: 0 };
        let text = ruleset(&[Vip {
            address: addresses.service(0),
            ports: vec![ServicePort {
                port: 80,
                target_port: 8080,
                app_protocol: None,
            }],
            endpoints: vec![addresses.pod(1, 2), addresses.pod(2, 2)],
        }]);
        assert!(text.contains(
            "ip daddr 10.96.0.10 tcp dport 80 dnat ip to numgen random mod 2 map { 0 : 10.64.1.2, 1 : 10.64.2.2 } : 8080"
        ));
        assert!(text.contains("ip6 saddr fd71:0:1::2 ip6 daddr fd71:0:1::2 masquerade"));
    }

    #[test]
    fn a_service_without_pods_has_no_rule() {
        let text = ruleset(&[Vip {
            address: Addresses { index: 0 }.service(0),
            ports: Vec::new(),
            endpoints: Vec::new(),
        }]);
        assert!(!text.contains("dnat"));
    }
}
