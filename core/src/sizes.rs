//! What connections and requests take while they live, held against growth.
//!
//! A future is as large as the largest moment of all that it may come to, so one more local
//! variable in a rare branch is paid for by every connection. What is rare is boxed. The bounds
//! are what they are today and a tenth: who raises one has a reason.

use crate::{inbound, outbound};

/// What an async function's future takes.
pub fn of<A, B, C, F: Future>(_: impl FnOnce(A, B, C) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn connections_and_requests_stay_small() {
    let (request, stream) = (outbound::size_of_request(), inbound::size_of_stream());
    let all = [
        (
            "an application's connection",
            of(outbound::connection),
            3600,
        ),
        ("a peer's connection", of(inbound::mesh), 6000),
        ("a connection from outside", of(inbound::plaintext), 4100),
        ("a request of an application", request, 5900),
        ("a stream of a peer", stream, 7700),
        ("an answer's body", size_of::<crate::http::Body>(), 88),
    ];
    let too_large: Vec<_> = all.iter().filter(|(_, size, most)| size > most).collect();
    assert!(too_large.is_empty(), "{too_large:?}");
}
