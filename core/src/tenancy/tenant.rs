use super::budget::{Budgets, Buffers, PATIENCE, Pace, Room, Taken, Window};
use super::fair::{Fair, Share};
use crate::capture::Direction;
use crate::runtime::vital;
use crate::upstream::UpstreamError;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::sleep_until;

/// What the workloads of a process share, and how much of it each may have.
#[derive(Clone)]
pub struct Tenancy {
    fair: Arc<Fair>,
    /// What an operator allows each workload.
    bounds: Budgets,
}

/// A workload among others; or one that is alone, which may do as it likes. Cheap to
/// clone.
#[derive(Clone, Default)]
pub struct Tenant {
    share: Share,
    bounded: Option<Arc<Bounded>>,
}

#[derive(Default)]
struct Bounded {
    bounds: Budgets,
    inbound: Way,
    outbound: Way,
    buffers: Arc<Buffers>,
    waits: [AtomicU64; 4],
}

/// One direction's. They do not share: two workloads that ask each other would otherwise
/// wait for each other once both have all the connections that they may.
#[derive(Default)]
struct Way {
    connections: Arc<Room>,
    handshakes: Pace,
    requests: Pace,
}

/// Which budget somebody waits for.
#[derive(Clone, Copy)]
enum Budget {
    Connections,
    Handshakes,
    Requests,
    Buffers,
}

impl Budget {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Connections, "connections"),
        (Self::Handshakes, "handshakes"),
        (Self::Requests, "requests"),
        (Self::Buffers, "buffers"),
    ];
}

// === impl Tenancy ===

impl Tenancy {
    /// Must be called in a runtime, whose threads are shared from then on.
    pub fn start(bounds: Budgets) -> Self {
        let fair = Arc::<Fair>::default();
        tokio::spawn(vital(fair.clone().run()));
        Self { fair, bounds }
    }

    pub fn tenant(&self) -> Tenant {
        let tenant = Tenant {
            share: self.fair.share(),
            bounded: Some(Arc::new(Bounded {
                bounds: self.bounds,
                ..Bounded::default()
            })),
        };
        tenant.ask(Budgets::default());
        tenant
    }
}

// === impl Tenant ===

impl Tenant {
    /// What the workload itself asks for, within its operator's bounds.
    pub fn ask(&self, asked: Budgets) {
        let Some(bounded) = &self.bounded else {
            return;
        };
        let budgets = asked.within(bounded.bounds);
        self.share.weigh(budgets.weight);
        bounded.buffers.set(budgets.buffered_bytes);
        for way in [&bounded.inbound, &bounded.outbound] {
            way.connections.set(budgets.connections);
            way.handshakes.set(budgets.handshakes_per_second);
            way.requests.set(budgets.requests_per_second);
        }
    }

    pub fn share(&self) -> &Share {
        &self.share
    }

    /// Until there is room for one more connection; meanwhile they wait in the listener's
    /// queue.
    pub async fn room(&self, direction: Direction) {
        if let Some(bounded) = &self.bounded {
            let connections = &bounded.way(direction).connections;
            if !connections.has_some() {
                bounded.count(Budget::Connections);
                connections.wait().await;
            }
        }
    }

    /// A connection's place, until it is dropped.
    pub fn connection(&self, direction: Direction) -> Taken {
        match &self.bounded {
            Some(bounded) => bounded.way(direction).connections.take(),
            None => Taken::nothing(),
        }
    }

    /// Until there may be one more handshake.
    pub async fn handshake(&self, direction: Direction) {
        if let Some(bounded) = &self.bounded {
            let handshakes = &bounded.way(direction).handshakes;
            // Those who wait are bounded by the connections.
            if let Ok(Some(at)) = handshakes.reserve(Duration::MAX) {
                bounded.count(Budget::Handshakes);
                sleep_until(at).await;
            }
        }
    }

    /// Until there may be one more request.
    ///
    /// # Errors
    /// If that would be too long.
    pub async fn request(&self, direction: Direction) -> Result<(), UpstreamError> {
        let Some(bounded) = &self.bounded else {
            return Ok(());
        };
        match bounded.way(direction).requests.reserve(PATIENCE) {
            Ok(None) => Ok(()),
            Ok(Some(at)) => {
                bounded.count(Budget::Requests);
                sleep_until(at).await;
                Ok(())
            }
            Err(wait) => {
                bounded.count(Budget::Requests);
                Err(UpstreamError::RateLimited(wait))
            }
        }
    }

    /// What one connection's peer may send before it is passed on.
    pub fn window(&self, wanted: u32) -> Window {
        let Some(bounded) = &self.bounded else {
            return Window::whole(wanted);
        };
        let window = bounded.buffers.reserve(wanted);
        if window.is_narrow() {
            bounded.count(Budget::Buffers);
        }
        window
    }

    /// How often each budget was waited for, by its name.
    pub fn waits(&self) -> Vec<(&'static str, u64)> {
        let Some(bounded) = &self.bounded else {
            return Vec::new();
        };
        let budgets = Budget::ALL.map(|(budget, name)| {
            let count = bounded.waits[budget as usize].load(Ordering::Relaxed);
            (name, count)
        });
        let turns = ("cpu", self.share.waits());
        budgets.into_iter().chain([turns]).collect()
    }

    /// Bytes that its peers may send, as of now; `None` where nobody counts.
    pub fn buffered(&self) -> Option<u64> {
        Some(self.bounded.as_ref()?.buffers.reserved())
    }
}

// === impl Bounded ===

impl Bounded {
    fn way(&self, direction: Direction) -> &Way {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }

    fn count(&self, budget: Budget) {
        self.waits[budget as usize].fetch_add(1, Ordering::Relaxed);
    }
}
