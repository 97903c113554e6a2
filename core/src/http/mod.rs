//! HTTP as it passes through: one body type, the header rules, the answers that
//! the proxy makes itself, and serving a client's connection.

mod body;
mod classify;
mod copied;
mod deadline;
mod headers;
mod heads;
mod idle;
pub mod limits;
mod replay;
mod serve;
mod spelling;
mod stall;
mod synthesize;
mod well_formed;

pub use body::{Body, End};
pub use classify::{Verdict, blames_server, grpc_status, tell_grpc_status, verdict};
pub use copied::Copied;
pub use deadline::{Deadline, Timeout, grpc_timeout};
pub use headers::{
    APP_PROTOCOL, DESTINATION, answer_for_mesh, client_id, for_application, for_mesh,
    for_plaintext, is_upgrade, name_client, response,
};
pub use heads::{Heads, Overheard};
pub use idle::HEADER_TIMEOUT;
pub use replay::Replay;
pub use serve::serve;
pub use spelling::{Case, spelled};
pub use synthesize::{failure, from_application, is_failure, is_grpc, is_refusal, malformed};
pub use well_formed::{Malformed, well_formed};
