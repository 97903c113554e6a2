//! A run: plan, pre-flight checks, blocks, gates, results.

mod budget;
mod execute;
pub mod gates;
mod ground;
mod interrupt;
mod machine;
mod parity;
pub mod plan;
mod preflight;
mod progress;
mod resume;

pub use budget::TooShort;
pub use execute::{Finished, Options, RunError, estimate, run};
pub use ground::{Ground, KubeOptions};
pub use interrupt::{EXIT_CODE as INTERRUPTED_EXIT_CODE, Interrupt, Interrupted};
pub use plan::{Pace, Plan};
pub use preflight::{Binaries, Build, Refusal};
pub use progress::Progress;
