//! What a proxy tells of itself: metrics, the access log, a live tap, and the
//! connections that are open.

mod access_log;
pub mod connections;
mod endpoints;
mod labelled;
mod metrics;
pub mod tap;

pub use access_log::{AccessLog, ConnectionLine, RequestLine};
pub use connections::Connections;
pub use endpoints::expose_endpoints;
pub use metrics::{Failure, Meters, Metrics, Peer};

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
