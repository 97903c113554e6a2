//! Callers that prove themselves with a Kubernetes service account's token.
//!
//! A pod's kubelet gives it a token of its own service account, for duet-control as
//! the only audience, bound to that very pod; the API server says whether it still
//! stands (TokenReview). The agent's service account speaks for the node that the
//! agent's pod is on, every other one for the pod that the token is bound to, and a
//! token that is bound to no pod for nobody.
//!
//! What is read from the token itself before anybody has verified it serves to refuse
//! it early and to know when it ends, and never to accept it. A verdict is kept for a
//! short while, so that an agent that asks for a hundred certificates at once costs
//! one question; a refusal even shorter. When the API server cannot be asked, the
//! caller is told so and comes again: it is not told that its token is bad.

use crate::auth::{Authenticator, BoundPod, Caller, Unauthenticated, Unverified, Verified};
use crate::source::kube::Trouble;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use duet_core::WorkloadName;
use k8s_openapi::api::authentication::v1::{
    TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo,
};
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::{Api, Client};
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::Instant;

/// Whom tokens must be for.
pub const AUDIENCE: &str = "duet-control";
/// The agent's service account, in duet-control's own namespace.
pub const AGENT: &str = "duet-agent";
/// A token of a pod that was deleted is good for at most this long.
pub const KEPT: Duration = Duration::from_secs(60);
/// A refusal holds back a proxy that asks again and again, and not much else.
pub const REFUSAL_KEPT: Duration = Duration::from_secs(2);
/// Verdicts that are remembered: one for each proxy of a large cluster, 200 bytes each.
pub const MAX_KEPT: usize = 16 * 1024;
/// Questions to the API server at the same time.
pub const MAX_ASKING: usize = 32;
/// The API server has answered by then; a proxy waits 5 s for its certificate.
pub const TIMEOUT: Duration = Duration::from_secs(4);
/// Longer ones are none: a service account's token is about 1 KB.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

const SERVICE_ACCOUNT: &str = "system:serviceaccount:";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// Since Kubernetes 1.30 (KEP-4193); before, the pod is looked up.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// Asks the API server.
pub struct KubeAuthenticator {
    client: Client,
    /// duet-control's own.
    namespace: String,
    kept: Mutex<HashMap<[u8; 32], Arc<OnceCell<Verdict>>>>,
    asking: Semaphore,
    metrics: Metrics,
}

struct Verdict {
    outcome: Result<Verified, Unauthenticated>,
    until: Instant,
}

struct Metrics {
    /// By `outcome`.
    reviews: IntCounterVec,
    kept: IntCounter,
}

/// What a token says of itself, verified by nobody.
#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    aud: Audiences,
    /// Seconds since the epoch.
    exp: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

impl Default for Audiences {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

// === impl KubeAuthenticator ===

impl KubeAuthenticator {
    /// `namespace` is duet-control's own, where the agent's service account is too.
    ///
    /// # Panics
    /// When called twice with one registry.
    pub fn new(client: Client, namespace: impl Into<String>, registry: &Registry) -> Self {
        Self {
            client,
            namespace: namespace.into(),
            kept: Mutex::default(),
            asking: Semaphore::new(MAX_ASKING),
            metrics: Metrics::new(registry),
        }
    }

    /// One entry for each token, shared by all who wait for it.
    fn entry(&self, key: [u8; 32]) -> Arc<OnceCell<Verdict>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let is_over = |cell: &OnceCell<Verdict>| cell.get().is_some_and(|one| one.until <= now);
        if let Some(cell) = kept.get(&key)
            && !is_over(cell)
        {
            return cell.clone();
        }
        if kept.len() >= MAX_KEPT {
            kept.retain(|_, cell| !is_over(cell));
        }
        // Still full: any one, which costs its proxy another question.
        if kept.len() >= MAX_KEPT
            && let Some(any) = kept.keys().next().copied()
        {
            kept.remove(&any);
        }
        let cell = Arc::<OnceCell<Verdict>>::default();
        kept.insert(key, cell.clone());
        cell
    }

    /// Asks whose the token is.
    async fn review(&self, token: &str) -> Result<Result<Verified, Unauthenticated>, String> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                audiences: Some(vec![AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let reviews = Api::<TokenReview>::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &review).await;
        let answer = answer.map_err(|error| message("create", "tokenreviews", &error))?;
        self.caller(answer.status.unwrap_or_default()).await
    }

    /// Whom a review has found behind a token.
    ///
    /// # Errors
    /// When the API server cannot be asked for what the review does not say.
    pub async fn caller(
        &self,
        status: TokenReviewStatus,
    ) -> Result<Result<Verified, Unauthenticated>, String> {
        let bound = match Bound::read(status) {
            Ok(bound) => bound,
            Err(refusal) => return Ok(Err(Unauthenticated::ServiceAccount(refusal))),
        };
        let pod = BoundPod {
            uid: bound.pod_uid.clone(),
            service_account: bound.service_account.clone(),
        };
        let is_agent = bound.namespace == self.namespace && bound.service_account == AGENT;
        let caller = if is_agent {
            match self.node_of(&bound).await? {
                Ok(node) => Caller::Node(node),
                Err(refusal) => return Ok(Err(Unauthenticated::ServiceAccount(refusal))),
            }
        } else {
            Caller::Workload(WorkloadName::new(&bound.namespace, &bound.pod_name))
        };
        Ok(Ok(Verified {
            caller,
            pod: Some(pod),
        }))
    }

    /// Where the pod runs.
    async fn node_of(&self, bound: &Bound) -> Result<Result<String, String>, String> {
        if let Some(node) = &bound.node_name {
            return Ok(Ok(node.clone()));
        }
        let pods = Api::<Pod>::namespaced(self.client.clone(), &bound.namespace);
        let pod = pods.get_opt(&bound.pod_name).await;
        let pod = pod.map_err(|error| message("get", "pods", &error))?;
        let node = pod
            .filter(|pod| pod.metadata.uid.as_ref() == Some(&bound.pod_uid))
            .and_then(|pod| pod.spec?.node_name);
        Ok(node.ok_or_else(|| {
            format!(
                "the agent's token is bound to pod {}/{}, which is on no node",
                bound.namespace, bound.pod_name
            )
        }))
    }
}

#[tonic::async_trait]
impl Authenticator for KubeAuthenticator {
    async fn authenticate(&self, token: &str) -> Result<Verified, Unverified> {
        let ends = Claims::read(token)
            .and_then(|claims| claims.check(now()))
            .map_err(Unauthenticated::ServiceAccount)?;
        let cell = self.entry(Sha256::digest(token).into());
        if cell.initialized() {
            self.metrics.kept.inc();
        }
        let verdict = cell
            .get_or_try_init(async || {
                let asked = async {
                    let _turn = self.asking.acquire().await;
                    self.review(token).await
                };
                let outcome = match tokio::time::timeout(TIMEOUT, asked).await {
                    Ok(outcome) => outcome,
                    Err(_) => Err(format!("no answer in {TIMEOUT:?}")),
                };
                self.metrics.count(&outcome);
                let outcome = outcome.map_err(|problem| {
                    Unverified::Unavailable(format!(
                        "the API server could not be asked about the token: {problem}"
                    ))
                })?;
                let kept = if outcome.is_ok() { KEPT } else { REFUSAL_KEPT };
                Ok::<_, Unverified>(Verdict {
                    outcome,
                    until: Instant::now() + kept.min(ends),
                })
            })
            .await?;
        Ok(verdict.outcome.clone()?)
    }
}

fn message(verb: &str, resource: &str, error: &kube::Error) -> String {
    Trouble::of(verb, resource, error).message().to_owned()
}

fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

// === impl Claims ===

impl Claims {
    fn read(token: &str) -> Result<Self, String> {
        let none = || {
            "this is no service account's token: mount a projected volume with one for the \
             audience duet-control"
                .to_owned()
        };
        if token.len() > MAX_TOKEN_BYTES {
            return Err(none());
        }
        let mut parts = token.split('.');
        let (Some(_), Some(claims), Some(_), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(none());
        };
        let claims = URL_SAFE_NO_PAD.decode(claims).map_err(|_| none())?;
        serde_json::from_slice(&claims).map_err(|_| none())
    }

    /// How long it may still be good. `now` is since the epoch.
    fn check(&self, now: Duration) -> Result<Duration, String> {
        let is_for_us = match &self.aud {
            Audiences::One(audience) => audience == AUDIENCE,
            Audiences::Many(audiences) => audiences.iter().any(|one| one == AUDIENCE),
        };
        if !is_for_us {
            return Err(format!(
                "the token is for another audience: mount one for {AUDIENCE}"
            ));
        }
        let Some(end) = self.exp else {
            return Err("the token never ends: mount a projected one, which does".to_owned());
        };
        let left = Duration::from_secs(end).saturating_sub(now);
        if left.is_zero() {
            return Err("the token has expired: the kubelet mounts another in time".to_owned());
        }
        Ok(left)
    }
}

/// Whom the API server has found behind a token.
#[derive(Debug, PartialEq, Eq)]
struct Bound {
    namespace: String,
    service_account: String,
    pod_name: String,
    pod_uid: String,
    node_name: Option<String>,
}

// === impl Bound ===

impl Bound {
    fn read(status: TokenReviewStatus) -> Result<Self, String> {
        if status.authenticated != Some(true) {
            let why = status.error.unwrap_or_default();
            return Err(format!(
                "the API server does not accept the token: {}",
                if why.is_empty() {
                    "no reason given"
                } else {
                    &why
                }
            ));
        }
        // An authenticator that knows of no audiences has not looked at them.
        let audiences = status.audiences.unwrap_or_default();
        if !audiences.iter().any(|audience| audience == AUDIENCE) {
            return Err(format!(
                "the API server does not accept the token for {AUDIENCE}"
            ));
        }
        let UserInfo {
            username, extra, ..
        } = status.user.unwrap_or_default();
        let username = username.unwrap_or_default();
        let account = username
            .strip_prefix(SERVICE_ACCOUNT)
            .and_then(|account| account.split_once(':'));
        let Some((namespace, service_account)) = account else {
            return Err(format!("{username:?} is no service account"));
        };
        let mut extra = extra.unwrap_or_default();
        let mut one = |key: &str| {
            let mut values = extra.remove(key)?;
            (values.len() == 1).then(|| values.remove(0))
        };
        let (Some(pod_name), Some(pod_uid)) = (one(POD_NAME), one(POD_UID)) else {
            return Err(format!(
                "the token of {namespace}/{service_account} is bound to no pod: mount a projected \
                 one"
            ));
        };
        Ok(Self {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            pod_name,
            pod_uid,
            node_name: one(NODE_NAME),
        })
    }
}

// === impl Metrics ===

impl Metrics {
    fn new(registry: &Registry) -> Self {
        let reviews = IntCounterVec::new(
            Opts::new(
                "duet_control_token_reviews_total",
                "Tokens that the API server was asked about, by outcome.",
            ),
            &["outcome"],
        )
        .expect("the name is a literal");
        let kept = IntCounter::new(
            "duet_control_token_reviews_saved_total",
            "Tokens that the API server did not need to be asked about again.",
        )
        .expect("the name is a literal");
        for outcome in ["accepted", "refused", "unavailable"] {
            reviews.with_label_values(&[outcome]);
        }
        registry
            .register(Box::new(reviews.clone()))
            .expect("each name is registered once");
        registry
            .register(Box::new(kept.clone()))
            .expect("each name is registered once");
        Self { reviews, kept }
    }

    fn count<T, R, E>(&self, outcome: &Result<Result<T, R>, E>) {
        let label = match outcome {
            Ok(Ok(_)) => "accepted",
            Ok(Err(_)) => "refused",
            Err(_) => "unavailable",
        };
        self.reviews.with_label_values(&[label]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn token(claims: &serde_json::Value) -> String {
        let claims = URL_SAFE_NO_PAD.encode(claims.to_string());
        format!("e30.{claims}.c2ln")
    }

    #[test]
    fn what_a_token_says_of_itself_can_only_refuse_it() {
        let check = |claims| Claims::read(&token(&claims))?.check(Duration::from_secs(1000));
        assert_eq!(
            check(json!({"aud": ["duet-control"], "exp": 1090})),
            Ok(Duration::from_secs(90))
        );
        assert_eq!(
            check(json!({"aud": "duet-control", "exp": 1001})),
            Ok(Duration::from_secs(1))
        );
        let refused = |claims| check(claims).unwrap_err();
        assert!(refused(json!({"aud": ["other"], "exp": 1090})).contains("another audience"));
        assert!(refused(json!({"exp": 1090})).contains("another audience"));
        assert!(refused(json!({"aud": ["duet-control"]})).contains("never ends"));
        assert!(refused(json!({"aud": ["duet-control"], "exp": 1000})).contains("has expired"));
        for nonsense in ["", "a.b", "a.b.c.d", "...", "duet1.W10.c2ln", "x.!.y"] {
            assert!(Claims::read(nonsense).is_err(), "{nonsense:?}");
        }
        assert!(Claims::read(&token(&json!("x".repeat(20_000)))).is_err());
    }

    fn status(user: serde_json::Value) -> TokenReviewStatus {
        serde_json::from_value(json!({
            "authenticated": true,
            "audiences": ["duet-control"],
            "user": user,
        }))
        .unwrap()
    }

    #[test]
    fn only_a_pods_own_token_counts() {
        let extra = json!({POD_NAME: ["web-0"], POD_UID: ["u1"], NODE_NAME: ["node-1"]});
        let user = json!({"username": "system:serviceaccount:shop:web", "extra": extra});
        let bound = Bound::read(status(user.clone())).unwrap();
        assert_eq!(bound.namespace, "shop");
        assert_eq!(bound.service_account, "web");
        assert_eq!((&*bound.pod_name, &*bound.pod_uid), ("web-0", "u1"));
        assert_eq!(bound.node_name.as_deref(), Some("node-1"));

        let refused = |status| Bound::read(status).unwrap_err();
        let unbound = json!({"username": "system:serviceaccount:shop:web"});
        assert!(refused(status(unbound)).contains("bound to no pod"));
        let two = json!({POD_NAME: ["web-0", "web-1"], POD_UID: ["u1"]});
        let two = json!({"username": "system:serviceaccount:shop:web", "extra": two});
        assert!(refused(status(two)).contains("bound to no pod"));
        let person = json!({"username": "admin", "extra": {POD_NAME: ["web-0"], POD_UID: ["u"]}});
        assert!(refused(status(person)).contains("no service account"));

        let mut not = status(user.clone());
        not.authenticated = Some(false);
        not.error = Some("it is old".to_owned());
        assert!(refused(not).contains("it is old"));
        let mut unaware = status(user.clone());
        unaware.audiences = None;
        assert!(refused(unaware).contains("for duet-control"));
        let mut other = status(user);
        other.audiences = Some(vec!["api".to_owned()]);
        assert!(refused(other).contains("for duet-control"));
        assert!(Bound::read(TokenReviewStatus::default()).is_err());
    }
}
