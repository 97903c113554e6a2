//! duet-control: who everybody is, and where.
//!
//! One API serves both placements: `Identity.Certify` signs workload certificates,
//! `Discovery.Watch` streams the mesh's workloads and services. In reading order:
//!
//! * [`state`]: the mesh at one moment, and deltas between moments
//! * [`source`]: where the description comes from; today a YAML [`FileSource`]
//! * [`auth`]: who is calling; today tokens signed with a [`TokenKey`]
//! * [`ca`] and [`state_dir`]: the mesh root, and what outlives a restart
//! * `identity`, `discovery`, [`tls`], `health`, [`metrics`]: what is served
//! * [`server`]: all of it put together
//!
//! [`Source`] and [`Authenticator`] are the seams for another platform: one yields
//! states, the other turns a token into a caller. Nothing else knows of a file.
#![forbid(unsafe_code)]

pub mod auth;
pub mod ca;
pub mod discovery;
pub mod health;
mod identity;
pub mod metrics;
pub mod server;
pub mod source;
pub mod state;
pub mod state_dir;
pub mod tls;

pub use auth::{Authenticator, Caller, TokenKey};
pub use ca::Authority;
pub use server::{ControlPlane, Settings, StartError};
pub use source::{FileSource, Rejected, Source};
pub use state::MeshState;
pub use state_dir::{StateDir, StateDirError};
