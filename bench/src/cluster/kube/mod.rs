//! Beds on a real Kubernetes cluster, steered from outside through its API server.
//!
//! Reading order: `site` (namespaces, nodes, readers), `bed` (pods and
//! services, and what is asked of them), `session` (how anything inside a pod is
//! asked at all), `clock` (what an instant means on another machine).

mod api;
mod bed;
mod clock;
mod generator;
mod mesh;
mod nodes;
mod objects;
mod owner;
mod pods;
pub mod preflight;
mod quantity;
mod registry;
mod session;
mod site;
mod stage;

pub use self::api::Kube;
pub use self::nodes::NodeSide;
pub use self::objects::{APP, LOAD};
pub use self::pods::{Observed, PROXY};
pub use self::registry::clean;
pub use self::session::{Pending, Session};
pub use self::site::{KubeSite, Settling};
pub use self::stage::{Ends, Rollout, Stage, exit_code};

pub(super) use self::registry::remove_all_of_this_process;
