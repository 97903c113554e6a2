//! How much HTTP/2 a peer may have under way, wherever this proxy is an end of it.

/// Streams that may be open at once on a connection; nginx has 128, hyper 200,
/// Envoy 2³¹.
pub const MAX_STREAMS: u32 = 1000;
/// What may be sent on one stream before it is read.
pub const STREAM_WINDOW: u32 = 256 * 1024;
/// And on all of them. No less than the sum: streams of independent applications
/// share a connection, and those that nobody reads must not stall the others.
pub const CONNECTION_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;
/// What may wait to be sent on one stream.
pub const SEND_BUFFER: usize = 256 * 1024;
