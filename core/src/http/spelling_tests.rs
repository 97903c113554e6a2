use super::*;

fn so(names: &str) -> Option<HeaderValue> {
    (!names.is_empty()).then(|| names.parse().expect("names"))
}

#[test]
fn a_server_has_a_habit() {
    let servers = [80, 81].map(|port| Habit::of(([10, 0, 0, 1], port).into()));
    servers[0].becomes(Case::Lower);
    assert_eq!(servers.map(Habit::case), [Case::Lower, Case::Title]);
    servers[0].becomes(Case::Title);
    assert_eq!(servers.map(Habit::case), [Case::Title; 2]);
}

/// What hyper writes of an answer with these headers, whose names were spelled so.
async fn written(case: Case, names: &str, headers: &[&'static str]) -> String {
    let (io, mut far) = tokio::io::duplex(4096);
    let service = service_fn(async |_: Request<Incoming>| {
        let mut response = Response::new(String::new());
        for name in headers {
            response
                .headers_mut()
                .append(*name, HeaderValue::from_static("1"));
        }
        if let Some(spelling) = so(names) {
            response.headers_mut().insert(SPELLING, spelling);
        }
        let (told, _) = spelled(response.headers_mut(), case);
        response.extensions_mut().extend(told);
        Ok::<_, Infallible>(response)
    });
    let connection = http1::Builder::new()
        .auto_date_header(false)
        .title_case_headers(case == Case::Title)
        .serve_connection(TokioIo::new(io), service);
    let asked = async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        far.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut read = String::new();
        far.read_to_string(&mut read).await.unwrap();
        read
    };
    tokio::join!(connection, asked).1
}

#[tokio::test]
async fn names_are_written_as_they_were_spelled() {
    let headers = ["etag", "x-low", "x-low", "x-other", "duet-client-id"];
    // The second time it is known.
    for case in [Case::Title, Case::Lower, Case::Title, Case::Lower] {
        let names = "ETag,content-length,transfer-encoding,no name,x-LOW,x-LOW,DUET-client-id";
        let got = written(case, names, &headers).await;
        let head = "HTTP/1.0 200 OK\r\nETag: 1\r\nx-LOW: 1\r\nx-LOW: 1\r\nX-Other: 1\r\n";
        let rest = "Duet-Client-Id: 1\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(got, head.to_owned() + rest);
        let usual = written(case, "", &headers).await;
        let head = "HTTP/1.0 200 OK\r\nEtag: 1\r\nX-Low: 1\r\nX-Low: 1\r\nX-Other: 1\r\n";
        assert_eq!(usual, head.to_owned() + rest);
        let lower = written(case, LOWER, &headers).await;
        let lines = "etag: 1\r\nx-low: 1\r\nx-low: 1\r\nx-other: 1\r\n";
        assert!(lower.contains(lines), "{case:?}: {lower}");
    }
    let lower = written(Case::Lower, LOWER, &headers).await;
    assert!(
        lower.ends_with("\r\nduet-client-id: 1\r\ncontent-length: 0\r\n\r\n"),
        "{lower}"
    );
    // Of names that nobody had to tell.
    let many: Vec<_> = (0..80)
        .map(|at| &*format!("x-{at}-{}", "a".repeat(30)).leak())
        .collect();
    let got = written(Case::Lower, "", &many).await;
    assert!(got.contains("\r\nX-79-Aaaaa"), "{got}");
    // Anything may come from a peer.
    for index in 0..10 * MOST_KNOWN {
        let names = format!("{},x{index}", "a,".repeat(500));
        known(names.parse().unwrap(), Case::Title);
    }
    let got = written(Case::Title, "eTag", &["etag"]).await;
    assert!(got.contains("\r\neTag: 1\r\n"), "{got}");
}
