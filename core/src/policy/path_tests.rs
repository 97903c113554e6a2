use super::*;
use proptest::prelude::*;

#[track_caller]
fn pattern(text: &str) -> PathPattern {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

fn denied(by: &str, path: &str) -> bool {
    pattern(by).may_be(&RequestPath::new(path))
}

fn allowed(by: &str, path: &str) -> bool {
    pattern(by).must_be(&RequestPath::new(path))
}

fn text(path: Vec<u8>) -> String {
    String::from_utf8(path).expect("a test's path")
}

/// Each of these reaches /admin/users on some server.
const SPELLINGS: [&str; 19] = [
    "/admin/users",
    "/admin/users/",
    "//admin/users",
    "/admin//users",
    "/./admin/users",
    "/public/../admin/users",
    "/public/%2e%2e/admin/users",
    "/public/%2E./admin/users",
    "/admin/./users",
    "/admin/users/x/..",
    "/admin/users/.",
    "/%61dmin/users",
    "/ADMIN/Users",
    "/%41DMIN/users",
    "/admin%2fusers",
    "/admin%252Fusers",
    "/admin%5cusers",
    "/admin\\users",
    "/admin;a=b/%2575sers;jsessionid=1",
];

/// On some server, and elsewhere on others.
const CLIMBS: [&str; 10] = [
    "/public/%252e%252e/admin/users",
    "/public/..%2fadmin/users",
    "/public/..;/admin/users",
    "/public/..;a=b/admin/users",
    "/public\\..\\admin/users",
    "/public/%5c../admin/users",
    "/public//../../admin/users",
    "/admin//../users",
    "/admin/users/%2f..",
    "/adm%2569n/users/x%5c..%5c..",
];

#[test]
fn no_spelling_evades_a_deny() {
    for path in SPELLINGS.into_iter().chain(CLIMBS) {
        assert!(denied("/admin/users", path), "{path}");
        assert!(denied("/admin/*", path), "{path}");
        assert!(denied("/Admin*", path), "{path}");
        assert!(denied("*", path), "{path}");
    }
    for path in SPELLINGS {
        assert!(
            !denied("/public", path) && !denied("/public/*", path),
            "{path}"
        );
    }
}

#[test]
fn no_spelling_gets_what_is_allowed_elsewhere() {
    let elsewhere = SPELLINGS
        .into_iter()
        .filter(|path| path.starts_with("/public"));
    for path in elsewhere.chain(CLIMBS) {
        assert!(!allowed("/public*", path), "{path}");
        assert!(!allowed("/public/*", path), "{path}");
        assert!(
            !allowed("/admin*", path) || SPELLINGS.contains(&path),
            "{path}"
        );
    }
    for path in SPELLINGS {
        assert!(allowed("*", path), "{path}");
    }
}

#[test]
fn an_allow_takes_equivalent_spellings_only() {
    for same in [
        "/admin/users",
        "/admin/./users",
        "/x/../admin/users",
        "/%61dmin/users",
    ] {
        assert!(allowed("/admin/users", same), "{same}");
        assert!(allowed("/admin/*", same), "{same}");
    }
    for other in [
        "/ADMIN/users",
        "//admin/users",
        "/admin/users/",
        "/admin%2fusers",
        "/admin/users;a",
        "/admin",
        "/admin/user",
    ] {
        assert!(!allowed("/admin/users", other), "{other}");
    }
    assert!(allowed("/admin/users/", "/admin/users/"));
    assert!(allowed("/files/a b", "/files/a%20b") || !allowed("/files/a%20b", "/files/a b"));
    assert!(allowed("/files/a%20b", "/files/a%20b"));
    assert!(allowed("/.well-known/*", "/.well-known/acme"));
    assert!(allowed("/", "/"));
    assert!(!allowed("/", "/x"));
}

#[test]
fn a_beginning_ends_where_it_says() {
    assert!(allowed("/api/*", "/api/v1"));
    assert!(allowed("/api/*", "/api/"));
    assert!(!allowed("/api/*", "/api"));
    assert!(!allowed("/api/*", "/apis"));
    assert!(allowed("/api*", "/apis"));
    assert!(denied("/api/*", "/api"), "a server may take it for /api/");
    assert!(!denied("/api/*", "/apis"));
    assert!(denied("/*", "/") && allowed("/*", "/") && allowed("/*", "/x"));
    assert!(allowed("/.*", "/.hidden") && !allowed("/.*", "/shown"));
}

#[test]
fn what_nobody_can_read_is_denied_and_not_allowed() {
    for path in [
        "/admin%00",
        "/public/%00/../../admin",
        "/a%0ab",
        "/%c0%ae%c0%ae/admin",
        "/%ff",
        "/%25%30%30",
        "admin",
    ] {
        assert!(denied("/somewhere/else", path), "{path}");
        assert!(!allowed("/admin*", path) && !allowed("/*", path), "{path}");
        assert!(allowed("*", path), "{path}");
    }
}

#[test]
fn the_asterisk_form_is_no_path() {
    assert!(!denied("/*", "*") && denied("*", "*"));
    assert!(!allowed("/*", "*") && allowed("*", "*"));
}

/// The examples of RFC 3986 §5.2.4 and §6.2.2.
#[test]
fn by_the_book_is_the_book() {
    let read = |path: &str| text(by_the_book(path.as_bytes(), false));
    assert_eq!(read("/a/b/c/./../../g"), "/a/g");
    assert_eq!(read("/a/./b/../b/%63/%7bfoo%7d"), "/a/b/c/%7Bfoo%7D");
    assert_eq!(read("/a/b/.."), "/a/");
    assert_eq!(read("/a/b/."), "/a/b/");
    assert_eq!(read("/../../a"), "/a");
    assert_eq!(read("/a//../b"), "/a/b");
    assert_eq!(read("/%7e%2d%2E"), "/~-.");
    assert_eq!(read("/%zz%2"), "/%zz%2");
    assert_eq!(read("/.."), "/");
}

#[test]
fn leniently_everything_is_undone() {
    let read = |path: &str| lenient(path.as_bytes(), false).map(text);
    assert_eq!(read("/a%2525252fb").as_deref(), Some("/a/b"));
    assert_eq!(read("/%2%35%36%31").as_deref(), Some("/a"));
    assert_eq!(read("/a;b/c;d;e/").as_deref(), Some("/a/c"));
    assert_eq!(read("/a/../../..").as_deref(), Some("/"));
    assert_eq!(read("/a/b/../").as_deref(), Some("/a"));
    assert_eq!(read("/a/%2f..").as_deref(), None);
    assert_eq!(read("/%zz").as_deref(), Some("/%zz"));
    assert_eq!(read("/caf%C3%A9").as_deref(), Some("/café"));
    assert_eq!(read("/%e0%80%ae"), None);
}

#[test]
fn wrong_patterns_are_refused_with_a_remedy() {
    let refused = |text: &str| text.parse::<PathPattern>().unwrap_err().to_string();
    assert_eq!(
        refused("admin"),
        "\"admin\" is not a path: begin it with /, or write * for any"
    );
    assert!(refused("").contains("begin it with /"));
    assert!(refused("*/admin").contains("begin it with /"));
    assert!(refused("/a?b=c").contains("without query"));
    assert!(refused("/a/*/b").contains("* at the end only"));
    assert!(refused("/a**").contains("* at the end only"));
    assert!(refused("/a%00").contains("control characters"));
}

fn paths() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("/"),
        Just("."),
        Just(".."),
        Just("%2e"),
        Just("%2F"),
        Just("%25"),
        Just("%"),
        Just("2"),
        Just("e"),
        Just("f"),
        Just("5"),
        Just("c"),
        Just("\\"),
        Just(";"),
        Just("a"),
        Just("A"),
        Just("%61"),
        Just("b"),
        Just("é"),
        Just("%c3%a9"),
        Just("0"),
    ];
    proptest::collection::vec(piece, 0..24).prop_map(|pieces| format!("/{}", pieces.concat()))
}

proptest! {
    /// Whoever asks for exactly what is written is meant by it.
    #[test]
    fn a_path_is_denied_by_itself(path in paths()) {
        if path.parse::<PathPattern>().is_ok() {
            prop_assert!(denied(&path, &path));
        }
    }

    #[test]
    fn an_allow_never_takes_what_a_deny_of_the_same_leaves(pattern in paths(), path in paths()) {
        for pattern in [pattern.clone(), format!("{pattern}*")] {
            if pattern.parse::<PathPattern>().is_ok() && allowed(&pattern, &path) {
                prop_assert!(denied(&pattern, &path), "{pattern} {path}");
            }
        }
    }

    /// Reading what was read changes nothing, so there is nothing left to undo.
    #[test]
    fn readings_are_final(path in paths()) {
        if is_well_formed(path.as_bytes()) {
            let once = by_the_book(path.as_bytes(), false);
            prop_assert_eq!(&by_the_book(&once, false), &once);
        }
        if let Some(once) = lenient(path.as_bytes(), false) {
            let again = lenient(&once, false);
            prop_assert_eq!(again.as_ref(), Some(&once));
            let odd = once.windows(2).any(|two| two == b"//")
                || once.contains(&b'\\')
                || once.contains(&b';')
                || once.split(|byte| *byte == b'/').any(|segment| [&b"."[..], b".."].contains(&segment));
            prop_assert!(!odd, "{}", text(once));
        }
    }

    /// The short way for ordinary paths is only short.
    #[test]
    fn a_plain_path_reads_as_it_is(path in paths()) {
        if is_plain(path.as_bytes()) {
            prop_assert_eq!(text(by_the_book(path.as_bytes(), false)), path.clone());
            prop_assert_eq!(lenient(path.as_bytes(), false).map(text), Some(path));
        }
    }

    /// Whatever a server undoes, and in whatever order, what it serves is denied.
    #[test]
    fn no_server_serves_what_is_denied(path in paths(), undone in undoings()) {
        let mut served = path.clone().into_bytes();
        for undo in &undone {
            served = undo.apply(&served);
        }
        if let Ok(served) = String::from_utf8(served)
            && !served.contains(['*', '?', '#'])
            && served.parse::<PathPattern>().is_ok()
        {
            prop_assert!(denied(&served, &path), "{path} is served as {served}: {undone:?}");
        }
    }

    /// And what is not allowed is not served for what is.
    #[test]
    fn no_server_serves_more_than_is_allowed(path in paths(), undone in undoings(), at in 1..8usize) {
        let begin: String = path.chars().take(at).collect();
        let wanted = format!("{begin}*");
        if !begin.contains(['%', '\\', ';', '.'])
            && wanted.parse::<PathPattern>().is_ok()
            && allowed(&wanted, &path)
        {
            let mut served = path.clone().into_bytes();
            for undo in &undone {
                served = undo.apply(&served);
            }
            let served = String::from_utf8_lossy(&served).into_owned();
            // Slashes merge, and one at the end may go.
            let squeeze = |text: &str| text.replace("//", "/").replace("//", "/").to_lowercase();
            let (served, begin) = (squeeze(&served) + "/", squeeze(&begin));
            prop_assert!(served.starts_with(&begin), "{path} is served as {served}: {undone:?}");
        }
    }

    #[test]
    fn any_text_is_survived(text in ".*", path in ".*") {
        if let Ok(pattern) = text.parse::<PathPattern>() {
            let path = RequestPath::new(&path);
            let _ = (pattern.may_be(&path), pattern.must_be(&path));
        }
    }
}

/// What servers do to a path before they look for what it names.
#[derive(Clone, Copy, Debug)]
enum Undo {
    Escapes,
    Backslashes,
    Parameters,
    EmptySegments,
    DotSegments,
    LastSlash,
    Case,
}

impl Undo {
    fn apply(self, path: &[u8]) -> Vec<u8> {
        let segments = || path.split(|byte| *byte == b'/');
        match self {
            Self::Escapes => decode_once(path),
            Self::Backslashes => path
                .iter()
                .map(|byte| if *byte == b'\\' { b'/' } else { *byte })
                .collect(),
            Self::Parameters => segments()
                .map(|segment| segment.split(|byte| *byte == b';').next().unwrap())
                .collect::<Vec<_>>()
                .join(&b'/'),
            Self::EmptySegments => {
                let mut merged = path.to_vec();
                merged.dedup_by(|a, b| *a == b'/' && *b == b'/');
                merged
            }
            Self::DotSegments => remove_dot_segments(path, false),
            Self::LastSlash => match path {
                [rest @ .., b'/'] if !rest.is_empty() => rest.to_vec(),
                _ => path.to_vec(),
            },
            Self::Case => path.to_ascii_lowercase(),
        }
    }
}

fn undoings() -> impl Strategy<Value = Vec<Undo>> {
    let undo = proptest::sample::select(vec![
        Undo::Escapes,
        Undo::Backslashes,
        Undo::Parameters,
        Undo::EmptySegments,
        Undo::DotSegments,
        Undo::LastSlash,
        Undo::Case,
    ]);
    proptest::collection::vec(undo, 0..8)
}

/// Every `%` begins an escape (RFC 3986 §2.1).
fn is_well_formed(path: &[u8]) -> bool {
    let percent = |at: &usize| path[*at] == b'%';
    (0..path.len())
        .filter(percent)
        .all(|at| escaped(b'%', &path[at + 1..]).is_some())
}

fn decode_once(path: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut rest = path;
    while let [byte, after @ ..] = rest {
        rest = after;
        decoded.push(match escaped(*byte, after) {
            Some(meant) => {
                rest = &after[2..];
                meant
            }
            None => *byte,
        });
    }
    decoded
}
