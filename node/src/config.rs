//! Configuration in layers: defaults → file → environment → flags. **Invariant:** a key that nobody reads is refused.
//!
//! The environment's names are the keys in capitals behind `CHAPPE_`, `__` between the levels: `tls.key` is
//! `CHAPPE_TLS__KEY`. `CHAPPE_CONFIG` names the file; names in `CHAPPE_TEST_` belong to the tests.

use serde::{Serialize, de::DeserializeOwned};
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Exit code for a bad configuration (`EX_USAGE` of sysexits.h), before any port is bound.
pub const EXIT_BAD_CONFIG: i32 = 64;

/// Why a configuration is refused. Each message says where the mistake is and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("config_unreadable: {path}: {source}; check the path and its permissions")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that a setting names cannot be read.
    #[error("file_unreadable: {key} names {path}: {source}; check the path and its permissions")]
    File {
        /// The setting.
        key: String,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("config_syntax: {path}: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, column, what was expected.
        message: String,
    },
    /// A key that no part of the program reads.
    #[error("config_unknown_key: {place}: there is no setting \"{key}\"{hint}")]
    UnknownKey {
        /// File, environment or flag.
        place: String,
        /// The key, dotted.
        key: String,
        /// The nearest key that exists.
        hint: String,
    },
    /// A value of the wrong type or out of its bounds.
    #[error("config_value: {place}: {message}")]
    Value {
        /// File, environment or flag, and the key.
        place: String,
        /// What is wrong and what is allowed.
        message: String,
    },
}

impl ConfigError {
    /// A value that is well-formed but not allowed.
    pub fn value(key: &str, message: impl Into<String>) -> Self {
        Self::Value { place: key.into(), message: message.into() }
    }
}

/// Refuses a number that is out of its bounds.
pub fn between(key: &str, value: u32, low: u32, high: u32) -> Result<(), ConfigError> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::value(key, format!("{value} is not between {low} and {high}")))
}

/// Reads a file that a setting names, such as a key; its content is in no error.
pub fn read_file(path: &Path, key: &str) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|source| ConfigError::File { key: key.into(), path: path.to_owned(), source })
}

/// Reads a file that holds one secret as text; white space around it does not count. An empty path is no secret.
pub fn read_secret(path: &Path, key: &str) -> Result<String, ConfigError> {
    if path.as_os_str().is_empty() {
        return Ok(String::new());
    }
    let text = String::from_utf8(read_file(path, key)?)
        .map_err(|_| ConfigError::value(key, format!("{} holds no text", path.display())))?;
    Ok(text.trim().to_owned())
}

/// One variable of the process's environment that others set; `None`: it is not set, empty or no UTF-8.
pub fn variable(name: &str) -> Option<String> {
    #[allow(clippy::disallowed_methods, reason = "configuration is the one place that reads the environment")]
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The variables of the process's environment that begin with `CHAPPE_`.
pub fn environment() -> Vec<(String, String)> {
    let ours = |name: &String| name.starts_with("CHAPPE_") && !name.starts_with("CHAPPE_TEST_");
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| ours(name))
        .collect()
}

/// Merges the layers. Every key must appear in `T::default()` when that is serialized, so `T` has no `Option`s.
/// `flags` are `(dotted key, value)`; the file is `file`, else `CHAPPE_CONFIG`, else none.
pub fn load<T>(
    file: Option<&Path>,
    environment: &[(String, String)],
    flags: Vec<(&str, Value)>,
) -> Result<T, ConfigError>
where
    T: Serialize + DeserializeOwned + Default,
{
    let defaults =
        Table::try_from(T::default()).map_err(|error| ConfigError::value("defaults", error.to_string()))?;
    let mut merged = defaults.clone();
    let named =
        environment.iter().find(|(name, _)| name == "CHAPPE_CONFIG").map(|(_, value)| Path::new(value));
    if let Some(path) = file.or(named) {
        merge(&mut merged, read(path)?, &path.display().to_string(), "")?;
    }
    for (name, value) in environment.iter().filter(|(name, _)| name != "CHAPPE_CONFIG") {
        let key = name.trim_start_matches("CHAPPE_").to_lowercase().replace("__", ".");
        let value = typed(&defaults, &key, value, &format!("environment variable {name}"))?;
        merge(&mut merged, nested(&key, value), &format!("environment variable {name}"), "")?;
    }
    for (key, value) in flags {
        merge(&mut merged, nested(key, value), &format!("flag for {key}"), "")?;
    }
    merged.try_into().map_err(|error: toml::de::Error| ConfigError::value("configuration", error.message()))
}

/// As [`load`], with flags as a command line has them: `key=value`, the key dotted.
pub fn load_with<T>(
    file: Option<&Path>,
    environment: &[(String, String)],
    flags: &[String],
) -> Result<T, ConfigError>
where
    T: Serialize + DeserializeOwned + Default,
{
    let defaults =
        Table::try_from(T::default()).map_err(|error| ConfigError::value("defaults", error.to_string()))?;
    let mut typed_flags = Vec::new();
    for flag in flags {
        let Some((key, value)) = flag.split_once('=') else {
            return Err(ConfigError::value("--set", format!("\"{flag}\" is not key=value")));
        };
        typed_flags.push((key, typed(&defaults, key, value, &format!("flag --set {key}"))?));
    }
    load(file, environment, typed_flags)
}

fn read(path: &Path) -> Result<Table, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
        path: path.to_owned(),
        message: error.to_string(),
    })
}

fn nested(key: &str, value: Value) -> Table {
    let mut table = Table::new();
    match key.split_once('.') {
        None => table.insert(key.to_owned(), value),
        Some((head, rest)) => table.insert(head.to_owned(), Value::Table(nested(rest, value))),
    };
    table
}

fn lookup<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        None => table.get(key),
        Some((head, rest)) => lookup(table.get(head)?.as_table()?, rest),
    }
}

/// A variable's text as the type that the default has.
fn typed(defaults: &Table, key: &str, text: &str, name: &str) -> Result<Value, ConfigError> {
    let wrong =
        |what: &str| ConfigError::Value { place: name.to_owned(), message: format!("{what} is expected") };
    match lookup(defaults, key) {
        Some(Value::Integer(_)) => text.parse().map(Value::Integer).map_err(|_| wrong("a whole number")),
        Some(Value::Boolean(_)) => text.parse().map(Value::Boolean).map_err(|_| wrong("true or false")),
        Some(Value::Float(_)) => text.parse().map(Value::Float).map_err(|_| wrong("a number")),
        Some(Value::Array(_)) => Ok(Value::Array(
            text.split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| Value::String(item.into()))
                .collect(),
        )),
        Some(Value::Table(_)) => Err(wrong("a key inside this table (with __ and its name)")),
        Some(Value::String(_) | Value::Datetime(_)) | None => Ok(Value::String(text.to_owned())),
    }
}

fn merge(into: &mut Table, from: Table, place: &str, prefix: &str) -> Result<(), ConfigError> {
    for (key, value) in from {
        let dotted = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        let Some(present) = into.get_mut(&key) else {
            let hint = nearest(&key, into.keys())
                .map(|near| format!("; did you mean \"{near}\"?"))
                .unwrap_or_default();
            return Err(ConfigError::UnknownKey { place: place.to_owned(), key: dotted, hint });
        };
        match (present, value) {
            // Empty by default: entries have names of the reader's choice, and the type says what an entry may hold.
            (Value::Table(present), Value::Table(value)) if present.is_empty() => *present = value,
            (Value::Table(present), Value::Table(value)) => merge(present, value, place, &dotted)?,
            (present, value) if present.same_type(&value) => *present = value,
            (present, value) => {
                let message =
                    format!("\"{dotted}\" must be {}, not {}", present.type_str(), value.type_str());
                return Err(ConfigError::Value { place: place.to_owned(), message });
            }
        }
    }
    Ok(())
}

/// The candidate with the fewest edits, if there are at most three.
fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a String>) -> Option<&'a str> {
    candidates
        .map(|candidate| (edits(word, candidate), candidate.as_str()))
        .min()
        .filter(|(distance, _)| *distance <= 3)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance (V. I. Levenshtein, 1966), one row at a time.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::collections::BTreeMap;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Sample {
        listen: String,
        workers: u32,
        origins: Vec<String>,
        tls: Tls,
        apps: BTreeMap<String, Tls>,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Tls {
        key: PathBuf,
        off: bool,
    }

    impl Default for Sample {
        fn default() -> Self {
            Self {
                listen: "a".into(),
                workers: 1,
                origins: vec![],
                tls: Tls::default(),
                apps: BTreeMap::new(),
            }
        }
    }

    impl Default for Tls {
        fn default() -> Self {
            Self { key: PathBuf::new(), off: false }
        }
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    #[test]
    fn later_layers_win() {
        let file = file("listen = \"file\"\nworkers = 2\n[tls]\nkey = \"k\"\n");
        let env = env(&[
            ("CHAPPE_WORKERS", "3"),
            ("CHAPPE_TLS__OFF", "true"),
            ("CHAPPE_ORIGINS", "https://a, https://b"),
        ]);
        let loaded: Sample =
            load(Some(file.path()), &env, vec![("listen", Value::String("flag".into()))]).unwrap();
        assert_eq!(
            loaded,
            Sample {
                listen: "flag".into(),
                workers: 3,
                origins: vec!["https://a".into(), "https://b".into()],
                tls: Tls { key: "k".into(), off: true },
                apps: BTreeMap::new(),
            }
        );
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_one() {
        let file = file("[tls]\nkez = \"k\"\n");
        let error = load::<Sample>(Some(file.path()), &[], vec![]).unwrap_err().to_string();
        assert!(error.contains("\"tls.kez\"") && error.contains("did you mean \"key\""), "{error}");
        let error = load::<Sample>(None, &env(&[("CHAPPE_WORKER", "1")]), vec![]).unwrap_err().to_string();
        assert!(error.contains("CHAPPE_WORKER") && error.contains("\"workers\""), "{error}");
    }

    #[test]
    fn entries_of_a_map_have_names_of_their_own_and_known_keys() {
        let good = file("[apps.chat]\nkey = \"k\"\n[apps.\"chat.beta\"]\noff = true\n");
        let sample = load::<Sample>(Some(good.path()), &[], vec![]).unwrap();
        assert_eq!(sample.apps["chat"].key, PathBuf::from("k"));
        assert!(sample.apps["chat.beta"].off);
        let bad = file("[apps.chat]\nkez = \"k\"\n");
        let error = load::<Sample>(Some(bad.path()), &[], vec![]).unwrap_err().to_string();
        assert!(error.contains("kez"), "{error}");
    }

    #[test]
    fn wrong_types_and_broken_files_are_refused_with_their_place() {
        let wrong = file("workers = \"many\"\n");
        let error = load::<Sample>(Some(wrong.path()), &[], vec![]).unwrap_err().to_string();
        assert!(error.contains("\"workers\" must be integer"), "{error}");
        let broken = file("workers = \n");
        let error = load::<Sample>(Some(broken.path()), &[], vec![]).unwrap_err().to_string();
        assert!(error.starts_with("config_syntax"), "{error}");
        let error = load::<Sample>(Some(Path::new("/nowhere")), &[], vec![]).unwrap_err().to_string();
        assert!(error.starts_with("config_unreadable"), "{error}");
        let error =
            load::<Sample>(None, &env(&[("CHAPPE_TLS__OFF", "perhaps")]), vec![]).unwrap_err().to_string();
        assert!(error.contains("true or false"), "{error}");
    }

    #[test]
    fn the_file_can_be_named_by_the_environment() {
        let file = file("listen = \"named\"\n");
        let env = env(&[("CHAPPE_CONFIG", file.path().to_str().unwrap())]);
        assert_eq!(load::<Sample>(None, &env, vec![]).unwrap().listen, "named");
    }
}
