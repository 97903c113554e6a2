//! A sorted map whose versions share what they have in common.
//!
//! A mesh of 10 000 pods changes a little, often, and every proxy wants to know
//! what changed since *its* last update. So a clone must cost nothing, and two
//! clones must be compared in the time that their difference takes, not their
//! size. Entries stand in sorted chunks behind reference counts: a change copies
//! one chunk, and chunks that two versions share need no look.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Index;
use std::sync::Arc;

/// Entries in one chunk at most. A change copies one chunk and one pointer for each
/// chunk, which is least where the two are alike: at some 10 000 entries.
const CHUNK: usize = 64;

type Chunk<K, V> = Vec<(K, Arc<V>)>;

/// Reads as a `BTreeMap`; only the state itself writes to it.
pub struct Table<K, V> {
    /// Neither empty nor longer than [`CHUNK`], each.
    chunks: Arc<Vec<Arc<Chunk<K, V>>>>,
    len: usize,
}

/// One key of two versions; the values differ, unless everything was asked for.
#[derive(Debug)]
pub(super) struct Change<'a, K, V> {
    pub key: &'a K,
    pub before: Option<&'a Arc<V>>,
    pub after: Option<&'a Arc<V>>,
}

/// A place in a table.
struct Cursor<'a, K, V> {
    chunks: &'a [Arc<Chunk<K, V>>],
    chunk: usize,
    entry: usize,
}

struct Walk<'a, K, V> {
    before: Cursor<'a, K, V>,
    after: Cursor<'a, K, V>,
    everything: bool,
}

// === impl Table ===

impl<K: Ord + Clone, V> Table<K, V> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn find<Q>(&self, key: &Q) -> Option<&Arc<V>>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        let chunk = self.chunks.get(self.chunk_of(key))?;
        let at = chunk
            .binary_search_by(|(known, _)| known.borrow().cmp(key))
            .ok()?;
        Some(&chunk[at].1)
    }

    /// In the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &Arc<V>)> {
        self.chunks
            .iter()
            .flat_map(|chunk| chunk.iter().map(|(key, value)| (key, value)))
    }

    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    pub fn values(&self) -> impl Iterator<Item = &Arc<V>> {
        self.iter().map(|(_, value)| value)
    }

    /// What was there before.
    pub(super) fn insert(&mut self, key: K, value: Arc<V>) -> Option<Arc<V>> {
        let chunks = Arc::make_mut(&mut self.chunks);
        if chunks.is_empty() {
            chunks.push(Arc::default());
        }
        let index = chunk_of(chunks, &key).min(chunks.len() - 1);
        let chunk = Arc::make_mut(&mut chunks[index]);
        match chunk.binary_search_by(|(known, _)| known.cmp(&key)) {
            Ok(at) => Some(std::mem::replace(&mut chunk[at].1, value)),
            Err(at) => {
                chunk.insert(at, (key, value));
                if chunk.len() > CHUNK {
                    let rest = chunk.split_off(chunk.len() / 2);
                    chunks.insert(index + 1, Arc::new(rest));
                }
                self.len += 1;
                None
            }
        }
    }

    pub(super) fn remove<Q>(&mut self, key: &Q) -> Option<Arc<V>>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        let index = self.chunk_of(key);
        let at = self
            .chunks
            .get(index)?
            .binary_search_by(|(known, _)| known.borrow().cmp(key))
            .ok()?;
        let chunks = Arc::make_mut(&mut self.chunks);
        let (_, removed) = Arc::make_mut(&mut chunks[index]).remove(at);
        self.len -= 1;
        let left = chunks[index].len();
        let neighbour = chunks.get(index + 1).map_or(CHUNK, |next| next.len());
        if left == 0 {
            chunks.remove(index);
        } else if left + neighbour <= CHUNK / 2 {
            let next = chunks.remove(index + 1);
            Arc::make_mut(&mut chunks[index]).extend(next.iter().cloned());
        }
        Some(removed)
    }

    fn chunk_of<Q>(&self, key: &Q) -> usize
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        chunk_of(&self.chunks, key)
    }
}

impl<K: Ord + Clone, V: PartialEq> Table<K, V> {
    /// What differs from `before`, in the order of the keys.
    pub(super) fn changes<'a>(
        &'a self,
        before: &'a Self,
    ) -> impl Iterator<Item = Change<'a, K, V>> {
        self.walk(before, false)
    }

    /// Every key of the two, in order, also where nothing differs.
    pub(super) fn beside<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = Change<'a, K, V>> {
        self.walk(before, true)
    }

    fn walk<'a>(&'a self, before: &'a Self, everything: bool) -> Walk<'a, K, V> {
        let same = Arc::ptr_eq(&self.chunks, &before.chunks) && !everything;
        let chunks = |table: &'a Self| if same { &[] } else { &table.chunks[..] };
        Walk {
            before: Cursor::new(chunks(before)),
            after: Cursor::new(chunks(self)),
            everything,
        }
    }
}

impl<V> Table<Arc<str>, V> {
    pub fn get(&self, key: &str) -> Option<&Arc<V>> {
        self.find(key)
    }

    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }
}

/// The first chunk that ends at `key` or behind it: where the key is, if anywhere.
fn chunk_of<K, V, Q>(chunks: &[Arc<Chunk<K, V>>], key: &Q) -> usize
where
    K: Borrow<Q>,
    Q: Ord + ?Sized,
{
    chunks.partition_point(|chunk| chunk.last().is_some_and(|(last, _)| last.borrow() < key))
}

impl<K, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        Self {
            chunks: self.chunks.clone(),
            len: self.len,
        }
    }
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            chunks: Arc::default(),
            len: 0,
        }
    }
}

impl<K: Ord + Clone, V: PartialEq> PartialEq for Table<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.changes(other).next().is_none()
    }
}

impl<K: Ord + Clone + fmt::Debug, V: fmt::Debug> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<V> Index<&str> for Table<Arc<str>, V> {
    type Output = V;

    /// # Panics
    /// When there is no such key, as a map does.
    fn index(&self, key: &str) -> &V {
        self.get(key).expect("no entry found for key")
    }
}

// === impl Walk ===

impl<'a, K: Ord, V: PartialEq> Iterator for Walk<'a, K, V> {
    type Item = Change<'a, K, V>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            while !self.everything && self.before.shares_chunk(&self.after) {
                self.before.skip_chunk();
                self.after.skip_chunk();
            }
            let (before, after) = (self.before.peek(), self.after.peek());
            let order = match (before, after) {
                (None, None) => return None,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some((before, _)), Some((after, _))) => before.cmp(after),
            };
            let before = before.filter(|_| order.is_le());
            let after = after.filter(|_| order.is_ge());
            if before.is_some() {
                self.before.step();
            }
            if after.is_some() {
                self.after.step();
            }
            let (key, _) = before.or(after)?;
            let (before, after) = (before.map(|(_, v)| v), after.map(|(_, v)| v));
            let same = match (before, after) {
                (Some(before), Some(after)) => Arc::ptr_eq(before, after) || before == after,
                _ => false,
            };
            if self.everything || !same {
                return Some(Change { key, before, after });
            }
        }
    }
}

// === impl Cursor ===

impl<'a, K, V> Cursor<'a, K, V> {
    fn new(chunks: &'a [Arc<Chunk<K, V>>]) -> Self {
        Self {
            chunks,
            chunk: 0,
            entry: 0,
        }
    }

    fn peek(&self) -> Option<(&'a K, &'a Arc<V>)> {
        let (key, value) = self.chunks.get(self.chunk)?.get(self.entry)?;
        Some((key, value))
    }

    fn step(&mut self) {
        self.entry += 1;
        if self.entry == self.chunks[self.chunk].len() {
            self.skip_chunk();
        }
    }

    fn skip_chunk(&mut self) {
        self.chunk += 1;
        self.entry = 0;
    }

    /// Whether both stand at the beginning of one and the same chunk.
    fn shares_chunk(&self, other: &Self) -> bool {
        self.entry == 0
            && other.entry == 0
            && match (self.chunks.get(self.chunk), other.chunks.get(other.chunk)) {
                (Some(one), Some(another)) => Arc::ptr_eq(one, another),
                _ => false,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    type Model = BTreeMap<u16, u8>;

    fn build(entries: &Model) -> Table<u16, u8> {
        let mut table = Table::default();
        for (key, value) in entries {
            table.insert(*key, Arc::new(*value));
        }
        table
    }

    fn content(table: &Table<u16, u8>) -> Model {
        table.iter().map(|(key, value)| (*key, **value)).collect()
    }

    /// Values to put, and `None` to take away.
    fn edits() -> impl Strategy<Value = Vec<(u16, Option<u8>)>> {
        proptest::collection::vec((0..400u16, proptest::option::weighted(0.6, 0..3u8)), 0..300)
    }

    fn models() -> impl Strategy<Value = Model> {
        proptest::collection::btree_map(0..400u16, 0..3u8, 0..400)
    }

    proptest! {
        #[test]
        fn reads_as_a_map_after_any_edits(model in models(), edits in edits()) {
            let (mut model, mut table) = (model.clone(), build(&model));
            for (key, value) in edits {
                let (expected, found) = match value {
                    Some(value) => (
                        model.insert(key, value),
                        table.insert(key, Arc::new(value)),
                    ),
                    None => (model.remove(&key), table.remove(&key)),
                };
                prop_assert_eq!(expected, found.map(|found| *found));
                prop_assert_eq!(table.len(), model.len());
            }
            prop_assert_eq!(content(&table), model.clone());
            for key in 0..400u16 {
                prop_assert_eq!(table.find(&key).map(|value| **value), model.get(&key).copied());
            }
            prop_assert!(table.chunks.iter().all(|chunk| (1..=CHUNK).contains(&chunk.len())));
        }

        #[test]
        fn a_clone_is_not_touched_and_its_changes_lead_on(model in models(), edits in edits()) {
            let before = build(&model);
            let mut after = before.clone();
            for (key, value) in edits {
                match value {
                    Some(value) => drop(after.insert(key, Arc::new(value))),
                    None => drop(after.remove(&key)),
                }
            }
            prop_assert_eq!(content(&before), model.clone());
            let mut held = model;
            for change in after.changes(&before) {
                prop_assert_ne!(change.before, change.after);
                match change.after {
                    Some(value) => drop(held.insert(*change.key, **value)),
                    None => drop(held.remove(change.key)),
                }
            }
            prop_assert_eq!(held, content(&after));
            prop_assert_eq!(after == before, after.changes(&before).next().is_none());
        }

        #[test]
        fn every_key_of_the_two_comes_once_and_in_order(a in models(), b in models()) {
            let (a, b) = (build(&a), build(&b));
            let keys: Vec<u16> = b.beside(&a).map(|change| *change.key).collect();
            let mut expected: Vec<u16> = a.keys().chain(b.keys()).copied().collect();
            expected.sort_unstable();
            expected.dedup();
            prop_assert_eq!(keys, expected);
        }
    }

    #[test]
    fn one_change_in_many_is_found_without_a_look_at_the_rest() {
        let before = build(&(0..10_000).map(|key| (key, 0)).collect());
        let mut after = before.clone();
        after.insert(5_000, Arc::new(1));
        let shared = before
            .chunks
            .iter()
            .filter(|chunk| after.chunks.iter().any(|other| Arc::ptr_eq(chunk, other)))
            .count();
        assert_eq!(shared, before.chunks.len() - 1);
        let changes: Vec<_> = after.changes(&before).map(|change| *change.key).collect();
        assert_eq!(changes, [5_000]);
    }
}
