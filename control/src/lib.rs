//! duet-control: who everybody is, and where.
//!
//! One API serves both placements: `Identity.Certify` signs workload certificates,
//! `Discovery.Watch` streams the mesh's workloads and services. In reading order:
//!
//! * [`state`]: the mesh at one moment, and deltas between moments
//! * [`source`]: where the description comes from; today a YAML [`FileSource`]
//! * [`auth`]: who is calling: tokens signed with a [`TokenKey`], or, in [`kube_auth`],
//!   a service account's
//! * [`crd`]: what Duet adds to the Kubernetes API
//! * [`ca`], [`trust`] and [`state_dir`]: the mesh root, how it is replaced, and what
//!   outlives a restart
//! * [`leader`]: which replica writes
//! * `identity`, `discovery`, [`enrolment`], [`tls`], `health`, [`metrics`]: what is served
//! * [`injector`]: which pods join the mesh, and what they are given for it
//! * [`traffic`]: the words in which it is said how requests travel
//! * [`server`]: all of it put together
//!
//! [`Source`] and [`Authenticator`] are the seams for another platform: one yields
//! states, the other turns a token into a caller. Nothing else knows of a file.
#![forbid(unsafe_code)]

pub mod auth;
pub mod ca;
pub mod crd;
pub mod discovery;
pub mod enrolment;
pub mod health;
mod identity;
pub mod injector;
pub mod kube_auth;
pub mod kubernetes;
pub mod leader;
pub mod metrics;
pub mod ready;
pub mod server;
pub mod source;
pub mod state;
pub mod state_dir;
pub mod tls;
pub mod traffic;
pub mod trust;

pub use auth::{Authenticator, Caller, TokenKey};
pub use ca::Authority;
pub use enrolment::Enrolments;
pub use kube_auth::KubeAuthenticator;
pub use leader::Leader;
pub use server::{ControlPlane, Settings, StartError};
pub use source::{FileSource, Rejected, Source};
pub use state::MeshState;
pub use state_dir::{StateDir, StateDirError};
pub use trust::{KubeTrust, Trust};
