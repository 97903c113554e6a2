//! Whether a request is one that a route is for.
//!
//! Regular expressions are those of the regex crate, without Unicode classes: they match
//! in time linear in the text, whatever they are, and are bounded when they are compiled
//! ([`MAX_EXPRESSION`]). They match a value as a whole.

use crate::api;
use crate::api::{route_match, value_match};
use http::header::{HOST, HeaderName};
use http::{Method, Request};
use regex::bytes::{Regex, RegexBuilder};
use std::borrow::Cow;

/// Bytes of an expression's compiled program; Envoy's limit is of the same order.
const MAX_EXPRESSION: usize = 64 * 1024;

/// Why a match cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a regular expression that can be used: {problem}")]
pub struct InvalidExpression {
    text: String,
    problem: String,
}

#[derive(Debug)]
pub struct Matcher {
    path: Path,
    method: Option<Method>,
    headers: Vec<(HeaderName, Value)>,
    query: Vec<(String, Value)>,
}

#[derive(Debug)]
enum Path {
    Exact(String),
    Expression(Regex),
    /// Without its last slash: whole segments.
    Prefix(String),
}

#[derive(Debug)]
enum Value {
    Exact(String),
    Expression(Regex),
}

/// Names that a request may be for. None: all are.
#[derive(Debug)]
pub struct Hosts(Vec<Host>);

#[derive(Debug)]
enum Host {
    Exact(String),
    /// With its leading dot.
    Below(String),
}

/// What is greater is looked at first.
pub type Specificity = (u8, usize, bool, usize, usize);

/// # Errors
/// What is wrong with the expression.
pub fn check_expression(text: &str) -> Result<(), InvalidExpression> {
    expression(text).map(drop)
}

fn expression(text: &str) -> Result<Regex, InvalidExpression> {
    let whole = format!("^(?:{text})$");
    RegexBuilder::new(&whole)
        .unicode(false)
        .size_limit(MAX_EXPRESSION)
        .build()
        .map_err(|error| InvalidExpression {
            text: text.to_owned(),
            // Of many lines, the last says what it is.
            problem: error
                .to_string()
                .lines()
                .last()
                .unwrap_or_default()
                .trim_start_matches("error: ")
                .to_owned(),
        })
}

// === impl Matcher ===

impl Matcher {
    pub fn compile(said: &api::RouteMatch) -> Result<Self, InvalidExpression> {
        let path = match &said.path {
            Some(route_match::Path::Exact(path)) => Path::Exact(path.clone()),
            Some(route_match::Path::Prefix(path)) => {
                Path::Prefix(path.trim_end_matches('/').to_owned())
            }
            Some(route_match::Path::Expression(text)) => Path::Expression(expression(text)?),
            None => Path::Prefix(String::new()),
        };
        let invalid = |text: &str, problem: &str| InvalidExpression {
            text: text.to_owned(),
            problem: problem.to_owned(),
        };
        let method = match said.method.as_str() {
            "" => None,
            method => Some(
                Method::from_bytes(method.as_bytes())
                    .map_err(|_| invalid(method, "it is no method"))?,
            ),
        };
        let mut headers = Vec::new();
        for header in &said.headers {
            let name = HeaderName::try_from(&header.name)
                .map_err(|_| invalid(&header.name, "it is no header's name"))?;
            headers.push((name, Value::compile(header)?));
        }
        let query = said.query.iter();
        Ok(Self {
            path,
            method,
            headers,
            query: query
                .map(|one| Ok((one.name.clone(), Value::compile(one)?)))
                .collect::<Result<_, _>>()?,
        })
    }

    pub fn specificity(&self) -> Specificity {
        let (kind, length) = match &self.path {
            Path::Exact(path) => (3, path.len()),
            Path::Expression(expression) => (2, expression.as_str().len()),
            Path::Prefix(prefix) => (1, prefix.len()),
        };
        let method = self.method.is_some();
        (kind, length, method, self.headers.len(), self.query.len())
    }

    pub fn matches<B>(&self, request: &Request<B>) -> bool {
        let path = request.uri().path();
        let on_path = match &self.path {
            Path::Exact(exact) => path == exact,
            Path::Expression(expression) => expression.is_match(path.as_bytes()),
            Path::Prefix(prefix) => strip_prefix(path, prefix).is_some(),
        };
        on_path
            && self
                .method
                .as_ref()
                .is_none_or(|method| method == request.method())
            && self.headers.iter().all(|(name, value)| {
                let mut given = request.headers().get_all(name).iter();
                given.any(|given| value.matches(given.as_bytes()))
            })
            && (self.query.is_empty() || self.match_query(request.uri().query()))
    }

    /// Of parameters of one name the first counts, as Gateway API recommends.
    fn match_query(&self, query: Option<&str>) -> bool {
        let given = query.unwrap_or_default().as_bytes();
        self.query.iter().all(|(name, value)| {
            let mut given = form_urlencoded::parse(given);
            given
                .find(|(given, _)| given == name)
                .is_some_and(|(_, given)| value.matches(given.as_bytes()))
        })
    }
}

/// What follows a prefix of whole segments.
pub fn strip_prefix<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(prefix)?;
    (rest.is_empty() || rest.starts_with('/') || prefix.is_empty()).then_some(rest)
}

impl Value {
    fn compile(said: &api::ValueMatch) -> Result<Self, InvalidExpression> {
        Ok(match &said.value {
            Some(value_match::Value::Exact(text)) => Self::Exact(text.clone()),
            Some(value_match::Value::Expression(text)) => Self::Expression(expression(text)?),
            // Given is enough.
            None => Self::Expression(expression("(?s).*")?),
        })
    }

    fn matches(&self, given: &[u8]) -> bool {
        match self {
            Self::Exact(text) => text.as_bytes() == given,
            Self::Expression(expression) => expression.is_match(given),
        }
    }
}

// === impl Hosts ===

impl Hosts {
    pub fn new(said: &[String]) -> Self {
        let read = |host: &String| match host.strip_prefix('*') {
            Some(below) => Host::Below(below.to_ascii_lowercase()),
            None => Host::Exact(host.to_ascii_lowercase()),
        };
        Self(said.iter().map(read).collect())
    }

    /// Gateway API has named hosts before wildcards before none.
    pub fn specificity(&self) -> u8 {
        let of = |host: &Host| match host {
            Host::Exact(_) => 2,
            Host::Below(_) => 1,
        };
        self.0.iter().map(of).max().unwrap_or_default()
    }

    pub fn include<B>(&self, request: &Request<B>) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let Some(given) = host(request) else {
            return false;
        };
        let given = given.to_ascii_lowercase();
        self.0.iter().any(|host| match host {
            Host::Exact(exact) => given == *exact,
            Host::Below(below) => given.ends_with(below) && given.len() > below.len(),
        })
    }
}

/// The host that a request names, without its port.
pub fn host<B>(request: &Request<B>) -> Option<Cow<'_, str>> {
    if let Some(host) = request.uri().host() {
        return Some(host.into());
    }
    let named = request.headers().get(HOST)?.to_str().ok()?;
    let authority: http::uri::Authority = named.parse().ok()?;
    Some(authority.host().to_owned().into())
}
