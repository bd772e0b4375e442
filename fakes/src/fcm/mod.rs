//! Firebase Cloud Messaging, HTTP v1, and the token endpoint of its accounts. **Invariant:** a message passes only with an
//! access token that this fake gave out and that has not expired.

mod message;
mod oauth;
mod rules;

use crate::codec;
use crate::error::FakeError;
use crate::host::{Host, HostConfig, Versions};
use crate::script::Script;
use crate::tokens::{TokenState, Tokens};
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::KeyPair;
use oauth::Logins;
use rules::FcmRules;
use serde_json::json;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

/// What the fake of FCM is told.
#[derive(Debug, Clone)]
pub struct FcmConfig {
    /// As of every fake.
    pub host: HostConfig,
    /// Id of the Firebase project.
    pub project: String,
    /// How long an access token holds. Google's hold an hour.
    pub access_token_lifetime: Duration,
}

impl Default for FcmConfig {
    fn default() -> Self {
        Self {
            host: HostConfig::default(),
            project: "chappe-example".to_owned(),
            access_token_lifetime: Duration::from_secs(3599),
        }
    }
}

/// A fake of FCM. Has everything that [`Host`] has.
#[derive(Debug)]
pub struct Fcm {
    host: Host,
    project: String,
    service_account: String,
    tokens: Arc<Tokens>,
    logins: Arc<Logins>,
}

impl Fcm {
    /// Makes keys and listens.
    pub async fn start(config: FcmConfig) -> Result<Self, FakeError> {
        let wrong = |what: &str| FakeError::Keys(what.to_owned());
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).map_err(|_| wrong("RSA"))?;
        let der =
            AsDer::<aws_lc_rs::encoding::Pkcs8V1Der<'_>>::as_der(&pair).map_err(|_| wrong("PKCS #8"))?;
        let email = format!("push@{}.iam.gserviceaccount.com", config.project);
        let key_id = codec::hex(&codec::random::<20>());
        let tokens = Arc::new(Tokens::default());
        let mut made = None;
        let host = Host::start(config.host, Versions::Both, |address| {
            let logins = Arc::new(Logins::new(
                email.clone(),
                key_id.clone(),
                pair.public_key().as_ref().to_vec(),
                format!("https://{address}/token"),
                config.access_token_lifetime,
            ));
            made = Some(Arc::clone(&logins));
            let rules = FcmRules { project: config.project.clone(), tokens: Arc::clone(&tokens), logins };
            Ok(Arc::new(rules))
        })
        .await?;
        let logins = made.ok_or_else(|| wrong("token endpoint"))?;
        let service_account = json!({
            "type": "service_account",
            "project_id": config.project,
            "private_key_id": key_id,
            "private_key": codec::pem("PRIVATE KEY", der.as_ref()),
            "client_email": email,
            "client_id": "100000000000000000001",
            "token_uri": logins.audience(),
        });
        let service_account = serde_json::to_string_pretty(&service_account).unwrap_or_default();
        Ok(Self { host, project: config.project, service_account, tokens, logins })
    }

    /// The project's id.
    pub fn project(&self) -> &str {
        &self.project
    }

    /// The service account's JSON file, as Google's console gives it out. Secret, in tests as elsewhere.
    pub fn service_account_json(&self) -> &str {
        &self.service_account
    }

    /// Where access tokens come from: `token_uri` of the account.
    pub fn token_url(&self) -> &str {
        self.logins.audience()
    }

    /// What is to happen to requests for access tokens; messages have their own ([`Host::script`]).
    pub fn token_script(&self) -> &Script {
        self.host.login_script()
    }

    /// Every access token given out so far is refused from now on.
    pub fn revoke_access_tokens(&self) {
        self.logins.revoke();
    }

    /// A device token that was not handed out before.
    pub fn new_token(&self) -> String {
        let (name, secret) = (codec::random::<16>(), codec::random::<100>());
        format!("{}:APA91b{}", codec::base64url(&name), codec::base64url(&secret))
    }

    /// Sets what became of a device token. Every well-formed token is alive until then.
    pub fn set_token(&self, token: &str, state: TokenState) {
        self.tokens.set(token, state);
    }
}

impl Deref for Fcm {
    type Target = Host;
    fn deref(&self) -> &Host {
        &self.host
    }
}
