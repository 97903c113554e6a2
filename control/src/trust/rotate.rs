//! `duet-control rotate-root`: a new root, now. The running control plane does the
//! rest, as for any other CA that appears in the Secret.

use super::rotation::Settings;
use super::secret::{Change, Keeper, SECRET, Stored};
use crate::ca::{CaError, Issuer, NewRoot, fingerprint};
use crate::source::kube::Trouble;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// One line: what is in the way, and what to do instead.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    #[error("Secret {0}/{SECRET}: there is none: duet-control makes it when it first starts")]
    None(String),
    #[error(
        "Secret {namespace}/{SECRET} is kept by cert-manager: have it renewed there, with `cmctl \
         renew --namespace {namespace} {certificate}`"
    )]
    CertManager {
        namespace: String,
        certificate: String,
    },
    #[error(
        "Secret {0}/{SECRET} holds a CA that was supplied: put another one into tls.crt, tls.key and \
         ca.crt"
    )]
    Supplied(String),
    #[error(
        "Secret {0}/{SECRET}: a rotation is under way: wait until tls.crt and signing.crt are the same"
    )]
    UnderWay(String),
    #[error("Secret {0}/{SECRET}: {1}: put a good CA into tls.crt and tls.key first")]
    Broken(String, String),
    #[error("a new root: {0}")]
    Root(#[from] CaError),
    #[error("Secret {SECRET}: {0}")]
    Kube(String),
}

/// Puts a new root into the Secret in `namespace`. Returns its fingerprint.
///
/// # Errors
/// When the CA is somebody else's business, or is being rotated already.
pub async fn rotate_root(
    client: Client,
    namespace: &str,
    root_lifetime: Duration,
) -> Result<String, RotateError> {
    let api = Api::<Secret>::namespaced(client, namespace);
    let failed = |verb| {
        move |error| RotateError::Kube(Trouble::of(verb, "secrets", &error).message().to_owned())
    };
    let secret = api.get_opt(SECRET).await.map_err(failed("get"))?;
    let secret = secret.ok_or_else(|| RotateError::None(namespace.to_owned()))?;
    let settings = Settings::default();
    let longest = settings.cert_lifetime + settings.slack;
    let stored = Stored::read(&secret, SystemTime::now(), longest);
    let name = namespace.to_owned();
    match stored.keeper.clone() {
        Keeper::Ourselves => {}
        Keeper::CertManager(certificate) => {
            return Err(RotateError::CertManager {
                namespace: name,
                certificate,
            });
        }
        Keeper::Operator => return Err(RotateError::Supplied(name)),
    }
    match (&stored.supplied, &stored.signing) {
        (Err(problem), _) | (_, Some(Err(problem))) => {
            return Err(RotateError::Broken(name, problem.clone()));
        }
        (Ok(supplied), Some(Ok(signing))) if supplied.is(signing) => {}
        _ => return Err(RotateError::UnderWay(name)),
    }
    let root = NewRoot::valid_for(root_lifetime)?;
    let issuer = Issuer::from_pem(&root.certificate, &root.key, &root.certificate)?;
    let issuer = Arc::new(issuer);
    let change = Change {
        supplied: Some(issuer.clone()),
        made_here: true,
        ..Change::default()
    };
    let patch = Patch::Merge(change.patch(&stored));
    let parameters = PatchParams::default();
    let patched = api.patch(SECRET, &parameters, &patch).await;
    patched.map_err(failed("patch"))?;
    Ok(fingerprint(issuer.root()))
}
