//! The words of a policy, each of which can be read or is refused with a remedy.

use std::str::FromStr;

/// A SPIFFE ID without `spiffe://`, or with a trailing `*` all that begin with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityPattern {
    text: Box<str>,
    any_rest: bool,
}

/// An HTTP method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Method(Box<str>);

/// A Kubernetes namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace(Box<str>);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}: {remedy}")]
pub struct InvalidPattern {
    text: String,
    what: &'static str,
    remedy: &'static str,
}

/// As long as a label of a domain name (RFC 1123 §2.1).
const MAX_NAMESPACE: usize = 63;
/// The longest registered method, UPDATEREDIRECTREF, has 17 letters.
const MAX_METHOD: usize = 32;

const SCHEME: &str = "spiffe://";

// === impl IdentityPattern ===

impl IdentityPattern {
    /// `id` is a whole SPIFFE ID.
    pub(super) fn matches(&self, id: &str) -> bool {
        let Some(id) = id.strip_prefix(SCHEME) else {
            return false;
        };
        if self.any_rest {
            id.starts_with(&*self.text)
        } else {
            id == &*self.text
        }
    }
}

impl FromStr for IdentityPattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |remedy| {
            Err(InvalidPattern {
                text: text.to_owned(),
                what: "an identity",
                remedy,
            })
        };
        if text.starts_with(SCHEME) {
            return wrong("write it without spiffe://");
        }
        let (id, any_rest) = match text.strip_suffix('*') {
            Some(begin) => (begin, true),
            None => (text, false),
        };
        if id.contains('*') {
            return wrong("write * at the end only");
        }
        if !any_rest && !id.contains('/') {
            return wrong("write TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT");
        }
        if !id.bytes().all(|byte| byte.is_ascii_graphic()) {
            return wrong("write letters, digits and -._/ only");
        }
        Ok(Self {
            text: id.into(),
            any_rest,
        })
    }
}

// === impl Method ===

impl Method {
    /// A method is case-sensitive (RFC 9110 §9.1), but not to every server.
    pub(super) fn may_be(&self, method: &str) -> bool {
        self.0.eq_ignore_ascii_case(method)
    }

    pub(super) fn must_be(&self, method: &str) -> bool {
        &*self.0 == method
    }
}

impl FromStr for Method {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let good = !text.is_empty()
            && text.len() <= MAX_METHOD
            && text
                .bytes()
                .all(|byte| byte.is_ascii_uppercase() || b"-_".contains(&byte));
        if good {
            return Ok(Self(text.into()));
        }
        Err(InvalidPattern {
            text: text.to_owned(),
            what: "a method",
            remedy: "write it in upper case, as GET",
        })
    }
}

// === impl Namespace ===

impl Namespace {
    pub(super) fn is(&self, namespace: &str) -> bool {
        &*self.0 == namespace
    }
}

impl FromStr for Namespace {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = text.as_bytes();
        let good = bytes.len() <= MAX_NAMESPACE
            && bytes.iter().all(|byte| plain(byte) || *byte == b'-')
            && bytes.first().is_some_and(plain)
            && bytes.last().is_some_and(plain);
        if good {
            return Ok(Self(text.into()));
        }
        Err(InvalidPattern {
            text: text.to_owned(),
            what: "a namespace",
            remedy: "write one whole name, of lower-case letters, digits and hyphens",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_match_whole_or_by_their_beginning() {
        let pattern = |text: &str| text.parse::<IdentityPattern>().unwrap();
        let cart = "spiffe://duet.local/ns/shop/sa/cart";
        assert!(pattern("duet.local/ns/shop/sa/cart").matches(cart));
        assert!(pattern("duet.local/ns/shop/*").matches(cart));
        assert!(pattern("*").matches(cart));
        assert!(!pattern("duet.local/ns/shop/sa/car").matches(cart));
        assert!(!pattern("duet.local/ns/sho/*").matches(cart));
        assert!(!pattern("duet.local/ns/shop/sa/Cart").matches(cart));
        assert!(!pattern("*").matches("https://duet.local/ns/shop/sa/cart"));
    }

    #[test]
    fn wrong_words_are_refused_with_a_remedy() {
        let remedy = |error: InvalidPattern| error.to_string();
        let identity = |text: &str| remedy(text.parse::<IdentityPattern>().unwrap_err());
        assert_eq!(
            identity("spiffe://duet.local/ns/shop/sa/cart"),
            "\"spiffe://duet.local/ns/shop/sa/cart\" is not an identity: write it without spiffe://"
        );
        assert!(identity("duet.local/*/sa/cart").ends_with("write * at the end only"));
        assert!(identity("cart").contains("TRUST-DOMAIN/ns/NAMESPACE"));
        assert!(identity("").contains("TRUST-DOMAIN/ns/NAMESPACE"));
        assert!(identity("duet.local/ns/a b").contains("letters, digits"));
        for wrong in ["get", "", "GET,POST", "*", "G T"] {
            assert!(wrong.parse::<Method>().is_err(), "{wrong:?}");
        }
        for wrong in ["", "Shop", "shop*", "-shop", "shop.", &"a".repeat(64)] {
            assert!(wrong.parse::<Namespace>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_method_in_another_case_is_denied_and_not_allowed() {
        let delete: Method = "DELETE".parse().unwrap();
        assert!(delete.may_be("DELETE") && delete.must_be("DELETE"));
        assert!(delete.may_be("Delete") && !delete.must_be("Delete"));
        assert!(!delete.may_be("DELETED"));
    }
}
