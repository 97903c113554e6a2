//! What holds for all pods that do not say otherwise.

use super::annotations::{AccessLog, Redirect, SidecarKind, log_filter};
use super::quantity::Quantity;
use serde::{Deserialize, Deserializer};

/// Of the images that belong to this build.
const TAG: &str = env!("CARGO_PKG_VERSION");
/// Where duet-control runs.
const NAMESPACE: &str = "duet-system";
/// Of the Service in front of it.
const CONTROL_PORT: u16 = 15010;

/// The injector's configuration; a file of it is YAML in camelCase, in which every
/// field may be left out.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Duet's own namespace. Its pods are never in the mesh. A running duet-control
    /// knows it and does not look here.
    pub namespace: String,
    /// duet-control's address, https://host:port; by default its Service.
    pub control: Option<String>,
    /// What is installed. A pod that asks for another mode is refused.
    pub modes: Vec<Mode>,
    pub images: Images,
    pub image_pull_policy: PullPolicy,
    /// The proxy's, and with them those of the container that redirects.
    pub resources: Resources,
    /// The proxy's log filter.
    pub log_level: String,
    pub access_log: AccessLog,
    /// Whether applications wait for their proxy.
    pub wait: bool,
    pub redirect: Redirect,
    /// Whether there is a CNI plugin that redirects the connections of pods with
    /// `redirect: cni`. Duet's own is the agent's.
    pub allow_cni: bool,
    pub sidecar_kind: SidecarKind,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Images {
    pub sidecar: String,
    /// duet-sidecar, and nft.
    pub init: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Sidecar,
    Agent,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum PullPolicy {
    Always,
    #[default]
    IfNotPresent,
    Never,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    pub requests: Amounts,
    pub limits: Amounts,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Amounts {
    pub cpu: Option<Quantity>,
    pub memory: Option<Quantity>,
}

/// One line: what is wrong with a configuration, and what to write instead.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{0}")]
    Yaml(String),
    #[error("{field}: {problem}")]
    Field {
        field: &'static str,
        problem: String,
    },
}

// === impl Config ===

impl Config {
    /// # Errors
    /// When the text is no such configuration.
    pub fn from_yaml(text: &str) -> Result<Self, ConfigError> {
        if text.lines().all(|line| {
            let line = line.trim();
            line.is_empty() || line.starts_with('#') || line == "---"
        }) {
            return Ok(Self::default());
        }
        let config: Self = serde_saphyr::from_str(text)
            .map_err(|error| ConfigError::Yaml(first_line(&error.to_string())))?;
        config.check()?;
        Ok(config)
    }

    /// # Errors
    /// When a field has a value that it cannot have.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |field, problem: &str| {
            Err(ConfigError::Field {
                field,
                problem: problem.to_owned(),
            })
        };
        for (field, image) in [
            ("images.sidecar", &self.images.sidecar),
            ("images.init", &self.images.init),
        ] {
            if image.is_empty() || image.contains(char::is_whitespace) {
                return wrong(field, "is no image: write one, as duet/sidecar:0.1.0");
            }
        }
        if self.namespace.is_empty() {
            return wrong(
                "namespace",
                "is empty: write the namespace that Duet runs in",
            );
        }
        if self
            .control
            .as_ref()
            .is_some_and(|url| !url.starts_with("https://"))
        {
            return wrong("control", "is no https:// address: write https://host:port");
        }
        if let Err(problem) = log_filter(&self.log_level) {
            return wrong("logLevel", &problem);
        }
        if self.redirect == Redirect::Cni && !self.allow_cni {
            return wrong(
                "redirect",
                "is cni, which needs a CNI plugin that Duet has not: write init, or allowCni: \
                 true if you have one that redirects as duet-sidecar init does",
            );
        }
        if let Err(problem) = self.resources.check() {
            return wrong("resources", &problem);
        }
        Ok(())
    }

    /// Where proxies find duet-control.
    pub fn control(&self) -> String {
        self.control.clone().unwrap_or_else(|| {
            format!("https://duet-control.{}.svc:{CONTROL_PORT}", self.namespace)
        })
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            namespace: NAMESPACE.to_owned(),
            control: None,
            modes: vec![Mode::Sidecar, Mode::Agent],
            images: Images::default(),
            image_pull_policy: PullPolicy::default(),
            resources: Resources::default(),
            log_level: "info".to_owned(),
            access_log: AccessLog::Off,
            wait: true,
            redirect: Redirect::Init,
            allow_cni: false,
            sidecar_kind: SidecarKind::Native,
        }
    }
}

impl Default for Images {
    fn default() -> Self {
        Self {
            sidecar: format!("duet/sidecar:{TAG}"),
            init: format!("duet/init:{TAG}"),
        }
    }
}

// === impl PullPolicy ===

impl PullPolicy {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

// === impl Resources ===

impl Resources {
    /// Requests must not exceed limits.
    pub(super) fn check(&self) -> Result<(), String> {
        for (what, request, limit) in [
            ("CPU", &self.requests.cpu, &self.limits.cpu),
            ("memory", &self.requests.memory, &self.limits.memory),
        ] {
            if let (Some(request), Some(limit)) = (request, limit)
                && request.exceeds(limit)
            {
                return Err(format!(
                    "the proxy's {what} request {request} exceeds its limit {limit}: request \
                     less, or raise the limit"
                ));
            }
        }
        Ok(())
    }

    /// Whether a container with them may be in a pod of the QoS class Guaranteed.
    pub(super) fn are_guaranteed(&self) -> bool {
        let equal = |request: &Option<Quantity>, limit: &Option<Quantity>| {
            let limit = limit.as_ref();
            limit.is_some_and(|limit| request.as_ref().is_none_or(|it| it.equals(limit)))
        };
        equal(&self.requests.cpu, &self.limits.cpu)
            && equal(&self.requests.memory, &self.limits.memory)
    }
}

/// A little for a proxy that idles; it may take what CPU is left over, and memory up
/// to a bound that keeps a runaway from the node's other pods.
impl Default for Resources {
    fn default() -> Self {
        let amount = |text: &str| text.parse().ok();
        Self {
            requests: Amounts {
                cpu: amount("50m"),
                memory: amount("32Mi"),
            },
            limits: Amounts {
                cpu: None,
                memory: amount("256Mi"),
            },
        }
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| {
            serde::de::Error::custom(format!(
                "{text:?} is no quantity: write one as 100m or 64Mi"
            ))
        })
    }
}

/// A parser's complaint without the excerpt below it.
pub(super) fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_the_default() {
        for text in ["", "# nothing\n---\n"] {
            let config = Config::from_yaml(text).unwrap();
            assert_eq!(
                config.control(),
                "https://duet-control.duet-system.svc:15010"
            );
            assert_eq!(config.images.sidecar, format!("duet/sidecar:{TAG}"));
        }
        let config = Config::from_yaml(
            "images: {init: registry.example/init:1}\nresources: {limits: {cpu: 2}}\naccessLog: off\n",
        )
        .unwrap();
        assert_eq!(config.images.init, "registry.example/init:1");
        assert_eq!(config.images.sidecar, format!("duet/sidecar:{TAG}"));
        assert_eq!(config.resources.limits.cpu.unwrap().ceil(), 2);
        assert!(
            config.resources.limits.memory.is_none(),
            "limits were given whole"
        );
        assert_eq!(config.resources.requests.cpu.unwrap().to_string(), "50m");
    }

    #[test]
    fn the_defaults_are_sound() {
        Config::default().check().unwrap();
    }

    #[test]
    fn mistakes_are_one_line_with_a_remedy() {
        for (text, wanted) in [
            ("image: x", "image"),
            ("resources: {requests: {cpu: lots}}", "100m"),
            ("resources: {requests: {memory: 1Gi}}", "raise the limit"),
            ("redirect: cni", "allowCni"),
            ("redirect: ebpf", "ebpf"),
            ("modes: [none]", "none"),
            ("control: http://x", "https://host:port"),
            ("logLevel: loud", "loud"),
            ("images: {sidecar: ''}", "images.sidecar"),
            ("namespace: ''", "namespace"),
        ] {
            let error = Config::from_yaml(text).unwrap_err().to_string();
            assert!(error.contains(wanted), "{text}: {error}");
            assert_eq!(error.lines().count(), 1, "{text}: {error}");
        }
    }
}
