//! The maps that programs and agent share. `duet_ebpf` says what is in them.

use crate::sys::{self, Plain};
use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData, SockHash};
use duet_ebpf::{
    Enrolled, ListenerKey, NetnsCookie, OwnAddress, Redirected, Source, Target, names,
};
use parking_lot::Mutex;
use std::io;
use std::mem::size_of;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, RawFd};

/// All of them, with the sizes of key and value. All are pinned.
pub const SIZES: [(&str, usize, usize); 6] = [
    (
        names::ENROLLED,
        size_of::<NetnsCookie>(),
        size_of::<Enrolled>(),
    ),
    (names::OWN, size_of::<OwnAddress>(), size_of::<u32>()),
    (names::TARGETS, size_of::<Source>(), size_of::<Target>()),
    (names::LISTENERS, size_of::<ListenerKey>(), size_of::<u32>()),
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
}

pub struct Maps {
    enrolled: Mutex<HashMap<MapData, NetnsCookie, Plain<Enrolled>>>,
    own: Mutex<HashMap<MapData, Plain<OwnAddress>, u32>>,
    listeners: Mutex<SockHash<MapData, Plain<ListenerKey>>>,
    /// Worked on from many threads at once, so without aya, whose methods want
    /// exclusive access.
    targets: MapData,
    exempt: MapData,
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

    /// Takes the maps out of an object whose programs are loaded, and that has been
    /// checked.
    pub fn take(object: &mut Ebpf) -> Result<Self, MapsError> {
        let mut take = |name| object.take_map(name).ok_or(MapsError::Missing(name));
        let mut targets = take(names::TARGETS)?;
        forget_all(&mut targets)?;
        Ok(Self {
            enrolled: Mutex::new(take(names::ENROLLED)?.try_into()?),
            own: Mutex::new(take(names::OWN)?.try_into()?),
            listeners: Mutex::new(take(names::LISTENERS)?.try_into()?),
            targets: data(targets, names::TARGETS)?,
            exempt: data(take(names::EXEMPT)?, names::EXEMPT)?,
        })
    }

    /// From now on `netns`'s connections are redirected.
    pub fn enrol(&self, netns: NetnsCookie, entry: Enrolled) -> Result<(), MapsError> {
        Ok(self.enrolled.lock().insert(netns, Plain(entry), 0)?)
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
        Ok(self.own.lock().insert(key, 1, 0)?)
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

    pub fn listen(&self, key: ListenerKey, socket: &impl AsRawFd) -> Result<(), MapsError> {
        let socket = socket.as_raw_fd();
        Ok(self.listeners.lock().insert(Plain(key), socket, 0)?)
    }

    pub fn stop_listening(&self, key: ListenerKey) -> Result<(), MapsError> {
        gone_is_fine(self.listeners.lock().remove(&Plain(key)))
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

    /// Marks a socket as the agent's own: not redirected.
    pub fn exempt(&self, socket: &impl AsRawFd) -> io::Result<()> {
        sys::map_insert(self.exempt.fd().as_fd(), &socket.as_raw_fd(), &1u32)
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
