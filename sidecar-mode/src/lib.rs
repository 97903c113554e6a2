//! The placement with one proxy per pod.
//!
//! Two moments in a pod's life. [`redirect`] runs once, privileged, before
//! anything else of the pod: it writes the nftables table that sends the pod's
//! TCP connections to the proxy. [`capture`] is the proxy's side of it, for the
//! pod's whole life and without privileges: the listeners those connections
//! arrive on, and the question to the kernel where they were going.
#![forbid(unsafe_code)]

pub mod capture;
pub mod redirect;
pub mod wait;

/// The uid the proxy runs as unless told otherwise, and so the uid whose
/// connections are not redirected.
pub const PROXY_UID: u32 = 2102;
