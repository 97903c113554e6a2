//! The next server of a chain. Each connection that is served keeps one of its own to it, as an
//! application with a pool as large as its clients' would.

use bytes::Bytes;
use http::header::HOST;
use http::{Request, Response, Uri};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use std::io;
use tokio::net::TcpStream;
use tokio::sync::Mutex;

/// The connection to it, once there is one.
#[derive(Default)]
pub struct Next(Mutex<Option<(String, SendRequest<Empty<Bytes>>)>>);

/// Whom to ask for what, if the path is one of a chain.
pub fn onward(uri: &Uri) -> Option<(String, String)> {
    let rest = uri.path_and_query()?.as_str().strip_prefix("/via/")?;
    let (to, path) = rest.split_once('/')?;
    Some((to.to_owned(), format!("/{path}")))
}

impl Next {
    /// Asks it.
    pub async fn ask(&self, to: &str, path: &str) -> io::Result<Response<Incoming>> {
        let mut kept = self.0.lock().await;
        let known = kept.take().filter(|(known, _)| known == to);
        let mut sender = None;
        if let Some((_, mut known)) = known {
            // The last answer has to be read to its end first.
            sender = known.ready().await.is_ok().then_some(known);
        }
        let mut sender = match sender {
            Some(sender) => sender,
            None => connect(to).await?,
        };
        let request = Request::get(path)
            .header(HOST, to)
            .body(Empty::new())
            .map_err(io::Error::other)?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(io::Error::other)?;
        *kept = Some((to.to_owned(), sender));
        Ok(answer)
    }
}

async fn connect(to: &str) -> io::Result<SendRequest<Empty<Bytes>>> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    tokio::spawn(connection);
    Ok(sender)
}
