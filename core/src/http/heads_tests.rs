use super::*;
use crate::http::{Case, spelled};

fn so(names: &str) -> Option<HeaderValue> {
    (!names.is_empty()).then(|| names.parse().expect("names"))
}

impl Heads {
    /// Of a head with `count` headers.
    fn taken(&self, count: usize) -> Option<HeaderValue> {
        let mut headers = HeaderMap::new();
        for _ in 0..count {
            headers.append("x", HeaderValue::from_static(""));
        }
        self.take(&headers)
    }
}

/// A request that ends with its head.
fn request(name: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: shop\r\n{name}: X-a:b\r\n\r\n")
}

#[test]
fn only_what_is_not_usual_is_told() {
    let told = [
        ("Accept", ""),
        ("X-Request-ID", "X-Request-ID"),
        ("ETag", "ETag"),
        ("etag", "etag"),
        ("SOAPAction", "SOAPAction"),
        ("Sec-WebSocket-Key", "Sec-WebSocket-Key"),
        ("X_a-3d", ""),
        ("content-LENGTH", ""),
        ("dUET-client-id", ""),
    ];
    for (name, told) in told {
        let heads = Heads::default();
        heads.hear(request(name).as_bytes());
        assert_eq!(heads.taken(2), so(told), "{name}");
    }
}

#[test]
fn what_is_in_lower_case_needs_no_list() {
    let heads = Heads::default();
    for (head, told) in [
        ("host: shop\r\netag: x\r\n", LOWER),
        ("1: x\r\nhost: shop\r\n", ""),
        ("host: shop\r\netag: x\r\nX-One: x\r\n", "etag"),
        ("Host: shop\r\nX-One: x\r\n", ""),
    ] {
        heads.hear(format!("GET / HTTP/1.1\r\n{head}\r\n").as_bytes());
        let mut headers = HeaderMap::new();
        for _ in 0..head.matches(':').count() {
            headers.append("x", HeaderValue::from_static(""));
        }
        heads.note(&mut headers);
        assert_eq!(headers.get(SPELLING).cloned(), so(told), "{head}");
        let case = Case::of(&headers);
        assert_eq!(spelled(&mut headers, case).1, case, "{head}");
        assert!(!headers.contains_key(SPELLING), "{head}");
    }
}

#[test]
fn a_head_is_found_in_any_pieces_and_after_another() {
    let all = request("aB") + "\r\n" + &request("Usual") + &request("cD");
    for size in 1..all.len() {
        let heads = Heads::default();
        let mut told = Vec::new();
        for piece in all.as_bytes().chunks(size) {
            heads.hear(piece);
            // hyper asks for the next when it has answered the last, at any time later.
            if size % 2 == 0 {
                told.extend(heads.taken(2));
            }
        }
        while told.len() < 2 {
            let next = heads.taken(2);
            assert!(next.is_some() || heads.0.lock().ahead.len() > 30, "{size}");
            told.extend(next);
        }
        assert_eq!(told[0], "aB", "{size}");
        assert_eq!(told[1], "cD", "{size}");
        assert!(heads.0.lock().ahead.is_empty());
    }
}

#[test]
fn a_body_is_no_head() {
    let heads = Heads::default();
    let with_body = "PUT / HTTP/1.1\r\naB: c\r\ncontent-Length: 30\r\n\r\n";
    heads.hear(with_body.as_bytes());
    heads.hear(request("inBody").as_bytes());
    assert_eq!(heads.taken(2), so("aB"));
    assert_eq!(heads.taken(2), None);
    heads.expect();
    heads.hear(request("behindIt").as_bytes());
    assert_eq!(heads.taken(2), so("behindIt"));
    // One that was answered before it had come, and that hyper throws away.
    heads.hear(b"a\r\nB: c\r\n\r\nd");
    heads.hear(request("takenForIt").as_bytes());
    assert_eq!(heads.taken(2), None);
    heads.hear(request("behindIt").as_bytes());
    assert_eq!(heads.taken(2), so("behindIt"));
    heads.leave();
    heads.expect();
    heads.hear(request("noHttp").as_bytes());
    assert_eq!(heads.taken(2), None);
}

#[test]
fn an_answer_follows_those_that_come_before_it() {
    let heads = Heads::default();
    heads.hear(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n");
    heads.hear(b"HTTP/1.1 200 OK\r\nETag: x\r\n\r\nHTTP/1.1 200 OK\r\nbody: x\r\n\r\n");
    assert_eq!(heads.taken(1), so("ETag"));
    assert_eq!(heads.taken(1), None);
}

#[test]
fn what_is_too_long_is_let_go_and_the_next_is_not() {
    let heads = Heads::default();
    heads.hear(b"GET / HTTP/1.1\r\nlong: ");
    for _ in 0..100 {
        heads.hear(&[b'x'; 1000]);
        assert!(heads.0.lock().ahead.capacity() <= 2 * MOST);
    }
    assert_eq!(heads.taken(2), None);
    heads.expect();
    heads.hear(request("nExt").as_bytes());
    assert_eq!(heads.taken(2), so("nExt"));
}
