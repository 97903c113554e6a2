//! What the container runtime runs: environment and standard input in, JSON out.

use crate::api::{self, ApiError, Request};
use crate::passing;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::env;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Those whose results look as this plugin, which passes them on, expects.
pub(super) const SPOKEN: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// How long an agent may be away, being replaced or started again, before a pod's
/// creation fails. A kubelet tries again by itself.
const AWAY_FOR: Duration = Duration::from_secs(5);

/// How often it is looked for meanwhile.
const LOOK: Duration = Duration::from_millis(50);

/// Longer than an agent takes to answer: see [`super::admission`].
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
const STAMP: &str = "duet.dev/placement";

/// The specification's error codes, and from 100 on the plugin's own.
const ENVIRONMENT: u32 = 4;
const UNREADABLE: u32 = 5;
const UNDECODABLE: u32 = 6;
const CONFIGURATION: u32 = 7;
const TRY_AGAIN: u32 = 11;
const NOT_ENROLLED: u32 = 100;

struct Failure {
    code: u32,
    message: String,
}

/// This plugin's part of a network's configuration, as the runtime hands it over.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Configuration {
    cni_version: String,
    #[serde(default)]
    prev_result: Option<Value>,
    #[serde(default)]
    runtime_config: BTreeMap<String, Value>,
    socket: PathBuf,
    #[serde(default)]
    on_failure: OnFailure,
    /// Namespaces whose pods are never meshed: the agent's own first of all.
    #[serde(default)]
    exclude: Vec<String>,
}

/// What becomes of a pod that is to be meshed and cannot be.
#[derive(Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum OnFailure {
    /// It is not started; the kubelet tries again.
    #[default]
    Fail,
    /// It is started outside the mesh, until the agent finds it.
    Passthrough,
}

/// The pod, by `CNI_ARGS`.
struct Pod {
    workload: String,
    namespace: String,
    uid: String,
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    No,
    Yes,
    /// The agent knows, or nobody.
    Unknown,
}

/// Does what `CNI_COMMAND` says.
pub fn run() -> ExitCode {
    let command = env::var("CNI_COMMAND").unwrap_or_default();
    let outcome = match command.as_str() {
        "VERSION" => Ok(Some(json!({
            "cniVersion": SPOKEN[SPOKEN.len() - 1],
            "supportedVersions": SPOKEN,
        }))),
        "ADD" => add(),
        "CHECK" => check().map(|()| None),
        // The agent lets a pod go when discovery does, and that of itself. A pod must be
        // able to end, whatever has become of the configuration since it started.
        "DEL" | "GC" => {
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            Ok(None)
        }
        "STATUS" => configuration().map(|_| None),
        other => Err(Failure {
            code: ENVIRONMENT,
            message: format!(
                "CNI_COMMAND is {other:?}: this is run by a container runtime, with ADD, DEL, \
                 CHECK, GC, STATUS or VERSION"
            ),
        }),
    };
    let (said, code) = match outcome {
        Ok(said) => (said, ExitCode::SUCCESS),
        Err(Failure { code, message }) => (
            Some(json!({ "cniVersion": SPOKEN[SPOKEN.len() - 1], "code": code, "msg": message })),
            ExitCode::FAILURE,
        ),
    };
    if let Some(said) = said {
        println!("{said}");
    }
    code
}

fn add() -> Result<Option<Value>, Failure> {
    let configuration = configuration()?;
    let Some(result) = &configuration.prev_result else {
        return Err(Failure {
            code: CONFIGURATION,
            message: "there is no prevResult: it has to come after the plugin that makes the \
                      pod's network"
                .to_owned(),
        });
    };
    if let Some(pod) = pod()
        && configuration.wants(&pod) != Wanted::No
    {
        let is_stamped = configuration.wants(&pod) == Wanted::Yes;
        match admit(&configuration.socket, &pod, is_stamped) {
            Ok(()) => {}
            Err(failure) if configuration.on_failure == OnFailure::Fail => return Err(failure),
            Err(failure) => eprintln!(
                "duet-cni: {} starts outside the mesh: {}",
                pod.workload, failure.message
            ),
        }
    }
    let mut result = result.clone();
    result["cniVersion"] = configuration.cni_version.into();
    Ok(Some(result))
}

fn check() -> Result<(), Failure> {
    let configuration = configuration()?;
    let Some(pod) = pod() else {
        return Ok(());
    };
    if configuration.wants(&pod) != Wanted::Yes {
        return Ok(());
    }
    let listed = api::ask(&configuration.socket, &Request::List).map_err(|error| Failure {
        code: TRY_AGAIN,
        message: error.to_string(),
    })?;
    let mut listed = listed.workloads.unwrap_or_default().into_iter();
    let state = listed.find(|one| one.workload == pod.workload);
    match state.map(|one| one.state) {
        Some(crate::enrolment::State::Enrolled) => Ok(()),
        state => {
            let state = state.map_or("unknown to the agent", |state| state.as_str());
            Err(Failure {
                code: NOT_ENROLLED,
                message: format!("{} is not enrolled: {state}", pod.workload),
            })
        }
    }
}

fn configuration() -> Result<Configuration, Failure> {
    let mut text = String::new();
    io::stdin()
        .read_to_string(&mut text)
        .map_err(|error| Failure {
            code: UNREADABLE,
            message: format!("cannot read the configuration: {error}"),
        })?;
    let configuration: Configuration = serde_json::from_str(&text).map_err(|error| Failure {
        code: UNDECODABLE,
        message: format!("the configuration: {error}"),
    })?;
    if SPOKEN.contains(&configuration.cni_version.as_str()) {
        Ok(configuration)
    } else {
        Err(Failure {
            // Incompatible CNI version.
            code: 1,
            message: format!(
                "cniVersion is {:?}: write one of {}",
                configuration.cni_version,
                SPOKEN.join(", ")
            ),
        })
    }
}

/// None for a network namespace that is no pod's.
fn pod() -> Option<Pod> {
    let arguments = env::var("CNI_ARGS").unwrap_or_default();
    let value = |key: &str| {
        let mut pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
        let found = pairs.find(|(name, _)| *name == key);
        found.map(|(_, value)| value.to_owned())
    };
    let (namespace, name) = (value("K8S_POD_NAMESPACE")?, value("K8S_POD_NAME")?);
    Some(Pod {
        workload: format!("{namespace}/{name}"),
        namespace,
        uid: value("K8S_POD_UID").unwrap_or_default(),
    })
}

impl Configuration {
    fn wants(&self, pod: &Pod) -> Wanted {
        if self.exclude.contains(&pod.namespace) {
            return Wanted::No;
        }
        match self.runtime_config.get(ANNOTATIONS) {
            None => Wanted::Unknown,
            Some(annotations) if annotations[STAMP] == "agent" => Wanted::Yes,
            Some(_) => Wanted::No,
        }
    }
}

/// Waits until the agent has the pod's connections, or says that it is not to.
fn admit(socket: &Path, pod: &Pod, is_stamped: bool) -> Result<(), Failure> {
    let path = PathBuf::from(env::var_os("CNI_NETNS").unwrap_or_default());
    let netns = File::open(&path).map_err(|error| Failure {
        code: ENVIRONMENT,
        message: format!("CNI_NETNS, {}: {error}", path.display()),
    })?;
    let request = Request::Admit {
        workload: pod.workload.clone(),
        uid: pod.uid.clone(),
        netns: path,
        stamped: is_stamped,
    };
    let until = Instant::now() + AWAY_FOR;
    loop {
        match ask(socket, &request, &netns) {
            Ok(()) => return Ok(()),
            Err(ApiError::Refused(message)) if !message.contains(api::ASK_AGAIN) => {
                return Err(Failure {
                    code: NOT_ENROLLED,
                    message: format!("{} cannot be meshed: {message}", pod.workload),
                });
            }
            Err(error) if Instant::now() >= until => {
                return Err(Failure {
                    code: TRY_AGAIN,
                    message: format!("{} is to be meshed, and {error}", pod.workload),
                });
            }
            Err(_) => std::thread::sleep(LOOK),
        }
    }
}

/// One attempt. The namespace is passed as a file, for its path may mean nothing where
/// the agent is.
fn ask(socket: &Path, request: &Request, netns: &File) -> Result<(), ApiError> {
    let path = || socket.to_owned();
    let stream = UnixStream::connect(socket).map_err(|error| ApiError::Connect {
        path: path(),
        error,
    })?;
    let lost = |error| ApiError::Lost {
        path: path(),
        error,
    };
    let mut answers = BufReader::new(&stream);
    let mut answer = || {
        let mut line = String::new();
        match answers.read_line(&mut line) {
            Ok(0) => Err(lost(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => match api::understand(socket, &line)?.error {
                Some(error) => Err(ApiError::Refused(error)),
                None => Ok(()),
            },
            Err(error) => Err(lost(error)),
        }
    };
    let begin = || {
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        let mut text = serde_json::to_vec(request)?;
        text.push(b'\n');
        (&stream).write_all(&text)
    };
    begin().map_err(lost)?;
    answer()?;
    passing::send(&stream, &(), &[netns.as_fd()]).map_err(lost)?;
    answer()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wants(namespace: &str, runtime: &str) -> Wanted {
        let text = format!(
            r#"{{"cniVersion":"1.1.0","name":"pods","type":"duet-cni","socket":"/run/duet/agent.sock",
                "exclude":["duet-system"],"runtimeConfig":{runtime}}}"#
        );
        let configuration: Configuration = serde_json::from_str(&text).unwrap();
        let pod = Pod {
            workload: format!("{namespace}/web-0"),
            namespace: namespace.to_owned(),
            uid: String::new(),
        };
        configuration.wants(&pod)
    }

    #[test]
    fn the_stamp_decides_where_the_runtime_tells_of_it() {
        let told = |annotations: &str| format!("{{\"{ANNOTATIONS}\":{annotations}}}");
        let agents = told(r#"{"duet.dev/placement":"agent"}"#);
        assert_eq!(wants("default", &agents), Wanted::Yes);
        assert_eq!(wants("duet-system", &agents), Wanted::No);
        let sidecars = told(r#"{"duet.dev/placement":"sidecar"}"#);
        for others in [sidecars, told("{}"), told("null")] {
            assert_eq!(wants("default", &others), Wanted::No, "{others}");
        }
        assert_eq!(wants("default", "{}"), Wanted::Unknown);
    }
}
