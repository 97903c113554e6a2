//! `routes` of a service, in the words of Gateway API's HTTPRoute where it has them.

use super::{Reading, Text, traffic::RetryEntry, traffic::TimeoutsEntry};
use crate::state::{MeshState, key};
use crate::traffic;
use duet_core::api::{
    HeaderChange, HeaderField, Mirror, NewPrefix, Redirect, Rewrite, Route, RouteBackend,
    RouteMatch, Service, ValueMatch, redirect, rewrite, route_match, value_match,
};
use serde::Deserialize;
use serde_saphyr::Spanned;
use std::collections::BTreeMap;

/// A weight that is not said; Gateway API's.
const DEFAULT_WEIGHT: u32 = 1;
/// Gateway API's.
const MAX_WEIGHT: u32 = 1_000_000;

const REDIRECTS: [(&str, u32); 5] = [
    ("302", 302),
    ("301", 301),
    ("303", 303),
    ("307", 307),
    ("308", 308),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RouteEntry {
    name: Text,
    #[serde(default)]
    ports: Vec<Text>,
    #[serde(default)]
    hosts: Vec<Text>,
    #[serde(default, rename = "match")]
    matches: Vec<MatchEntry>,
    #[serde(default)]
    backends: Vec<BackendEntry>,
    request_headers: Option<HeadersEntry>,
    response_headers: Option<HeadersEntry>,
    redirect: Option<Spanned<RedirectEntry>>,
    rewrite: Option<Spanned<RewriteEntry>>,
    #[serde(default)]
    mirrors: Vec<MirrorEntry>,
    timeouts: Option<TimeoutsEntry>,
    retry: Option<RetryEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct MatchEntry {
    path: Option<Text>,
    path_prefix: Option<Text>,
    path_expression: Option<Text>,
    method: Option<Text>,
    #[serde(default)]
    headers: BTreeMap<String, Text>,
    #[serde(default)]
    header_expressions: BTreeMap<String, Text>,
    #[serde(default)]
    query: BTreeMap<String, Text>,
    #[serde(default)]
    query_expressions: BTreeMap<String, Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct BackendEntry {
    service: Text,
    port: Text,
    weight: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct MirrorEntry {
    service: Text,
    port: Text,
    percent: Option<Text>,
    fraction: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct HeadersEntry {
    #[serde(default)]
    set: BTreeMap<String, Text>,
    #[serde(default)]
    add: BTreeMap<String, Text>,
    #[serde(default)]
    remove: Vec<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RedirectEntry {
    scheme: Option<Text>,
    host: Option<Text>,
    port: Option<Text>,
    path: Option<Text>,
    prefix: Option<Text>,
    status: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RewriteEntry {
    host: Option<Text>,
    path: Option<Text>,
    prefix: Option<Text>,
}

// === impl Reading ===

impl Reading {
    /// Without a look at the services that they name: those may come later in the file.
    pub(super) fn routes(
        &mut self,
        field: &str,
        entries: &[RouteEntry],
        of: &Service,
    ) -> Vec<Route> {
        let mut routes: Vec<Route> = Vec::with_capacity(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            let field = format!("{field}[{index}]");
            let route = self.route(&field, entry, of);
            if routes.iter().any(|other| other.name == route.name) {
                let name = &route.name;
                self.wrong(
                    &entry.name,
                    format!("{field}.name: {name:?} is given twice: give each route its own name"),
                );
            }
            routes.push(route);
        }
        routes
    }

    fn route(&mut self, field: &str, entry: &RouteEntry, of: &Service) -> Route {
        let mut ports = Vec::new();
        for text in &entry.ports {
            let Some(port) = self.port(&format!("{field}.ports"), text) else {
                continue;
            };
            if !of.ports.iter().any(|known| known.port == port) {
                let problem = format!(
                    "{field}.ports: the service has no port {port}: write one of its own, or \
                     leave ports out"
                );
                self.wrong(text, problem);
            }
            ports.push(port);
        }
        let hosts = entry
            .hosts
            .iter()
            .map(|host| self.word(&format!("{field}.hosts"), Some(host), traffic::host_pattern));
        let hosts = hosts.collect();
        let mut prefix = None;
        let entry_count = entry.matches.len();
        let mut matches = Vec::with_capacity(entry.matches.len());
        for (index, entry) in entry.matches.iter().enumerate() {
            let one = self.route_match(&format!("{field}.match[{index}]"), entry);
            // As in Gateway API: with several, nobody could tell which one is meant.
            if let (Some(route_match::Path::Prefix(path)), 1) = (&one.path, entry_count) {
                prefix = Some(path.clone());
            }
            matches.push(one);
        }
        let mut backends = Vec::with_capacity(entry.backends.len());
        for (index, entry) in entry.backends.iter().enumerate() {
            let field = format!("{field}.backends[{index}]");
            backends.push(self.backend(&field, entry, &of.namespace));
        }
        let mut mirrors = Vec::with_capacity(entry.mirrors.len());
        for (index, entry) in entry.mirrors.iter().enumerate() {
            let field = format!("{field}.mirrors[{index}]");
            mirrors.push(self.mirror(&field, entry, &of.namespace));
        }
        if let (Some(redirect), false) = (&entry.redirect, entry.backends.is_empty()) {
            self.wrong(
                redirect,
                format!("{field}.redirect: nothing reaches the backends: leave one of them out"),
            );
        }
        let redirect = entry.redirect.as_ref();
        let rewrite = entry.rewrite.as_ref();
        Route {
            name: self.name(&format!("{field}.name"), Some(&entry.name), ""),
            ports,
            hosts,
            redirect: redirect
                .map(|entry| self.redirect(&format!("{field}.redirect"), entry, prefix.as_deref())),
            rewrite: rewrite
                .map(|entry| self.rewrite(&format!("{field}.rewrite"), entry, prefix.as_deref())),
            matches,
            backends,
            mirrors,
            request_headers: self.headers(
                &format!("{field}.requestHeaders"),
                entry.request_headers.as_ref(),
            ),
            response_headers: self.headers(
                &format!("{field}.responseHeaders"),
                entry.response_headers.as_ref(),
            ),
            timeouts: self.timeouts(&format!("{field}.timeouts"), entry.timeouts.as_ref()),
            retry: self.retry(&format!("{field}.retry"), entry.retry.as_ref()),
        }
    }

    fn route_match(&mut self, field: &str, entry: &MatchEntry) -> RouteMatch {
        let mut given = [&entry.path, &entry.path_prefix, &entry.path_expression]
            .into_iter()
            .flatten();
        if let (Some(_), Some(second)) = (given.next(), given.next()) {
            self.wrong(
                second,
                format!("{field}: more than one path: write another match for it"),
            );
        }
        let path = |reading: &mut Self, name: &str, text: &Option<Text>| {
            let text = text.as_ref()?;
            Some(reading.word(&format!("{field}.{name}"), Some(text), traffic::path))
        };
        let path = if let Some(exact) = path(self, "path", &entry.path) {
            Some(route_match::Path::Exact(exact))
        } else if let Some(prefix) = path(self, "pathPrefix", &entry.path_prefix) {
            Some(route_match::Path::Prefix(prefix))
        } else {
            entry.path_expression.as_ref().map(|text| {
                let field = format!("{field}.pathExpression");
                route_match::Path::Expression(self.word(&field, Some(text), traffic::expression))
            })
        };
        let method = entry.method.as_ref();
        let mut all = |name: &str,
                       exact: &BTreeMap<String, Text>,
                       expressions: &BTreeMap<String, Text>,
                       check: fn(&str) -> Result<String, String>| {
            let mut all = Vec::new();
            for (name_given, text) in exact {
                let field = format!("{field}.{name}");
                all.push(ValueMatch {
                    name: self.of_text(&field, text, check(name_given)),
                    value: Some(value_match::Value::Exact(text.value.clone())),
                });
            }
            for (name_given, text) in expressions {
                let field = format!("{field}.{name}");
                let expression = self.word(&field, Some(text), traffic::expression);
                all.push(ValueMatch {
                    name: self.of_text(&field, text, check(name_given)),
                    value: Some(value_match::Value::Expression(expression)),
                });
            }
            all
        };
        RouteMatch {
            path,
            headers: all(
                "headers",
                &entry.headers,
                &entry.header_expressions,
                traffic::header_name,
            ),
            query: all("query", &entry.query, &entry.query_expressions, |name| {
                Ok(name.to_owned())
            }),
            method: self.word(&format!("{field}.method"), method, traffic::method),
        }
    }

    fn backend(&mut self, field: &str, entry: &BackendEntry, namespace: &str) -> RouteBackend {
        let (service, port) = self.named(field, (&entry.service, &entry.port), namespace);
        let weight = entry.weight.as_ref();
        let weight = weight.map(|text| {
            self.word(&format!("{field}.weight"), Some(text), |text| {
                traffic::number(text, 0..=MAX_WEIGHT)
            })
        });
        RouteBackend {
            service,
            port,
            weight: weight.unwrap_or(DEFAULT_WEIGHT),
        }
    }

    fn mirror(&mut self, field: &str, entry: &MirrorEntry, namespace: &str) -> Mirror {
        let (service, port) = self.named(field, (&entry.service, &entry.port), namespace);
        if let (Some(_), Some(fraction)) = (&entry.percent, &entry.fraction) {
            let problem =
                format!("{field}.fraction: percent says it already: leave one of them out");
            self.wrong(fraction, problem);
        }
        let percent = entry.percent.as_ref().map(|text| {
            self.word(&format!("{field}.percent"), Some(text), |text| {
                traffic::number(text, 0..=100)
            })
        });
        let fraction = entry
            .fraction
            .as_ref()
            .map(|text| self.word(&format!("{field}.fraction"), Some(text), traffic::fraction));
        let (numerator, denominator) = fraction.unwrap_or((percent.unwrap_or(100), 100));
        Mirror {
            service,
            port,
            numerator,
            denominator,
        }
    }

    /// A service's full name and port, which are looked at again once all are known.
    fn named(
        &mut self,
        field: &str,
        (service, port): (&Text, &Text),
        namespace: &str,
    ) -> (String, u32) {
        let full = if service.value.contains('/') {
            service.value.clone()
        } else {
            key(namespace, &service.value)
        };
        self.backends.push(super::NamedBackend {
            field: field.to_owned(),
            line: super::line(service),
            service: full.clone(),
            port: port.value.clone(),
        });
        let port = self.port(&format!("{field}.port"), port);
        (full, port.unwrap_or_default())
    }

    /// Once all services are known.
    pub(super) fn check_backends(&mut self, state: &MeshState) {
        for named in std::mem::take(&mut self.backends) {
            let super::NamedBackend {
                field,
                line,
                service,
                port,
            } = named;
            let problem = match state.services.get(&service) {
                None => format!(
                    "{field}.service: there is no service {service}: write the name of one, as \
                     name or namespace/name"
                ),
                Some(known) if known.addresses.is_empty() => format!(
                    "{field}.service: {service} has no addresses, by which proxies know it: give \
                     it one that nothing else has"
                ),
                Some(known) if !known.ports.iter().any(|one| one.port.to_string() == port) => {
                    format!("{field}.port: {service} has no port {port}: write one of its own")
                }
                Some(_) => continue,
            };
            self.mistakes.push(super::Mistake { line, problem });
        }
    }

    fn headers(&mut self, field: &str, entry: Option<&HeadersEntry>) -> Option<HeaderChange> {
        let entry = entry?;
        let fields = |reading: &mut Self, name: &str, all: &BTreeMap<String, Text>| {
            let field = format!("{field}.{name}");
            let mut fields = Vec::with_capacity(all.len());
            for (name, text) in all {
                fields.push(HeaderField {
                    name: reading.of_text(&field, text, traffic::header_name(name)),
                    value: reading.word(&field, Some(text), traffic::header_value),
                });
            }
            fields
        };
        let remove = format!("{field}.remove");
        Some(HeaderChange {
            set: fields(self, "set", &entry.set),
            add: fields(self, "add", &entry.add),
            remove: entry
                .remove
                .iter()
                .map(|text| self.word(&remove, Some(text), traffic::header_name))
                .collect(),
        })
    }

    fn redirect(
        &mut self,
        field: &str,
        entry: &Spanned<RedirectEntry>,
        matched: Option<&str>,
    ) -> Redirect {
        let said = &entry.value;
        let schemes = [("", ""), ("http", "http"), ("https", "https")];
        let new = self.new_path(field, [&said.path, &said.prefix], matched);
        Redirect {
            scheme: self
                .one_of(&format!("{field}.scheme"), said.scheme.as_ref(), &schemes)
                .to_owned(),
            host: self.word(&format!("{field}.host"), said.host.as_ref(), traffic::host),
            port: said
                .port
                .as_ref()
                .and_then(|text| self.port(&format!("{field}.port"), text))
                .unwrap_or_default(),
            path: new.map(|new| match new {
                NewPath::Whole(path) => redirect::Path::Whole(path),
                NewPath::Prefix(prefix) => redirect::Path::Prefix(prefix),
            }),
            status: self.one_of(&format!("{field}.status"), said.status.as_ref(), &REDIRECTS),
        }
    }

    fn rewrite(
        &mut self,
        field: &str,
        entry: &Spanned<RewriteEntry>,
        matched: Option<&str>,
    ) -> Rewrite {
        let said = &entry.value;
        let new = self.new_path(field, [&said.path, &said.prefix], matched);
        Rewrite {
            host: self.word(&format!("{field}.host"), said.host.as_ref(), traffic::host),
            path: new.map(|new| match new {
                NewPath::Whole(path) => rewrite::Path::Whole(path),
                NewPath::Prefix(prefix) => rewrite::Path::Prefix(prefix),
            }),
        }
    }

    fn new_path(
        &mut self,
        field: &str,
        [whole, prefix]: [&Option<Text>; 2],
        matched: Option<&str>,
    ) -> Option<NewPath> {
        if let Some(text) = prefix {
            let Some(old) = matched else {
                let problem = format!(
                    "{field}.prefix: it stands in place of a pathPrefix, and there is not exactly \
                     one match with one: write that, or path instead"
                );
                self.wrong(text, problem);
                return None;
            };
            return Some(NewPath::Prefix(NewPrefix {
                old: old.to_owned(),
                new: self.word(&format!("{field}.prefix"), Some(text), traffic::path),
            }));
        }
        let text = whole.as_ref()?;
        let path = self.word(&format!("{field}.path"), Some(text), traffic::path);
        Some(NewPath::Whole(path))
    }

    /// What a key of a map is read as, told at its value.
    fn of_text(&mut self, field: &str, at: &Text, read: Result<String, String>) -> String {
        read.unwrap_or_else(|problem| {
            self.wrong(at, format!("{field}: {problem}"));
            String::new()
        })
    }
}

enum NewPath {
    Whole(String),
    Prefix(NewPrefix),
}
