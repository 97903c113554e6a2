//! Who may ask a workload for what.
//!
//! Discovery names the policies that select a workload. They are compiled when they
//! change, so that a decision only compares, and a workload that none selects has
//! nothing to decide. The order is that of every mesh: a DENY that matches ends it;
//! if there are ALLOWs, one must match; an AUDIT is told of and decides nothing. An
//! AUDIT matches what a DENY with the same rules would, which is what it is a
//! rehearsal of.
//!
//! In doubt a request is refused. A DENY matches whatever its words may mean, an ALLOW
//! only what they must mean (see [`PathPattern`]); so of opaque bytes, whose method
//! and path nobody knows, an ALLOW that names those does not match and a DENY does. (The
//! proxy looks for requests in them first, unless the port is opaque.) A
//! word that cannot be read (control refuses those, but a proxy may be older than its
//! control plane) is anything to a DENY and nothing to an ALLOW. An action that is not
//! known, and a policy that discovery names and does not tell, refuse everything.
//!
//! Identity is what mTLS proved. Whoever has none matches no policy that asks for one,
//! a DENY neither: to keep plaintext out, make mTLS strict, or ALLOW by identity.

mod network;
mod path;
mod pattern;
mod probe;

pub use network::{InvalidNetwork, Network};
pub use path::{InvalidPath, PathPattern};
pub use pattern::{IdentityPattern, InvalidPattern, Method, Namespace};
pub(crate) use probe::Probe;

use crate::api;
use crate::api::authorization_policy as message;
use crate::identity::Identity;
use path::RequestPath;
use prometheus::IntCounter;
use std::cell::OnceCell;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

/// The policies that select one workload.
#[derive(Debug)]
pub(crate) struct Authorization {
    deny: Vec<Selecting>,
    allow: Vec<Selecting>,
    audit: Vec<Selecting>,
    /// What decides where none of them does.
    otherwise: Selecting,
}

/// A policy as it selects one workload.
#[derive(Debug)]
pub(crate) struct Selecting {
    policy: Arc<Policy>,
    /// How often it decided, once it has.
    decisions: OnceLock<IntCounter>,
}

#[derive(Debug, PartialEq)]
pub(crate) struct Policy {
    /// "namespace/name".
    name: String,
    action: Action,
    rules: Vec<Rule>,
    /// What it was compiled from.
    source: Option<api::AuthorizationPolicy>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Allow,
    Deny,
    Audit,
}

#[derive(Debug, PartialEq, Eq)]
struct Rule {
    from: Vec<Source>,
    to: Vec<Operation>,
}

#[derive(Debug, PartialEq, Eq)]
struct Source {
    identities: Words<IdentityPattern>,
    namespaces: Words<Namespace>,
    networks: Words<Network>,
}

#[derive(Debug, PartialEq, Eq)]
struct Operation {
    ports: Words<u16>,
    methods: Words<Method>,
    paths: Words<PathPattern>,
}

/// Alternatives. `any` if none were given, or if a DENY has one that cannot be read.
#[derive(Debug, PartialEq, Eq)]
struct Words<T> {
    any: bool,
    words: Vec<T>,
}

/// What a client asks for.
pub(crate) struct Question<'a> {
    /// Whom it asks.
    pub workload: &'a Identity,
    /// Who it is, if mTLS proved it.
    pub peer: Option<&'a Identity>,
    pub client: IpAddr,
    /// The application's.
    pub port: u16,
    asked: Asked<'a>,
}

enum Asked<'a> {
    Bytes,
    Request {
        method: &'a str,
        path: &'a str,
        read: OnceCell<RequestPath<'a>>,
    },
}

/// Whether it may, and which policy says so.
#[derive(Debug)]
pub(crate) struct Decision<'a> {
    pub allowed: bool,
    pub by: &'a Selecting,
}

/// Whether what a policy says is met in doubt.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Doubt {
    Matches,
    DoesNot,
}

// === impl Authorization ===

impl Authorization {
    /// `None` if no policy selects the workload. `find` gives what is known of a
    /// policy by its name.
    pub fn new(names: &[String], find: impl Fn(&str) -> Option<Arc<Policy>>) -> Option<Self> {
        if names.is_empty() {
            return None;
        }
        let (mut deny, mut allow, mut audit) = (Vec::new(), Vec::new(), Vec::new());
        for name in names {
            let policy = find(name).unwrap_or_else(|| Arc::new(Policy::unknown(name)));
            let same_action = match policy.action {
                Action::Allow => &mut allow,
                Action::Deny => &mut deny,
                Action::Audit => &mut audit,
            };
            same_action.push(Selecting::from(policy));
        }
        let otherwise = Policy {
            name: Policy::NONE.to_owned(),
            action: if allow.is_empty() {
                Action::Allow
            } else {
                Action::Deny
            },
            rules: Vec::new(),
            source: None,
        };
        Some(Self {
            deny,
            allow,
            audit,
            otherwise: Arc::new(otherwise).into(),
        })
    }

    pub fn decide(&self, question: &Question<'_>) -> Decision<'_> {
        let by = self
            .deny
            .iter()
            .chain(&self.allow)
            .find(|selecting| selecting.policy.matches(question))
            .unwrap_or(&self.otherwise);
        Decision {
            allowed: by.policy.action == Action::Allow,
            by,
        }
    }

    /// Whether what is refused as opaque bytes to `port` might be admitted as requests.
    pub fn asks_for_requests(&self, port: u16) -> bool {
        let mut deciding = self.deny.iter().chain(&self.allow);
        deciding.any(|one| {
            let mut operations = one.policy.rules.iter().flat_map(|rule| &rule.to);
            operations
                .any(|to| to.ports.have(|own| *own == port) && !(to.methods.any && to.paths.any))
        })
    }

    /// The AUDIT policies that match.
    pub fn audited(&self, question: &Question<'_>) -> impl Iterator<Item = &Selecting> {
        self.audit
            .iter()
            .filter(|selecting| selecting.policy.matches(question))
    }

    fn all(&self) -> impl Iterator<Item = &Selecting> {
        self.deny.iter().chain(&self.allow).chain(&self.audit)
    }

    /// Whether a decision may be by a policy of this name.
    pub fn has(&self, name: &str) -> bool {
        self.all()
            .chain([&self.otherwise])
            .any(|one| one.name() == name)
    }

    /// The names of the policies, and what each of them does.
    pub fn policies(&self) -> impl Iterator<Item = (&str, Action)> {
        self.all().map(|one| (one.name(), one.policy.action))
    }
}

/// The same policies: a policy that was told again is the same if nothing in it
/// changed.
impl PartialEq for Authorization {
    fn eq(&self, other: &Self) -> bool {
        self.all()
            .map(|one| &one.policy)
            .eq(other.all().map(|one| &one.policy))
    }
}

impl Eq for Authorization {}

impl Selecting {
    /// "namespace/name", or [`Policy::NONE`].
    pub fn name(&self) -> &str {
        &self.policy.name
    }

    /// Counts a decision of its; `counter` gives the series of its name.
    pub fn decided(&self, counter: impl FnOnce(&str) -> IntCounter) {
        self.decisions.get_or_init(|| counter(self.name())).inc();
    }
}

impl From<Arc<Policy>> for Selecting {
    fn from(policy: Arc<Policy>) -> Self {
        Self {
            policy,
            decisions: OnceLock::new(),
        }
    }
}

// === impl Policy ===

/// Its source holds no floating-point numbers.
impl Eq for Policy {}

impl Policy {
    /// What is called the policy where none matched.
    pub const NONE: &str = "none";

    /// `before` is what the policy was until now: it stays if nothing in it changed.
    pub fn compile(source: api::AuthorizationPolicy, before: Option<Arc<Self>>) -> Arc<Self> {
        if let Some(before) = before
            && before.source.as_ref() == Some(&source)
        {
            return before;
        }
        let name = format!("{}/{}", source.namespace, source.name);
        let action = match message::Action::try_from(source.action) {
            Ok(message::Action::Allow) => Action::Allow,
            Ok(message::Action::Deny) => Action::Deny,
            Ok(message::Action::Audit) => Action::Audit,
            Err(_) => {
                let action = source.action;
                tracing::warn!(
                    policy = name,
                    action,
                    "an action that is not known: all is refused"
                );
                let mut unknown = Self::unknown(&name);
                unknown.source = Some(source);
                return Arc::new(unknown);
            }
        };
        let mut reading = Reading {
            policy: &name,
            doubt: action.doubt(),
        };
        let rules = source
            .rules
            .iter()
            .map(|rule| Rule {
                from: rule.from.iter().map(|from| reading.source(from)).collect(),
                to: rule.to.iter().map(|to| reading.operation(to)).collect(),
            })
            .collect();
        Arc::new(Self {
            name,
            action,
            rules,
            source: Some(source),
        })
    }

    /// Stands for a policy that nobody can follow.
    fn unknown(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            action: Action::Deny,
            rules: vec![Rule {
                from: Vec::new(),
                to: Vec::new(),
            }],
            source: None,
        }
    }

    fn matches(&self, question: &Question<'_>) -> bool {
        let doubt = self.action.doubt();
        self.rules.iter().any(|rule| rule.matches(question, doubt))
    }
}

impl Action {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Audit => "audit",
        }
    }

    const fn doubt(self) -> Doubt {
        match self {
            Self::Allow => Doubt::DoesNot,
            Self::Deny | Self::Audit => Doubt::Matches,
        }
    }
}

// === impl Rule ===

impl Rule {
    fn matches(&self, question: &Question<'_>, doubt: Doubt) -> bool {
        fn one_of<T>(list: &[T], matches: impl Fn(&T) -> bool) -> bool {
            list.is_empty() || list.iter().any(matches)
        }
        one_of(&self.from, |from| from.matches(question, doubt))
            && one_of(&self.to, |to| to.matches(question, doubt))
    }
}

impl Source {
    fn matches(&self, question: &Question<'_>, doubt: Doubt) -> bool {
        let Question { workload, peer, .. } = question;
        self.networks
            .have(|network| network.contains(question.client))
            && self
                .identities
                .have(|pattern| peer.is_some_and(|peer| pattern.matches(peer.as_str())))
            && self.namespaces.have(|namespace| {
                peer.is_some_and(|peer| {
                    // Another trust domain's namespace only has the same name.
                    let ours = peer.trust_domain() == workload.trust_domain();
                    (ours || doubt == Doubt::Matches)
                        && peer.namespace().is_some_and(|name| namespace.is(name))
                })
            })
    }
}

impl Operation {
    fn matches(&self, question: &Question<'_>, doubt: Doubt) -> bool {
        if !self.ports.have(|port| *port == question.port) {
            return false;
        }
        let in_doubt = doubt == Doubt::Matches;
        match &question.asked {
            Asked::Bytes => in_doubt || self.methods.any && self.paths.any,
            Asked::Request { method, path, read } => {
                let method_matches = |pattern: &Method| match doubt {
                    Doubt::Matches => pattern.may_be(method),
                    Doubt::DoesNot => pattern.must_be(method),
                };
                let path_matches = |pattern: &PathPattern| {
                    let path = read.get_or_init(|| RequestPath::new(path));
                    match doubt {
                        Doubt::Matches => pattern.may_be(path),
                        Doubt::DoesNot => pattern.must_be(path),
                    }
                };
                self.methods.have(method_matches) && self.paths.have(path_matches)
            }
        }
    }
}

// === impl Words ===

impl<T> Words<T> {
    fn have(&self, matches: impl Fn(&T) -> bool) -> bool {
        self.any || self.words.iter().any(matches)
    }
}

// === impl Question ===

impl<'a> Question<'a> {
    /// May it exchange bytes that nobody looks at?
    pub fn of_bytes(
        workload: &'a Identity,
        peer: Option<&'a Identity>,
        client: IpAddr,
        port: u16,
    ) -> Self {
        Self {
            workload,
            peer,
            client,
            port,
            asked: Asked::Bytes,
        }
    }

    /// May it make this request?
    pub fn of_request(self, method: &'a str, path: &'a str) -> Self {
        Self {
            asked: Asked::Request {
                method,
                path,
                read: OnceCell::new(),
            },
            ..self
        }
    }
}

/// The compiling of one policy.
struct Reading<'a> {
    policy: &'a str,
    doubt: Doubt,
}

// === impl Reading ===

impl Reading<'_> {
    fn source(&mut self, from: &message::Source) -> Source {
        Source {
            identities: self.read(&from.identities),
            namespaces: self.read(&from.namespaces),
            networks: self.read(&from.ip_blocks),
        }
    }

    fn operation(&mut self, to: &message::Operation) -> Operation {
        Operation {
            ports: self.words(&to.ports, |port| match u16::try_from(*port) {
                Ok(port) if port != 0 => Ok(port),
                _ => Err(format!("{port} is not a port")),
            }),
            methods: self.read(&to.methods),
            paths: self.read(&to.paths),
        }
    }

    fn read<T: FromStr<Err: ToString>>(&self, given: &[String]) -> Words<T> {
        self.words(given, |text| {
            text.parse().map_err(|error: T::Err| error.to_string())
        })
    }

    fn words<T, W>(&self, given: &[W], read: impl Fn(&W) -> Result<T, String>) -> Words<T> {
        let mut any = given.is_empty();
        let mut words = Vec::with_capacity(given.len());
        for word in given {
            match read(word) {
                Ok(word) => words.push(word),
                Err(reason) => {
                    tracing::warn!(policy = self.policy, %reason, "it refuses more than it says");
                    any |= self.doubt == Doubt::Matches;
                }
            }
        }
        Words { any, words }
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
