//! Who a workload is, and how it proves it.

mod certificate;
mod clock;
mod peer;
mod renewal;
mod trust;

pub(crate) use certificate::PROVIDER;
pub use certificate::{Certificate, unexpected_peer};
pub use clock::{BACKDATE, explain_handshake};
pub use renewal::{Held, Identities};
pub use trust::{Standing, Trust};

use std::fmt;
use std::sync::Arc;

/// A SPIFFE ID, `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity(Arc<str>);

impl Identity {
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Self {
        Self(format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}").into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn trust_domain(&self) -> &str {
        self.0.split('/').nth(2).unwrap_or_default()
    }

    /// `None` if the identity is not of this form.
    pub fn namespace(&self) -> Option<&str> {
        let mut parts = self.0.split('/').skip(3);
        (parts.next() == Some("ns")).then(|| parts.next())?
    }

    /// `namespace/service-account`, short for logs and labels.
    pub fn short(&self) -> String {
        let mut parts = self.0.split('/').skip(4).step_by(2);
        match (parts.next(), parts.next()) {
            (Some(namespace), Some(account)) => format!("{namespace}/{account}"),
            _ => self.0.to_string(),
        }
    }
}

impl From<&str> for Identity {
    fn from(uri: &str) -> Self {
        Self(uri.into())
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names() {
        assert_eq!(
            Identity::new("duet.local", "shop", "web").short(),
            "shop/web"
        );
        assert_eq!(
            Identity::from("spiffe://other/x").short(),
            "spiffe://other/x"
        );
    }

    #[test]
    fn parts_of_an_identity() {
        let web = Identity::new("duet.local", "shop", "web");
        assert_eq!(
            (web.trust_domain(), web.namespace()),
            ("duet.local", Some("shop"))
        );
        let other = Identity::from("spiffe://other/x/shop");
        assert_eq!((other.trust_domain(), other.namespace()), ("other", None));
        assert_eq!(Identity::from("spiffe://other").namespace(), None);
    }
}
