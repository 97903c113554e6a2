//! What can become of a request that is not answered correctly, and how the libraries' errors map to it.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// Why a request failed. Serialised in snake case, also as a map key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The peer (or the kernel on its behalf) refused the connection.
    ConnectRefused,
    /// The connection was not established within the time-out. Stays in the distribution.
    ConnectTimeout,
    /// No route, host or network unreachable.
    ConnectUnreachable,
    /// The generator's own host ran out of local ports or file descriptors.
    LocalExhausted,
    /// The connection was reset.
    Reset,
    /// The connection was closed in good order before the answer was complete.
    Closed,
    /// No complete answer within the time-out, or no free connection. Stays in the distribution.
    Timeout,
    #[serde(rename = "status_4xx")]
    Status4xx,
    #[serde(rename = "status_5xx")]
    Status5xx,
    /// A gRPC status other than 0, or none.
    GrpcStatus,
    /// An answer that the protocol does not allow, or an echo that differs from what was sent.
    Protocol,
    /// The generator's queue was full when the request was due; it was not sent.
    QueueFull,
}

impl ErrorKind {
    /// Whether the elapsed time belongs in the latency distribution.
    pub fn is_timeout(self) -> bool {
        matches!(self, Self::Timeout | Self::ConnectTimeout)
    }

    /// What failed while connecting.
    pub fn of_connect(error: &io::Error) -> Self {
        use io::ErrorKind as Io;
        match error.kind() {
            Io::ConnectionRefused => Self::ConnectRefused,
            Io::TimedOut => Self::ConnectTimeout,
            Io::HostUnreachable | Io::NetworkUnreachable | Io::PermissionDenied => {
                Self::ConnectUnreachable
            }
            Io::AddrNotAvailable | Io::AddrInUse => Self::LocalExhausted,
            Io::ConnectionReset | Io::ConnectionAborted | Io::BrokenPipe => Self::Reset,
            _ if matches!(
                error.raw_os_error(),
                Some(EMFILE | ENFILE | ENOBUFS | ENOMEM)
            ) =>
            {
                Self::LocalExhausted
            }
            _ => Self::ConnectUnreachable,
        }
    }

    /// What failed on an established connection.
    pub fn of_io(error: &io::Error) -> Self {
        use io::ErrorKind as Io;
        match error.kind() {
            Io::ConnectionReset | Io::ConnectionAborted | Io::BrokenPipe | Io::NotConnected => {
                Self::Reset
            }
            Io::UnexpectedEof => Self::Closed,
            Io::TimedOut => Self::Timeout,
            _ => Self::Protocol,
        }
    }

    /// What failed in an HTTP exchange.
    pub fn of_http(error: &hyper::Error) -> Self {
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            if let Some(io) = cause.downcast_ref::<io::Error>() {
                return Self::of_io(io);
            }
            if let Some(h2) = cause.downcast_ref::<h2::Error>() {
                if let Some(io) = h2.get_io() {
                    return Self::of_io(io);
                }
                return if h2.is_go_away() && h2.reason() == Some(h2::Reason::NO_ERROR) {
                    Self::Closed
                } else if h2.is_reset() {
                    Self::Reset
                } else {
                    Self::Protocol
                };
            }
            source = cause.source();
        }
        if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
            Self::Closed
        } else {
            Self::Protocol
        }
    }
}

// Linux errno values, the same on every architecture that Duet builds for.
const ENOMEM: i32 = 12;
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;
const ENOBUFS: i32 = 105;

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConnectRefused => "connect_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::ConnectUnreachable => "connect_unreachable",
            Self::LocalExhausted => "local_exhausted",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Timeout => "timeout",
            Self::Status4xx => "status_4xx",
            Self::Status5xx => "status_5xx",
            Self::GrpcStatus => "grpc_status",
            Self::Protocol => "protocol",
            Self::QueueFull => "queue_full",
        })
    }
}
