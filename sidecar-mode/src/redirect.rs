//! `duet-sidecar init`: the nftables table that redirects a pod's connections.
//!
//! Everything is one table, `inet duet`, in the pod's own network namespace, and
//! one transaction: the old table goes and the new one comes, or nothing changes.
//! That makes `init` safe to repeat, and leaves alone whatever else is there.
//!
//! **Nothing leaves in plaintext because the proxy is away.** The rules stay when
//! the proxy dies; a redirected connection then meets a closed port and is
//! refused. A packet that conntrack calls invalid is never translated and would
//! go where the application addressed it, so it is dropped. These chains meet every
//! packet, so what nearly all of them are is asked first.
//!
//! **Nothing goes round in circles.** Connections of the proxy's own uid leave
//! untouched, and what travels over `lo` (loopback, the pod's own addresses, and
//! with them the proxy's delivery to the application) is not redirected at all.
//!
//! Connections that were open before `init` ran do not survive it: conntrack
//! meets them in mid-stream and takes their next packet for a new connection's,
//! which the proxy's port resets. In a pod `init` runs first and there are none.
//! What the table does not cover is everything that is not TCP.

use duet_core::capture::{INBOUND_PORT, MESH_PORT, OUTBOUND_PORT};
use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::io::{self, Write};
use std::process::{Command, Stdio};

/// Metrics and health: probes and scrapers reach the proxy without the proxy.
const SCRAPED_PORTS: [u16; 2] = [15020, 15021];

/// What is redirected: all TCP but this.
#[derive(Clone, Debug, Default)]
pub struct Redirect {
    pub proxy_uid: u32,
    /// Further uids whose connections leave untouched.
    pub exclude_uids: BTreeSet<u32>,
    /// Destination ports that the pod's connections to leave untouched.
    pub exclude_outbound_ports: BTreeSet<u16>,
    /// Ports of the pod that are reached without the proxy.
    pub exclude_inbound_ports: BTreeSet<u16>,
}

/// Why the table is not as it was asked to be. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot run nft: {0}; the image has to contain nftables")]
    NoNft(#[source] io::Error),
    #[error(
        "not permitted to change nftables in this network namespace: \
         give the init container NET_ADMIN (or run as root)"
    )]
    NotPermitted,
    #[error("nft refused the rules: {0}")]
    Refused(String),
}

// === impl Redirect ===

impl Redirect {
    /// Puts the table in place in the current network namespace.
    pub fn apply(&self) -> Result<(), Error> {
        nft(&self.to_string())
    }

    /// Takes the table away, if it is there. Connections that go through the
    /// proxy end with it.
    pub fn remove() -> Result<(), Error> {
        nft(FORGET)
    }
}

/// `add` so that `delete` finds a table also the first time.
const FORGET: &str = "add table inet duet\ndelete table inet duet\n";

/// The transaction, in nft's own language, as `nft list table inet duet` shows it.
impl Display for Redirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uids = set(self.exclude_uids.iter().chain([&self.proxy_uid]));
        let own = [OUTBOUND_PORT, INBOUND_PORT, MESH_PORT];
        let inbound = set(self
            .exclude_inbound_ports
            .iter()
            .chain(&own)
            .chain(&SCRAPED_PORTS));
        let outbound = if self.exclude_outbound_ports.is_empty() {
            String::new()
        } else {
            format!("tcp dport {} accept", set(&self.exclude_outbound_ports))
        };
        write!(
            f,
            r#"{FORGET}table inet duet {{
	comment "duet-sidecar init"

	chain outbound {{
		type nat hook output priority -100; policy accept;
		oif "lo" accept
		meta skuid {uids} accept
		{outbound}
		meta l4proto tcp redirect to :{OUTBOUND_PORT}
	}}

	chain inbound {{
		type nat hook prerouting priority -100; policy accept;
		iif "lo" accept
		tcp dport {inbound} accept
		meta l4proto tcp redirect to :{INBOUND_PORT}
	}}

	chain outbound_untranslated {{
		type filter hook output priority 0; policy accept;
		ct state != invalid accept
		oif "lo" accept
		meta skuid {uids} accept
		{outbound}
		meta l4proto tcp drop
	}}

	chain inbound_untranslated {{
		type filter hook prerouting priority -150; policy accept;
		ct state != invalid accept
		iif "lo" accept
		tcp dport {inbound} accept
		meta l4proto tcp drop
	}}
}}
"#
        )
    }
}

/// An anonymous set: `{ 1, 2 }`.
fn set<T: Display + Ord>(elements: impl IntoIterator<Item = T>) -> String {
    let elements: Vec<_> = elements
        .into_iter()
        .collect::<BTreeSet<_>>()
        .iter()
        .map(T::to_string)
        .collect();
    format!("{{ {} }}", elements.join(", "))
}

fn nft(ruleset: &str) -> Result<(), Error> {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::NoNft)?;
    let written = nft
        .stdin
        .take()
        .expect("stdin is piped")
        .write_all(ruleset.as_bytes());
    let output = nft.wait_with_output().map_err(Error::NoNft)?;
    if output.status.success() && written.is_ok() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    if complaint.contains("Operation not permitted") {
        return Err(Error::NotPermitted);
    }
    let first = complaint.lines().find(|line| !line.trim().is_empty());
    Err(Error::Refused(match first {
        Some(line) => line.trim().to_owned(),
        None => output.status.to_string(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_exclusions_no_empty_set() {
        let ruleset = Redirect {
            proxy_uid: 2102,
            ..Redirect::default()
        }
        .to_string();
        assert!(
            !ruleset.contains("{  }"),
            "nft knows no empty set: {ruleset}"
        );
        assert!(ruleset.starts_with(FORGET), "one transaction: {ruleset}");
    }

    #[test]
    fn a_port_excluded_twice_appears_once() {
        let ruleset = Redirect {
            proxy_uid: 2102,
            exclude_inbound_ports: [MESH_PORT, 22].into(),
            exclude_uids: [2102].into(),
            ..Redirect::default()
        }
        .to_string();
        assert!(
            ruleset.contains("tcp dport { 22, 15001, 15006, 15008, 15020, 15021 } accept"),
            "{ruleset}"
        );
        assert!(ruleset.contains("skuid { 2102 } accept"), "{ruleset}");
    }
}
