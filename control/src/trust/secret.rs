//! How the CA is kept in its Secret.
//!
//! | key | what |
//! |---|---|
//! | `tls.crt`, `tls.key`, `ca.crt` | the CA that the mesh is to sign with: made by duet-control, an operator or cert-manager, and replaced by whoever made it |
//! | `signing.crt`, `signing.key`, `signing-ca.crt` | the CA that it signs with now; the same, except while one is rotated into the other |
//! | `retired.crt` | roots that nothing is signed with any more, and that are still trusted |
//!
//! Annotations say since when a new root has been published, until when each retired
//! one is trusted, and how long leaves may live that the signing CA has signed. So the
//! Secret holds all that a replica needs to go on where another has stopped, and
//! whoever replaces `tls.*` cannot take away the key that is needed meanwhile.

use crate::ca::{CaError, Issuer, certificates, fingerprint, pem};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::api::ObjectMeta;
use rustls::pki_types::CertificateDer;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// The Secret, in duet-control's own namespace.
pub const SECRET: &str = "duet-ca";

const TLS_CRT: &str = "tls.crt";
const TLS_KEY: &str = "tls.key";
const CA_CRT: &str = "ca.crt";
const SIGNING_CRT: &str = "signing.crt";
const SIGNING_KEY: &str = "signing.key";
const SIGNING_CA_CRT: &str = "signing-ca.crt";
const RETIRED_CRT: &str = "retired.crt";

/// Who made `tls.*`, if that is duet-control.
const MADE_BY: &str = "duet.dev/made-by";
/// Since when the root of `tls.*` has been published, and which one that is.
const PUBLISHED: &str = "duet.dev/published";
const PUBLISHED_ROOT: &str = "duet.dev/published-root";
/// JSON: until when a retired root is trusted, by fingerprint.
const RETIRED: &str = "duet.dev/retired";
/// Seconds: the longest life of a leaf that the signing CA may have signed.
const LEAF_LIFETIME: &str = "duet.dev/leaf-lifetime";
/// Written by cert-manager to the Secrets it keeps.
const CERT_MANAGER: &str = "cert-manager.io/certificate-name";

const OURSELVES: &str = "duet-control";

/// What a Secret says.
#[derive(Debug)]
pub struct Stored {
    pub resource_version: Option<String>,
    /// What the mesh is to sign with; or what is wrong with that.
    pub supplied: Result<Arc<Issuer>, String>,
    /// What it signs with. `None` when the Secret does not say.
    pub signing: Option<Result<Arc<Issuer>, String>>,
    pub retired: Vec<Retired>,
    /// Whether an end of each retired root is noted.
    pub ends_noted: bool,
    pub published: Option<Published>,
    pub leaf_lifetime: Option<Duration>,
    pub keeper: Keeper,
    /// Whether `supplied` is of no use because it has ended.
    pub ended: bool,
}

/// Who replaces the CA in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keeper {
    Ourselves,
    /// With the name of its Certificate.
    CertManager(String),
    Operator,
}

/// A root that is still trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retired {
    pub root: CertificateDer<'static>,
    /// When the last leaf that leads to it has ended.
    pub until: SystemTime,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Fingerprint.
    pub root: String,
    pub at: SystemTime,
}

/// What is written over a Secret. `None` leaves a part alone.
#[derive(Debug, Default)]
pub struct Change {
    pub supplied: Option<Arc<Issuer>>,
    /// That duet-control made `supplied`.
    pub made_here: bool,
    pub signing: Option<Arc<Issuer>>,
    pub retired: Option<Vec<Retired>>,
    /// `Some(None)` removes it.
    pub published: Option<Option<Published>>,
    pub leaf_lifetime: Option<Duration>,
}

// === impl Stored ===

impl Stored {
    /// Whatever is wrong is in the parts it concerns. `now` is for retired roots that
    /// nobody has noted an end of.
    pub fn read(secret: &Secret, now: SystemTime, longest: Duration) -> Self {
        let annotations = secret.metadata.annotations.clone().unwrap_or_default();
        let annotation = |key: &str| annotations.get(key).map(String::as_str);
        let supplied = read_issuer(secret, [TLS_CRT, TLS_KEY, CA_CRT]);
        let signing = has(secret, SIGNING_CRT)
            .then(|| read_issuer(secret, [SIGNING_CRT, SIGNING_KEY, SIGNING_CA_CRT]));

        let ends: BTreeMap<String, String> = annotation(RETIRED)
            .and_then(|json| serde_json::from_str(json).ok())
            .unwrap_or_default();
        let retired = certificates(&text(secret, RETIRED_CRT)).unwrap_or_default();
        let end_of = |root: &CertificateDer<'_>| time(ends.get(&fingerprint(root))?);
        let ends_noted = retired.iter().all(|root| end_of(root).is_some());
        let retired = retired.into_iter().map(|root| Retired {
            until: end_of(&root).unwrap_or(now + longest),
            root,
        });
        let published = annotation(PUBLISHED_ROOT).zip(annotation(PUBLISHED).and_then(time));
        Self {
            resource_version: secret.metadata.resource_version.clone(),
            ended: matches!(supplied, Err((_, CaError::Expired(_)))),
            supplied: supplied.map_err(describe),
            signing: signing.map(|signing| signing.map_err(describe)),
            retired: retired.collect(),
            ends_noted,
            published: published.map(|(root, at)| Published {
                root: root.to_owned(),
                at,
            }),
            leaf_lifetime: annotation(LEAF_LIFETIME)
                .and_then(|seconds| seconds.parse().ok())
                .map(Duration::from_secs),
            keeper: match (annotation(CERT_MANAGER), annotation(MADE_BY)) {
                (Some(certificate), _) => Keeper::CertManager(certificate.to_owned()),
                (None, Some(OURSELVES)) => Keeper::Ourselves,
                _ => Keeper::Operator,
            },
        }
    }
}

fn has(secret: &Secret, key: &str) -> bool {
    secret
        .data
        .as_ref()
        .is_some_and(|data| data.contains_key(key))
}

fn text(secret: &Secret, key: &str) -> String {
    let bytes = secret.data.as_ref().and_then(|data| data.get(key));
    bytes.map_or_else(String::new, |bytes| {
        String::from_utf8_lossy(&bytes.0).into_owned()
    })
}

type Named = (&'static str, CaError);

fn read_issuer(secret: &Secret, [crt, key, ca]: [&'static str; 3]) -> Result<Arc<Issuer>, Named> {
    let issuer = Issuer::from_pem(&text(secret, crt), &text(secret, key), &text(secret, ca));
    issuer.map(Arc::new).map_err(|error| match error {
        CaError::NoKey => (key, error),
        error => (crt, error),
    })
}

fn describe((key, error): Named) -> String {
    format!("{key} {error}")
}

// === impl Change ===

impl Change {
    /// A merge patch that fails if the Secret is not the one that was read.
    pub fn patch(&self, over: &Stored) -> Value {
        let (annotations, data) = self.parts();
        json!({
            "metadata": {
                "resourceVersion": over.resource_version,
                "annotations": annotations,
            },
            "data": data,
        })
    }

    /// The first Secret, as cert-manager would make it.
    pub fn secret(&self) -> Secret {
        let (annotations, data) = self.parts();
        let annotations = annotations
            .into_iter()
            .filter_map(|(key, value)| Some((key, value.as_str()?.to_owned())));
        let data = data.into_iter().filter_map(|(key, value)| {
            let bytes: ByteString = serde_json::from_value(value).ok()?;
            Some((key, bytes))
        });
        Secret {
            metadata: ObjectMeta {
                name: Some(SECRET.to_owned()),
                annotations: Some(annotations.collect()),
                labels: Some(super::labels()),
                ..ObjectMeta::default()
            },
            type_: Some("kubernetes.io/tls".to_owned()),
            data: Some(data.collect()),
            ..Secret::default()
        }
    }

    fn parts(&self) -> (Map<String, Value>, Map<String, Value>) {
        let (mut annotations, mut data) = (Map::new(), Map::new());
        let mut put = |key: &str, text: &str| {
            data.insert(key.to_owned(), json!(ByteString(text.as_bytes().to_vec())));
        };
        if let Some(supplied) = &self.supplied {
            put(TLS_CRT, supplied.chain_pem());
            put(TLS_KEY, supplied.key_pem());
            put(CA_CRT, &ca_pem(supplied));
        }
        if self.made_here {
            annotations.insert(MADE_BY.to_owned(), json!(OURSELVES));
        }
        if let Some(signing) = &self.signing {
            put(SIGNING_CRT, signing.chain_pem());
            put(SIGNING_KEY, signing.key_pem());
            put(SIGNING_CA_CRT, &ca_pem(signing));
        }
        if let Some(retired) = &self.retired {
            let roots: String = retired.iter().map(|one| pem(&one.root)).collect();
            put(RETIRED_CRT, &roots);
            let ends: BTreeMap<_, _> = retired
                .iter()
                .map(|one| (fingerprint(&one.root), rfc3339(one.until)))
                .collect();
            annotations.insert(RETIRED.to_owned(), json!(json!(ends).to_string()));
        }
        if let Some(published) = &self.published {
            let root = published.as_ref().map(|published| published.root.clone());
            let at = published.as_ref().map(|published| rfc3339(published.at));
            annotations.insert(PUBLISHED_ROOT.to_owned(), json!(root));
            annotations.insert(PUBLISHED.to_owned(), json!(at));
        }
        if let Some(lifetime) = self.leaf_lifetime {
            let seconds = lifetime.as_secs().to_string();
            annotations.insert(LEAF_LIFETIME.to_owned(), json!(seconds));
        }
        (annotations, data)
    }
}

fn ca_pem(issuer: &Issuer) -> String {
    let roots = std::iter::once(issuer.root()).chain(issuer.others());
    roots.map(pem).collect()
}

fn time(text: &str) -> Option<SystemTime> {
    text.parse::<Timestamp>().ok().map(SystemTime::from)
}

/// To the second, rounded down.
pub fn rfc3339(time: SystemTime) -> String {
    let seconds = Timestamp::try_from(time).map_or(0, Timestamp::as_second);
    Timestamp::from_second(seconds).map_or_else(|_| String::new(), |time| time.to_string())
}
