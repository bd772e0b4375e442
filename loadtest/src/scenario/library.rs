//! The scenarios that come with the harness. **Invariant:** each can be run as it is against a server on this machine within a
//! few minutes, but `soak`.

/// One of them.
#[derive(Debug, Clone, Copy)]
pub struct Ready {
    /// As on the command line.
    pub name: &'static str,
    /// The file.
    pub text: &'static str,
}

macro_rules! ready {
    ($($name:literal),* $(,)?) => {
        &[$(Ready { name: $name, text: include_str!(concat!("../../scenarios/", $name, ".toml")) }),*]
    };
}

/// All of them.
pub const ALL: &[Ready] = ready![
    "chat",
    "idle",
    "storm",
    "ramp",
    "drain",
    "slow-reader",
    "half-open",
    "fan-out",
    "group",
    "hot-mailbox",
    "cold-backlog",
    "roam",
    "wake",
    "mix",
    "soak",
];

/// The one of this name.
pub fn find(name: &str) -> Option<&'static Ready> {
    ALL.iter().find(|ready| ready.name == name)
}
