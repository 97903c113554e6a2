//! Objects by name, and who refers to whom.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

/// "namespace/name"; a namespace's and a node's have no slash.
pub type Name = Arc<str>;

/// What the API server says of the objects of one kind.
#[derive(Debug)]
pub enum Change<T> {
    Put(Name, T),
    Gone(Name),
    /// A list begins: what it does not name is gone when it ends.
    Listing,
    Listed,
}

/// The objects of one kind, as last heard of.
pub struct Objects<T> {
    all: BTreeMap<Name, T>,
    /// What a list has named so far, while one is read.
    listed: Option<HashSet<Name>>,
}

/// Names that belong to a key.
pub struct Index<K>(HashMap<K, BTreeSet<Name>>);

// === impl Change ===

impl<T> Change<T> {
    pub fn map<U>(self, read: impl FnOnce(&Name, T) -> U) -> Change<U> {
        match self {
            Self::Put(name, object) => {
                let read = read(&name, object);
                Change::Put(name, read)
            }
            Self::Gone(name) => Change::Gone(name),
            Self::Listing => Change::Listing,
            Self::Listed => Change::Listed,
        }
    }
}

impl<T> Change<Option<T>> {
    /// An object that is none of ours is as one that is gone.
    pub fn present(self) -> Change<T> {
        match self {
            Self::Put(name, Some(object)) => Change::Put(name, object),
            Self::Put(name, None) | Self::Gone(name) => Change::Gone(name),
            Self::Listing => Change::Listing,
            Self::Listed => Change::Listed,
        }
    }
}

// === impl Objects ===

impl<T> Default for Objects<T> {
    fn default() -> Self {
        Self {
            all: BTreeMap::new(),
            listed: None,
        }
    }
}

impl<T> Objects<T> {
    pub fn get(&self, name: &str) -> Option<&T> {
        self.all.get(name)
    }

    pub fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = (&Name, &T)> {
        let prefix = format!("{namespace}/");
        let from = Name::from(&*prefix);
        self.all
            .range(from..)
            .take_while(move |(name, _)| name.starts_with(&prefix))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Name, &T)> {
        self.all.iter()
    }

    /// What was there before.
    pub fn set(&mut self, name: &Name, object: Option<T>) -> Option<T> {
        match object {
            Some(object) => self.all.insert(name.clone(), object),
            None => self.all.remove(name),
        }
    }
}

impl<T: PartialEq> Objects<T> {
    /// What `change` makes of which objects; nothing of those that stay as they are.
    pub fn steps(&mut self, change: Change<T>) -> Vec<(Name, Option<T>)> {
        match change {
            Change::Put(name, object) => {
                if let Some(listed) = &mut self.listed {
                    listed.insert(name.clone());
                }
                if self.all.get(&name) == Some(&object) {
                    return Vec::new();
                }
                vec![(name, Some(object))]
            }
            Change::Gone(name) if self.all.contains_key(&name) => vec![(name, None)],
            Change::Gone(_) => Vec::new(),
            Change::Listing => {
                self.listed = Some(HashSet::new());
                Vec::new()
            }
            Change::Listed => {
                let listed = self.listed.take().unwrap_or_default();
                let gone = self.all.keys().filter(|name| !listed.contains(*name));
                gone.map(|name| (name.clone(), None)).collect()
            }
        }
    }
}

// === impl Index ===

impl<K> Default for Index<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Hash + Eq> Index<K> {
    pub fn get<Q>(&self, key: &Q) -> impl Iterator<Item = &Name>
    where
        K: std::borrow::Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.0.get(key).into_iter().flatten()
    }

    pub fn add(&mut self, key: K, name: &Name) {
        self.0.entry(key).or_default().insert(name.clone());
    }

    pub fn remove(&mut self, key: &K, name: &Name) {
        if let Some(names) = self.0.get_mut(key) {
            names.remove(name);
            if names.is_empty() {
                self.0.remove(key);
            }
        }
    }
}
