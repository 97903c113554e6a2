use super::*;
use crate::ca::NewRoot;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use proptest::prelude::*;
use std::sync::LazyLock;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn settings() -> Settings {
    Settings {
        cert_lifetime: 60 * MINUTE,
        overlap: 10 * MINUTE,
        slack: 10 * MINUTE,
        root_lifetime: 3650 * DAY,
        namespaces: None,
    }
}

fn issuer(lifetime: Duration) -> Arc<Issuer> {
    let root = NewRoot::valid_for(lifetime).unwrap();
    Arc::new(Issuer::from_pem(&root.certificate, &root.key, &root.certificate).unwrap())
}

/// Made once: keys take time.
static SUPPLY: LazyLock<Vec<Arc<Issuer>>> =
    LazyLock::new(|| (0..5).map(|_| issuer(3650 * DAY)).collect());

/// A Secret, replicas that go by it, and the leaves that they have signed.
struct World {
    settings: Settings,
    now: SystemTime,
    secret: Option<Secret>,
    replicas: Vec<Option<Held>>,
    leader: usize,
    /// Root and end.
    leaves: Vec<(String, SystemTime)>,
    /// Since when everybody has been told to trust a root without a break.
    told: Vec<(String, SystemTime)>,
    version: u64,
    did: Vec<Did>,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            settings: settings(),
            now: SystemTime::now(),
            secret: None,
            replicas: vec![None, None],
            leader: 0,
            leaves: Vec::new(),
            told: Vec::new(),
            version: 0,
            did: Vec::new(),
        };
        world.settle();
        world
    }

    /// Every replica looks, and the leader acts until there is nothing to do.
    fn settle(&mut self) {
        for _ in 0..20 {
            let longest = self.settings.cert_lifetime + self.settings.slack;
            let stored = self
                .secret
                .as_ref()
                .map(|secret| Stored::read(secret, self.now, longest));
            for held in &mut self.replicas {
                if let Some(stored) = &stored {
                    *held = Held::from(stored, held.as_ref(), self.now);
                }
            }
            let held = self.replicas[self.leader].as_ref();
            match Step::next(held, stored.as_ref(), true, &self.settings, self.now) {
                Step::Wait(_) => return self.check(),
                Step::Create | Step::Replace => {
                    let root = issuer(self.settings.root_lifetime);
                    let change = Change {
                        supplied: Some(root.clone()),
                        made_here: true,
                        signing: Some(root),
                        leaf_lifetime: Some(self.settings.cert_lifetime),
                        ..Change::default()
                    };
                    self.secret = Some(change.secret());
                }
                Step::Restore(change) => self.secret = Some(change.secret()),
                Step::Renew => {
                    let change = Change {
                        supplied: Some(issuer(self.settings.root_lifetime)),
                        made_here: true,
                        ..Change::default()
                    };
                    self.apply(&change, stored.as_ref().unwrap());
                }
                Step::Write(did, change) => {
                    self.did.push(did);
                    self.apply(&change, stored.as_ref().unwrap());
                }
            }
        }
        panic!("the leader never comes to rest: {:?}", self.did);
    }

    fn apply(&mut self, change: &Change, over: &Stored) {
        let mut json = serde_json::to_value(&self.secret).unwrap();
        json_patch::merge(&mut json, &change.patch(over));
        let mut secret: Secret = serde_json::from_value(json).unwrap();
        self.version += 1;
        secret.metadata.resource_version = Some(self.version.to_string());
        self.secret = Some(secret);
    }

    /// Whatever was signed and has not ended is believed by everybody, and what signs
    /// has been known to everybody for long enough.
    fn check(&mut self) {
        let now = self.now;
        self.leaves.retain(|(_, end)| *end > now);
        let mut told: Option<Vec<String>> = None;
        for held in self.replicas.iter().flatten() {
            let authority = held.authority();
            let bundle: Vec<_> = authority.bundle().iter().map(fingerprint).collect();
            assert_eq!(bundle[0], fingerprint(held.signing.root()));
            for (root, _) in &self.leaves {
                assert!(bundle.contains(root), "a leaf is believed no more");
            }
            let since = self.told.iter().find(|(root, _)| *root == bundle[0]);
            let is_first = self.told.is_empty();
            assert!(
                is_first || since.is_some_and(|(_, since)| *since + self.settings.overlap <= now),
                "a root signs that proxies may not know yet"
            );
            told = Some(match told {
                None => bundle,
                Some(told) => told
                    .into_iter()
                    .filter(|one| bundle.contains(one))
                    .collect(),
            });
        }
        let Some(told) = told else { return };
        self.told.retain(|(root, _)| told.contains(root));
        for root in told {
            if !self.told.iter().any(|(known, _)| *known == root) {
                // The first root of all needs nobody to have been told before.
                let since = if self.told.is_empty() {
                    now - self.settings.overlap
                } else {
                    now
                };
                self.told.push((root, since));
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.settle();
    }

    fn sign(&mut self, replica: usize) {
        if let Some(held) = &self.replicas[replica] {
            let end = self.now + self.settings.cert_lifetime;
            self.leaves.push((fingerprint(held.signing.root()), end));
        }
    }

    fn put(&mut self, key: &str, text: &str) {
        let secret = self.secret.get_or_insert_default();
        let data = secret.data.get_or_insert_default();
        data.insert(key.to_owned(), ByteString(text.as_bytes().to_vec()));
    }

    /// As cert-manager does it, or as `kubectl create --dry-run | kubectl replace` does.
    fn supply(&mut self, issuer: &Issuer, over_everything: bool) {
        if over_everything {
            self.secret = Some(Secret::default());
        }
        self.put("tls.crt", issuer.chain_pem());
        self.put("tls.key", issuer.key_pem());
        self.put("ca.crt", issuer.chain_pem());
        self.settle();
    }

    fn bundle(&self) -> Vec<String> {
        let held = self.replicas[0].as_ref().unwrap();
        held.authority().bundle().iter().map(fingerprint).collect()
    }

    fn signing(&self) -> String {
        self.bundle()[0].clone()
    }
}

fn root_of(issuer: &Issuer) -> String {
    fingerprint(issuer.root())
}

#[test]
fn a_rotation_takes_its_time() {
    let mut world = World::new();
    let old = world.signing();
    world.sign(0);
    let new = root_of(&SUPPLY[0]);
    world.supply(&SUPPLY[0], false);
    assert_eq!(
        world.bundle(),
        [old.clone(), new.clone()],
        "both are told of at once"
    );
    world.pass(9 * MINUTE);
    assert_eq!(world.signing(), old);
    world.sign(1);
    world.pass(MINUTE);
    assert_eq!(
        world.bundle(),
        [new.clone(), old.clone()],
        "now the new one signs"
    );
    // The last leaf below the old root, and the slack.
    world.pass(69 * MINUTE);
    assert_eq!(world.bundle(), [new.clone(), old]);
    world.pass(2 * MINUTE);
    assert_eq!(world.bundle(), [new]);
    assert_eq!(world.did, [Did::Publish, Did::Switch, Did::Drop]);
}

#[test]
fn a_rotation_goes_on_where_another_replica_stopped() {
    let mut world = World::new();
    let old = world.signing();
    world.supply(&SUPPLY[0], false);
    world.pass(5 * MINUTE);
    // Nobody remembers anything but the Secret.
    world.replicas = vec![None, None];
    world.leader = 1;
    world.pass(4 * MINUTE);
    assert_eq!(world.signing(), old, "the old key is still there");
    world.replicas = vec![None, None];
    world.pass(MINUTE);
    assert_eq!(world.signing(), root_of(&SUPPLY[0]));
    world.replicas = vec![None, None];
    world.pass(2 * 60 * MINUTE);
    assert_eq!(world.bundle(), [root_of(&SUPPLY[0])]);
}

#[test]
fn the_overlap_begins_when_every_namespace_has_the_bundle() {
    let world = World::new();
    let mut secret = world.secret.clone().unwrap();
    let data = secret.data.as_mut().unwrap();
    for (key, text) in [
        ("tls.crt", SUPPLY[0].chain_pem()),
        ("tls.key", SUPPLY[0].key_pem()),
    ] {
        data.insert(key.to_owned(), ByteString(text.as_bytes().to_vec()));
    }
    let stored = Stored::read(&secret, world.now, DAY);
    let held = Held::from(&stored, None, world.now).unwrap();
    let next = |published| {
        let much_later = world.now + DAY;
        Step::next(
            Some(&held),
            Some(&stored),
            published,
            &settings(),
            much_later,
        )
    };
    assert!(matches!(next(false), Step::Wait(None)), "{:?}", next(false));
    assert!(matches!(next(true), Step::Write(Did::Publish, _)));
}

#[test]
fn a_root_of_our_own_is_replaced_in_time() {
    let mut world = World::new();
    world.settings.root_lifetime = 10 * DAY;
    world.secret = None;
    world.replicas = vec![None, None];
    world.told.clear();
    world.settle();
    let first = world.signing();
    world.pass(7 * DAY);
    assert_eq!(world.bundle(), [&*first]);
    world.pass(DAY + MINUTE);
    assert_eq!(world.bundle().len(), 2);
    assert_eq!(world.signing(), first);
    world.pass(11 * MINUTE);
    assert_ne!(world.signing(), first);
}

#[test]
fn what_others_supply_is_theirs_to_replace() {
    let mut world = World::new();
    let supplied = issuer(10 * DAY);
    world.secret = None;
    world.replicas = vec![None, None];
    world.told.clear();
    world.supply(&supplied, true);
    assert_eq!(world.signing(), root_of(&supplied));
    world.pass(9 * DAY);
    assert_eq!(world.bundle(), [root_of(&supplied)]);
}

#[test]
fn damage_keeps_the_last_good_ca() {
    let mut world = World::new();
    let good = world.signing();
    world.put("tls.crt", "-----BEGIN CERTIFICATE-----\nnonsense");
    world.settle();
    assert_eq!(world.bundle(), [&*good]);
    // A replica that starts now reads what signs.
    world.replicas[1] = None;
    world.settle();
    assert_eq!(
        world.replicas[1].as_ref().unwrap().signing.not_after(),
        world.replicas[0].as_ref().unwrap().signing.not_after()
    );
    world.put("signing.key", "nonsense");
    world.settle();
    assert_eq!(world.bundle(), [&*good]);
    let secret = world.secret.as_ref().unwrap();
    let stored = Stored::read(secret, world.now, DAY);
    assert!(
        matches!(&stored.signing, Some(Ok(signing)) if root_of(signing) == good),
        "the leader repairs it"
    );
    assert!(stored.supplied.unwrap_err().starts_with("tls.crt holds"));
}

#[test]
fn a_deleted_secret_comes_back_as_it_was() {
    let mut world = World::new();
    let old = world.signing();
    world.supply(&SUPPLY[0], false);
    world.pass(11 * MINUTE);
    let before = world.bundle();
    assert_eq!(before, [root_of(&SUPPLY[0]), old]);
    world.secret = None;
    world.settle();
    assert_eq!(world.bundle(), before);
    world.replicas = vec![None, None];
    world.settle();
    assert_eq!(world.bundle(), before);
}

#[derive(Clone, Debug)]
enum Happens {
    Pass(u32),
    Supply(usize, bool),
    Damage,
    Delete,
    Restart(usize),
    Elect(usize),
    Sign(usize),
}

fn happenings() -> impl Strategy<Value = Vec<Happens>> {
    let one = prop_oneof![
        4 => (1..25u32).prop_map(Happens::Pass),
        3 => (0..5usize, any::<bool>()).prop_map(|(which, all)| Happens::Supply(which, all)),
        1 => Just(Happens::Damage),
        1 => Just(Happens::Delete),
        2 => (0..2usize).prop_map(Happens::Restart),
        2 => (0..2usize).prop_map(Happens::Elect),
        5 => (0..2usize).prop_map(Happens::Sign),
    ];
    proptest::collection::vec(one, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever happens to the Secret and whoever leads, nothing that was signed is
    /// disbelieved before its end, and nothing signs before it is known: `check`.
    #[test]
    fn no_leaf_is_ever_disbelieved(happenings in happenings()) {
        let mut world = World::new();
        for happens in happenings {
            match happens {
                Happens::Pass(minutes) => world.now += MINUTE * minutes,
                Happens::Supply(which, all) => world.supply(&SUPPLY[which], all),
                Happens::Damage => world.put("tls.crt", "nonsense"),
                Happens::Delete => world.secret = None,
                // The other one goes on.
                Happens::Restart(replica) => world.replicas[replica] = None,
                Happens::Elect(replica) => world.leader = replica,
                Happens::Sign(replica) => world.sign(replica),
            }
            world.settle();
        }
    }
}
