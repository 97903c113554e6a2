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
    let request = outbound::size_of_request();
    let [stream, tunnel] = inbound::sizes_of_streams();
    let all = [
        (
            "an application's connection",
            of(outbound::connection),
            2490,
        ),
        ("a peer's connection", of(inbound::mesh), 6000),
        ("a connection from outside", of(inbound::plaintext), 2440),
        ("a request of an application", request, 2010),
        ("a request of a peer", stream, 2080),
        ("a tunnel of a peer", tunnel, 2380),
        ("an answer's body", size_of::<crate::http::Body>(), 88),
    ];
    let too_large: Vec<_> = all.iter().filter(|(_, size, most)| size > most).collect();
    assert!(too_large.is_empty(), "{too_large:?}");
}
