//! The maps that programs and agent share. `duet_ebpf` says what is in them.

use crate::sys::{self, Plain};
use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData, SockHash};
use duet_ebpf::{
    Appearance, Enrolled, ListenerKey, NetnsCookie, OwnAddress, Redirected, Source, Target, names,
};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::io;
use std::mem::size_of;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

/// All of them, with the sizes of key and value. All are pinned.
pub const SIZES: [(&str, usize, usize); 8] = [
    (
        names::ENROLLED,
        size_of::<NetnsCookie>(),
        size_of::<Enrolled>(),
    ),
    (names::OWN, size_of::<OwnAddress>(), size_of::<u32>()),
    (
        names::APPEARANCE,
        size_of::<NetnsCookie>(),
        size_of::<Appearance>(),
    ),
    (names::TARGETS, size_of::<Source>(), size_of::<Target>()),
    (names::LISTENERS, size_of::<ListenerKey>(), size_of::<u32>()),
    (names::OPEN, size_of::<NetnsCookie>(), size_of::<u64>()),
    (names::EXEMPT, size_of::<RawFd>(), size_of::<u32>()),
    (
        names::REDIRECTED,
        size_of::<RawFd>(),
        size_of::<Redirected>(),
    ),
];

#[derive(Debug, thiserror::Error)]
pub enum MapsError {
    #[error("the object has no map {0}")]
    Missing(&'static str),
    #[error(
        "pinned map {name} has keys of {key} and values of {value} bytes, of another version of \
         duet-agent: run duet-agent cleanup first"
    )]
    OtherVersion {
        name: &'static str,
        key: u32,
        value: u32,
    },
    #[error(transparent)]
    Map(#[from] aya::maps::MapError),
    #[error("eBPF map {map}: {error}")]
    Write { map: &'static str, error: io::Error },
    #[error("eBPF map {map} is full: so many pods or addresses are not foreseen on a node")]
    Full { map: &'static str },
    #[error("a map of duet-agent: {0}")]
    Kernel(#[from] io::Error),
}

pub struct Maps {
    enrolled: Mutex<HashMap<MapData, NetnsCookie, Plain<Enrolled>>>,
    own: Mutex<HashMap<MapData, Plain<OwnAddress>, u32>>,
    appearance: Mutex<HashMap<MapData, NetnsCookie, Plain<Appearance>>>,
    listeners: Mutex<SockHash<MapData, Plain<ListenerKey>>>,
    open: Mutex<HashMap<MapData, NetnsCookie, u64>>,
    /// Worked on from many threads at once, so without aya, whose methods want
    /// exclusive access.
    targets: MapData,
    exempt: MapData,
    remains: Mutex<Option<Remains>>,
}

/// What the entries of [`names::TARGETS`] are, that are there when an agent starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Of connections that went with the earlier agent's listeners.
    Stale,
    /// Of connections that wait to be accepted, and of such as the earlier process
    /// had accepted, and died before it had asked.
    PartlyStale,
    /// Of connections that somebody is about to ask for.
    Live,
}

/// How long an entry may be there before it cannot be a waiting connection's: a
/// client gives up, or has been accepted, long before.
const WAITED_FOR: Duration = Duration::from_secs(30);

/// Entries that an earlier process left, of which most are asked for in a moment.
struct Remains {
    since: Instant,
    entries: Vec<(Source, Target)>,
}

impl Maps {
    /// What is pinned need not be what this object expects: aya takes it as it is.
    pub fn check(object: &Ebpf) -> Result<(), MapsError> {
        for (name, key, value) in SIZES {
            let info = match object.map(name) {
                Some(Map::HashMap(map) | Map::SockHash(map) | Map::SkStorage(map)) => map.info()?,
                _ => return Err(MapsError::Missing(name)),
            };
            if (info.key_size() as usize, info.value_size() as usize) != (key, value) {
                return Err(MapsError::OtherVersion {
                    name,
                    key: info.key_size(),
                    value: info.value_size(),
                });
            }
        }
        Ok(())
    }

    /// Takes the maps out of an object that has been checked. It needs them open for as
    /// long as its programs are not loaded.
    pub fn take(object: &mut Ebpf, known: Targets) -> Result<Self, MapsError> {
        let mut take = |name| object.take_map(name).ok_or(MapsError::Missing(name));
        let mut targets = take(names::TARGETS)?;
        let mut remains = None;
        match known {
            Targets::Stale => forget_all(&mut targets)?,
            Targets::PartlyStale => remains = Some(Remains::of(&mut targets)?),
            Targets::Live => {}
        }
        Ok(Self {
            remains: Mutex::new(remains),
            enrolled: Mutex::new(take(names::ENROLLED)?.try_into()?),
            own: Mutex::new(take(names::OWN)?.try_into()?),
            appearance: Mutex::new(take(names::APPEARANCE)?.try_into()?),
            listeners: Mutex::new(take(names::LISTENERS)?.try_into()?),
            open: Mutex::new(take(names::OPEN)?.try_into()?),
            targets: data(targets, names::TARGETS)?,
            exempt: data(take(names::EXEMPT)?, names::EXEMPT)?,
        })
    }

    /// From now on `netns`'s connections are redirected.
    pub fn enrol(&self, netns: NetnsCookie, entry: Enrolled) -> Result<(), MapsError> {
        written(
            names::ENROLLED,
            self.enrolled.lock().insert(netns, Plain(entry), 0),
        )
    }

    pub fn expel(&self, netns: NetnsCookie) -> Result<(), MapsError> {
        gone_is_fine(self.enrolled.lock().remove(&netns))
    }

    pub fn is_enrolled(&self, netns: NetnsCookie) -> bool {
        self.enrolled.lock().get(&netns, 0).is_ok()
    }

    pub fn enrolled(&self) -> Result<Vec<(NetnsCookie, Enrolled)>, MapsError> {
        let enrolled = self.enrolled.lock();
        let entries = enrolled
            .iter()
            .map(|entry| Ok(entry.map(|(k, v)| (k, v.0))?));
        entries.collect()
    }

    pub fn add_own(&self, netns: NetnsCookie, ip: IpAddr) -> Result<(), MapsError> {
        let key = own(netns, ip);
        written(names::OWN, self.own.lock().insert(key, 1, 0))
    }

    pub fn remove_own(&self, netns: NetnsCookie, ip: IpAddr) -> Result<(), MapsError> {
        gone_is_fine(self.own.lock().remove(&own(netns, ip)))
    }

    /// All of `netns`'s, an earlier agent's entries included.
    pub fn own(&self, netns: NetnsCookie) -> Vec<IpAddr> {
        let own = self.own.lock();
        own.keys()
            .flatten()
            .filter(|key| key.0.netns == netns)
            .map(|key| key.0.ip.into())
            .collect()
    }

    /// What `netns`'s redirected connections seem to come from.
    pub fn appear(&self, netns: NetnsCookie, as_: Appearance) -> Result<(), MapsError> {
        written(
            names::APPEARANCE,
            self.appearance.lock().insert(netns, Plain(as_), 0),
        )
    }

    /// The same of one that has not gone meanwhile.
    pub fn reappear(&self, netns: NetnsCookie, as_: Appearance) -> Result<(), MapsError> {
        const BPF_EXIST: u64 = 2;
        gone_is_fine(self.appearance.lock().insert(netns, Plain(as_), BPF_EXIST))
    }

    pub fn disappear(&self, netns: NetnsCookie) -> Result<(), MapsError> {
        gone_is_fine(self.appearance.lock().remove(&netns))
    }

    /// Namespaces of which there is anything, enrolled or not.
    pub fn traces(&self) -> HashSet<NetnsCookie> {
        let (own, appearance) = (self.own.lock(), self.appearance.lock());
        let own = own.keys().flatten().map(|key| key.0.netns);
        own.chain(appearance.keys().flatten()).collect()
    }

    pub fn listen(&self, key: ListenerKey, socket: &impl AsRawFd) -> Result<(), MapsError> {
        let socket = socket.as_raw_fd();
        written(
            names::LISTENERS,
            self.listeners.lock().insert(Plain(key), socket, 0),
        )
    }

    pub fn stop_listening(&self, key: ListenerKey) -> Result<(), MapsError> {
        gone_is_fine(self.listeners.lock().remove(&Plain(key)))
    }

    /// Whether `netns`'s connections may go around an agent that is away. What has been
    /// counted stays.
    pub fn set_open(&self, netns: NetnsCookie, is_open: bool) -> Result<(), MapsError> {
        let mut open = self.open.lock();
        if !is_open {
            gone_is_fine(open.remove(&netns))
        } else if open.get(&netns, 0).is_ok() {
            Ok(())
        } else {
            written(names::OPEN, open.insert(netns, 0, 0))
        }
    }

    /// How many have; none if they may not.
    pub fn passed(&self, netns: NetnsCookie) -> Option<u64> {
        self.open.lock().get(&netns, 0).ok()
    }

    /// Where the connection whose client is `source` was meant to go. It is said
    /// once.
    pub fn take_target(
        &self,
        netns: NetnsCookie,
        source: SocketAddr,
    ) -> io::Result<Option<SocketAddr>> {
        let key = Source {
            netns,
            ip: source.ip().into(),
            port: source.port().into(),
            zero: 0,
        };
        let target: Option<Target> = sys::map_take(self.targets.fd().as_fd(), &key)?;
        Ok(target.map(|target| {
            let port = u16::from_be(target.port as u16);
            SocketAddr::new(target.ip.into(), port)
        }))
    }

    /// Destinations that nobody will ask for any more: the namespace's listeners are
    /// closed, and a client whose end was acknowledged before that has gone without a
    /// reset.
    pub fn forget_targets(&self, netns: NetnsCookie) -> Result<(), MapsError> {
        let map = self.targets.fd().as_fd();
        let copy = MapData::from_fd(map.try_clone_to_owned()?)?;
        let targets: HashMap<MapData, Plain<Source>, Plain<Target>> =
            Map::HashMap(copy).try_into()?;
        let mut left: Vec<_> = targets.keys().flatten().collect();
        left.retain(|source| source.0.netns == netns);
        for source in left {
            sys::map_take::<_, Target>(map, &source.0)?;
        }
        Ok(())
    }

    /// Removes what an earlier process left and nobody has asked for in all this time.
    pub fn forget_remains(&self) {
        let due = self
            .remains
            .lock()
            .take_if(|remains| remains.since.elapsed() >= WAITED_FOR);
        for (source, left) in due.into_iter().flat_map(|remains| remains.entries) {
            let map = self.targets.fd().as_fd();
            // Another connection may have come from there since, and be waiting.
            match sys::map_take::<_, Target>(map, &source) {
                Ok(Some(found)) if found != left => {
                    let _ = sys::map_insert(map, &source, &found);
                }
                _ => {}
            }
        }
    }

    /// Marks a socket as the agent's own: not redirected.
    pub fn exempt(&self, socket: &impl AsRawFd) -> io::Result<()> {
        sys::map_insert(self.exempt.fd().as_fd(), &socket.as_raw_fd(), &1u32)
    }
}

impl Remains {
    fn of(targets: &mut Map) -> Result<Self, MapsError> {
        let targets: HashMap<&mut MapData, Plain<Source>, Plain<Target>> = targets.try_into()?;
        let entries = targets.iter().flatten();
        Ok(Self {
            since: Instant::now(),
            entries: entries
                .map(|(source, target)| (source.0, target.0))
                .collect(),
        })
    }
}

/// Connections that an earlier agent never accepted went with its listeners.
fn forget_all(targets: &mut Map) -> Result<(), MapsError> {
    let mut targets: HashMap<&mut MapData, Plain<Source>, Plain<Target>> = targets.try_into()?;
    let stale: Vec<_> = targets.keys().flatten().collect();
    stale
        .iter()
        .try_for_each(|source| gone_is_fine(targets.remove(source)))
}

fn own(netns: NetnsCookie, ip: IpAddr) -> Plain<OwnAddress> {
    Plain(OwnAddress {
        netns,
        ip: ip.into(),
    })
}

/// aya's own words name neither the map nor the reason.
fn written(map: &'static str, outcome: Result<(), aya::maps::MapError>) -> Result<(), MapsError> {
    use aya::maps::MapError::SyscallError;
    outcome.map_err(|error| match error {
        SyscallError(error) if error.io_error.raw_os_error() == Some(nix::libc::E2BIG) => {
            MapsError::Full { map }
        }
        SyscallError(error) => {
            let error = error.io_error;
            MapsError::Write { map, error }
        }
        error => error.into(),
    })
}

fn gone_is_fine(outcome: Result<(), aya::maps::MapError>) -> Result<(), MapsError> {
    match outcome {
        Err(aya::maps::MapError::SyscallError(error))
            if error.io_error.kind() == io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        outcome => Ok(outcome?),
    }
}

fn data(map: Map, name: &'static str) -> Result<MapData, MapsError> {
    match map {
        Map::HashMap(data) | Map::SkStorage(data) => Ok(data),
        _ => Err(MapsError::Missing(name)),
    }
}
