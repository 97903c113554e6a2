//! The proxy that both of Duet's placements run.
//!
//! A mode builds a [`Capture`] for each workload and hands it to a [`Proxy`]; all
//! the rest is here, in the order in which a connection meets it: [`capture`] is
//! the seam, `outbound` and `inbound` are the two stories, `detect`, `directory`,
//! `traffic`, `balance`, `breaker`, `limits`, `upstream` and `relay` are what happens
//! on the way, `tenancy` what keeps workloads from each other's way, `http` is what must change in a message, `identity` who is who.
#![deny(unsafe_code)]

pub mod capture;
pub mod config;
pub mod policy;

mod admin;
mod admission;
mod balance;
mod batch;
mod breaker;
mod control;
mod detect;
mod directory;
mod heap;
mod http;
mod identity;
mod inbound;
mod io;
mod limits;
mod local;
mod outbound;
mod proxy;
mod rarely;
mod ready;
mod relay;
mod runtime;
#[cfg(test)]
mod sizes;
mod telemetry;
mod tenancy;
mod traffic;
mod upstream;

/// The API between duet-control and every proxy, generated from `proto/duet.proto`.
pub mod api {
    #![allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]
    tonic::include_proto!("duet.v1alpha1");

    /// What collectors of traces speak, generated from `proto/otlp.proto`.
    pub mod otlp {
        tonic::include_proto!("opentelemetry.proto.collector.trace.v1");
    }
}

pub use capture::{Capture, Direction, Kernel, OrigDst, WorkloadName};
pub use config::{ProxyArgs, Switch, TenancyArgs};
pub use heap::trim as trim_heap;
pub use identity::BACKDATE;
pub use proxy::{Error, Placed, Ports, Proxy, ReportError, Workload};
pub use ready::ReadyGuard;
pub use runtime::{PANIC, run, vital};
pub use traffic::{InvalidExpression, check_expression};

/// What makes two binaries the same core; see `build.rs`.
pub const CORE_FINGERPRINT: &str = env!("CORE_FINGERPRINT");
/// rustc's opt-level: the bench refuses "0".
pub const OPT_LEVEL: &str = env!("CORE_OPT_LEVEL");
/// For `--version`.
pub const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " core=",
    env!("CORE_FINGERPRINT"),
    " opt=",
    env!("CORE_OPT_LEVEL")
);
