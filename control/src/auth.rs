//! Who is calling, and for whom it may speak.
//!
//! Every call carries a bearer token. A sidecar's token names one workload; an
//! agent's names a node, and stands for the workloads that run there and no
//! others, so a stolen agent token is worth one node. How a token is verified is
//! behind [`Authenticator`]: with a file as the source duet-control signs tokens
//! itself, with Kubernetes the API server is asked (see [`crate::kube_auth`]).
//!
//! Whoever is to get a key's certificate is looked at more closely: by
//! [`Verified::may_speak_for`] the pod must be the very one that is in the mesh now,
//! and an agent gets no certificate for a pod that has a proxy of its own.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use duet_core::WorkloadName;
use duet_core::api::{Placement, Workload};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tonic::Status;
use tonic::metadata::MetadataMap;

/// Begins every token, and would change with the format.
const VERSION: &str = "duet1";
const KEY_BYTES: usize = 32;

/// Whom a verified token stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// One workload: a sidecar.
    Workload(WorkloadName),
    /// Every workload of a node: an agent.
    Node(String),
}

/// A caller, and what else is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub caller: Caller,
    /// The pod that the token was made for, with Kubernetes.
    pub pod: Option<BoundPod>,
}

/// A pod, as a token names it. Another of the same name has another uid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundPod {
    pub uid: String,
    pub service_account: String,
}

/// Turns a bearer token into the caller it was given to.
#[tonic::async_trait]
pub trait Authenticator: Send + Sync + 'static {
    async fn authenticate(&self, token: &str) -> Result<Verified, Unverified>;
}

/// Why a caller is not known.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unverified {
    #[error(transparent)]
    Unauthenticated(#[from] Unauthenticated),
    /// Whoever knows could not be asked: the token may be good.
    #[error("{0}")]
    Unavailable(String),
}

/// Why a token is not accepted; says what to send instead.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unauthenticated {
    #[error("no bearer token: send `authorization: Bearer TOKEN`")]
    Missing,
    #[error(
        "the token was not signed with this mesh's key: make one with `duet-control token` and this mesh's --state-dir"
    )]
    Forged,
    #[error("the token has expired: make another with `duet-control token`")]
    Expired,
    /// With Kubernetes.
    #[error("{0}")]
    ServiceAccount(String),
}

/// Signs and verifies the tokens of `duet-control token`: HMAC-SHA256 over the
/// claims, compared in constant time.
#[derive(Clone)]
pub struct TokenKey([u8; KEY_BYTES]);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claims {
    /// "namespace/name". Either this or `node`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    workload: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// Seconds since the epoch; absent: for as long as the key lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<u64>,
}

/// The caller that sent `metadata`.
///
/// # Errors
/// UNAUTHENTICATED, without a token or with one that is not valid; UNAVAILABLE, when
/// that cannot be found out now.
pub async fn authenticate(
    authenticator: &dyn Authenticator,
    metadata: &MetadataMap,
) -> Result<Caller, Status> {
    Ok(verify(authenticator, metadata).await?.caller)
}

/// As [`authenticate`], with all that is known of the caller.
///
/// # Errors
/// As [`authenticate`].
pub async fn verify(
    authenticator: &dyn Authenticator,
    metadata: &MetadataMap,
) -> Result<Verified, Status> {
    let token = metadata
        .get("authorization")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        })
        .filter(|token| !token.is_empty());
    let outcome = match token {
        Some(token) => authenticator.authenticate(token).await,
        None => Err(Unauthenticated::Missing.into()),
    };
    outcome.map_err(|error| match error {
        Unverified::Unauthenticated(error) => Status::unauthenticated(error.to_string()),
        Unverified::Unavailable(error) => Status::unavailable(error),
    })
}

// === impl Verified ===

impl Verified {
    /// Whether the caller may have a certificate as `workload`.
    ///
    /// # Errors
    /// PERMISSION_DENIED, with the reason.
    pub fn may_speak_for(&self, workload: &Workload) -> Result<(), Status> {
        self.caller.may_speak_for(workload)?;
        let name = WorkloadName::new(&workload.namespace, &workload.name);
        let denied = |reason: String| Err(Status::permission_denied(reason));
        let placement = workload.placement();
        match (&self.caller, &self.pod) {
            (Caller::Node(_), _) if placement == Placement::Sidecar => denied(format!(
                "{name} has a proxy of its own, which asks for itself"
            )),
            (Caller::Node(node), Some(_)) if placement != Placement::Agent => denied(format!(
                "{name} is not in the care of the agent on node {node}"
            )),
            (Caller::Workload(_), Some(_)) if placement == Placement::Agent => denied(format!(
                "{name} is proxied by its node's agent, which asks for it"
            )),
            (Caller::Workload(_), Some(pod)) if pod.uid != workload.uid => denied(format!(
                "this token was made for another pod {name}, of uid {}: in the mesh is {}",
                pod.uid, workload.uid
            )),
            (Caller::Workload(_), Some(pod)) if pod.service_account != workload.service_account => {
                denied(format!(
                    "this token is service account {}'s, and {name} runs as {}",
                    pod.service_account, workload.service_account
                ))
            }
            _ => Ok(()),
        }
    }
}

impl From<Caller> for Verified {
    fn from(caller: Caller) -> Self {
        Self { caller, pod: None }
    }
}

// === impl Caller ===

impl Caller {
    /// Whether the caller may ask about `name` at all, before it is looked up. A
    /// node's token may name any workload; which ones run there is seen later.
    ///
    /// # Errors
    /// PERMISSION_DENIED, with the reason.
    pub fn may_name(&self, name: &WorkloadName) -> Result<(), Status> {
        match self {
            Self::Workload(own) if own != name => Err(Status::permission_denied(format!(
                "this token speaks for {own}, not for {name}"
            ))),
            _ => Ok(()),
        }
    }

    /// Whether the caller may act as `workload`.
    ///
    /// # Errors
    /// PERMISSION_DENIED, with the reason.
    pub fn may_speak_for(&self, workload: &Workload) -> Result<(), Status> {
        let name = WorkloadName::new(&workload.namespace, &workload.name);
        match self {
            Self::Workload(_) => self.may_name(&name),
            Self::Node(node) if workload.node.is_empty() => {
                Err(Status::permission_denied(format!(
                    "this token speaks for the workloads on node {node}, and {name} is on none: \
                     give it `node: {node}`"
                )))
            }
            Self::Node(node) if *node == workload.node => Ok(()),
            Self::Node(node) => Err(Status::permission_denied(format!(
                "this token speaks for the workloads on node {node}, and {name} is on {}",
                workload.node
            ))),
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(name) => write!(f, "workload {name}"),
            Self::Node(node) => write!(f, "node {node}"),
        }
    }
}

// === impl TokenKey ===

impl TokenKey {
    pub fn generate() -> Self {
        Self(crate::ca::random())
    }

    /// As kept in the state directory.
    pub fn encode(&self) -> String {
        format!("{}\n", STANDARD.encode(self.0))
    }

    /// `None` when `text` is not what [`Self::encode`] gives.
    pub fn decode(text: &str) -> Option<Self> {
        let bytes = STANDARD.decode(text.trim()).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }

    /// A token for `caller`, valid for `lifetime`, or until the key is replaced.
    pub fn sign(&self, caller: &Caller, lifetime: Option<Duration>) -> String {
        let (workload, node) = match caller {
            Caller::Workload(name) => (Some(name.to_string()), None),
            Caller::Node(node) => (None, Some(node.clone())),
        };
        let claims = Claims {
            workload,
            node,
            expires: lifetime.map(|lifetime| now().saturating_add(lifetime.as_secs())),
        };
        let claims = serde_json::to_vec(&claims).expect("two strings and a number");
        let signed = format!("{VERSION}.{}", URL_SAFE_NO_PAD.encode(claims));
        let tag = self.mac(&signed).finalize().into_bytes();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
    }

    /// # Errors
    /// When the token was not signed with this key, or has expired.
    pub fn verify(&self, token: &str) -> Result<Caller, Unauthenticated> {
        let (signed, tag) = token.rsplit_once('.').ok_or(Unauthenticated::Forged)?;
        let tag = URL_SAFE_NO_PAD
            .decode(tag)
            .map_err(|_| Unauthenticated::Forged)?;
        self.mac(signed)
            .verify_slice(&tag)
            .map_err(|_| Unauthenticated::Forged)?;
        // Only what this key signed comes this far. What it does not understand
        // of it may be a restriction, and is refused.
        let claims = signed
            .strip_prefix(VERSION)
            .and_then(|rest| rest.strip_prefix('.'))
            .and_then(|claims| URL_SAFE_NO_PAD.decode(claims).ok())
            .and_then(|claims| serde_json::from_slice::<Claims>(&claims).ok())
            .ok_or(Unauthenticated::Forged)?;
        if claims.expires.is_some_and(|end| end <= now()) {
            return Err(Unauthenticated::Expired);
        }
        match (claims.workload, claims.node) {
            (Some(name), None) => name
                .parse()
                .map(Caller::Workload)
                .map_err(|_| Unauthenticated::Forged),
            (None, Some(node)) if !node.is_empty() => Ok(Caller::Node(node)),
            _ => Err(Unauthenticated::Forged),
        }
    }

    fn mac(&self, signed: &str) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes any key");
        mac.update(signed.as_bytes());
        mac
    }
}

#[tonic::async_trait]
impl Authenticator for TokenKey {
    async fn authenticate(&self, token: &str) -> Result<Verified, Unverified> {
        Ok(self.verify(token)?.into())
    }
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn web_0() -> Caller {
        Caller::Workload(WorkloadName::new("default", "web-0"))
    }

    #[test]
    fn a_token_says_who_it_was_made_for() {
        let key = TokenKey::generate();
        for caller in [web_0(), Caller::Node("node-1".into())] {
            for lifetime in [None, Some(Duration::from_secs(60))] {
                assert_eq!(key.verify(&key.sign(&caller, lifetime)).unwrap(), caller);
            }
        }
    }

    #[test]
    fn other_keys_and_old_tokens_are_refused() {
        let key = TokenKey::generate();
        let other = TokenKey::generate().sign(&web_0(), None);
        assert!(matches!(key.verify(&other), Err(Unauthenticated::Forged)));
        let old = key.sign(&web_0(), Some(Duration::ZERO));
        assert!(matches!(key.verify(&old), Err(Unauthenticated::Expired)));
    }

    #[test]
    fn claims_that_are_not_understood_are_refused() {
        let key = TokenKey::generate();
        let claims = URL_SAFE_NO_PAD.encode(r#"{"node":"node-1","only":"reading"}"#);
        let signed = format!("{VERSION}.{claims}");
        let tag = URL_SAFE_NO_PAD.encode(key.mac(&signed).finalize().into_bytes());
        assert!(matches!(
            key.verify(&format!("{signed}.{tag}")),
            Err(Unauthenticated::Forged)
        ));
    }

    #[test]
    fn a_node_speaks_for_its_own_workloads_only() {
        let workload = |node: &str| Workload {
            namespace: "default".into(),
            name: "web-0".into(),
            node: node.into(),
            ..Workload::default()
        };
        let node = Caller::Node("node-1".into());
        assert!(node.may_speak_for(&workload("node-1")).is_ok());
        for elsewhere in ["node-2", ""] {
            let status = node.may_speak_for(&workload(elsewhere)).unwrap_err();
            assert_eq!(status.code(), tonic::Code::PermissionDenied);
        }
        // A sidecar needs no node.
        assert!(web_0().may_speak_for(&workload("")).is_ok());
    }

    #[test]
    fn a_pod_is_the_very_one() {
        let workload = |placement: Placement, uid: &str| Workload {
            namespace: "default".into(),
            name: "web-0".into(),
            node: "node-1".into(),
            service_account: "web".into(),
            uid: uid.into(),
            placement: placement.into(),
            ..Workload::default()
        };
        let pod = |uid: &str, service_account: &str| {
            Some(BoundPod {
                uid: uid.into(),
                service_account: service_account.into(),
            })
        };
        let verified = |caller: &Caller, pod| Verified {
            caller: caller.clone(),
            pod,
        };
        let node = Caller::Node("node-1".into());
        let sidecar = workload(Placement::Sidecar, "1");
        let agents = workload(Placement::Agent, "1");

        let may = |verified: Verified, workload: &Workload| match verified.may_speak_for(workload) {
            Ok(()) => String::new(),
            Err(status) => {
                assert_eq!(status.code(), tonic::Code::PermissionDenied);
                status.message().to_owned()
            }
        };
        assert_eq!(may(verified(&web_0(), pod("1", "web")), &sidecar), "");
        assert_eq!(may(verified(&node, pod("9", "duet-agent")), &agents), "");

        let earlier = may(verified(&web_0(), pod("0", "web")), &sidecar);
        assert!(earlier.contains("another pod"), "{earlier}");
        let other = may(verified(&web_0(), pod("1", "admin")), &sidecar);
        assert!(other.contains("service account admin's"), "{other}");
        let agent = may(verified(&node, pod("9", "duet-agent")), &sidecar);
        assert!(agent.contains("a proxy of its own"), "{agent}");
        let unplaced = workload(Placement::Unplaced, "1");
        let agent = may(verified(&node, pod("9", "duet-agent")), &unplaced);
        assert!(agent.contains("not in the care"), "{agent}");
        let own = may(verified(&web_0(), pod("1", "web")), &agents);
        assert!(own.contains("node's agent"), "{own}");

        // With a file as the source there are no pods.
        assert_eq!(may(node.into(), &unplaced), "");
        assert_eq!(may(web_0().into(), &unplaced), "");
    }

    proptest! {
        #[test]
        fn no_altered_token_is_accepted(at in 0usize..200, to in "[A-Za-z0-9_.-]") {
            let key = TokenKey([7; KEY_BYTES]);
            let good = key.sign(&web_0(), None);
            let at = at % good.len();
            let mut altered = good.clone();
            altered.replace_range(at..=at, &to);
            prop_assume!(altered != good);
            prop_assert!(key.verify(&altered).is_err());
        }

        #[test]
        fn any_text_is_survived(text in ".*") {
            prop_assert!(TokenKey([7; KEY_BYTES]).verify(&text).is_err());
        }
    }
}
