//! Which Kubernetes this is, and what it can do.

use std::fmt;

/// Native sidecars are on by default since then (KEP-753). An older API server
/// drops `restartPolicy` from init containers, and the proxy, taken for one that
/// ends, would keep the pod from ever starting.
const NATIVE_SIDECARS: KubernetesVersion = KubernetesVersion {
    major: 1,
    minor: 29,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KubernetesVersion {
    pub major: u32,
    pub minor: u32,
}

// === impl KubernetesVersion ===

impl KubernetesVersion {
    /// From what /version says; `minor` may be "29+".
    pub fn parse(major: &str, minor: &str) -> Option<Self> {
        let number = |text: &str| {
            let digits = text.find(|c: char| !c.is_ascii_digit());
            text[..digits.unwrap_or(text.len())].parse().ok()
        };
        Some(Self {
            major: number(major)?,
            minor: number(minor)?,
        })
    }

    pub fn has_native_sidecars(self) -> bool {
        self >= NATIVE_SIDECARS
    }
}

impl fmt::Display for KubernetesVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vendors_mark_their_minor_versions() {
        let version = KubernetesVersion::parse("1", "28+").unwrap();
        assert_eq!(version.to_string(), "1.28");
        assert!(!version.has_native_sidecars());
        assert!(
            KubernetesVersion::parse("1", "29")
                .unwrap()
                .has_native_sidecars()
        );
        assert!(
            KubernetesVersion::parse("2", "0")
                .unwrap()
                .has_native_sidecars()
        );
        assert_eq!(KubernetesVersion::parse("", "29"), None);
    }
}
