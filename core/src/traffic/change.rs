//! What a route changes in a message: headers, the path, the host; or the answer that
//! sends the client elsewhere.

use super::matching::{host, strip_prefix};
use crate::api;
use crate::api::{redirect, rewrite};
use crate::http::Body;
use http::header::{CONTENT_LENGTH, HOST, LOCATION};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri};

/// In this order: set, add, remove.
#[derive(Debug, Default)]
pub struct HeaderChange {
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
}

#[derive(Debug)]
pub struct Redirect {
    scheme: Option<String>,
    host: Option<String>,
    port: Option<u16>,
    path: Option<NewPath>,
    status: StatusCode,
}

#[derive(Debug)]
pub struct Rewrite {
    host: Option<Authority>,
    path: Option<NewPath>,
}

#[derive(Debug)]
enum NewPath {
    Whole(String),
    /// What stands instead of a prefix that was matched.
    Prefix {
        old: String,
        new: String,
    },
}

// === impl HeaderChange ===

impl HeaderChange {
    pub fn read(said: Option<&api::HeaderChange>) -> Self {
        let Some(said) = said else {
            return Self::default();
        };
        let fields = |all: &[api::HeaderField]| {
            let read = |field: &api::HeaderField| {
                let name = HeaderName::try_from(&field.name).ok()?;
                Some((name, HeaderValue::try_from(&field.value).ok()?))
            };
            all.iter().filter_map(read).collect()
        };
        let remove = said.remove.iter();
        Self {
            set: fields(&said.set),
            add: fields(&said.add),
            remove: remove.filter_map(|name| name.try_into().ok()).collect(),
        }
    }

    pub fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

// === impl Redirect ===

impl Redirect {
    pub fn read(said: &api::Redirect) -> Self {
        let some = |text: &String| (!text.is_empty()).then(|| text.clone());
        let status = u16::try_from(said.status).ok();
        let status = status.and_then(|status| StatusCode::from_u16(status).ok());
        Self {
            scheme: some(&said.scheme),
            host: some(&said.host),
            port: u16::try_from(said.port).ok().filter(|port| *port != 0),
            path: said.path.as_ref().map(|path| match path {
                redirect::Path::Whole(path) => NewPath::Whole(path.clone()),
                redirect::Path::Prefix(prefix) => NewPath::prefix(prefix),
            }),
            status: status
                .filter(StatusCode::is_redirection)
                .unwrap_or(StatusCode::FOUND),
        }
    }

    /// `port` is the one that the client asked at.
    pub fn answer<B>(&self, request: &Request<B>, port: u16) -> Response<Body> {
        let scheme = self.scheme.as_deref().unwrap_or("http");
        let asked = host(request);
        let host = self.host.as_deref().or(asked.as_deref());
        let host = host.unwrap_or_default();
        let well_known = if scheme == "https" { 443 } else { 80 };
        // Another scheme is at another port.
        let port = match (self.port, &self.scheme) {
            (Some(port), _) => port,
            (None, Some(_)) => well_known,
            (None, None) => port,
        };
        let port = if port == well_known {
            String::new()
        } else {
            format!(":{port}")
        };
        let uri = request.uri();
        let path = match &self.path {
            Some(new) => new.of(uri.path()),
            None => uri.path().to_owned(),
        };
        let query = uri
            .query()
            .map_or_else(String::new, |query| format!("?{query}"));
        let location = format!("{scheme}://{host}{port}{path}{query}");
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        if let Ok(location) = HeaderValue::try_from(location) {
            headers.insert(LOCATION, location);
        }
        response
    }
}

// === impl Rewrite ===

impl Rewrite {
    pub fn read(said: &api::Rewrite) -> Self {
        Self {
            host: said.host.parse().ok(),
            path: said.path.as_ref().map(|path| match path {
                rewrite::Path::Whole(path) => NewPath::Whole(path.clone()),
                rewrite::Path::Prefix(prefix) => NewPath::prefix(prefix),
            }),
        }
    }

    pub fn apply<B>(&self, request: &mut Request<B>) {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        if let Some(new) = &self.path {
            let old = parts.path_and_query.as_ref();
            let path = new.of(old.map_or("/", PathAndQuery::path));
            let query = old.and_then(PathAndQuery::query);
            let whole = query.map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
            if let Ok(new) = PathAndQuery::try_from(whole) {
                parts.path_and_query = Some(new);
            }
        }
        if let Some(host) = &self.host {
            if parts.authority.is_some() {
                parts.authority = Some(host.clone());
                parts.scheme.get_or_insert(Scheme::HTTP);
            }
            if let Ok(value) = HeaderValue::try_from(host.as_str()) {
                request.headers_mut().insert(HOST, value);
            }
        }
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    }
}

// === impl NewPath ===

impl NewPath {
    fn prefix(said: &api::NewPrefix) -> Self {
        Self::Prefix {
            old: said.old.trim_end_matches('/').to_owned(),
            new: said.new.trim_end_matches('/').to_owned(),
        }
    }

    fn of(&self, path: &str) -> String {
        match self {
            Self::Whole(new) => new.clone(),
            Self::Prefix { old, new } => match strip_prefix(path, old) {
                Some(rest) if new.is_empty() && !rest.starts_with('/') => format!("/{rest}"),
                Some(rest) => format!("{new}{rest}"),
                None => path.to_owned(),
            },
        }
    }
}
