//! What a pod wants of its proxy.
//!
//! A pod's annotation counts before its namespace's, and that before the
//! configuration. A value that is not understood refuses the pod: whoever wrote it
//! meant something, and would not get it.

use super::config::{Config, Resources};
use super::decision::Namespace;
use super::names;
use super::quantity::Quantity;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::str::FromStr;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// What a pod's proxy is to be.
#[derive(Clone, Debug)]
pub struct Settings {
    pub exclude_outbound_ports: Vec<u16>,
    pub exclude_inbound_ports: Vec<u16>,
    pub exclude_uids: Vec<u32>,
    pub resources: Resources,
    pub log_level: String,
    pub access_log: AccessLog,
    /// Whether the application's containers wait for the proxy.
    pub wait: bool,
    pub redirect: Redirect,
    pub kind: SidecarKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLog {
    Off,
    Text,
    Json,
}

/// Who redirects a pod's connections to its proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Redirect {
    /// An init container with NET_ADMIN.
    Init,
    /// A CNI plugin: then nothing in the pod needs a privilege.
    Cni,
}

/// How the proxy is a container of the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SidecarKind {
    /// An init container that goes on (KEP-753).
    Native,
    /// The first of the ordinary containers, as it was done before. For the bench's
    /// comparison only: Jobs never end, init containers have no network, and the
    /// proxy is told to stop together with the application.
    Classic,
}

/// Annotations of a pod and of its namespace, with what is wrong in them.
struct Reader<'a> {
    pod: &'a BTreeMap<String, String>,
    namespace: &'a Namespace,
    problems: Vec<String>,
}

/// An annotation that is there.
struct Found<'a> {
    value: &'a str,
    /// "annotation NAME", with the namespace if it is its.
    at: String,
}

// === impl Settings ===

impl Settings {
    /// # Errors
    /// Everything that cannot be understood, one line each.
    pub fn read(
        pod: &BTreeMap<String, String>,
        namespace: &Namespace,
        config: &Config,
    ) -> Result<Self, Vec<String>> {
        let mut reader = Reader {
            pod,
            namespace,
            problems: Vec::new(),
        };
        let settings = Self {
            exclude_outbound_ports: reader.ports(names::EXCLUDE_OUTBOUND_PORTS),
            exclude_inbound_ports: reader.ports(names::EXCLUDE_INBOUND_PORTS),
            exclude_uids: reader.list(names::EXCLUDE_UIDS, "uid", "numbers from 0 to 4294967295"),
            resources: reader.resources(config),
            log_level: reader
                .checked(names::LOG_LEVEL, |value| {
                    log_filter(value).map(|()| value.to_owned())
                })
                .unwrap_or_else(|| config.log_level.clone()),
            access_log: reader
                .choice(
                    names::ACCESS_LOG,
                    [
                        ("off", AccessLog::Off),
                        ("text", AccessLog::Text),
                        ("json", AccessLog::Json),
                    ],
                )
                .unwrap_or(config.access_log),
            wait: reader
                .choice(names::WAIT, [("true", true), ("false", false)])
                .unwrap_or(config.wait),
            redirect: reader
                .choice(
                    names::REDIRECT,
                    [("init", Redirect::Init), ("cni", Redirect::Cni)],
                )
                .unwrap_or(config.redirect),
            kind: reader
                .choice(
                    names::SIDECAR_KIND,
                    [
                        ("native", SidecarKind::Native),
                        ("classic", SidecarKind::Classic),
                    ],
                )
                .unwrap_or(config.sidecar_kind),
        };
        reader.check_what_others_read();
        if settings.redirect == Redirect::Cni && !config.allow_cni {
            reader.problems.push(format!(
                "annotation {}: \"cni\" needs a CNI plugin that redirects to sidecars, and Duet's \
                 redirects to the agent: write \"init\"",
                names::REDIRECT
            ));
        }
        if reader.problems.is_empty() {
            Ok(settings)
        } else {
            Err(reader.problems)
        }
    }
}

/// What else the annotations say that is no mistake and yet not meant.
pub fn oddities(pod: &BTreeMap<String, String>, is_sidecar: bool) -> Vec<String> {
    let mut oddities = Vec::new();
    for name in pod.keys().filter(|name| name.starts_with(names::PREFIX)) {
        let problem = match name.as_str() {
            names::MODE => "is a label: put it under labels",
            names::REACH => "has no effect on a pod: put it on the namespace",
            name if names::OF_PODS.contains(&name) => continue,
            _ => "is not known and has no effect",
        };
        oddities.push(format!("annotation {name} {problem}"));
    }
    let idle: Vec<_> = names::OF_SIDECARS
        .into_iter()
        .filter(|name| !is_sidecar && pod.contains_key(*name))
        .collect();
    if !idle.is_empty() {
        oddities.push(format!(
            "{} without effect: an agent's settings are the node's, not the pod's",
            idle.join(", ")
        ));
    }
    oddities
}

/// Whether it is one that the proxy would take.
pub(super) fn log_filter(value: &str) -> Result<(), String> {
    // EnvFilter takes a misspelt level for the name of a module.
    let is_level = |word: &str| LevelFilter::from_str(word.trim()).is_ok();
    let directive = |word: &str| word.contains('=') || word.contains('[') || is_level(word);
    if !value.trim().is_empty()
        && value.split(',').all(directive)
        && EnvFilter::try_new(value).is_ok()
    {
        return Ok(());
    }
    Err(format!(
        "{value:?} is no log filter: write a level, or levels of modules as \
         warn,duet_core=debug"
    ))
}

// === impl Reader ===

impl<'a> Reader<'a> {
    fn find(&self, name: &str) -> Option<Found<'a>> {
        let found = |value: &'a String, at| Found { value, at };
        if let Some(value) = self.pod.get(name) {
            return Some(found(value, format!("annotation {name}")));
        }
        let value = self.namespace.annotations.get(name)?;
        let namespace = &self.namespace.name;
        Some(found(
            value,
            format!("namespace {namespace}, annotation {name}"),
        ))
    }

    fn checked<T>(
        &mut self,
        name: &str,
        check: impl FnOnce(&'a str) -> Result<T, String>,
    ) -> Option<T> {
        let Found { value, at } = self.find(name)?;
        match check(value) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.problems.push(format!("{at}: {problem}"));
                None
            }
        }
    }

    fn choice<T: Copy, const N: usize>(
        &mut self,
        name: &str,
        choices: [(&str, T); N],
    ) -> Option<T> {
        self.checked(name, |value| {
            let found = choices.iter().find(|(word, _)| *word == value);
            found.map(|(_, choice)| *choice).ok_or_else(|| {
                let words: Vec<_> = choices
                    .iter()
                    .map(|(word, _)| format!("{word:?}"))
                    .collect();
                format!("{value:?} is not known: write {}", words.join(" or "))
            })
        })
    }

    /// Elements between commas. An empty value is an empty list.
    fn list<T: FromStr>(&mut self, name: &str, what: &str, instead: &str) -> Vec<T> {
        self.checked(name, |value| {
            let words = value
                .split(',')
                .map(str::trim)
                .filter(|word| !word.is_empty());
            words
                .map(|word| {
                    word.parse().map_err(|_| {
                        format!("{word:?} is no {what}: write {instead}, with commas between them")
                    })
                })
                .collect()
        })
        .unwrap_or_default()
    }

    fn ports(&mut self, name: &str) -> Vec<u16> {
        let ports: Vec<std::num::NonZeroU16> = self.list(name, "port", "numbers from 1 to 65535");
        ports.into_iter().map(Into::into).collect()
    }

    /// A quantity; `Some(None)` if there is to be none.
    fn quantity(&mut self, name: &str) -> Option<Option<Quantity>> {
        self.checked(name, |value| match value {
            "none" => Ok(None),
            value => match value.parse::<Quantity>() {
                Ok(quantity) if !quantity.is_zero() => Ok(Some(quantity)),
                Ok(_) => {
                    Err("0 is not an amount that a proxy runs with: write more, or none".into())
                }
                Err(_) => Err(format!(
                    "{value:?} is no quantity: write one as 100m or 64Mi, or none"
                )),
            },
        })
    }

    /// What is asked for goes before what is merely configured, which gives way.
    fn resources(&mut self, config: &Config) -> Resources {
        let mut resources = config.resources.clone();
        for (request, limit, requested, limited) in [
            (
                names::PROXY_CPU_REQUEST,
                names::PROXY_CPU_LIMIT,
                &mut resources.requests.cpu,
                &mut resources.limits.cpu,
            ),
            (
                names::PROXY_MEMORY_REQUEST,
                names::PROXY_MEMORY_LIMIT,
                &mut resources.requests.memory,
                &mut resources.limits.memory,
            ),
        ] {
            let asked = (self.quantity(request), self.quantity(limit));
            if let Some(request) = asked.0.clone() {
                *requested = request;
            }
            if let Some(limit) = asked.1.clone() {
                *limited = limit;
            }
            let exceeds = matches!((&requested, &limited), (Some(r), Some(l)) if r.exceeds(l));
            match asked {
                _ if !exceeds => {}
                (None, _) => requested.clone_from(limited),
                (_, None) => limited.clone_from(requested),
                _ => {
                    let show = |quantity: &Option<Quantity>| {
                        quantity
                            .as_ref()
                            .map(ToString::to_string)
                            .unwrap_or_default()
                    };
                    self.problems.push(format!(
                        "annotation {request}: {} exceeds {limit}: {}: request less, or raise \
                         the limit",
                        show(requested),
                        show(limited)
                    ));
                }
            }
        }
        resources
    }

    /// What the mesh itself reads, and a pod cannot wait to be told of.
    fn check_what_others_read(&mut self) {
        self.choice(names::MTLS, [("strict", ()), ("permissive", ())]);
        if self.pod.contains_key(names::OPAQUE_PORTS) {
            self.ports(names::OPAQUE_PORTS);
        }
        if let Some(value) = self.namespace.annotations.get(names::REACH) {
            let is_name = |name: &&str| {
                name.bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            };
            let mut words = value
                .split(',')
                .map(str::trim)
                .filter(|word| !word.is_empty());
            if let Some(word) = words.find(|word| !is_name(word)) {
                self.problems.push(format!(
                    "namespace {}, annotation {}: {word:?} is no namespace: write names of \
                     namespaces, with commas between them",
                    self.namespace.name,
                    names::REACH
                ));
            }
        }
    }
}

// === impl AccessLog ===

impl AccessLog {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn read(pod: &[(&str, &str)], namespace: &[(&str, &str)]) -> Result<Settings, Vec<String>> {
        let namespace = Namespace {
            name: "shop".to_owned(),
            annotations: annotations(namespace),
            ..Namespace::default()
        };
        Settings::read(&annotations(pod), &namespace, &Config::default())
    }

    #[test]
    fn the_pods_word_counts_before_its_namespaces() {
        let namespace = [(names::ACCESS_LOG, "text"), (names::WAIT, "false")];
        let settings = read(&[(names::ACCESS_LOG, "json")], &namespace).unwrap();
        assert_eq!(settings.access_log, AccessLog::Json);
        assert!(!settings.wait);
        // So does a bad one of the namespace, if the pod has none.
        let problems = read(&[], &[(names::WAIT, "no")]).unwrap_err();
        assert_eq!(
            problems,
            [
                "namespace shop, annotation duet.dev/wait: \"no\" is not known: write \"true\" or \"false\""
            ]
        );
        assert!(read(&[(names::WAIT, "true")], &[(names::WAIT, "no")]).is_ok());
    }

    #[test]
    fn each_bad_value_is_named_with_its_remedy() {
        for (name, value, remedy) in [
            (names::EXCLUDE_OUTBOUND_PORTS, "3306,http", "1 to 65535"),
            (names::EXCLUDE_OUTBOUND_PORTS, "0", "1 to 65535"),
            (names::EXCLUDE_INBOUND_PORTS, "70000", "1 to 65535"),
            (names::EXCLUDE_INBOUND_PORTS, "80-90", "1 to 65535"),
            (names::EXCLUDE_UIDS, "root", "4294967295"),
            (names::OPAQUE_PORTS, "x", "1 to 65535"),
            (names::MTLS, "Strict", "\"strict\" or \"permissive\""),
            (names::PROXY_CPU_REQUEST, "half", "100m"),
            (names::PROXY_CPU_LIMIT, "0", "more, or none"),
            (names::PROXY_MEMORY_REQUEST, "64MB", "64Mi"),
            (names::PROXY_MEMORY_LIMIT, "", "64Mi"),
            (names::LOG_LEVEL, "loud", "a level"),
            (names::LOG_LEVEL, "", "a level"),
            (names::LOG_LEVEL, "duet=loud", "a level"),
            (names::ACCESS_LOG, "true", "\"off\" or \"text\" or \"json\""),
            (names::WAIT, "yes", "\"true\" or \"false\""),
            (names::REDIRECT, "cni", "\"init\""),
            (names::REDIRECT, "tproxy", "\"init\" or \"cni\""),
            (names::SIDECAR_KIND, "old", "\"native\" or \"classic\""),
        ] {
            let problems = read(&[(name, value)], &[]).unwrap_err();
            let [problem] = problems.as_slice() else {
                panic!("{name}: {value}: {problems:?}");
            };
            assert!(
                problem.starts_with(&format!("annotation {name}: ")),
                "{problem}"
            );
            assert!(problem.contains(remedy), "{problem}");
        }
        let problems = read(&[], &[(names::REACH, "shop, Cart")]).unwrap_err();
        assert!(
            problems[0].contains("\"Cart\" is no namespace"),
            "{problems:?}"
        );
    }

    #[test]
    fn what_was_asked_for_moves_what_was_not() {
        let settings = read(&[(names::PROXY_MEMORY_LIMIT, "24Mi")], &[]).unwrap();
        assert_eq!(
            settings.resources.requests.memory.unwrap().to_string(),
            "24Mi"
        );
        let settings = read(&[(names::PROXY_MEMORY_REQUEST, "1Gi")], &[]).unwrap();
        assert_eq!(settings.resources.limits.memory.unwrap().to_string(), "1Gi");
        let settings = read(&[(names::PROXY_MEMORY_LIMIT, "none")], &[]).unwrap();
        assert!(settings.resources.limits.memory.is_none());
        let both = [
            (names::PROXY_CPU_REQUEST, "2"),
            (names::PROXY_CPU_LIMIT, "500m"),
        ];
        let problems = read(&both, &[]).unwrap_err();
        assert!(problems[0].contains("2 exceeds"), "{problems:?}");
    }

    #[test]
    fn what_has_no_effect_is_said() {
        let said = oddities(
            &annotations(&[
                ("duet.dev/mode", "sidecar"),
                ("duet.dev/acess-log", "text"),
                ("example.com/other", "x"),
                (names::REACH, "a"),
                (names::WAIT, "true"),
                (names::MTLS, "strict"),
            ]),
            false,
        );
        assert_eq!(said.len(), 4, "{said:?}");
        assert!(said[0].contains("acess-log is not known"), "{said:?}");
        assert!(said[1].contains("is a label"), "{said:?}");
        assert!(said[2].contains("put it on the namespace"), "{said:?}");
        assert!(said[3].contains("duet.dev/wait without effect"), "{said:?}");
    }
}
