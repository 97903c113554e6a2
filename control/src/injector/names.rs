//! The names by which pods and namespaces talk to the injector, and it to others.

/// Label of a namespace or a pod (the pod's counts): "sidecar", "agent" or "none".
pub const MODE: &str = "duet.dev/mode";
/// Annotation that pods are stamped with: "sidecar" or "agent".
pub const PLACEMENT: &str = "duet.dev/placement";
/// Readiness gate and condition of a pod whose connections are an agent's.
pub const ENROLLED: &str = "duet.dev/enrolled";

// Annotations of a pod. Where a pod has none its namespace's counts.

/// "3306, 4222": the pod's connections to these ports are left alone.
pub const EXCLUDE_OUTBOUND_PORTS: &str = "duet.dev/exclude-outbound-ports";
/// Ports of the pod that are reached without the proxy.
pub const EXCLUDE_INBOUND_PORTS: &str = "duet.dev/exclude-inbound-ports";
/// "1337, 999": connections of these users are left alone.
pub const EXCLUDE_UIDS: &str = "duet.dev/exclude-uids";
/// "strict" or "permissive". duet-control tells the proxies.
pub const MTLS: &str = "duet.dev/mtls";
/// A quantity as in a container's resources, or "none".
pub const PROXY_CPU_REQUEST: &str = "duet.dev/proxy-cpu-request";
pub const PROXY_CPU_LIMIT: &str = "duet.dev/proxy-cpu-limit";
pub const PROXY_MEMORY_REQUEST: &str = "duet.dev/proxy-memory-request";
pub const PROXY_MEMORY_LIMIT: &str = "duet.dev/proxy-memory-limit";
/// The proxy's log filter: "info", "warn,duet_core=debug".
pub const LOG_LEVEL: &str = "duet.dev/log-level";
/// "off", "text" or "json".
pub const ACCESS_LOG: &str = "duet.dev/access-log";
/// "true" or "false": whether the application's containers wait for the proxy.
pub const WAIT: &str = "duet.dev/wait";
/// "init" or "cni": who redirects the pod's connections to the proxy.
pub const REDIRECT: &str = "duet.dev/redirect";
/// "native" or "classic".
pub const SIDECAR_KIND: &str = "duet.dev/sidecar-kind";

/// Annotation of a pod alone: ports whose bytes are never looked at. duet-control
/// tells the proxies.
pub const OPAQUE_PORTS: &str = "duet.dev/opaque-ports";
/// Annotation of a pod alone: "requestsPerSecond=100, burst=200, inFlight=50".
/// duet-control tells the proxies.
pub const LIMITS: &str = "duet.dev/limits";
/// Annotation of a pod alone: "connections=1000, requestsPerSecond=100, weight=2": what it
/// wants of an agent that it shares. duet-control tells the proxies.
pub const BUDGETS: &str = "duet.dev/budgets";
/// Annotation of a pod alone: "4": how many times what another endpoint of its services gets.
/// duet-control tells the proxies.
pub const WEIGHT: &str = "duet.dev/weight";
/// Annotation of a namespace alone: the namespaces that its workloads hear of
/// beside their own.
pub const REACH: &str = "duet.dev/reach";

/// Annotation of a service: "consecutive=5, minBackoff=2s", or "off": when an endpoint
/// is left out because it fails.
pub const FAILURE_ACCRUAL: &str = "duet.dev/failure-accrual";
/// Annotations of a service: "request=10s, eachTry=1s"; "attempts=2, methods=any";
/// "percent=20, perSecond=10": how long its requests may take, which are tried again,
/// and how many.
pub const TIMEOUTS: &str = "duet.dev/timeouts";
pub const RETRY: &str = "duet.dev/retry";
pub const RETRY_BUDGET: &str = "duet.dev/retry-budget";
/// Annotation of a service: "30s", until a new endpoint gets as much as the others.
pub const SLOW_START: &str = "duet.dev/slow-start";

/// What kubectl shows and enters when it is not told which container.
pub const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
/// What Istio's ambient mode says of a pod, by annotation or label: that it takes HBONE.
pub const ISTIO_REDIRECTION: &str = "ambient.istio.io/redirection";
pub const ISTIO_TUNNEL: &str = "networking.istio.io/tunnel";
/// A static pod's image in the API. Nothing that is done to it reaches the pod.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// The container that redirects the pod's connections.
pub const INIT_CONTAINER: &str = "duet-init";
/// The proxy's container.
pub const PROXY_CONTAINER: &str = "duet-proxy";
/// The proxy's token and the roots it trusts.
pub const IDENTITY_VOLUME: &str = "duet-identity";
/// The ConfigMap with the roots, in every namespace.
pub const TRUST_BUNDLE: &str = "duet-trust-bundle";
/// Its one key.
pub const TRUST_BUNDLE_KEY: &str = "root.pem";
/// Whom the proxy's token is for.
pub const TOKEN_AUDIENCE: &str = "duet-control";

/// The proxy's user and group, and so whose connections are not redirected.
pub const PROXY_UID: u32 = 2102;
/// Where the proxy answers its user, /metrics and probes; the others that it listens
/// on are the mesh's.
pub const ADMIN_PORT: u16 = 15000;
pub const METRICS_PORT: u16 = 15020;
pub const HEALTH_PORT: u16 = 15021;

/// What our names begin with.
pub const PREFIX: &str = "duet.dev/";
/// Every annotation that may stand on a pod, for finding those that are misspelt.
pub const OF_PODS: [&str; 18] = [
    PLACEMENT,
    EXCLUDE_OUTBOUND_PORTS,
    EXCLUDE_INBOUND_PORTS,
    EXCLUDE_UIDS,
    MTLS,
    PROXY_CPU_REQUEST,
    PROXY_CPU_LIMIT,
    PROXY_MEMORY_REQUEST,
    PROXY_MEMORY_LIMIT,
    LOG_LEVEL,
    ACCESS_LOG,
    WAIT,
    REDIRECT,
    SIDECAR_KIND,
    OPAQUE_PORTS,
    LIMITS,
    BUDGETS,
    WEIGHT,
];
/// Those of them that only a sidecar heeds.
pub const OF_SIDECARS: [&str; 12] = [
    EXCLUDE_OUTBOUND_PORTS,
    EXCLUDE_INBOUND_PORTS,
    EXCLUDE_UIDS,
    PROXY_CPU_REQUEST,
    PROXY_CPU_LIMIT,
    PROXY_MEMORY_REQUEST,
    PROXY_MEMORY_LIMIT,
    LOG_LEVEL,
    ACCESS_LOG,
    WAIT,
    REDIRECT,
    SIDECAR_KIND,
];
