//! Which pods join the mesh, and what they are given for it.
//!
//! One pure function, [`Injector::decide`], takes a pod, its namespace's metadata and
//! a configuration, and gives a JSON patch or a refusal of one line. The webhook and
//! `duet-control inject` call the same. In reading order:
//!
//! * [`names`]: labels, annotations, containers
//! * [`annotations`]: what a pod's annotations say, each of them checked
//! * [`config`]: what holds where they are silent
//! * `fitness`: pods that cannot be meshed, and why
//! * `containers`: what a pod is given with a sidecar
//! * `decision`: all of it put together
//! * [`offline`]: for files
//! * [`webhook`]: for the API server
//!
//! **A pod that was patched is left as it is.** Others may have changed it since: a
//! registry's mirror its images, a LimitRange its resources. Only what the sidecar
//! depends on is put right again: that it comes first, and that it is whole.
//!
//! **Pod Security.** The proxy passes `restricted`. `duet-init` does not pass even
//! `baseline`, for it needs NET_ADMIN: a namespace with sidecars has to be `privileged`.
//! One that enforces more can have agents, which ask nothing of their pods. With
//! `redirect: cni` pods would have no `duet-init` and no privilege at all; that needs a
//! CNI plugin which Duet does not have yet, so it has to be allowed in the
//! configuration, by somebody who has one.
//!
//! **A pod is refused rather than left out.** What cannot be understood would
//! otherwise run outside of the mesh, in plaintext, and nobody would notice. The
//! exceptions are pods that no mesh can hold and that every namespace may have
//! (those of the node's network): they are left alone, with a warning.

pub mod annotations;
pub mod config;
mod containers;
mod decision;
mod draft;
mod fitness;
mod kubernetes;
pub mod names;
pub mod offline;
mod quantity;
pub mod webhook;

pub use config::{Config, ConfigError};
pub use decision::{Decision, Injector, Namespace, Refusal, Verdict};
pub use kubernetes::KubernetesVersion;
