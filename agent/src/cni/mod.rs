//! The chained CNI plugin (specification 1.1): a pod's sandbox is not ready before its
//! connections are redirected, so nothing that runs in it ever goes around the mesh.
//!
//! The container runtime calls it after the plugins that make the pod's network, and
//! before anything of the pod runs. *Whether a pod is to be meshed* says the stamp that
//! the webhook put on it, `duet.dev/placement`, if the runtime passes on annotations
//! (the capability `io.kubernetes.cri.pod-annotations`, which containerd has): a pod
//! without it is not held up at all. Otherwise the agent is asked, and waits a moment
//! for discovery to tell of the pod.
//!
//! STATUS does not ask for the agent: a runtime whose network is not ready starts no
//! pod, the agent's own included.

mod admission;
mod install;
mod plugin;

pub use admission::{Sandbox, admit};
pub use install::{Install, Installed, LOOK, unchain, uninstall};
pub use plugin::run;

/// The plugin's name: of its file in the runtime's directory, and in configurations.
pub const NAME: &str = "duet-cni";
