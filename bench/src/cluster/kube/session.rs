//! A conversation with an attendant, through the API server's exec.

use super::api::{Kube, one_line};
use crate::attend::protocol::{Ask, Question, Reply, decode, encode};
use crate::cluster::error::{ClusterError, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::AttachParams;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::{mpsc, oneshot};

/// How long an attendant may take to be there: exec starts a process in a
/// container, which a busy node is slow at.
const STARTING: Duration = Duration::from_secs(20);
/// Between API server and attendant; replies are a few ten KiB.
const BUFFER: usize = 64 << 10;
/// As much as is kept of what an attendant complains about.
const COMPLAINTS_MAX: usize = 4 << 10;

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<Value, String>>>>>;

/// Where an attendant is, or is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Post {
    pub namespace: String,
    pub pod: String,
    pub container: String,
    /// For `duet-bench attend`.
    pub arguments: Vec<String>,
}

/// An attendant, started when it is first asked and again if it is lost.
#[derive(Debug)]
pub struct Session {
    kube: Kube,
    post: Post,
    line: Mutex<Option<Line>>,
    next: AtomicU64,
}

#[derive(Debug)]
struct Line {
    questions: mpsc::UnboundedSender<String>,
    waiting: Waiting,
}

/// A question that has been asked.
#[derive(Debug)]
#[must_use = "the answer is what the question was asked for"]
pub struct Pending<T> {
    /// Its number, by which later questions may refer to it.
    pub id: u64,
    reply: oneshot::Receiver<Result<Value, String>>,
    who: String,
    kind: PhantomData<T>,
}

// === impl Session ===

impl Session {
    pub fn new(kube: &Kube, post: Post) -> Self {
        Self {
            kube: kube.clone(),
            post,
            line: Mutex::default(),
            next: AtomicU64::new(1),
        }
    }

    /// Starts the attendant if it is not there.
    pub fn open(&self) -> Result<()> {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        if line
            .as_ref()
            .is_some_and(|line| !line.questions.is_closed())
        {
            return Ok(());
        }
        let who = self.who();
        let opened = self.kube.until(
            &format!("start an attendant in {who}"),
            STARTING,
            connect(self.kube.clone(), self.post.clone()),
        )?;
        *line = Some(opened);
        Ok(())
    }

    /// Asks something.
    pub fn ask<T>(&self, ask: Ask) -> Result<Pending<T>> {
        self.open()?;
        let id = self.next.fetch_add(1, Ordering::SeqCst);
        let text = encode(&Question { id, ask }).map_err(|error| self.failed(error))?;
        let (tell, reply) = oneshot::channel();
        let line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let line = line
            .as_ref()
            .ok_or_else(|| self.failed("it is not there".to_owned()))?;
        line.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, tell);
        line.questions
            .send(text)
            .map_err(|_| self.failed("it has gone".to_owned()))?;
        Ok(Pending {
            id,
            reply,
            who: self.who(),
            kind: PhantomData,
        })
    }

    /// Asks something and waits for the answer.
    pub fn call<T: DeserializeOwned>(&self, ask: Ask, within: Duration) -> Result<T> {
        self.ask(ask)?.wait(&self.kube, within)
    }

    fn who(&self) -> String {
        format!("pod {}/{}", self.post.namespace, self.post.pod)
    }

    fn failed(&self, said: String) -> ClusterError {
        ClusterError::Kubernetes {
            what: format!("the attendant in {}", self.who()),
            said,
        }
    }
}

// === impl Pending ===

impl<T: DeserializeOwned> Pending<T> {
    /// Waits for the answer, unless interrupted.
    pub fn wait(self, kube: &Kube, within: Duration) -> Result<T> {
        let what = format!("the attendant in {}", self.who);
        let value = kube.until(&what, within, async {
            self.reply
                .await
                .unwrap_or_else(|_| Err("it has gone".to_owned()))
        })?;
        serde_json::from_value(value).map_err(|error| ClusterError::Kubernetes {
            what,
            said: format!("its answer: {error}"),
        })
    }
}

async fn connect(kube: Kube, post: Post) -> Result<Line, String> {
    let pods: Api<Pod> = Api::namespaced(kube.client.clone(), &post.namespace);
    let parameters = AttachParams::default()
        .container(&post.container)
        .stdin(true)
        .stdout(true)
        .stderr(true)
        .max_stdin_buf_size(BUFFER)
        .max_stdout_buf_size(BUFFER)
        .max_stderr_buf_size(BUFFER);
    let command = ["/duet-bench", "attend"]
        .into_iter()
        .map(str::to_owned)
        .chain(post.arguments.iter().cloned());
    let mut process = pods
        .exec(&post.pod, command, &parameters)
        .await
        .map_err(|error| one_line(&error))?;
    let (Some(mut stdin), Some(stdout), Some(mut stderr)) =
        (process.stdin(), process.stdout(), process.stderr())
    else {
        return Err("exec gave no streams".to_owned());
    };
    let (questions, mut asked) = mpsc::unbounded_channel::<String>();
    let waiting = Waiting::default();
    let listening = waiting.clone();
    kube.spawn(async move {
        let mut complaints = String::new();
        let mut lines = BufReader::new(stdout).lines();
        let mut buffer = [0; 1024];
        let mut hears_complaints = true;
        loop {
            tokio::select! {
                question = asked.recv() => {
                    let Some(question) = question else { break };
                    let sent = async {
                        stdin.write_all(question.as_bytes()).await?;
                        stdin.flush().await
                    };
                    if sent.await.is_err() {
                        break;
                    }
                }
                line = lines.next_line() => {
                    let Ok(Some(line)) = line else { break };
                    hear(&line, &listening);
                }
                read = stderr.read(&mut buffer), if hears_complaints => match read {
                    Ok(0) | Err(_) => hears_complaints = false,
                    Ok(read) if complaints.len() < COMPLAINTS_MAX => {
                        complaints += &String::from_utf8_lossy(&buffer[..read]);
                    }
                    Ok(_) => {}
                },
            }
        }
        asked.close();
        // Whoever still waits learns why there will be no answer.
        let last = complaints.lines().last().unwrap_or("it said nothing");
        let left = std::mem::take(&mut *listening.lock().unwrap_or_else(PoisonError::into_inner));
        for (_, waiting) in left {
            let _ = waiting.send(Err(format!("it has gone: {last}")));
        }
        drop(process);
    });
    Ok(Line { questions, waiting })
}

fn hear(line: &str, waiting: &Waiting) {
    let Ok(reply) = decode::<Reply>(line) else {
        return;
    };
    let tell = waiting
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .remove(&reply.id);
    if let Some(tell) = tell {
        let _ = tell.send(reply.said);
    }
}
