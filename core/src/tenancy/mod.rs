//! What keeps the workloads of one process from each other's way.
//!
//! A sidecar is alone with its workload: its cgroup is the limit, and nothing of this
//! exists there. An agent's workloads share worker threads, memory and descriptors, and
//! without this the one that asks most gets most. With it
//!
//! * *processor time* is shared out in turns ([`fair`]): who has had its turn waits while
//!   others have something left of theirs, and nobody waits while nobody else wants to run;
//! * *connections* and *bytes that a peer may have under way* are bounded, because no
//!   waiting gives memory and descriptors back;
//! * *requests* and *handshakes* a second may be bounded, where an operator wants a ceiling
//!   whatever there is to spare.
//!
//! What is over a budget waits: connections in the listener's queue, requests and
//! handshakes for their time, senders for a window. Only a request that would wait longer
//! than [`budget::PATIENCE`] is refused, as one over a rate limit is. So a flood delays whom it
//! comes from. Each wait is counted (`duet_tenancy_waits_total`).
//!
//! *Who pays?* The local workload whose listener took the connection: the client's for
//! what goes out, the server's for what comes in, as each would with a sidecar of its own.
//! A flood from another node is so its victim's to pay for, within the victim's share, and
//! [`crate::limits`] is what turns away a client of it by its identity.

mod budget;
mod fair;
mod tenant;

pub use budget::Budgets;
pub use fair::Share;
pub use tenant::{Tenancy, Tenant};
