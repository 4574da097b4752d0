//! What `tidegate devices` asks the registry, as JSON on the control socket: one request a line, one answer a line.
//!
//! The same requests are answered without a socket when no gateway serves.

use serde::{Deserialize, Serialize};
use std::time::Duration;
use tidegate_state::registry::{
    ChangeError, Device, ImportLine, Login, NewDevice, Origin, Psk, Registry, Secret, parse_key,
};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Most devices in one answer to a list: about a megabyte.
pub const LIST_PART: usize = 4096;

/// A secret in a request; overwritten when dropped.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct Private(pub String);

impl std::fmt::Debug for Private {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Private(…)")
    }
}

/// A device to be registered.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct DeviceSpec {
    pub id: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tenant: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub client_ids: String,
}

/// A password.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LoginSpec {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub username: String,
    pub password: Private,
    /// It was generated, not chosen by somebody.
    pub generated: bool,
}

/// A pre-shared key, in hex or base64.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PskSpec {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub identity: String,
    pub key: Private,
}

/// A line of an import.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LineSpec {
    pub line: u64,
    #[serde(flatten)]
    pub device: DeviceSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<LoginSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub psk: Option<PskSpec>,
}

/// What is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    Add { device: DeviceSpec, login: Option<LoginSpec>, psk: Option<PskSpec> },
    Remove { id: String },
    Passwd { id: String, login: LoginSpec },
    Rotate { id: String, psk: PskSpec, grace_seconds: u64 },
    Revoke { id: String, identity: Option<String> },
    Show { id: String },
    List { after: Option<String> },
    Import { lines: Vec<LineSpec> },
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Answer {
    Done,
    Username {
        username: String,
    },
    Device {
        device: Box<Shown>,
    },
    /// In the order of their names; fewer than [`LIST_PART`] are the last.
    Devices {
        devices: Vec<Shown>,
    },
    Imported {
        added: u64,
        updated: u64,
        refused: Vec<(u64, String)>,
    },
    Failed {
        error: String,
    },
}

/// A device, without its secrets.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Shown {
    pub id: String,
    pub tenant: String,
    pub groups: Vec<String>,
    pub client_ids: String,
    /// Seconds since the Unix epoch.
    pub registered: u64,
    /// Seconds since the Unix epoch, 0 if it is not revoked.
    pub revoked: u64,
    pub username: String,
    /// How its password is hashed; only of a device that was asked for alone, as what follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
    pub identities: Vec<ShownIdentity>,
}

/// An identity, without its key.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ShownIdentity {
    pub identity: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_bits: Option<usize>,
    /// Until when an old key is valid as well, in seconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_key_until: Option<u64>,
}

impl DeviceSpec {
    pub fn device(&self) -> NewDevice {
        NewDevice {
            id: self.id.clone(),
            tenant: self.tenant.clone(),
            groups: self.groups.clone(),
            client_ids: self.client_ids.clone(),
        }
    }
}

impl LoginSpec {
    fn login(&self) -> Login {
        Login {
            username: self.username.clone(),
            password: Secret::new(self.password.0.as_bytes()),
            origin: if self.generated { Origin::Generated } else { Origin::Chosen },
        }
    }
}

impl PskSpec {
    fn psk(&self) -> Result<Psk, String> {
        let key = parse_key(&self.key.0).map_err(|error| error.to_string())?;
        Ok(Psk { identity: self.identity.clone().into_bytes(), key })
    }
}

impl LineSpec {
    /// What the registry takes, if that can be read from it.
    pub fn line(&self) -> Result<ImportLine, String> {
        Ok(ImportLine {
            line: self.line,
            device: self.device.device(),
            login: self.login.as_ref().map(LoginSpec::login),
            psk: self.psk.as_ref().map(PskSpec::psk).transpose()?,
        })
    }
}

/// Does what `request` asks.
pub fn answer(registry: &Registry, request: Request) -> Answer {
    try_answer(registry, request).unwrap_or_else(|error| Answer::Failed { error })
}

fn try_answer(registry: &Registry, request: Request) -> Result<Answer, String> {
    let said = |error: ChangeError| error.to_string();
    let done = |()| Answer::Done;
    match request {
        Request::Add { device, login, psk } => {
            let psk = psk.as_ref().map(PskSpec::psk).transpose()?;
            let login = login.as_ref().map(LoginSpec::login);
            registry.add(&device.device(), login.as_ref(), psk.as_ref()).map(done).map_err(said)
        }
        Request::Remove { id } => registry.remove(&id).map(done).map_err(said),
        Request::Passwd { id, login } => {
            let username = registry.set_login(&id, &login.login()).map_err(said)?;
            Ok(Answer::Username { username })
        }
        Request::Rotate { id, psk, grace_seconds } => {
            registry.rotate(&id, &psk.psk()?, Duration::from_secs(grace_seconds)).map(done).map_err(said)
        }
        Request::Revoke { id, identity } => {
            registry.revoke(&id, identity.as_deref().map(str::as_bytes)).map(done).map_err(said)
        }
        Request::Show { id } => {
            let device = registry.device(&id).map_err(|error| error.to_string())?;
            let device = device.ok_or_else(|| format!("there is no device {id}"))?;
            Ok(Answer::Device { device: Box::new(show(registry, id, device)?) })
        }
        Request::List { after } => {
            let devices = registry.list(after.as_deref(), LIST_PART).map_err(|error| error.to_string())?;
            Ok(Answer::Devices { devices: devices.into_iter().map(|(id, device)| brief(id, device)).collect() })
        }
        Request::Import { lines } => {
            let mut refused = Vec::new();
            let mut taken = Vec::with_capacity(lines.len());
            for line in &lines {
                match line.line() {
                    Ok(line) => taken.push(line),
                    Err(error) => refused.push((line.line, error)),
                }
            }
            let imported = registry.import(&taken).map_err(said)?;
            refused.extend(imported.refused);
            Ok(Answer::Imported { added: imported.added, updated: imported.updated, refused })
        }
    }
}

fn brief(id: String, device: Device) -> Shown {
    let identity =
        |identity: Vec<u8>| ShownIdentity { identity: String::from_utf8_lossy(&identity).into(), ..Default::default() };
    Shown {
        id,
        tenant: device.tenant,
        groups: device.groups,
        client_ids: device.client_ids,
        registered: device.since,
        revoked: device.revoked,
        username: device.username,
        hash: None,
        identities: device.identities.into_iter().map(identity).collect(),
    }
}

fn show(registry: &Registry, id: String, device: Device) -> Result<Shown, String> {
    let identities = device.identities.clone();
    let mut shown = brief(id, device);
    if !shown.username.is_empty() {
        let user = registry.user(&shown.username).map_err(|error| error.to_string())?;
        shown.hash = user.map(|user| user.hash.name().to_owned());
    }
    for (shown, identity) in shown.identities.iter_mut().zip(identities) {
        let Some(entry) = registry.identity(&identity).map_err(|error| error.to_string())? else { continue };
        shown.key_bits = Some(8 * entry.key.bytes().len());
        shown.old_key_until = entry.previous.map(|(_, until)| until);
    }
    Ok(shown)
}

/// A message as a line.
pub fn to_line(message: &impl Serialize) -> Zeroizing<Vec<u8>> {
    let mut line = Zeroizing::new(serde_json::to_vec(message).expect("it has only texts and numbers"));
    line.push(b'\n');
    line
}
