//! What the API server says, as it comes: one stream of changes of all kinds.
//!
//! Lists are read in pages and each object is reduced to what is kept of it as soon
//! as it has been read, so that a list of 10 000 pods is never there as a whole. After
//! an error a watch goes on where it was; it is tried again with growing pauses, and
//! whatever fails to be watched stays as it was last heard of.

use super::namespace::Namespace;
use super::objects::{Change, Name};
use super::pod::Pod;
use super::route::Route;
use super::service::{Service, Slice};
use super::trouble::Trouble;
use crate::crd::AuthorizationPolicy;
use futures_util::stream::{BoxStream, SelectAll, StreamExt, unfold};
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use kube::api::{ApiResource, DynamicObject};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::time::Duration;

/// Objects in one page of a list, as client-go has it.
const PAGE: u32 = 500;
/// Seconds after which a watch is begun anew where it was. A connection that died
/// without a word is noticed by then; a watch costs the API server next to nothing.
const WATCH_SECONDS: u32 = 60;
/// The first pause after an error; doubled by each further one up to [`MAX_PAUSE`].
pub const MIN_PAUSE: Duration = Duration::from_millis(250);
pub const MAX_PAUSE: Duration = Duration::from_secs(15);
/// How long until a kind that is not defined is looked for again.
pub const ABSENT_PAUSE: Duration = Duration::from_secs(20);

/// The kinds that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Namespaces,
    Nodes,
    Pods,
    Services,
    EndpointSlices,
    Policies,
    HttpRoutes,
    GrpcRoutes,
}

#[expect(
    clippy::large_enum_variant,
    reason = "most are pods, and none is kept: a box would be one more allocation"
)]
#[derive(Debug)]
pub enum Heard {
    Namespace(Change<Namespace>),
    /// Its zone.
    Node(Change<Box<str>>),
    Pod(Change<Pod>),
    Service(Change<Service>),
    Slice(Change<Slice>),
    Policy(Change<AuthorizationPolicy>),
    Route(Kind, Change<Route>),
    /// A kind cannot be listed or watched for now.
    Failed(Kind, Trouble),
}

/// How far a list is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Listing,
    Listed,
}

pub type Watches = SelectAll<BoxStream<'static, Heard>>;

/// Watches everything that the mesh is made of.
pub fn everything(client: &Client) -> Watches {
    let mut watches = SelectAll::new();
    watches.push(watch(all(client), Kind::Namespaces, |change| {
        Heard::Namespace(change.map(|_, it: core::Namespace| Namespace::read(&it)))
    }));
    // Their status, which changes all the time, is not asked for.
    watches.push(watch(all(client), Kind::Nodes, |change| {
        Heard::Node(change.map(|_, it: PartialObjectMeta<core::Node>| zone(&it)))
    }));
    watches.push(watch(all(client), Kind::Pods, |change| {
        Heard::Pod(change.map(|_, it: core::Pod| Pod::read(it)))
    }));
    watches.push(watch(all(client), Kind::Services, |change| {
        let change = change.map(|_, it: core::Service| Service::read(it));
        Heard::Service(change.present())
    }));
    watches.push(watch(all(client), Kind::EndpointSlices, |change| {
        let change = change.map(|_, it: discovery::EndpointSlice| Slice::read(it));
        Heard::Slice(change.present())
    }));
    watches.push(watch(all(client), Kind::Policies, Heard::Policy));
    for kind in [Kind::HttpRoutes, Kind::GrpcRoutes] {
        let api = Api::all_with(client.clone(), &kind.api_resource());
        watches.push(watch(api, kind, move |change| {
            Heard::Route(kind, change.map(|_, it: DynamicObject| Route::read(it)))
        }));
    }
    watches
}

/// Empty: nobody said.
fn zone(node: &PartialObjectMeta<core::Node>) -> Box<str> {
    let zone = node.labels().get("topology.kubernetes.io/zone");
    zone.map(|zone| zone.as_str()).unwrap_or_default().into()
}

fn all<K: Resource<DynamicType = ()>>(client: &Client) -> Api<K> {
    Api::all(client.clone())
}

/// One kind, in every namespace, for ever.
fn watch<K>(
    api: Api<K>,
    kind: Kind,
    read: impl Fn(Change<K>) -> Heard + Clone + Send + 'static,
) -> BoxStream<'static, Heard>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = watcher::Config::default()
        .page_size(PAGE)
        .timeout(WATCH_SECONDS);
    let events = watcher(api, config).boxed();
    let begin = (events, Duration::ZERO, MIN_PAUSE);
    unfold(begin, move |(mut events, pause, mut next_pause)| {
        let read = read.clone();
        async move {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            let heard = match events.next().await? {
                Ok(event) => {
                    // The beginning of a list is nothing that the API server said.
                    if !matches!(event, Event::Init) {
                        next_pause = MIN_PAUSE;
                    }
                    (read(change(event)), Duration::ZERO)
                }
                Err(error) => {
                    let trouble = Trouble::of_watch(kind.resource(), &error);
                    let pause = match trouble {
                        Trouble::Absent(_) => ABSENT_PAUSE,
                        _ => next_pause,
                    };
                    next_pause = (next_pause * 2).min(MAX_PAUSE);
                    (Heard::Failed(kind, trouble), pause)
                }
            };
            let (heard, pause) = heard;
            Some((heard, (events, pause, next_pause)))
        }
    })
    .boxed()
}

fn change<K: Resource>(event: Event<K>) -> Change<K> {
    match event {
        Event::Apply(object) | Event::InitApply(object) => Change::Put(name(&object), object),
        Event::Delete(object) => Change::Gone(name(&object)),
        Event::Init => Change::Listing,
        Event::InitDone => Change::Listed,
    }
}

fn name<K: Resource>(object: &K) -> Name {
    let name = object.name_any();
    match object.meta().namespace.as_deref() {
        Some(namespace) => format!("{namespace}/{name}").into(),
        None => name.into(),
    }
}

// === impl Kind ===

impl Kind {
    pub const ALL: [Self; 8] = [
        Self::Namespaces,
        Self::Nodes,
        Self::Pods,
        Self::Services,
        Self::EndpointSlices,
        Self::Policies,
        Self::HttpRoutes,
        Self::GrpcRoutes,
    ];

    /// Whether nothing can be told before all of it has been listed.
    pub fn is_needed(self) -> bool {
        !matches!(self, Self::Nodes | Self::HttpRoutes | Self::GrpcRoutes)
    }

    /// Whether a cluster may do without its definition.
    pub fn is_optional(self) -> bool {
        matches!(self, Self::Policies | Self::HttpRoutes | Self::GrpcRoutes)
    }

    /// Of those that a status is written to.
    pub fn api_resource(self) -> ApiResource {
        let gateway = |kind: &str, plural: &str| ApiResource {
            group: "gateway.networking.k8s.io".to_owned(),
            version: "v1".to_owned(),
            api_version: "gateway.networking.k8s.io/v1".to_owned(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
        };
        match self {
            Self::HttpRoutes => gateway("HTTPRoute", "httproutes"),
            Self::GrpcRoutes => gateway("GRPCRoute", "grpcroutes"),
            Self::Policies => ApiResource::erase::<AuthorizationPolicy>(&()),
            Self::Namespaces => ApiResource::erase::<core::Namespace>(&()),
            Self::Nodes => ApiResource::erase::<core::Node>(&()),
            Self::Pods => ApiResource::erase::<core::Pod>(&()),
            Self::Services => ApiResource::erase::<core::Service>(&()),
            Self::EndpointSlices => ApiResource::erase::<discovery::EndpointSlice>(&()),
        }
    }

    /// As RBAC names it.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Nodes => "nodes",
            Self::Pods => "pods",
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices.discovery.k8s.io",
            Self::Policies => "authorizationpolicies.duet.dev",
            Self::HttpRoutes => "httproutes.gateway.networking.k8s.io",
            Self::GrpcRoutes => "grpcroutes.gateway.networking.k8s.io",
        }
    }
}

// === impl Heard ===

impl Heard {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespaces,
            Self::Node(_) => Kind::Nodes,
            Self::Pod(_) => Kind::Pods,
            Self::Service(_) => Kind::Services,
            Self::Slice(_) => Kind::EndpointSlices,
            Self::Policy(_) => Kind::Policies,
            Self::Route(kind, _) | Self::Failed(kind, _) => *kind,
        }
    }

    pub fn is(&self, progress: Progress) -> bool {
        fn of<T>(change: &Change<T>) -> Option<Progress> {
            match change {
                Change::Listing => Some(Progress::Listing),
                Change::Listed => Some(Progress::Listed),
                Change::Put(..) | Change::Gone(_) => None,
            }
        }
        let own = match self {
            Self::Namespace(change) => of(change),
            Self::Node(change) => of(change),
            Self::Pod(change) => of(change),
            Self::Service(change) => of(change),
            Self::Slice(change) => of(change),
            Self::Policy(change) => of(change),
            Self::Route(_, change) => of(change),
            Self::Failed(..) => None,
        };
        own == Some(progress)
    }
}
