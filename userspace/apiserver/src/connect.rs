//! Credentials, and the client made of them.

use std::path::Path;
use std::sync::Arc;

use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::{Client, Error};
use tokio::sync::Semaphore;
use tracing::info;

use crate::fault::{Access, Fault};
use crate::patience::Patience;

/// An API server, and who we are to it. Cheap to clone.
#[derive(Clone)]
pub struct ApiServer {
    pub(crate) client: Client,
    /// Whose rights they are, for texts: `signetd`.
    account: &'static str,
    patience: Patience,
    /// What may be asked at a time.
    pub(crate) slots: Arc<Semaphore>,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer").field("account", &self.account).finish_non_exhaustive()
    }
}

/// Why there is no client: a mistake in the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {path}: {source}")]
    Kubeconfig {
        /// Which.
        path: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// This is no pod, or one without a token.
    #[error("not in a pod with a service account's token ({0}): give `kubeconfig`")]
    NotInCluster(Box<dyn std::error::Error + Send + Sync>),
    /// The client cannot be built from it.
    #[error("{0}")]
    Client(Box<dyn std::error::Error + Send + Sync>),
}

impl ApiServer {
    /// Reads the credentials, those of this pod where no kubeconfig is given. Nothing is asked yet, and the API server need
    /// not be there.
    ///
    /// # Errors
    /// The credentials cannot be used.
    pub async fn open(kubeconfig: Option<&Path>, account: &'static str) -> Result<Self, ConnectError> {
        let config = config(kubeconfig).await?;
        info!(api_server = %config.cluster_url, "using the API server");
        Self::with(config, account)
    }

    pub(crate) fn with(mut config: Config, account: &'static str) -> Result<Self, ConnectError> {
        // Who asks tries again itself, and says what went wrong.
        config.default_retry = false;
        let client = Client::try_from(config).map_err(|e| ConnectError::Client(e.into()))?;
        Ok(Self {
            client,
            account,
            patience: Patience::default(),
            slots: Arc::new(Semaphore::new(AT_A_TIME)),
        })
    }

    /// The same, with room for so many questions at a time of its own: where strangers can make us ask, that they take the
    /// room of nobody else.
    #[must_use]
    pub fn with_room_for(&self, questions: usize) -> Self {
        Self { slots: Arc::new(Semaphore::new(questions)), ..self.clone() }
    }

    /// The client, for what is neither followed nor asked for.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The namespace of the credentials: of this pod, or of the kubeconfig's context.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.client.default_namespace()
    }

    /// What an error means. A refusal counts as a missing right only once it has lasted.
    pub(crate) fn fault(&self, access: Access, error: &Error) -> Fault {
        let forbidden = matches!(error, Error::Api(status) if status.code == 403);
        let lasts = forbidden && self.patience.refused(&access, std::time::Instant::now());
        Fault::of(access, self.account, error, lasts)
    }

    /// It was allowed.
    pub(crate) fn allowed(&self, access: &Access) {
        self.patience.allowed(access);
    }
}

async fn config(kubeconfig: Option<&Path>) -> Result<Config, ConnectError> {
    let Some(path) = kubeconfig else {
        return Config::incluster().map_err(|e| ConnectError::NotInCluster(e.into()));
    };
    let error = |source| ConnectError::Kubeconfig { path: path.display().to_string(), source };
    let kubeconfig = Kubeconfig::read_from(path).map_err(|e| error(e.into()))?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|e| error(e.into()))
}

/// Questions that run at a time; followers do not count.
const AT_A_TIME: usize = 16;
