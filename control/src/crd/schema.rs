//! Schemas of lists of words, in which each word is checked for itself, so that an
//! error names the very element.
//!
//! An empty list is refused: to the mesh it would mean "any", which is the last thing
//! that a template whose variable came out empty should do.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// Words in one list. With [`MAX_PARTS`] and [`MAX_RULES`] it bounds what the rules
/// below cost an API server, which refuses a schema that might cost too much.
const MAX_WORDS: usize = 32;
/// Sources and operations in one rule.
pub const MAX_PARTS: usize = 8;
/// Rules in one policy.
pub const MAX_RULES: usize = 32;

/// Trust domain (255), namespace (63) and service account (253), and what is between.
const MAX_IDENTITY: usize = 583;
/// A label (RFC 1123 §2.1).
const MAX_NAMESPACE: usize = 63;
/// An IPv4-mapped address with its prefix length.
const MAX_CIDR: usize = 49;
const MAX_METHOD: usize = 32;
const MAX_PATH: usize = 512;

pub fn identities(_: &mut SchemaGenerator) -> Schema {
    words(
        "SPIFFE IDs without \"spiffe://\", as duet.local/ns/shop/sa/cart; a * at the end is any rest. \
         Who has no identity, because it is outside of the mesh, is none of them.",
        text(
            MAX_IDENTITY,
            &[
                (
                    "!self.startsWith('spiffe://')",
                    "write an identity without spiffe://",
                ),
                (
                    "self.indexOf('*') == -1 || self.indexOf('*') == self.size() - 1",
                    "write * at the end of an identity only",
                ),
                (
                    "self.endsWith('*') || self.contains('/ns/') && self.contains('/sa/')",
                    "write an identity as TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT",
                ),
                (
                    "self.matches('^[!-~]*$')",
                    "write an identity in letters, digits and -._/ only",
                ),
            ],
        ),
    )
}

pub fn namespaces(_: &mut SchemaGenerator) -> Schema {
    words(
        "Namespaces that the client's identity is of.",
        text(
            MAX_NAMESPACE,
            &[(
                "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
                "write whole names of namespaces: lower-case letters, digits and hyphens",
            )],
        ),
    )
}

pub fn ip_blocks(_: &mut SchemaGenerator) -> Schema {
    words(
        "Addresses the client connects from, as 10.0.0.0/8, fd00::/8, or 10.0.0.1/32 for one.",
        json!({ "type": "string", "format": "cidr", "maxLength": MAX_CIDR }),
    )
}

pub fn ports(_: &mut SchemaGenerator) -> Schema {
    words(
        "Ports that the pod listens on; a service's targetPort, not its port.",
        json!({ "type": "integer", "format": "int32", "minimum": 1, "maximum": 65535 }),
    )
}

pub fn methods(_: &mut SchemaGenerator) -> Schema {
    words(
        "HTTP methods. Opaque bytes have none: an Allow that names methods does not match them, a \
         Deny does.",
        text(
            MAX_METHOD,
            &[(
                "self.matches('^[-_A-Z]+$')",
                "write methods in upper case, as GET",
            )],
        ),
    )
}

pub fn paths(_: &mut SchemaGenerator) -> Schema {
    words(
        "Paths of HTTP requests, without the query; a * at the end is any rest. For gRPC they are \
         /package.Service/Method. A Deny matches every spelling that a server might take for such \
         a path, an Allow only equivalent ones (RFC 3986, section 6.2.2). Opaque bytes have no path: \
         an Allow that names paths does not match them, a Deny does.",
        text(
            MAX_PATH,
            &[
                (
                    "self == '*' || self.startsWith('/')",
                    "begin a path with /, or write * for any",
                ),
                (
                    "self.indexOf('*') == -1 || self.indexOf('*') == self.size() - 1",
                    "write * at the end of a path only",
                ),
                (
                    "!self.contains('?') && !self.contains('#')",
                    "write a path without query and fragment, which are not looked at",
                ),
            ],
        ),
    )
}

fn words(description: &str, word: Value) -> Schema {
    json_schema!({
        "description": description,
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_WORDS,
        "items": word,
    })
}

fn text(longest: usize, rules: &[(&str, &str)]) -> Value {
    json!({
        "type": "string",
        "minLength": 1,
        "maxLength": longest,
        "x-kubernetes-validations": rules
            .iter()
            .map(|(rule, message)| json!({ "rule": rule, "message": message }))
            .collect::<Vec<_>>(),
    })
}
