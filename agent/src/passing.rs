//! Open files passed from one process of the agent to another, over a Unix socket.
//!
//! A frame is its length, as four bytes in network order, and a JSON object. Its
//! files travel with the first of its bytes, so they arrive with it or not at all.
//! Who speaks so says which [`VERSION`] it speaks first.

use duet_ebpf::NetnsCookie;
use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Changes whenever a frame does. Agents of this version and of the one before hand over
/// to each other; any other is refused, and waits until what it finds is gone.
pub const VERSION: u32 = 2;

/// The oldest that is understood. Its doors come without the namespace's own file.
pub const OLDEST: u32 = 1;

/// Three ports, two families, the namespace; and some to spare.
const MOST_FILES: usize = 16;

/// The names of all a node's workloads, which Kubernetes limits to 317 bytes each.
const LONGEST_FRAME: usize = 4 << 20;

/// A workload's listeners, in the order of the files that come with them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Door {
    pub netns: NetnsCookie,
    pub listeners: Vec<Place>,
    /// Whether the namespace's file comes behind them.
    #[serde(default)]
    pub with_netns: bool,
}

/// Where a listener listens: on this port of loopback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub port: u16,
    /// 4 or 6.
    pub family: u8,
}

/// What another process had of a workload.
#[derive(Debug, Default)]
pub struct Inherited {
    pub listeners: Vec<(Place, OwnedFd)>,
    /// The network namespace, by which it is found wherever its path leads now.
    pub file: Option<OwnedFd>,
}

pub fn send(
    socket: &UnixStream,
    frame: &impl Serialize,
    files: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let body = serde_json::to_vec(frame)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let bytes = [&length.to_be_bytes()[..], &body].concat();
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST_FILES))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
        let many = format!("{} files in one frame, at most {MOST_FILES}", files.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, many));
    }
    let sent = rustix::io::retry_on_intr(|| {
        let bytes = [IoSlice::new(&bytes)];
        sendmsg(socket, &bytes, &mut control, SendFlags::NOSIGNAL)
    })?;
    (&mut &*socket).write_all(&bytes[sent..])
}

/// None at the end.
pub fn receive<T: DeserializeOwned>(socket: &UnixStream) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut length = [0; 4];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST_FILES))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let mut bytes = [IoSliceMut::new(&mut length)];
        recvmsg(socket, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            files.extend(passed);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other(
            "files were lost: is the limit of open files reached?",
        ));
    }
    (&mut &*socket).read_exact(&mut length[received.bytes..])?;
    let length = u32::from_be_bytes(length) as usize;
    if length > LONGEST_FRAME {
        let long = format!("a frame of {length} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, long));
    }
    let mut body = vec![0; length];
    (&mut &*socket).read_exact(&mut body)?;
    Ok(Some((serde_json::from_slice(&body)?, files)))
}

/// The one file that a frame has to come with.
pub fn only(mut files: Vec<OwnedFd>) -> io::Result<OwnedFd> {
    match (files.pop(), files.len()) {
        (Some(file), 0) => Ok(file),
        _ => Err(io::Error::other(
            "one file was announced, and not one received",
        )),
    }
}

// === impl Inherited ===

impl Inherited {
    pub fn share_of(
        listeners: &[(Place, OwnedFd)],
        file: Option<BorrowedFd<'_>>,
    ) -> io::Result<Self> {
        let share = |(place, file): &(Place, OwnedFd)| Ok((*place, file.try_clone()?));
        Ok(Self {
            listeners: listeners.iter().map(share).collect::<io::Result<_>>()?,
            file: file.map(|file| file.try_clone_to_owned()).transpose()?,
        })
    }

    pub fn share(&self) -> io::Result<Self> {
        Self::share_of(&self.listeners, self.file.as_ref().map(AsFd::as_fd))
    }

    /// As it is told, and the files that go with it, for a process that speaks `version`.
    pub fn door(&self, netns: NetnsCookie, version: u32) -> (Door, Vec<BorrowedFd<'_>>) {
        let file = self.file.as_ref().filter(|_| version > OLDEST);
        let door = Door {
            netns,
            listeners: self.listeners.iter().map(|(place, _)| *place).collect(),
            with_netns: file.is_some(),
        };
        let listeners = self.listeners.iter().map(|(_, listener)| listener);
        (door, listeners.chain(file).map(AsFd::as_fd).collect())
    }

    /// As it arrived.
    pub fn behind(door: &Door, mut files: Vec<OwnedFd>) -> io::Result<Self> {
        let file = if door.with_netns { files.pop() } else { None };
        let (told, came) = (door.listeners.len(), files.len());
        if told == came && file.is_some() == door.with_netns {
            let listeners = door.listeners.iter().copied().zip(files).collect();
            Ok(Self { listeners, file })
        } else {
            Err(io::Error::other(format!(
                "{told} listeners announced, and {came} received"
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    #[test]
    fn files_arrive_with_their_frame() {
        let (here, there) = UnixStream::pair().unwrap();
        let listeners = [0; 6].map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let addresses = listeners.each_ref().map(|one| one.local_addr().unwrap());
        let mut listeners = listeners.into_iter();
        for (netns, count, version) in [(1, 4, VERSION), (2, 2, OLDEST)] {
            let listeners = listeners.by_ref().take(count).map(|one| {
                let port = one.local_addr().unwrap().port();
                (Place { port, family: 4 }, one.into())
            });
            let inherited = Inherited {
                listeners: listeners.collect(),
                file: Some(File::open("/proc/self/ns/net").unwrap().into()),
            };
            let (door, files) = inherited.door(netns, version);
            send(&here, &door, &files).unwrap();
        }
        drop(here);
        let mut found = Vec::new();
        while let Some((door, files)) = receive::<Door>(&there).unwrap() {
            let inherited = Inherited::behind(&door, files).unwrap();
            // The older version knows nothing of the namespace's file.
            assert_eq!(inherited.file.is_some(), door.netns == 1);
            found.extend(inherited.listeners);
        }
        assert_eq!(found.len(), addresses.len());
        for ((place, file), address) in found.into_iter().zip(addresses) {
            let listener = TcpListener::from(file);
            assert_eq!(listener.local_addr().unwrap(), address);
            assert_eq!(place.port, address.port());
            TcpStream::connect(address).unwrap();
        }
    }

    #[test]
    fn what_is_cut_off_or_too_long_is_an_error() {
        for bytes in [&[0, 0, 0, 9, b'{'][..], &[0xff, 0, 0, 0], &[0, 0]] {
            let (mut here, there) = UnixStream::pair().unwrap();
            here.write_all(bytes).unwrap();
            drop(here);
            assert!(receive::<Door>(&there).is_err());
        }
    }

    #[test]
    fn a_door_without_its_listeners_is_refused() {
        let place = Place {
            port: 15001,
            family: 4,
        };
        let door = Door {
            netns: 1,
            listeners: vec![place],
            with_netns: true,
        };
        assert!(Inherited::behind(&door, Vec::new()).is_err());
        let one = File::open("/dev/null").unwrap();
        assert!(Inherited::behind(&door, vec![one.into()]).is_err());
        assert!(only(Vec::new()).is_err());
    }
}
