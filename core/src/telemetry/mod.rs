//! What a proxy tells of itself: metrics, the access log, traces, a live tap, and the
//! connections that are open.

mod access_log;
pub mod connections;
mod endpoints;
mod labelled;
mod metrics;
pub mod tap;
mod threads;
pub mod trace;
mod workloads;

pub use access_log::{AccessLog, ConnectionLine, RequestLine};
pub use connections::Connections;
pub use endpoints::expose_endpoints;
pub use metrics::{CUT, DONE, Failure, Meters, Metrics, Peer};
pub use threads::expose_threads;
pub use trace::Tracer;
pub use workloads::expose_workloads;

/// Runs `f` when dropped: what is to be told when something is over.
pub(crate) fn at_end<F: FnOnce()>(f: F) -> impl Drop + use<F> {
    struct Guard<F: FnOnce()>(Option<F>);
    impl<F: FnOnce()> Drop for Guard<F> {
        fn drop(&mut self) {
            if let Some(f) = self.0.take() {
                f();
            }
        }
    }
    Guard(Some(f))
}
