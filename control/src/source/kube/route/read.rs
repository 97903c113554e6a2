//! From an HTTPRoute's or GRPCRoute's rules to the API's routes.
//!
//! What is read is the object as it is, and whatever is not known is refused: a field
//! that a later version of the API adds is not passed over in silence.

use super::{Refusal, is_absent, is_service, name_of, unsupported};
use crate::traffic;
use duet_core::api::{
    HeaderChange, HeaderField, Mirror, NewPrefix, Redirect, Retry, Rewrite, Route, RouteBackend,
    RouteMatch, StatusRange, Timeouts, ValueMatch, redirect, rewrite, route_match, value_match,
};
use serde_json::Value;

/// Of a backend that does not say; Gateway API's.
const DEFAULT_WEIGHT: u64 = 1;
/// What a request in gRPC has, so that a GRPCRoute is for no other.
const GRPC_CONTENT: &str = "application/grpc.*";

/// Which of the two an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Http,
    Grpc,
}

/// What a rule's filters ask for.
#[derive(Default)]
struct Filters {
    request_headers: Option<HeaderChange>,
    response_headers: Option<HeaderChange>,
    redirect: Option<Redirect>,
    rewrite: Option<Rewrite>,
    mirrors: Vec<Mirror>,
}

/// One route for each rule, all called `name`.
pub fn routes(
    kind: Kind,
    spec: &Value,
    name: &str,
    namespace: &str,
) -> Result<Vec<Route>, Refusal> {
    let mut hosts = Vec::new();
    for (field, value) in spec.as_object().into_iter().flatten() {
        match &**field {
            "parentRefs" | "rules" => {}
            "hostnames" => {
                for host in all(value) {
                    let text = host.as_str().unwrap_or_default();
                    hosts.push(read("spec.hostnames", traffic::host_pattern(text))?);
                }
            }
            _ if is_absent(value) => {}
            _ => return Err(unsupported(&format!("spec.{field}"))),
        }
    }
    let mut routes = Vec::new();
    for (index, rule) in all(&spec["rules"]).enumerate() {
        let mut route = self::rule(kind, rule, &format!("spec.rules[{index}]"), namespace)?;
        name.clone_into(&mut route.name);
        route.hosts.clone_from(&hosts);
        routes.push(route);
    }
    if routes.is_empty() {
        return Err(unsupported(
            "a route without rules, which refuses everything,",
        ));
    }
    Ok(routes)
}

fn rule(kind: Kind, rule: &Value, field: &str, namespace: &str) -> Result<Route, Refusal> {
    let mut route = Route::default();
    for (name, value) in rule.as_object().into_iter().flatten() {
        match &**name {
            // Its name changes nothing, and these are looked at below.
            "name" | "matches" | "filters" | "backendRefs" => {}
            "timeouts" => route.timeouts = Some(timeouts(value, &format!("{field}.timeouts"))?),
            "retry" => route.retry = Some(retry(value, &format!("{field}.retry"))?),
            _ if is_absent(value) => {}
            _ => return Err(unsupported(&format!("{field}.{name}"))),
        }
    }
    for (index, one) in all(&rule["matches"]).enumerate() {
        let field = format!("{field}.matches[{index}]");
        route.matches.push(route_match(kind, one, &field)?);
    }
    if kind == Kind::Grpc && route.matches.is_empty() {
        route.matches.push(route_match(kind, &Value::Null, field)?);
    }
    let prefix = match route.matches.as_slice() {
        [only] => match &only.path {
            Some(route_match::Path::Prefix(prefix)) => Some(prefix.clone()),
            _ => None,
        },
        _ => None,
    };
    let filters = filters(
        &rule["filters"],
        &format!("{field}.filters"),
        prefix.as_deref(),
        namespace,
    )?;
    route.request_headers = filters.request_headers;
    route.response_headers = filters.response_headers;
    route.redirect = filters.redirect;
    route.rewrite = filters.rewrite;
    route.mirrors = filters.mirrors;
    for (index, backend) in all(&rule["backendRefs"]).enumerate() {
        let field = format!("{field}.backendRefs[{index}]");
        route
            .backends
            .push(self::backend(backend, &field, namespace)?);
    }
    if route.backends.is_empty() && route.redirect.is_none() {
        // Refuses everything, as Gateway API has it: nobody has this name.
        route.backends.push(RouteBackend {
            weight: 1,
            ..RouteBackend::default()
        });
    }
    Ok(route)
}

fn route_match(kind: Kind, said: &Value, field: &str) -> Result<RouteMatch, Refusal> {
    let mut one = RouteMatch::default();
    for (name, value) in said.as_object().into_iter().flatten() {
        let field = format!("{field}.{name}");
        match (&**name, kind) {
            ("path", Kind::Http) => one.path = Some(path(value, &field)?),
            ("method", Kind::Http) => {
                one.method = read(&field, traffic::method(text(value)))?;
            }
            ("method", Kind::Grpc) => one.path = grpc_method(value, &field)?,
            ("headers", _) => one.headers = values(value, &field, traffic::header_name)?,
            ("queryParams", Kind::Http) => {
                one.query = values(value, &field, |name| Ok(name.to_owned()))?;
            }
            _ if is_absent(value) => {}
            _ => return Err(unsupported(&field)),
        }
    }
    if kind == Kind::Grpc {
        one.headers.push(ValueMatch {
            name: "content-type".to_owned(),
            value: Some(value_match::Value::Expression(GRPC_CONTENT.to_owned())),
        });
    }
    Ok(one)
}

fn path(said: &Value, field: &str) -> Result<route_match::Path, Refusal> {
    let value = said["value"].as_str().unwrap_or("/");
    Ok(match said["type"].as_str().unwrap_or("PathPrefix") {
        "Exact" => route_match::Path::Exact(read(field, traffic::path(value))?),
        "PathPrefix" => route_match::Path::Prefix(read(field, traffic::path(value))?),
        "RegularExpression" => {
            route_match::Path::Expression(read(field, traffic::expression(value))?)
        }
        _ => return Err(unsupported(&format!("{field}.type"))),
    })
}

/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>: "/service/method".
fn grpc_method(said: &Value, field: &str) -> Result<Option<route_match::Path>, Refusal> {
    let given = |key: &str| said[key].as_str().filter(|text| !text.is_empty());
    let (service, method) = (given("service"), given("method"));
    let expression = match said["type"].as_str().unwrap_or("Exact") {
        "Exact" => match (service, method) {
            (Some(service), Some(method)) => {
                let path = traffic::path(&format!("/{service}/{method}"));
                return Ok(Some(route_match::Path::Exact(read(field, path)?)));
            }
            (Some(service), None) => {
                let path = traffic::path(&format!("/{service}"));
                return Ok(Some(route_match::Path::Prefix(read(field, path)?)));
            }
            // A method's name has nothing that an expression would take for its own.
            (None, Some(method)) => format!("/[^/]+/{method}"),
            (None, None) => return Ok(None),
        },
        "RegularExpression" => {
            let [service, method] = [service, method].map(|text| text.unwrap_or("[^/]+"));
            format!("/(?:{service})/(?:{method})")
        }
        _ => return Err(unsupported(&format!("{field}.type"))),
    };
    let expression = read(field, traffic::expression(&expression))?;
    Ok(Some(route_match::Path::Expression(expression)))
}

fn values(
    said: &Value,
    field: &str,
    check: impl Fn(&str) -> Result<String, String>,
) -> Result<Vec<ValueMatch>, Refusal> {
    let read_one = |one: &Value| {
        let value = text(&one["value"]);
        Ok(ValueMatch {
            name: read(field, check(text(&one["name"])))?,
            value: Some(match one["type"].as_str().unwrap_or("Exact") {
                "Exact" => value_match::Value::Exact(value.to_owned()),
                "RegularExpression" => {
                    value_match::Value::Expression(read(field, traffic::expression(value))?)
                }
                _ => return Err(unsupported(&format!("{field}.type"))),
            }),
        })
    };
    all(said).map(read_one).collect()
}

fn filters(
    said: &Value,
    field: &str,
    matched: Option<&str>,
    namespace: &str,
) -> Result<Filters, Refusal> {
    let mut filters = Filters::default();
    for (index, filter) in all(said).enumerate() {
        let field = format!("{field}[{index}]");
        let kind = text(&filter["type"]);
        let new_path = |said: &Value| new_path(said, &field, matched);
        match kind {
            "RequestHeaderModifier" => {
                let said = &filter["requestHeaderModifier"];
                filters.request_headers = Some(headers(said, &field)?);
            }
            "ResponseHeaderModifier" => {
                let said = &filter["responseHeaderModifier"];
                filters.response_headers = Some(headers(said, &field)?);
            }
            "RequestRedirect" => {
                let said = &filter["requestRedirect"];
                let status = said["statusCode"].as_u64().unwrap_or(302);
                filters.redirect = Some(Redirect {
                    scheme: text(&said["scheme"]).to_owned(),
                    host: host(&said["hostname"], &field)?,
                    port: number(&said["port"]),
                    status: u32::try_from(status).unwrap_or(302),
                    path: new_path(&said["path"])?.map(|new| match new {
                        NewPath::Whole(path) => redirect::Path::Whole(path),
                        NewPath::Prefix(prefix) => redirect::Path::Prefix(prefix),
                    }),
                });
            }
            "URLRewrite" => {
                let said = &filter["urlRewrite"];
                filters.rewrite = Some(Rewrite {
                    host: host(&said["hostname"], &field)?,
                    path: new_path(&said["path"])?.map(|new| match new {
                        NewPath::Whole(path) => rewrite::Path::Whole(path),
                        NewPath::Prefix(prefix) => rewrite::Path::Prefix(prefix),
                    }),
                });
            }
            "RequestMirror" => {
                let said = &filter["requestMirror"];
                filters.mirrors.push(mirror(said, &field, namespace)?);
            }
            other => return Err(unsupported(&format!("{field}: the filter {other:?}"))),
        }
    }
    Ok(filters)
}

fn mirror(said: &Value, field: &str, namespace: &str) -> Result<Mirror, Refusal> {
    let field = format!("{field}.requestMirror");
    for (name, value) in said.as_object().into_iter().flatten() {
        match &**name {
            "backendRef" | "percent" | "fraction" => {}
            _ if is_absent(value) => {}
            _ => return Err(unsupported(&format!("{field}.{name}"))),
        }
    }
    let to = backend(
        &said["backendRef"],
        &format!("{field}.backendRef"),
        namespace,
    )?;
    let fraction = &said["fraction"];
    let (numerator, denominator) = match (said["percent"].as_u64(), fraction["numerator"].as_u64())
    {
        (Some(percent), _) => (percent, 100),
        (None, Some(numerator)) => (numerator, fraction["denominator"].as_u64().unwrap_or(100)),
        (None, None) => (1, 1),
    };
    Ok(Mirror {
        service: to.service,
        port: to.port,
        numerator: u32::try_from(numerator).unwrap_or(u32::MAX),
        denominator: u32::try_from(denominator).unwrap_or(u32::MAX),
    })
}

enum NewPath {
    Whole(String),
    Prefix(NewPrefix),
}

fn new_path(said: &Value, field: &str, matched: Option<&str>) -> Result<Option<NewPath>, Refusal> {
    Ok(match said["type"].as_str() {
        None => None,
        Some("ReplaceFullPath") => {
            let path = traffic::path(text(&said["replaceFullPath"]));
            Some(NewPath::Whole(read(field, path)?))
        }
        Some("ReplacePrefixMatch") => {
            let Some(old) = matched else {
                return Err(unsupported(&format!(
                    "{field}: ReplacePrefixMatch without exactly one match, of a PathPrefix,"
                )));
            };
            let new = match text(&said["replacePrefixMatch"]) {
                "" => "/",
                new => new,
            };
            Some(NewPath::Prefix(NewPrefix {
                old: old.to_owned(),
                new: read(field, traffic::path(new))?,
            }))
        }
        Some(_) => return Err(unsupported(&format!("{field}.path.type"))),
    })
}

fn headers(said: &Value, field: &str) -> Result<HeaderChange, Refusal> {
    let fields = |said: &Value| {
        let read_one = |one: &Value| {
            Ok(HeaderField {
                name: read(field, traffic::header_name(text(&one["name"])))?,
                value: read(field, traffic::header_value(text(&one["value"])))?,
            })
        };
        all(said).map(read_one).collect::<Result<Vec<_>, Refusal>>()
    };
    let removed = all(&said["remove"]);
    let removed = removed.map(|name| read(field, traffic::header_name(text(name))));
    Ok(HeaderChange {
        set: fields(&said["set"])?,
        add: fields(&said["add"])?,
        remove: removed.collect::<Result<_, _>>()?,
    })
}

fn timeouts(said: &Value, field: &str) -> Result<Timeouts, Refusal> {
    let mut times = Timeouts::default();
    for (name, value) in said.as_object().into_iter().flatten() {
        let field = format!("{field}.{name}");
        match &**name {
            "request" => times.request_ms = time(value, &field)?,
            "backendRequest" => times.try_ms = time(value, &field)?,
            _ if is_absent(value) => {}
            _ => return Err(unsupported(&field)),
        }
    }
    Ok(times)
}

/// "0s" is none (GEP-1742).
fn time(said: &Value, field: &str) -> Result<u32, Refusal> {
    match text(said) {
        "" | "0s" | "0ms" | "0m" | "0h" => Ok(0),
        said => read(field, traffic::millis(said)),
    }
}

fn retry(said: &Value, field: &str) -> Result<Retry, Refusal> {
    let mut retry = Retry {
        attempts: 1,
        ..Retry::default()
    };
    for (name, value) in said.as_object().into_iter().flatten() {
        let field = format!("{field}.{name}");
        match &**name {
            "attempts" => retry.attempts = number(value).min(traffic::MAX_ATTEMPTS),
            "backoff" => retry.min_backoff_ms = time(value, &field)?,
            "codes" => {
                let codes = all(value).map(number);
                let range = |code| StatusRange {
                    first: code,
                    last: code,
                };
                retry.statuses = codes.map(range).collect();
            }
            _ if is_absent(value) => {}
            _ => return Err(unsupported(&field)),
        }
    }
    retry.max_backoff_ms = retry.min_backoff_ms.saturating_mul(10);
    Ok(retry)
}

/// One that may not be named stands for nobody: its part of the requests is refused.
fn backend(said: &Value, field: &str, namespace: &str) -> Result<RouteBackend, Refusal> {
    for (name, value) in said.as_object().into_iter().flatten() {
        match &**name {
            "group" | "kind" | "namespace" | "name" | "port" | "weight" => {}
            _ if is_absent(value) => {}
            _ => return Err(unsupported(&format!("{field}.{name}"))),
        }
    }
    let name = name_of(said, namespace);
    let own = name.split_once('/').map(|(namespace, _)| namespace) == Some(namespace);
    let weight = said["weight"].as_u64().unwrap_or(DEFAULT_WEIGHT);
    Ok(RouteBackend {
        service: if own && is_service(said) {
            name.to_string()
        } else {
            String::new()
        },
        port: number(&said["port"]),
        weight: u32::try_from(weight).unwrap_or(u32::MAX),
    })
}

fn host(said: &Value, field: &str) -> Result<String, Refusal> {
    match text(said) {
        "" => Ok(String::new()),
        said => read(field, traffic::host(said)),
    }
}

fn all(said: &Value) -> impl Iterator<Item = &Value> {
    said.as_array().into_iter().flatten()
}

fn text(said: &Value) -> &str {
    said.as_str().unwrap_or_default()
}

fn number(said: &Value) -> u32 {
    let number = said.as_u64().unwrap_or_default();
    u32::try_from(number).unwrap_or_default()
}

fn read<T>(field: &str, value: Result<T, String>) -> Result<T, Refusal> {
    value.map_err(|problem| {
        let problem = format!("{field}: {problem}: the route has no effect");
        ("UnsupportedValue", problem)
    })
}
