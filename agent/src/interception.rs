//! The programs on the cgroup: loaded, attached, taken over, watched.
//!
//! Links are pinned, so the programs stay when the agent goes, by whatever death:
//! connections of enrolled namespaces are then refused. The next agent puts its own
//! programs into the same links, each in one step, and finds the same maps. The agent
//! has all of it open as well, so nothing is lost with the file system that it is pinned
//! in; it is pinned again.

use crate::bpffs::{BpffsError, Layout};
use crate::cgroup::{Cgroup, CgroupError};
use crate::maps::{self, Maps, MapsError, Targets};
use crate::migration::{self, MigrationError};
use crate::netns::{FileId, Netns};
use crate::sys::{self, AttachPoint, LinkTarget};
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, Program, ProgramError, SkLookup};
use aya::{Ebpf, EbpfError, EbpfLoader};
use duet_ebpf::{NetnsCookie, names};
use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection, ObjectSymbol};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What `ebpf/` gives; see its build.sh.
pub static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../ebpf/duet.bpf.o"));

/// The programs that are attached to the cgroup.
pub const ON_CGROUP: [(&str, AttachPoint); 7] = [
    (names::SOCKOPS, AttachPoint::SockOps),
    (names::GETPEERNAME4, AttachPoint::GetPeerName4),
    (names::GETPEERNAME6, AttachPoint::GetPeerName6),
    (names::GETSOCKNAME4, AttachPoint::GetSockName4),
    (names::GETSOCKNAME6, AttachPoint::GetSockName6),
    (names::CONNECT4, AttachPoint::Connect4),
    (names::CONNECT6, AttachPoint::Connect6),
];

#[derive(Debug, thiserror::Error)]
pub enum InterceptionError {
    #[error(transparent)]
    Bpffs(#[from] BpffsError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Maps(#[from] MapsError),
    #[error(transparent)]
    Migration(#[from] MigrationError),
    #[error("cannot load the eBPF object: {0}; duet-agent doctor says what the kernel lacks")]
    Object(#[from] EbpfError),
    #[error("cannot read the eBPF object: {0}")]
    Elf(#[from] object::Error),
    #[error("the eBPF object has no constant {0}")]
    NoConstant(&'static str),
    #[error(
        "cannot load eBPF program {program}: {error}; duet-agent doctor says what the kernel lacks"
    )]
    Load {
        program: &'static str,
        error: ProgramError,
    },
    #[error("cannot pin or find what is pinned at {}: {error}", pin.display())]
    Pin { pin: PathBuf, error: io::Error },
    #[error("cannot attach eBPF program {program} to {to}: {error}")]
    Attach {
        program: &'static str,
        to: String,
        error: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The node's part of the redirection.
pub struct Interception {
    layout: Layout,
    loader: Mutex<EbpfLoader<'static>>,
    cgroup: Mutex<Arc<Cgroup>>,
    maps: Maps,
    /// As attached, by `ON_CGROUP`'s order.
    programs: Mutex<[u32; ON_CGROUP.len()]>,
    /// The instances of the one on namespaces.
    steering: Mutex<HashMap<NetnsCookie, u32>>,
    /// What is pinned, by where.
    held: Mutex<HashMap<PathBuf, OwnedFd>>,
}

/// What there was before.
pub enum Before {
    /// Nobody who could still have listeners.
    Nothing,
    /// A process whose listeners are still open, with connections that wait.
    Listeners,
    /// An agent that runs, and shares its lock on the directory.
    Agent(File),
}

impl Interception {
    /// Attaches the programs to `cgroup` (default: all processes), or takes over
    /// what an earlier agent left in `bpffs`.
    pub fn start(bpffs: &Path, cgroup: Option<&Path>) -> Result<Self, InterceptionError> {
        Self::after(Before::Nothing, bpffs, cgroup)
    }

    /// As [`Self::start`], and knows of connections that wait to be accepted.
    pub fn after(
        before: Before,
        bpffs: &Path,
        cgroup: Option<&Path>,
    ) -> Result<Self, InterceptionError> {
        let cgroup = Cgroup::open(cgroup)?;
        let (layout, targets) = match before {
            Before::Nothing => (Layout::open(bpffs)?, Targets::Stale),
            Before::Listeners => (Layout::open(bpffs)?, Targets::PartlyStale),
            Before::Agent(lock) => (Layout::with(bpffs, lock)?, Targets::Live),
        };
        let mut loader = loader(&layout);
        let mut object = load(&mut loader, 0)?;
        Maps::check(&object)?;
        let maps = Maps::take(&mut object, targets)?;
        migration::take_over(&layout, &maps)?;
        let programs = attach_all(&mut object, &layout, &cgroup)?;
        let new = Self {
            layout,
            loader: Mutex::new(loader),
            cgroup: Mutex::new(Arc::new(cgroup)),
            maps,
            programs: Mutex::new(programs),
            steering: Mutex::default(),
            held: Mutex::default(),
        };
        new.hold_all()?;
        Ok(new)
    }

    /// Puts this agent's programs into the links again, after another's were there; and on
    /// the cgroup that is there now.
    pub fn reattach(&self) -> Result<(), InterceptionError> {
        let cgroup = self.cgroup();
        if !cgroup.is_there() {
            *self.cgroup.lock() = Arc::new(Cgroup::open(Some(cgroup.path()))?);
        }
        let mut object = load(&mut self.loader.lock(), 0)?;
        *self.programs.lock() = attach_all(&mut object, &self.layout, &self.cgroup())?;
        self.hold_all()
    }

    fn hold_all(&self) -> Result<(), InterceptionError> {
        let links = ON_CGROUP.map(|(name, _)| self.layout.link(name));
        let maps = maps::SIZES.map(|(name, _, _)| self.layout.map(name));
        links
            .into_iter()
            .chain(maps)
            .try_for_each(|pin| self.hold(pin))
    }

    fn hold(&self, pin: PathBuf) -> Result<(), InterceptionError> {
        let object = sys::open_pinned(&pin).map_err(|error| InterceptionError::Pin {
            pin: pin.clone(),
            error,
        })?;
        self.held.lock().insert(pin, object);
        Ok(())
    }

    /// Pins again what is not where it was: the file system has been unmounted, or
    /// somebody has removed it. Returns how much that was.
    pub fn pin_again(&self) -> Result<usize, InterceptionError> {
        let held = self.held.lock();
        let is_lost = |pin: &&PathBuf| !pin.exists();
        if !held.keys().any(|pin| is_lost(&pin)) {
            return Ok(0);
        }
        self.layout.restore()?;
        let mut again = 0;
        for (pin, object) in held.iter().filter(|(pin, _)| is_lost(pin)) {
            let failed = |error| InterceptionError::Pin {
                pin: pin.clone(),
                error,
            };
            sys::pin(object.as_fd(), pin).map_err(failed)?;
            again += 1;
        }
        Ok(again)
    }

    /// Puts right what somebody has undone: programs detached, or the cgroup deleted and
    /// made again. True if there was anything.
    pub fn heal(&self) -> Result<bool, InterceptionError> {
        let is_amiss = self.is_displaced() || self.verify().is_err();
        if is_amiss {
            self.reattach()?;
        }
        Ok(is_amiss)
    }

    /// Whether there is another cgroup now where this one's was. The programs went with it.
    pub fn is_displaced(&self) -> bool {
        let cgroup = self.cgroup();
        FileId::of(cgroup.path()).is_ok_and(|found| found.inode != cgroup.id())
    }

    /// Lets go of what another agent has from now on.
    pub fn let_go(&self) {
        self.layout.let_go();
        self.held.lock().clear();
    }

    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    pub fn cgroup(&self) -> Arc<Cgroup> {
        self.cgroup.lock().clone()
    }

    /// Everything that runs on this agent's behalf: the kernel's number, and the name.
    pub fn programs(&self) -> HashMap<u32, &'static str> {
        let on_cgroup = self.programs.lock().into_iter();
        let on_cgroup = on_cgroup.zip(ON_CGROUP.map(|(name, _)| name));
        let steering = self.steering.lock();
        let on_netns = steering.values().map(|&id| (id, names::SK_LOOKUP));
        on_cgroup.chain(on_netns).collect()
    }

    /// Whether the kernel still runs these very programs for the cgroup's
    /// processes. If not, says which is missing.
    pub fn verify(&self) -> Result<(), String> {
        let cgroup = self.cgroup();
        for ((name, point), id) in ON_CGROUP.into_iter().zip(*self.programs.lock()) {
            effective(cgroup.as_fd(), point, id).map_err(|why| {
                format!("eBPF program {name} on {}: {why}", cgroup.path().display())
            })?;
        }
        Ok(())
    }

    /// Steers connections that arrive in `netns` to the agent's listeners.
    pub fn steer(&self, netns: &Netns) -> Result<Steering, InterceptionError> {
        let program = names::SK_LOOKUP;
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| InterceptionError::Attach {
            program,
            to: netns.path().display().to_string(),
            error,
        };
        let mut object = load(&mut self.loader.lock(), netns.cookie())?;
        let sk_lookup: &mut SkLookup = typed(&mut object, program)?;
        sk_lookup
            .load()
            .map_err(|error| InterceptionError::Load { program, error })?;
        let id = id(program, sk_lookup.info())?;
        let pin = self.layout.pod(netns.cookie());
        let same = |target| matches!(target, LinkTarget::Netns(inode) if inode != 0);
        let fd = sk_lookup.fd().map_err(|error| failed(error.into()))?;
        if !replace(&pin, fd.as_fd(), same).map_err(|error| failed(error.into()))? {
            let link = sk_lookup
                .attach(netns)
                .and_then(|link| sk_lookup.take_link(link))
                .map_err(|error| failed(error.into()))?;
            FdLink::from(link)
                .pin(&pin)
                .map_err(|error| failed(error.into()))?;
        }
        self.hold(pin.clone())?;
        self.steering.lock().insert(netns.cookie(), id);
        Ok(Steering { pin, program: id })
    }

    /// The namespaces that have a pinned link.
    pub fn steered(&self) -> io::Result<Vec<NetnsCookie>> {
        let entries = fs::read_dir(self.layout.pods())?.flatten();
        let cookie = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
        Ok(entries.filter_map(cookie).collect())
    }

    /// Whether a link leads to a namespace no more, or there is none: the namespace may be
    /// gone, or somebody has detached it. What cannot be looked at is not gone.
    pub fn is_gone(&self, netns: NetnsCookie) -> bool {
        let leads_nowhere = |link: &OwnedFd| {
            sys::link_info(link.as_fd()).is_ok_and(|info| info.target == LinkTarget::Netns(0))
        };
        let pin = self.layout.pod(netns);
        if let Some(link) = self.held.lock().get(&pin) {
            return leads_nowhere(link);
        }
        match sys::open_pinned(&pin) {
            Ok(link) => leads_nowhere(&link),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    /// Has the link to a namespace open that an earlier agent enrolled, so that it is not
    /// lost with the file system that it is pinned in.
    pub fn hold_steering(&self, netns: NetnsCookie) -> Result<(), InterceptionError> {
        self.hold(self.layout.pod(netns))
    }

    /// Ends the steering of a namespace.
    pub fn release(&self, netns: NetnsCookie) -> io::Result<()> {
        let pin = self.layout.pod(netns);
        self.steering.lock().remove(&netns);
        self.held.lock().remove(&pin);
        unpin(&pin)
    }
}

/// One namespace's sk_lookup program.
#[derive(Debug)]
pub struct Steering {
    pin: PathBuf,
    program: u32,
}

impl Steering {
    pub fn verify(&self, netns: &Netns) -> Result<(), String> {
        effective(netns.as_fd(), AttachPoint::SkLookup, self.program).map_err(|why| {
            let path = netns.path().display();
            format!("eBPF program {} in {path}: {why}", names::SK_LOOKUP)
        })
    }

    pub fn end(&self) -> io::Result<()> {
        unpin(&self.pin)
    }
}

fn effective(target: BorrowedFd<'_>, point: AttachPoint, id: u32) -> Result<(), String> {
    match sys::effective_programs(target, point) {
        Ok(ids) if ids.contains(&id) => Ok(()),
        Ok(_) => Err("no longer attached".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Detaches what is pinned at `pin`, if anything is.
pub fn unpin(pin: &Path) -> io::Result<()> {
    match sys::open_pinned(pin) {
        // What it was attached to may be gone.
        Ok(link) => drop(sys::detach(link.as_fd())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    fs::remove_file(pin)
}

/// One loader serves all loads: whenever one is made, aya parses the kernel's own
/// type information, which takes 20 ms and 50 MB, and which these programs, that
/// touch no kernel structure, do not need; the memory is given back.
fn loader(layout: &Layout) -> EbpfLoader<'static> {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    duet_core::trim_heap();
    for (name, _, _) in maps::SIZES {
        loader.map_pin_path(name, layout.map(name));
    }
    loader
}

/// Loads the object with its maps from the loader's layout, pinning those that are
/// not.
fn load(loader: &mut EbpfLoader<'static>, netns: NetnsCookie) -> Result<Ebpf, InterceptionError> {
    Ok(loader.load(&object_for(netns)?)?)
}

/// The object with its one constant set. The loader would do it too, and would have to
/// borrow the constant for as long as it lives.
fn object_for(netns: NetnsCookie) -> Result<Vec<u8>, InterceptionError> {
    let elf = ElfFile64::<Endianness>::parse(OBJECT)?;
    let symbol = elf.symbol_by_name(names::NETNS);
    let section = symbol
        .and_then(|symbol| symbol.section_index())
        .and_then(|section| elf.section_by_index(section).ok());
    let (symbol, (section, _)) = symbol
        .zip(section.and_then(|section| section.file_range()))
        .ok_or(InterceptionError::NoConstant(names::NETNS))?;
    let at = (section + symbol.address()) as usize;
    let mut object = OBJECT.to_vec();
    object
        .get_mut(at..at + size_of_val(&netns))
        .ok_or(InterceptionError::NoConstant(names::NETNS))?
        .copy_from_slice(&netns.to_ne_bytes());
    Ok(object)
}

/// Puts `program` into the link at `pin`, if that is one `same` as wanted. What is
/// there otherwise is removed.
fn replace(
    pin: &Path,
    program: BorrowedFd<'_>,
    same: impl FnOnce(LinkTarget) -> bool,
) -> io::Result<bool> {
    let link = match sys::open_pinned(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let info = sys::link_info(link.as_fd())?;
    if same(info.target) {
        sys::replace_program(link.as_fd(), program)?;
        return Ok(true);
    }
    tracing::info!(pin = %pin.display(), found = ?info.target, "removing a link to something else");
    unpin(pin)?;
    Ok(false)
}

fn attach_all(
    object: &mut Ebpf,
    layout: &Layout,
    cgroup: &Cgroup,
) -> Result<[u32; ON_CGROUP.len()], InterceptionError> {
    let mut programs = [0; ON_CGROUP.len()];
    for ((name, _), id) in ON_CGROUP.into_iter().zip(&mut programs) {
        *id = attach_to_cgroup(object, name, layout, cgroup)?;
    }
    Ok(programs)
}

fn attach_to_cgroup(
    object: &mut Ebpf,
    name: &'static str,
    layout: &Layout,
    cgroup: &Cgroup,
) -> Result<u32, InterceptionError> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| InterceptionError::Attach {
        program: name,
        to: cgroup.path().display().to_string(),
        error,
    };
    let loading = |error| InterceptionError::Load {
        program: name,
        error,
    };
    let pin = layout.link(name);
    let same = |target| target == LinkTarget::Cgroup(cgroup.id());
    // aya's link-based attachment allows others beside it in any case; asking for
    // that explicitly is what the kernel refuses.
    let mode = CgroupAttachMode::Single;
    let program = object
        .program_mut(name)
        .ok_or_else(|| loading(ProgramError::NotLoaded))?;
    let link: FdLink = match program {
        Program::CgroupSockAddr(program) => {
            program.load().map_err(loading)?;
            let fd = program.fd().map_err(loading)?.as_fd();
            if replace(&pin, fd, same).map_err(|error| failed(error.into()))? {
                return id(name, program.info());
            }
            program
                .attach(cgroup, mode)
                .and_then(|link| program.take_link(link))
                .map_err(|error| failed(error.into()))?
                .try_into()
                .map_err(|error: aya::programs::links::LinkError| failed(error.into()))?
        }
        Program::SockOps(program) => {
            program.load().map_err(loading)?;
            let fd = program.fd().map_err(loading)?.as_fd();
            if replace(&pin, fd, same).map_err(|error| failed(error.into()))? {
                return id(name, program.info());
            }
            program
                .attach(cgroup, mode)
                .and_then(|link| program.take_link(link))
                .map_err(|error| failed(error.into()))?
                .try_into()
                .map_err(|error: aya::programs::links::LinkError| failed(error.into()))?
        }
        _ => return Err(loading(ProgramError::UnexpectedProgramType)),
    };
    link.pin(&pin).map_err(|error| failed(error.into()))?;
    let program = object
        .program(name)
        .ok_or_else(|| loading(ProgramError::NotLoaded))?;
    id(name, program.info())
}

fn id(
    program: &'static str,
    info: Result<aya::programs::ProgramInfo, ProgramError>,
) -> Result<u32, InterceptionError> {
    match info {
        Ok(info) => Ok(info.id()),
        Err(error) => Err(InterceptionError::Load { program, error }),
    }
}

fn typed<'a, T>(object: &'a mut Ebpf, name: &'static str) -> Result<T, InterceptionError>
where
    T: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let loading = |error| InterceptionError::Load {
        program: name,
        error,
    };
    let program = object
        .program_mut(name)
        .ok_or_else(|| loading(ProgramError::NotLoaded))?;
    program.try_into().map_err(loading)
}

/// A program, and whether it could be loaded.
pub type Rehearsed = (&'static str, Result<(), ProgramError>);

/// Loads every program, the verifier's examination included, and attaches none.
/// Says which could not be.
pub fn rehearse() -> Result<Vec<Rehearsed>, EbpfError> {
    let mut object = EbpfLoader::new().load(OBJECT)?;
    let on_cgroup = ON_CGROUP.into_iter().map(|(name, _)| name);
    let outcomes = on_cgroup
        .chain([names::SK_LOOKUP])
        .map(|name| {
            let outcome = match object.program_mut(name) {
                Some(Program::CgroupSockAddr(program)) => program.load(),
                Some(Program::SockOps(program)) => program.load(),
                Some(Program::SkLookup(program)) => program.load(),
                _ => Err(ProgramError::UnexpectedProgramType),
            };
            (name, outcome)
        })
        .collect();
    Ok(outcomes)
}
