//! Whether a client may have what it asks for, now and as long as it lasts.
//!
//! In this order: a kubelet's probe may; plaintext may not where mTLS is strict; then
//! the policies decide. What was admitted is looked at again when anything about the
//! workload changes, and ends with a failure if it would not be admitted any more:
//! opaque bytes, upgraded connections and bodies on their way alike. Until something
//! changes that costs one load.

use crate::capture::Direction;
use crate::directory::{Mtls, Workload};
use crate::http::is_upgrade;
use crate::identity::Identity;
use crate::limits::Limits;
use crate::local::Local;
use crate::policy::{Decision, Policy, Question};
use crate::upstream::UpstreamError;
use http::{Method, Request, Uri};
use http_body::Body;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use tokio::sync::watch;

/// Characters of a path in a log line.
const LONGEST_TOLD: usize = 200;

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// Who it is, if mTLS proved it.
    pub peer: Option<Identity>,
    pub ip: IpAddr,
}

/// What was admitted.
pub(crate) struct Admitted {
    local: Arc<Local>,
    client: Client,
    /// The application's.
    port: u16,
    /// `None`: opaque bytes.
    request: Option<(Method, Uri)>,
    /// What the workload is asked to do at once; none, for a probe.
    pub limits: Limits,
    /// `None`: nothing will end it, as with a probe.
    workload: Option<watch::Receiver<Option<Arc<Workload>>>>,
    /// The next change, waited for.
    waiting: Option<Change>,
}

struct Change {
    /// Of the task that it wakes.
    waker: Waker,
    next: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
}

/// What would become of bytes that nobody looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Foreseen {
    Admitted,
    Refused,
    /// Refused, but if they are HTTP its requests may be admitted.
    DependsOnRequests,
}

/// May the client exchange bytes that nobody looks at?
pub(crate) fn bytes(
    local: &Arc<Local>,
    client: &Client,
    to: SocketAddr,
) -> Result<Admitted, UpstreamError> {
    Admitted::new(local, client, to, None)
}

/// May it make this request?
pub(crate) fn request<B: Body>(
    local: &Arc<Local>,
    client: &Client,
    to: SocketAddr,
    request: &Request<B>,
) -> Result<Box<Admitted>, UpstreamError> {
    if client.peer.is_none() && is_probe(local, to, request) {
        return Ok(Box::new(Admitted {
            local: local.clone(),
            client: client.clone(),
            port: to.port(),
            request: None,
            limits: Limits::default(),
            workload: None,
            waiting: None,
        }));
    }
    let head = (request.method().clone(), request.uri().clone());
    Admitted::new(local, client, to, Some(head)).map(Box::new)
}

/// What would become of bytes that nobody looks at; nothing is counted.
pub(crate) fn foresee(local: &Local, client: &Client, to: SocketAddr) -> Foreseen {
    let Some(workload) = local.itself() else {
        return Foreseen::Refused;
    };
    if client.peer.is_none() && workload.mtls == Mtls::Strict {
        return Foreseen::Refused;
    }
    let question = question(&workload, client, to.port(), None);
    match &workload.authorization {
        Some(all) if !all.decide(&question).allowed => {
            if all.asks_for_requests(to.port()) {
                Foreseen::DependsOnRequests
            } else {
                Foreseen::Refused
            }
        }
        _ => Foreseen::Admitted,
    }
}

/// Whether a kubelet has something to ask for at this port.
pub(crate) fn is_probed(workload: &Workload, to: SocketAddr) -> bool {
    workload
        .probes
        .iter()
        .any(|probe| probe.port() == to.port())
}

/// Whether a connection alone is what it asks for.
pub(crate) fn is_connect_probe(local: &Local, client: &Client, to: SocketAddr) -> bool {
    let probes = |workload: &Workload| {
        let mut probes = workload.probes.iter();
        probes.any(|probe| probe.is_connect(to.port()))
    };
    client.peer.is_none() && local.itself().is_some_and(|workload| probes(&workload))
}

fn is_probe<B: Body>(local: &Local, to: SocketAddr, request: &Request<B>) -> bool {
    let bodiless = request.body().is_end_stream();
    local.itself().is_some_and(|workload| {
        let mut probes = workload.probes.iter();
        probes.any(|probe| probe.is(to.port(), request, bodiless))
    }) && !is_upgrade(request)
}

fn question<'a>(
    workload: &'a Workload,
    client: &'a Client,
    port: u16,
    request: Option<&'a (Method, Uri)>,
) -> Question<'a> {
    let bytes = Question::of_bytes(&workload.identity, client.peer.as_ref(), client.ip, port);
    match request {
        Some((method, uri)) => bytes.of_request(method.as_str(), uri.path()),
        None => bytes,
    }
}

// === impl Client ===

impl Client {
    pub fn new(peer: Option<Identity>, address: SocketAddr) -> Self {
        let ip = address.ip().to_canonical();
        Self { peer, ip }
    }
}

// === impl Admitted ===

impl Clone for Admitted {
    fn clone(&self) -> Self {
        Self {
            local: self.local.clone(),
            client: self.client.clone(),
            port: self.port,
            request: self.request.clone(),
            limits: self.limits,
            workload: self.workload.clone(),
            // Everybody waits for himself.
            waiting: None,
        }
    }
}

impl Admitted {
    fn new(
        local: &Arc<Local>,
        client: &Client,
        to: SocketAddr,
        request: Option<(Method, Uri)>,
    ) -> Result<Self, UpstreamError> {
        let mut watched = local.watch_itself();
        let workload = watched.borrow_and_update().clone();
        let admitted = Self {
            local: local.clone(),
            client: client.clone(),
            port: to.port(),
            request,
            limits: workload
                .as_ref()
                .map_or_else(Limits::default, |it| it.limits),
            workload: Some(watched),
            waiting: None,
        };
        match workload {
            Some(workload) => admitted.judge(&workload, Tell::Always)?,
            // Not known any more is not permissive.
            None => return Err(UpstreamError::NotLocal(local.name.to_string())),
        }
        Ok(admitted)
    }

    fn judge(&self, workload: &Workload, tell: Tell) -> Result<(), UpstreamError> {
        if self.client.peer.is_none() && workload.mtls == Mtls::Strict {
            return Err(UpstreamError::Plaintext);
        }
        let Some(authorization) = &workload.authorization else {
            return Ok(());
        };
        let question = question(workload, &self.client, self.port, self.request.as_ref());
        let metrics = &self.local.shared.metrics;
        let Decision { allowed, by } = authorization.decide(&question);
        if tell == Tell::Always || !allowed {
            by.decided(|policy| metrics.decisions(&self.local.name, policy, word(allowed)));
        }
        if tell == Tell::Always {
            for audit in authorization.audited(&question) {
                audit.decided(|policy| metrics.decisions(&self.local.name, policy, "audit"));
                self.local.audit(audit.name(), || self.asked());
            }
        }
        if allowed {
            return Ok(());
        }
        let reason = match by.name() {
            Policy::NONE => "no policy allows it".to_owned(),
            name => format!("policy {name} denies it"),
        };
        Err(UpstreamError::Denied(
            format!("{}: {reason}", self.asked()).into(),
        ))
    }

    /// Who asked for what, for a person.
    fn asked(&self) -> String {
        let Self { client, port, .. } = self;
        let who = match &client.peer {
            Some(peer) => peer.as_str(),
            None => "unmeshed",
        };
        let what = match &self.request {
            Some((method, uri)) => {
                let path: String = uri.path().chars().take(LONGEST_TOLD).collect();
                format!("{method} {path}")
            }
            None => "a connection".to_owned(),
        };
        format!("{who} from {} asked port {port} for {what}", client.ip)
    }

    /// Whether a kubelet asks.
    pub fn is_probe(&self) -> bool {
        self.workload.is_none()
    }

    /// Whether it is still admitted.
    pub fn check(&mut self) -> Result<(), UpstreamError> {
        let Some(watched) = &mut self.workload else {
            return Ok(());
        };
        match watched.has_changed() {
            Ok(false) => Ok(()),
            Ok(true) => {
                let workload = watched.borrow_and_update().clone();
                self.waiting = None;
                match workload {
                    Some(workload) => self.judge(&workload, Tell::Refusals),
                    // It is on its way out, and what it has begun it may end.
                    None => Ok(()),
                }
            }
            // The directory is gone, and with it the proxy.
            Err(_) => Ok(()),
        }
    }

    /// Ready, with the reason, when it is admitted no more.
    pub fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<UpstreamError> {
        loop {
            if let Err(reason) = self.check() {
                return Poll::Ready(reason);
            }
            let Some(watched) = &self.workload else {
                return Poll::Pending;
            };
            match &mut self.waiting {
                // Whoever is to be woken is known already.
                Some(change) if change.waker.will_wake(cx.waker()) => return Poll::Pending,
                Some(change) => {
                    change.waker.clone_from(cx.waker());
                    ready!(change.next.as_mut().poll(cx));
                }
                waiting => {
                    let mut watched = watched.clone();
                    let next = Box::pin(async move {
                        // Without a directory nothing changes any more.
                        if watched.changed().await.is_err() {
                            std::future::pending::<()>().await;
                        }
                    });
                    let waker = cx.waker().clone();
                    let change = waiting.insert(Change { waker, next });
                    ready!(change.next.as_mut().poll(cx));
                }
            }
        }
    }

    /// Ends when it is admitted no more, and has told why.
    pub async fn ended(mut self) {
        let reason = std::future::poll_fn(|cx| self.poll_revoked(cx)).await;
        self.tell(&reason);
    }

    /// What was admitted was cut.
    pub fn tell(&self, reason: &UpstreamError) {
        self.local
            .failed(Direction::Inbound, reason.failure(), reason);
    }
}

/// Which decisions are counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tell {
    Always,
    /// What stands goes on without a word.
    Refusals,
}

const fn word(allowed: bool) -> &'static str {
    if allowed { "allow" } else { "deny" }
}
