use super::*;
use message::{Operation as To, Rule as ApiRule, Source as From};
use proptest::prelude::*;

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn policy(name: &str, action: message::Action, rules: Vec<ApiRule>) -> api::AuthorizationPolicy {
    api::AuthorizationPolicy {
        namespace: "shop".into(),
        name: name.into(),
        action: action.into(),
        rules,
    }
}

fn rule(from: Vec<From>, to: Vec<To>) -> ApiRule {
    ApiRule { from, to }
}

fn from_namespace(namespace: &str) -> From {
    From {
        namespaces: strings(&[namespace]),
        ..From::default()
    }
}

fn to_port(port: u32) -> To {
    To {
        ports: vec![port],
        ..To::default()
    }
}

fn to_path(path: &str) -> To {
    To {
        paths: strings(&[path]),
        ..To::default()
    }
}

fn authorization(policies: Vec<api::AuthorizationPolicy>) -> Option<Authorization> {
    let compiled: Vec<_> = policies
        .into_iter()
        .map(|policy| Policy::compile(policy, None))
        .collect();
    let names: Vec<String> = compiled.iter().map(|policy| policy.name.clone()).collect();
    Authorization::new(&names, |name| {
        compiled.iter().find(|policy| policy.name == name).cloned()
    })
}

/// Who asks, from where.
#[derive(Debug)]
struct Client {
    workload: Identity,
    peer: Option<Identity>,
    address: IpAddr,
}

impl Client {
    fn of(namespace: &str, account: &str) -> Self {
        Self {
            workload: Identity::new("duet.local", "shop", "web"),
            peer: Some(Identity::new("duet.local", namespace, account)),
            address: "10.0.0.9".parse().unwrap(),
        }
    }

    fn unmeshed() -> Self {
        Self {
            peer: None,
            ..Self::of("", "")
        }
    }

    fn bytes(&self, port: u16) -> Question<'_> {
        Question::of_bytes(&self.workload, self.peer.as_ref(), self.address, port)
    }

    fn get<'a>(&'a self, path: &'a str) -> Question<'a> {
        self.bytes(80).of_request("GET", path)
    }
}

fn allowed(authorization: &Option<Authorization>, question: &Question<'_>) -> bool {
    let decision = authorization.as_ref().map(|all| all.decide(question));
    decision.is_none_or(|decision| decision.allowed)
}

use message::Action::{Allow, Audit, Deny};

#[test]
fn without_policies_there_is_nothing_to_decide() {
    assert!(authorization(vec![]).is_none());
}

#[test]
fn an_allow_allows_whom_it_names_and_nobody_else() {
    let all = authorization(vec![policy(
        "p",
        Allow,
        vec![rule(vec![from_namespace("shop")], vec![to_port(80)])],
    )]);
    assert!(allowed(&all, &Client::of("shop", "cart").bytes(80)));
    assert!(!allowed(&all, &Client::of("shop", "cart").bytes(81)));
    assert!(!allowed(&all, &Client::of("other", "cart").bytes(80)));
    assert!(!allowed(&all, &Client::unmeshed().bytes(80)));
}

#[test]
fn a_deny_comes_before_every_allow() {
    let deny = policy("d", Deny, vec![rule(vec![], vec![to_path("/admin*")])]);
    let allow = policy("a", Allow, vec![rule(vec![], vec![])]);
    let client = Client::of("shop", "cart");
    for all in [[deny.clone(), allow.clone()], [allow, deny]] {
        let all = authorization(all.to_vec());
        assert!(allowed(&all, &client.get("/")));
        assert!(!allowed(&all, &client.get("/admin")));
        let all = all.unwrap();
        assert_eq!(all.decide(&client.get("/admin")).by.name(), "shop/d");
        assert_eq!(all.decide(&client.get("/")).by.name(), "shop/a");
    }
}

#[test]
fn one_allow_of_several_is_enough() {
    let all = authorization(vec![
        policy("a", Allow, vec![rule(vec![from_namespace("a")], vec![])]),
        policy("b", Allow, vec![rule(vec![from_namespace("b")], vec![])]),
    ]);
    assert!(allowed(&all, &Client::of("b", "x").bytes(80)));
    assert!(!allowed(&all, &Client::of("c", "x").bytes(80)));
}

#[test]
fn without_rules_nothing_matches_and_an_empty_rule_matches_all() {
    let client = Client::of("shop", "cart");
    let one = |action, rules| authorization(vec![policy("p", action, rules)]);
    let everything = || vec![ApiRule::default()];
    assert!(!allowed(&one(Allow, vec![]), &client.bytes(80)));
    assert!(allowed(&one(Allow, everything()), &client.bytes(80)));
    assert!(allowed(&one(Deny, vec![]), &client.bytes(80)));
    assert!(!allowed(&one(Deny, everything()), &client.bytes(80)));
}

#[test]
fn of_one_source_all_lists_must_match() {
    let source = From {
        identities: strings(&["duet.local/ns/shop/sa/*"]),
        namespaces: strings(&["shop", "other"]),
        ip_blocks: strings(&["10.0.0.0/24"]),
    };
    let all = authorization(vec![policy("p", Allow, vec![rule(vec![source], vec![])])]);
    let mut client = Client::of("shop", "cart");
    assert!(allowed(&all, &client.bytes(80)));
    client.address = "10.0.1.9".parse().unwrap();
    assert!(!allowed(&all, &client.bytes(80)));
    assert!(!allowed(&all, &Client::of("other", "cart").bytes(80)));
}

#[test]
fn opaque_bytes_are_denied_where_methods_or_paths_matter() {
    let to = || vec![to_path("/public*")];
    let client = Client::of("shop", "cart");
    let allow = authorization(vec![policy("p", Allow, vec![rule(vec![], to())])]);
    assert!(!allowed(&allow, &client.bytes(80)));
    assert!(allowed(&allow, &client.get("/public")));
    let deny = authorization(vec![policy("p", Deny, vec![rule(vec![], to())])]);
    assert!(!allowed(&deny, &client.bytes(80)));
    assert!(allowed(&deny, &client.get("/private")));
    let elsewhere = To {
        ports: vec![9000],
        ..to_path("/public*")
    };
    let deny = authorization(vec![policy("p", Deny, vec![rule(vec![], vec![elsewhere])])]);
    assert!(allowed(&deny, &client.bytes(80)), "another port");
}

#[test]
fn only_methods_and_paths_are_worth_a_look_at_the_bytes() {
    let asks = |action, to: To| {
        let rules = vec![rule(vec![from_namespace("shop")], vec![to])];
        let all = authorization(vec![policy("p", action, rules)]);
        all.is_some_and(|all| all.asks_for_requests(80))
    };
    assert!(asks(Allow, to_path("/a")) && asks(Deny, to_path("/a")));
    assert!(!asks(Allow, to_port(80)) && !asks(Deny, to_port(80)));
    let elsewhere = To {
        ports: vec![81],
        ..to_path("/a")
    };
    assert!(!asks(Allow, elsewhere));
    assert!(!asks(Audit, to_path("/a")), "it refuses nothing");
}

#[test]
fn an_audit_decides_nothing_and_matches_as_a_deny_would() {
    let all = authorization(vec![policy(
        "p",
        Audit,
        vec![rule(vec![], vec![to_path("/admin")])],
    )]);
    let client = Client::of("shop", "cart");
    for (path, seen) in [("/ADMIN/", 1), ("/other", 0)] {
        assert!(allowed(&all, &client.get(path)));
        let all = all.as_ref().unwrap();
        assert_eq!(all.audited(&client.get(path)).count(), seen, "{path}");
    }
}

#[test]
fn whoever_has_no_identity_is_not_denied_by_one() {
    let source = From {
        identities: strings(&["*"]),
        ..From::default()
    };
    let deny = authorization(vec![policy(
        "p",
        Deny,
        vec![rule(vec![source.clone()], vec![])],
    )]);
    assert!(allowed(&deny, &Client::unmeshed().bytes(80)));
    assert!(!allowed(&deny, &Client::of("shop", "cart").bytes(80)));
    let allow = authorization(vec![policy("p", Allow, vec![rule(vec![source], vec![])])]);
    assert!(!allowed(&allow, &Client::unmeshed().bytes(80)));
}

#[test]
fn another_trust_domains_namespace_is_not_ours() {
    let mut stranger = Client::of("shop", "cart");
    stranger.peer = Some(Identity::new("elsewhere", "shop", "cart"));
    let one = |action| {
        let rules = vec![rule(vec![from_namespace("shop")], vec![])];
        authorization(vec![policy("p", action, rules)])
    };
    assert!(!allowed(&one(Allow), &stranger.bytes(80)));
    assert!(!allowed(&one(Deny), &stranger.bytes(80)));
}

#[test]
fn what_cannot_be_read_refuses() {
    let client = Client::of("shop", "cart");
    let unreadable = |source: From, to: To| {
        for action in [Allow, Deny] {
            let rules = vec![rule(vec![source.clone()], vec![to.clone()])];
            let all = authorization(vec![policy("p", action, rules)]);
            assert!(
                !allowed(&all, &client.get("/x")),
                "{action:?} {source:?} {to:?}"
            );
        }
    };
    let block = From {
        ip_blocks: strings(&["10.0.0.0/33"]),
        ..From::default()
    };
    unreadable(block, To::default());
    let identity = From {
        identities: strings(&["a*b"]),
        ..From::default()
    };
    unreadable(identity, To::default());
    unreadable(from_namespace("No"), To::default());
    unreadable(From::default(), to_port(0));
    unreadable(From::default(), to_port(65_616));
    unreadable(From::default(), to_path("x"));
    let method = To {
        methods: strings(&["get"]),
        ..To::default()
    };
    unreadable(From::default(), method);

    let mut future = policy("p", Allow, vec![ApiRule::default()]);
    future.action = 99;
    assert!(!allowed(&authorization(vec![future]), &client.bytes(80)));
}

#[test]
fn a_policy_that_is_not_told_refuses() {
    let all = Authorization::new(&strings(&["shop/missing"]), |_| None);
    assert!(!allowed(&all, &Client::of("shop", "cart").bytes(80)));
}

#[test]
fn a_policy_told_again_is_the_same() {
    let told = policy("p", Deny, vec![ApiRule::default()]);
    let first = Policy::compile(told.clone(), None);
    let again = Policy::compile(told.clone(), Some(first.clone()));
    assert!(Arc::ptr_eq(&first, &again));
    let mut changed = told;
    changed.rules.clear();
    let changed = Policy::compile(changed, Some(first.clone()));
    assert_ne!(first, changed);
}

fn sources() -> impl Strategy<Value = From> {
    let words = |words: &'static [&'static str]| {
        proptest::sample::subsequence(words, 0..=words.len()).prop_map(|some| strings(&some))
    };
    (
        words(&[
            "duet.local/ns/shop/*",
            "*",
            "duet.local/ns/a/sa/b",
            "bad*word",
        ]),
        words(&["shop", "a", "Bad"]),
        words(&["10.0.0.0/8", "0.0.0.0/0", "192.168.0.0/16", "bad"]),
    )
        .prop_map(|(identities, namespaces, ip_blocks)| From {
            identities,
            namespaces,
            ip_blocks,
        })
}

fn operations() -> impl Strategy<Value = To> {
    let words = |words: &'static [&'static str]| {
        proptest::sample::subsequence(words, 0..=words.len()).prop_map(|some| strings(&some))
    };
    (
        proptest::sample::subsequence(vec![80u32, 81, 0], 0..=3),
        words(&["GET", "POST", "bad"]),
        words(&["/a", "/a/*", "*", "/b%2f*", "bad"]),
    )
        .prop_map(|(ports, methods, paths)| To {
            ports,
            methods,
            paths,
        })
}

prop_compose! {
    fn rules()(
        rules in proptest::collection::vec(
            (proptest::collection::vec(sources(), 0..3), proptest::collection::vec(operations(), 0..3)),
            0..3,
        )
    ) -> Vec<ApiRule> {
        rules.into_iter().map(|(from, to)| rule(from, to)).collect()
    }
}

prop_compose! {
    fn clients()(meshed: bool, namespace in 0..3usize, address in 0..3usize) -> Client {
        let mut client = match meshed {
            true => Client::of(["shop", "a", "b"][namespace], "b"),
            false => Client::unmeshed(),
        };
        client.address = ["10.0.0.1", "192.168.0.1", "fd00::1"][address].parse().unwrap();
        client
    }
}

proptest! {
    /// Of the same rules an ALLOW never means more than a DENY.
    #[test]
    fn doubt_is_never_in_the_clients_favour(
        rules in rules(),
        client in clients(),
        port in 80..82u16,
        request in proptest::option::of((0..3usize, 0..5usize)),
    ) {
        let question = || {
            let bytes = client.bytes(port);
            match request {
                None => bytes,
                Some((method, path)) => bytes.of_request(
                    ["GET", "get", "PUT"][method],
                    ["/a", "/A/x", "/b/c", "/%00", "/b%2fc"][path],
                ),
            }
        };
        let allow = authorization(vec![policy("p", Allow, rules.clone())]);
        let deny = authorization(vec![policy("p", Deny, rules.clone())]);
        let audit = authorization(vec![policy("p", Audit, rules)]).unwrap();
        if allowed(&allow, &question()) {
            prop_assert!(!allowed(&deny, &question()));
        }
        let seen = audit.audited(&question()).count() == 1;
        prop_assert_eq!(seen, !allowed(&deny, &question()));
    }
}
