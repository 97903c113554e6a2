//! The way to an API server, and what is asked of it before anything else.

use super::trouble::{Trouble, reason};
use crate::source::Rejected;
use http_body_util::BodyExt;
use k8s_openapi::apimachinery::pkg::version::Info;
use k8s_openapi::jiff::fmt::rfc2822::DateTimeParser;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The oldest API server that has what Duet needs, native sidecars first of all
/// (KEP-753, on by default since then).
pub const MIN_VERSION: (u32, u32) = (1, 29);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an API server may take to say its version.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Which cluster. By default the one whose pod duet-control runs in; outside of a
/// pod, the kubeconfig's current context.
#[derive(Clone, Debug, Default)]
pub struct ClusterArgs {
    pub kubeconfig: Option<PathBuf>,
    pub context: Option<String>,
}

/// An API server and how to talk to it.
#[derive(Clone)]
pub struct Cluster {
    pub client: Client,
    /// For messages.
    pub url: String,
}

/// What an API server says of itself.
#[derive(Clone, Debug)]
pub struct Answer {
    /// "v1.36.2".
    pub version: String,
    /// Major and minor; `None` if they are not numbers.
    pub number: Option<(u32, u32)>,
    /// Seconds by which this machine's clock is ahead of the API server's, to about
    /// a second.
    pub skew: Option<f64>,
}

// === impl Cluster ===

impl Cluster {
    /// Reads the configuration; connects to nothing.
    ///
    /// # Errors
    /// When there is no usable configuration.
    pub async fn new(args: &ClusterArgs) -> Result<Self, Rejected> {
        let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        let chosen = args.kubeconfig.is_some() || args.context.is_some();
        let mut config = if in_pod && !chosen {
            Config::incluster().map_err(|error| {
                Rejected::new(format!(
                    "the pod's service account cannot be used: {error}: leave \
                     automountServiceAccountToken on, or give --kubeconfig FILE"
                ))
            })?
        } else {
            from_kubeconfig(args).await?
        };
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // Watches have pauses of their own, and say why they pause.
        config.default_retry = false;
        let url = config.cluster_url.to_string();
        let client = Client::try_from(config)
            .map_err(|error| Rejected::new(format!("{url}: {}", reason(&error))))?;
        Ok(Self { client, url })
    }

    /// Asks for the version, and looks at the clock on the way.
    ///
    /// # Errors
    /// When there is no answer, or not the expected one.
    pub async fn ask(&self) -> Result<Answer, Trouble> {
        match tokio::time::timeout(ANSWER_TIMEOUT, self.version()).await {
            Ok(answer) => answer.map_err(|error| Trouble::of("get", "/version", &error)),
            Err(_) => Err(Trouble::Away(format!("no answer in {ANSWER_TIMEOUT:?}"))),
        }
    }

    async fn version(&self) -> Result<Answer, kube::Error> {
        let request = http::Request::get("/version")
            .body(Body::empty())
            .map_err(kube::Error::HttpError)?;
        let asked = now();
        let response = self.client.send(request).await?;
        let answered = now();
        let date = response.headers().get(http::header::DATE);
        let date = date.and_then(|value| DateTimeParser::new().parse_timestamp(value).ok());
        // The header has whole seconds, cut off.
        let skew =
            date.map(|date| f64::midpoint(asked, answered) - (seconds(date.as_second()) + 0.5));
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            let mut refusal: kube::core::Status = serde_json::from_slice(&body).unwrap_or_default();
            refusal.code = status.as_u16();
            return Err(kube::Error::Api(refusal.boxed()));
        }
        let info: Info = serde_json::from_slice(&body).map_err(kube::Error::SerdeError)?;
        let number = |text: &str| text.trim_end_matches('+').parse().ok();
        Ok(Answer {
            number: number(&info.major).zip(number(&info.minor)),
            version: info.git_version,
            skew,
        })
    }
}

async fn from_kubeconfig(args: &ClusterArgs) -> Result<Config, Rejected> {
    let options = KubeConfigOptions {
        context: args.context.clone(),
        ..KubeConfigOptions::default()
    };
    let found = match &args.kubeconfig {
        Some(path) => match Kubeconfig::read_from(path) {
            Ok(kubeconfig) => Config::from_custom_kubeconfig(kubeconfig, &options).await,
            Err(error) => Err(error),
        },
        None => Config::from_kubeconfig(&options).await,
    };
    found.map_err(|error| {
        Rejected::new(match &args.kubeconfig {
            Some(path) => format!(
                "--kubeconfig {}: {error}: give a file that `kubectl --kubeconfig` takes",
                path.display()
            ),
            None => format!(
                "--source kube: no Kubernetes to talk to, neither a pod's (no \
                 KUBERNETES_SERVICE_HOST) nor a kubeconfig's ({error}): give --kubeconfig FILE or \
                 set KUBECONFIG"
            ),
        })
    })
}

/// Seconds since the epoch by this machine's clock.
fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

#[expect(
    clippy::cast_precision_loss,
    reason = "seconds since the epoch have 31 bits"
)]
fn seconds(seconds: i64) -> f64 {
    seconds as f64
}
