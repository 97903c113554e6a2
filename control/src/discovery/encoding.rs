//! Updates as they go over the wire, made once for all who are told the same.
//!
//! Most proxies hear the same thing at the same time: the newest change, and after a
//! restart the whole mesh. What they hear is encoded once and shared, so that a
//! thousand proxies that come back together cost one snapshot's memory and not a
//! thousand.

use crate::state::{MeshState, Scope};
use bytes::{BufMut, Bytes, BytesMut};
use duet_core::api::Update;
use prost::Message as _;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// How much is kept of what was told of one state. Beyond it, each is told for itself.
pub const MAX_KEPT_BYTES: usize = 32 * 1024 * 1024;
/// Different updates that are kept of one state.
pub const MAX_KEPT: usize = 1024;

/// A compression flag and a length, before each message (gRPC over HTTP/2).
const PREFIX: usize = 5;

/// One gRPC message, in pieces that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    pub snapshot: bool,
    pub pieces: Vec<Bytes>,
}

/// What was encoded of the newest state that was asked for.
#[derive(Default)]
pub struct Encodings(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    version: u64,
    bytes: usize,
    updates: HashMap<Key, Slot>,
}

/// Of one state: from which version and scope, to which scope.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    from: Option<(u64, Scope)>,
    to: Scope,
}

/// `None`: there is nothing to tell. Whoever comes first encodes; the others wait.
type Slot = Arc<OnceLock<Option<Bytes>>>;

// === impl Encodings ===

impl Encodings {
    /// What a watcher that heard `before` is to be told, if anything.
    pub fn update(
        &self,
        state: &MeshState,
        scope: &Scope,
        before: Option<(&MeshState, &Scope)>,
    ) -> Option<Encoded> {
        let encode = || {
            let update = match before {
                None => Some(state.snapshot(scope)),
                Some((before, before_scope)) => state.delta(scope, before, before_scope),
            };
            update.map(|update| framed(&update))
        };
        let framed = match self.slot(state, scope, before) {
            None => encode(),
            Some(slot) => {
                let mut bytes = 0;
                let framed = slot.get_or_init(|| {
                    let framed = encode();
                    bytes = framed.as_ref().map_or(0, Bytes::len);
                    framed
                });
                if bytes > 0 {
                    self.kept(|kept| {
                        if kept.version == state.version {
                            kept.bytes += bytes;
                        }
                    });
                }
                framed.clone()
            }
        };
        framed.map(|framed| Encoded {
            snapshot: before.is_none(),
            pieces: vec![framed],
        })
    }

    fn slot(
        &self,
        state: &MeshState,
        scope: &Scope,
        before: Option<(&MeshState, &Scope)>,
    ) -> Option<Slot> {
        self.kept(|kept| {
            if kept.version < state.version {
                *kept = Kept {
                    version: state.version,
                    ..Kept::default()
                };
            }
            let key = Key {
                from: before.map(|(state, scope)| (state.version, scope.clone())),
                to: scope.clone(),
            };
            if kept.version != state.version {
                return None;
            }
            if let Some(slot) = kept.updates.get(&key) {
                return Some(slot.clone());
            }
            if kept.updates.len() >= MAX_KEPT || kept.bytes >= MAX_KEPT_BYTES {
                return None;
            }
            let slot = Slot::default();
            kept.updates.insert(key, slot.clone());
            Some(slot)
        })
    }

    fn kept<T>(&self, act: impl FnOnce(&mut Kept) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

// === impl Encoded ===

impl Encoded {
    pub fn of(update: &Update) -> Self {
        Self {
            snapshot: update.snapshot,
            pieces: vec![framed(update)],
        }
    }

    /// The same update with the roots told too. In protobuf, a message behind another
    /// adds to it.
    pub fn with_roots(self, roots: Vec<Vec<u8>>) -> Self {
        let roots = Update {
            roots,
            ..Update::default()
        };
        let roots = Bytes::from(roots.encode_to_vec());
        let mut pieces: Vec<Bytes> = self.pieces;
        let first = pieces.remove(0).split_off(PREFIX);
        let length = first.len() + pieces.iter().map(Bytes::len).sum::<usize>() + roots.len();
        let mut all = vec![prefix(length), first];
        all.append(&mut pieces);
        all.push(roots);
        Self {
            snapshot: self.snapshot,
            pieces: all,
        }
    }
}

fn framed(update: &Update) -> Bytes {
    let length = update.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put(prefix(length));
    update
        .encode(&mut bytes)
        .expect("there is room for what was measured");
    bytes.freeze()
}

fn prefix(length: usize) -> Bytes {
    let mut bytes = BytesMut::with_capacity(PREFIX);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).expect("a mesh is smaller than 4 GiB"));
    bytes.freeze()
}

#[cfg(test)]
impl Encoded {
    pub fn decode(&self) -> Update {
        let whole = self.pieces.concat();
        let (head, body) = whole.split_at(PREFIX);
        assert_eq!(head[0], 0);
        assert_eq!(
            u32::from_be_bytes(head[1..].try_into().unwrap()) as usize,
            body.len()
        );
        Update::decode(body).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use duet_core::api::Workload;

    fn state(version: u64, names: &[&str]) -> MeshState {
        let mut state = MeshState::new("duet.local");
        state.version = version;
        for name in names {
            state.put_workload(Workload {
                namespace: "default".into(),
                name: (*name).into(),
                ..Workload::default()
            });
        }
        state
    }

    #[test]
    fn what_is_told_to_many_is_made_once() {
        let (one, two) = (state(1, &["a"]), state(2, &["a", "b"]));
        let encodings = Encodings::default();
        let all = Scope::Everything;
        let told = |before: Option<(&MeshState, &Scope)>| encodings.update(&two, &all, before);
        let (first, again) = (told(None).unwrap(), told(None).unwrap());
        assert_eq!(first.decode(), two.snapshot(&all));
        assert_eq!(first.pieces[0].as_ptr(), again.pieces[0].as_ptr());

        let delta = told(Some((&one, &all))).unwrap();
        assert!(!delta.snapshot);
        assert_eq!(delta.decode(), two.delta(&all, &one, &all).unwrap());
        let nobody = Scope::Namespaces(Default::default());
        let smaller = encodings.update(&two, &nobody, Some((&one, &all))).unwrap();
        assert_eq!(smaller.decode().removed_workloads, ["default/a"]);
        assert_eq!(told(Some((&two, &all))), None);

        // Whoever is behind is told rightly, and costs the others nothing.
        let late = encodings.update(&one, &all, None).unwrap();
        assert_eq!(late.decode(), one.snapshot(&all));
        assert_eq!(
            told(None).unwrap().pieces[0].as_ptr(),
            first.pieces[0].as_ptr()
        );
    }

    #[test]
    fn roots_join_what_is_shared() {
        let state = state(3, &["a"]);
        let encodings = Encodings::default();
        let shared = encodings.update(&state, &Scope::Everything, None).unwrap();
        let roots = vec![vec![1, 2, 3], vec![4; 300]];
        let with_roots = shared.clone().with_roots(roots.clone());
        let expected = Update {
            roots,
            ..state.snapshot(&Scope::Everything)
        };
        assert_eq!(with_roots.decode(), expected);
        assert_eq!(shared.decode(), state.snapshot(&Scope::Everything));
        assert!(
            with_roots
                .pieces
                .iter()
                .any(|piece| { piece.as_ptr() == shared.pieces[0][PREFIX..].as_ptr() })
        );
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let encodings = Encodings::default();
        let state = state(1, &["a"]);
        for number in 0..2 * MAX_KEPT {
            let scope = Scope::Namespaces([number.to_string()].into());
            assert!(encodings.update(&state, &scope, None).is_some());
        }
        assert_eq!(encodings.kept(|kept| kept.updates.len()), MAX_KEPT);
    }
}
