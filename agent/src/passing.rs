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
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Changes whenever a frame does. One that speaks another is refused, so a new
/// agent beside an old one of another version serves nobody until that is gone.
pub const VERSION: u32 = 1;

/// Three ports, two families; and some to spare.
const MOST_FILES: usize = 16;

/// The names of all a node's workloads, which Kubernetes limits to 317 bytes each.
const LONGEST_FRAME: usize = 4 << 20;

/// A workload's listeners, in the order of the files that come with them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Door {
    pub netns: NetnsCookie,
    pub listeners: Vec<Place>,
}

/// Where a listener listens: on this port of loopback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub port: u16,
    /// 4 or 6.
    pub family: u8,
}

/// A workload's listeners that another process had before.
pub type Inherited = Vec<(Place, OwnedFd)>;

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

/// A door as it arrived.
pub fn inherited(door: &Door, files: Vec<OwnedFd>) -> io::Result<Inherited> {
    if door.listeners.len() == files.len() {
        Ok(door.listeners.iter().copied().zip(files).collect())
    } else {
        let (told, came) = (door.listeners.len(), files.len());
        Err(io::Error::other(format!(
            "{told} listeners announced, and {came} received"
        )))
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::os::fd::AsFd;

    #[test]
    fn files_arrive_with_their_frame() {
        let (here, there) = UnixStream::pair().unwrap();
        let listeners = [0; 6].map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let addresses = listeners.each_ref().map(|one| one.local_addr().unwrap());
        for (netns, some) in [(1, &listeners[..4]), (2, &listeners[4..])] {
            let place = |one: &TcpListener| Place {
                port: one.local_addr().unwrap().port(),
                family: 4,
            };
            let door = Door {
                netns,
                listeners: some.iter().map(place).collect(),
            };
            let files: Vec<_> = some.iter().map(AsFd::as_fd).collect();
            send(&here, &door, &files).unwrap();
        }
        drop((here, listeners));
        let mut found = Vec::new();
        while let Some((door, files)) = receive::<Door>(&there).unwrap() {
            assert_eq!(files.len(), if door.netns == 1 { 4 } else { 2 });
            found.extend(inherited(&door, files).unwrap());
        }
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
        };
        assert!(inherited(&door, Vec::new()).is_err());
        assert!(only(Vec::new()).is_err());
    }
}
