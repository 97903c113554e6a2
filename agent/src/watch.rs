//! Word from the kernel that something in a directory has changed (inotify).
//!
//! It saves time, and is no more than that: another directory may be put where this one
//! was, and the kernel may have no instance to give. Whoever waits for it has to look
//! from time to time as well.

use crate::sys;
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use std::future::pending;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use tokio::io::unix::AsyncFd;

/// Files that are whole, and names; not each write.
const CHANGES: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// Of events; one is 272 bytes at most.
const ROOM: usize = 4096;

pub struct Watch {
    /// None where there is none to be had.
    inotify: Option<AsyncFd<OwnedFd>>,
    /// What the kernel calls the directories.
    watched: Vec<i32>,
}

// === impl Watch ===

impl Watch {
    pub fn new() -> Self {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC);
        let inotify = inotify.map_err(io::Error::from).and_then(sys::readable);
        let inotify = inotify.inspect_err(
            |error| tracing::warn!(%error, "no inotify: changes are found by looking for them"),
        );
        Self {
            inotify: inotify.ok(),
            watched: Vec::new(),
        }
    }

    /// From here on watches what these paths lead to now, and nothing else. What is not
    /// there is left out. To be done before a look, so that nothing is missed after it.
    pub fn on<'a>(&mut self, directories: impl IntoIterator<Item = &'a Path>) {
        let Some(inotify) = &self.inotify else {
            return;
        };
        let inotify = inotify.get_ref();
        let add = |directory| inotify::add_watch(inotify, directory, CHANGES).ok();
        // One that is watched already keeps its number.
        let watched: Vec<i32> = directories.into_iter().filter_map(add).collect();
        for old in std::mem::take(&mut self.watched) {
            if !watched.contains(&old) {
                // It is gone by itself where the directory is.
                let _ = inotify::remove_watch(inotify, old);
            }
        }
        self.watched = watched;
    }

    /// Ends when something has happened to a name that `concerns` the caller, or to a
    /// directory itself; perhaps never.
    pub async fn changed(&self, concerns: impl Fn(&[u8]) -> bool) {
        let Some(inotify) = &self.inotify else {
            return pending().await;
        };
        loop {
            let Ok(mut guard) = inotify.readable().await else {
                return pending().await;
            };
            match guard.try_io(|inotify| read(inotify.get_ref(), &concerns)) {
                Ok(Ok(true)) => return,
                Ok(Ok(false)) | Err(_) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, "inotify");
                    return pending().await;
                }
            }
        }
    }
}

/// As many events as there is room for. True if one is of concern.
fn read(inotify: &OwnedFd, concerns: impl Fn(&[u8]) -> bool) -> io::Result<bool> {
    let mut room = [MaybeUninit::uninit(); ROOM];
    let mut events = Reader::new(inotify, &mut room);
    let mut is_news = false;
    loop {
        let event = events.next()?;
        // Without a name it is of the directory, or of events that were lost.
        let name = event.file_name();
        is_news |= name.is_none_or(|name| concerns(name.to_bytes()));
        if events.is_buffer_empty() {
            return Ok(is_news);
        }
    }
}
